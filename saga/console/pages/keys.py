"""What the keyboard does."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import Response
from starlette.requests import Request

from saga.console.access import LOGGED_IN
from saga.console.site import Site


def routes(site: Site) -> APIRouter:
    """`/keys`."""
    router = APIRouter()

    @router.get("/keys", dependencies=[LOGGED_IN])
    async def keys(request: Request) -> Response:
        return site.page(request, "keys.html", title="Keyboard")

    return router
