"""The order service without what asks its routes' callers who they are: what the hook itself costs
while `AUTH` is off is the difference to the product.

    AUTH=off ... python -m bench.without_door
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute

from order_service.app import routes
from order_service.domain import PARTICIPANT
from order_service.store import TABLES
from saga.auth.caller import ANYBODY
from saga.auth.scopes import Needs
from saga.runtime.service import Running, Service, main
from saga.runtime.settings import Settings


def routes_without_door(running: Running) -> APIRouter:
    """The product's routes, which take no caller any more: any client is let in."""
    router = APIRouter()
    for route in routes(running).routes:
        assert isinstance(route, APIRoute)
        names = [
            dependency.name
            for dependency in route.dependant.dependencies
            if isinstance(dependency.call, Needs) and dependency.name is not None
        ]
        router.add_api_route(
            route.path,
            _given_anybody(route.endpoint, names),
            methods=sorted(route.methods or ()),
            status_code=route.status_code,
        )
    return router


def _given_anybody(
    endpoint: Callable[..., Awaitable[Any]], names: list[str]
) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(endpoint)
    async def without(**given: Any) -> Any:
        return await endpoint(**given, **dict.fromkeys(names, ANYBODY))

    signature = inspect.signature(endpoint, eval_str=True)
    kept = [each for name, each in signature.parameters.items() if name not in names]
    vars(without)["__signature__"] = signature.replace(parameters=kept)
    return without


if __name__ == "__main__":
    main(lambda _: Service(PARTICIPANT, TABLES, routes=routes_without_door), Settings)
