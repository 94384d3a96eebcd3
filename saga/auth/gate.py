"""What stands before the routes of an application whose callers have to be known."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Receive, Scope, Send

from saga.auth import audit
from saga.auth.access import Access
from saga.auth.caller import Caller, IssuerAway, NotAllowed
from saga.auth.scopes import ASKING, Asking, unknown
from saga.runtime.docs import FILES, PATH
from saga.runtime.metrics import refused
from saga.runtime.problem import short, too_many, unavailable
from saga.runtime.rates import CallerRates

OPEN: Final = frozenset({"/livez", "/readyz", "/metrics", "/openapi.json", PATH, *FILES})
"""Paths without authentication: whether the process works, its metrics, and what its routes are."""


class Gate:
    """Lets only known callers in, before anything of a request's body is read."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        per_second: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`per_second` limits what one caller may ask; 0 is no limit."""
        self._app = app
        self._access = access
        self._rates = CallerRates(per_second, clock) if per_second else None
        self._per_second = per_second

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or _path(scope) in OPEN:
            await self._app({**scope, ASKING: Asking(None)}, receive, send)
            return
        try:
            caller = await self._access.caller(_credentials(scope))
        except NotAllowed as error:
            refused("unauthenticated")
            _denied(scope, None, error.reason)
            await unknown(error).response()(scope, receive, send)
            return
        except IssuerAway:
            refused("issuer_away")
            _denied(scope, None, "the issuer's keys are not known yet")
            answer = unavailable("tokens cannot be checked now; try again later")
            await answer.response()(scope, receive, send)
            return
        wait_seconds = self._rates.wait_seconds(caller.subject) if self._rates else 0.0
        if wait_seconds > 0:
            refused("caller_rate")
            _denied(scope, caller, "asks too much")
            who = caller.name or caller.subject
            answer = too_many(self._per_second, who, wait_seconds)
            await answer.response()(scope, receive, send)
            return
        asking = Asking(caller)
        try:
            await self._app({**scope, ASKING: asking}, receive, send)
        finally:
            asking.settle()


def _path(scope: Scope) -> str:
    """The path within this application, which may be mounted in another."""
    path: str = scope["path"]
    below: str = scope.get("root_path", "")
    return path.removeprefix(below)


def _credentials(scope: Scope) -> str:
    """The token or key of a request. Raises `NotAllowed`."""
    found = [value for name, value in scope["headers"] if name == b"authorization"]
    if not found:
        raise NotAllowed("neither a token nor a key came with it", presented=False)
    if len(found) > 1:
        raise NotAllowed("it has several Authorization headers")
    text: str = found[0].decode("latin-1")
    kind, _, credentials = text.partition(" ")
    if kind.lower() != "bearer" or not credentials.strip():
        raise NotAllowed("its Authorization header has no Bearer token")
    return credentials.strip()


def _denied(scope: Scope, caller: Caller | None, reason: str) -> None:
    audit.decided(
        caller,
        action=f"{scope['method']} {short(scope['path'])}",
        scope="",
        allowed=False,
        reason=reason,
        address=(scope.get("client") or ("",))[0],
    )
