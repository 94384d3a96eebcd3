"""What stands before the routes of an application whose callers have to be known."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saga.auth.access import Access
from saga.auth.audit import AuditTrail
from saga.auth.caller import Caller, IssuerAway, NotAllowed
from saga.auth.scopes import ASKING, Asking, unknown
from saga.runtime.docs import FILES, PATH
from saga.runtime.metrics import refused
from saga.runtime.problem import short, too_many, unavailable
from saga.runtime.rates import CallerRates

READY: Final = "/readyz"
OPEN: Final = frozenset({"/livez", READY, "/metrics", "/openapi.json", PATH, *FILES})
"""Paths without authentication: whether the process works, its metrics, and what its routes are."""


class Gate:
    """Lets only known callers in, before anything of a request's body is read, and has each
    decision written down."""

    def __init__(
        self,
        app: ASGIApp,
        access: Access,
        trail: AuditTrail,
        per_second: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`per_second` limits what one caller may ask; 0 is no limit."""
        self._app = app
        self._access = access
        self._trail = trail
        self._rates = CallerRates(per_second, clock) if per_second else None
        self._per_second = per_second

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or (path := _path(scope)) in OPEN:
            told_more = scope["type"] == "http" and path == READY
            caller = await self._if_known(scope) if told_more else None
            await self._app({**scope, ASKING: Asking(caller)}, receive, send)
            return
        try:
            credentials = _credentials(scope)
            caller = self._access.known(credentials) or await self._access.caller(credentials)
        except NotAllowed as error:
            refused("unauthenticated")
            self._denied(scope, None, error.reason)
            await unknown(error).response()(scope, receive, send)
            return
        except IssuerAway:
            refused("issuer_away")
            self._denied(scope, None, "the issuer's keys are not known yet")
            answer = unavailable("tokens cannot be checked now; try again later")
            await answer.response()(scope, receive, send)
            return
        wait_seconds = self._rates.wait_seconds(caller.subject) if self._rates else 0.0
        if wait_seconds > 0:
            refused("caller_rate")
            self._denied(scope, caller, "asks too much")
            who = caller.name or caller.subject
            answer = too_many(self._per_second, who, wait_seconds)
            await answer.response()(scope, receive, send)
            return
        asking = Asking(caller, self._trail)
        inner = {**scope, ASKING: asking}

        def record(reason: str) -> None:
            if asking.decide is not None:
                asking.settle()
            if not asking.recorded:  # No route was asked: a path or a body that none can take.
                asking.recorded = True
                self._denied(inner, caller, reason)

        answering = Answering(send, record, self._trail)
        try:
            await self._app(inner, receive, answering)
        finally:
            answering.end()

    async def _if_known(self, scope: Scope) -> Caller | None:
        """Who asks for what is open to all, if they say that and it is true."""
        try:
            return await self._access.caller(_credentials(scope))
        except NotAllowed as error:
            if error.presented:
                self._denied(scope, None, error.reason)
        except IssuerAway:
            pass
        return None

    def _denied(self, scope: Scope, caller: Caller | None, reason: str) -> None:
        path = getattr(scope.get("route"), "path", None) or short(scope["path"])
        self._trail.decided(
            caller,
            action=f"{scope['method']} {path}",
            scope="",
            allowed=False,
            reason=reason,
            address=(scope.get("client") or ("",))[0],
        )


class Answering:
    """Hands on what a request is answered, and has it recorded before any of that goes out."""

    def __init__(self, send: Send, record: Callable[[str], None], trail: AuditTrail) -> None:
        """`record` is given why a request that no route took was denied, for the audit trail."""
        self._send = send
        self._record = record
        self._trail = trail
        self._recorded = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start" and not self._recorded:
            self._recorded = True
            self._record(f"answered {message['status']}")
            self._trail.keep()
        await self._send(message)

    def end(self) -> None:
        """The request is done with, answered or not."""
        if not self._recorded:
            self._recorded = True
            self._record("not answered")
        self._trail.keep()  # Also what was decided once the answer had begun.


def _path(scope: Scope) -> str:
    """The path within this application, which may be mounted in another."""
    path: str = scope["path"]
    below: str = scope.get("root_path", "")
    return path.removeprefix(below) if below else path


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
