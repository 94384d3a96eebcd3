"""What stands before every route of every process: who may ask, how much, and for how long.

Each is a piece of ASGI middleware. `guard` puts all of them around an application, in this order:

1. `Faults`: an unexpected error is logged once, and answered with 500.
2. uvicorn's `ProxyHeadersMiddleware`, where proxies are named: a request is its sender's.
3. `Callers`: an address has a limit of requests.
4. `Sizes`: a request's line and headers have a limit.
5. `Visitors`: requests that a web page of another site makes are turned away.
6. `Gate` (`saga.auth.gate`), where callers have to be known.
7. `Bodies`: a body has a limit.
8. `Deadline`: an answer has a deadline.
9. `Heads`: what answers GET answers HEAD.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import math
import re
import socket
import time
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Final
from urllib.parse import urlsplit

from fastapi import FastAPI
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from saga.auth.access import Access, trail_of
from saga.auth.gate import Gate
from saga.runtime.metrics import refused
from saga.runtime.problem import Problem, headers_too_long, short, too_many, unavailable
from saga.runtime.rates import CallerRates
from saga.runtime.settings import HttpSettings

log = logging.getLogger(__name__)

SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""They change nothing (RFC 9110, section 9.2.1)."""
HOSTS_REMEMBERED_MAX: Final = 128
UNCOUNTED: Final = frozenset({"/livez", "/readyz"})
"""What supervisors and load balancers ask. It costs next to nothing, and a service that is alive
must not be restarted because another client behind the same address asks too much."""
TELL_SECONDS: Final = 60.0
"""From one line in the log about callers who ask too much to the next."""
_IPV6_NETWORK_BITS: Final = 64
"""What one line of an internet provider has at least: all of its addresses are one caller."""

_HOST: Final = re.compile(r"(\[[0-9a-fA-F:.]+\]|[^:\[\]/?#@\s]+)(?::\d*)?")


def guard(
    app: FastAPI, settings: HttpSettings, access: Access | None = None, *, process: str = "saga"
) -> None:
    """Put all of them around the application; `access` knows its callers, and what they may is kept
    in the audit trail of the `process`. Raises `SettingsError`."""
    names = [*settings.allowed_hosts, settings.http_host, socket.gethostname()]
    # The last one that is added is the first one that is asked.
    app.add_middleware(Heads)
    app.add_middleware(Deadline, seconds=settings.http_answer_seconds)
    app.add_middleware(Bodies, max_bytes=settings.body_max_bytes)
    if access is not None:
        app.add_middleware(
            Gate,
            access=access,
            trail=trail_of(settings, process),
            per_second=settings.auth_requests_per_second,
        )
    app.add_middleware(Visitors, allowed=names)
    app.add_middleware(Sizes, max_bytes=settings.http_headers_max_bytes)
    if settings.http_requests_per_second:
        app.add_middleware(Callers, per_second=settings.http_requests_per_second)
    if settings.proxies:
        app.add_middleware(ProxyHeadersMiddleware, trusted_hosts=settings.proxies)
    app.add_middleware(Faults)


def described(scope: Scope) -> str:
    """The request for the log: its method and its path, percent-encoded as it came."""
    return f"{scope['method']} {short(scope.get('raw_path', b'').decode('ascii', 'replace'))}"


class _Sent:
    """Passes an answer on, and knows whether it has begun."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.begun = False
        self.cut_off = False
        """From now on nothing is passed on: another middleware has answered."""

    async def __call__(self, message: Message) -> None:
        if not self.cut_off:
            self.begun = True
            await self._send(message)


class Faults:
    """Answers 500 where the application raises, and logs that once, with the traceback.

    Starlette's own way, a handler of `Exception`, raises it again for the server, which logs it
    again.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sent = _Sent(send)
        try:
            await self._app(scope, receive, sent)
        except Exception as error:
            if sent.begun or scope["type"] != "http":
                raise  # Nothing is left but to close the connection; the server logs it.
            log.error("%s failed", described(scope), exc_info=error)
            answer = Problem(500, "an internal error; the service's log tells more").response()
            await answer(scope, receive, send)


class Callers:
    """Turns away what an address asks beyond `per_second`, with 429 and the time to wait."""

    def __init__(
        self, app: ASGIApp, per_second: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._app = app
        self._per_second = per_second
        self._clock = clock
        self._rates = CallerRates(per_second, clock)
        self._told_at = -math.inf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and not _is_uncounted(scope):
            caller = network_of(scope)
            wait_seconds = self._rates.wait_seconds(caller)
            if wait_seconds > 0:
                refused("address_rate")
                await self._refusal(caller, wait_seconds).response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _refusal(self, caller: str, wait_seconds: float) -> Problem:
        if self._clock() - self._told_at >= TELL_SECONDS:
            self._told_at = self._clock()
            log.warning(
                "%s asks more than %g times a second and is told to wait; "
                "HTTP_REQUESTS_PER_SECOND sets that",
                short(caller),
                self._per_second,
            )
        return too_many(self._per_second, caller, wait_seconds)


def _is_uncounted(scope: Scope) -> bool:
    """Whether a request costs next to nothing: it may be one of `UNCOUNTED`, and brings no token
    or key that has to be checked."""
    return scope["path"] in UNCOUNTED and not any(
        name == b"authorization" for name, _ in scope.get("headers", ())
    )


def network_of(scope: Scope) -> str:
    """Who asks: an address, or, of IPv6, a network."""
    host: str = (scope.get("client") or ("unknown",))[0]
    if ":" not in host:
        return host
    try:
        address = ipaddress.IPv6Address(host)
    except ValueError:
        return host
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(ipaddress.IPv6Network((int(address), _IPV6_NETWORK_BITS), strict=False))


class Sizes:
    """Turns away requests whose line and headers are longer than `max_bytes` together.

    The server limits what it keeps of headers that are not whole yet, and not those that come in
    one piece.
    """

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and _head_bytes(scope) > self._max_bytes:
            refused("too_long")
            await headers_too_long(self._max_bytes).response()(scope, receive, send)
            return
        await self._app(scope, receive, send)


def _head_bytes(scope: Scope) -> int:
    line = len(scope["method"]) + len(scope.get("raw_path", b"")) + len(scope["query_string"])
    return line + sum(len(name) + len(value) + len(": \r\n") for name, value in scope["headers"])


class Visitors:
    """Turns away what a web page of another site asks in its visitor's name.

    A page may send requests to any address that its visitor's browser reaches, loopback and the
    inside of a company among them. It cannot read the answers, unless its own name is made to lead
    here (DNS rebinding): then the `Host` header still has that name. And it may send some `POST`
    requests without asking: those come with `Sec-Fetch-Site`, or from an old browser with `Origin`.

    A name without a dot cannot be had in the public DNS, so no foreign page has one: those, IP
    addresses and `localhost` are allowed, and so a container's name, a probe by a pod's address and
    a system on one machine need no settings. All other names have to be in `allowed`, where
    `*.example.com` stands for all names below that one, and `*` for all there are.
    """

    def __init__(self, app: ASGIApp, allowed: Iterable[str]) -> None:
        self._app = app
        self._allowed = frozenset(name.lower().rstrip(".") for name in allowed)
        self._remembered: Callable[[bytes], Problem | None] = lru_cache(HOSTS_REMEMBERED_MAX)(
            self._objection
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = dict(scope["headers"])
            host = headers.get(b"host")
            # Browsers always send one, simple health checks often do not.
            problem = self._remembered(host) if host else None
            if problem is None and scope["method"] not in SAFE_METHODS:
                problem = _of_another_site(headers, host)
            if problem is not None:
                refused("visitor")
                await problem.response()(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _objection(self, header: bytes) -> Problem | None:
        """What speaks against a `Host` header."""
        text = header.decode("latin-1")
        found = _HOST.fullmatch(text)
        if found is None:
            return Problem(400, f"the Host header {short(text)!r} names no host")
        name = found[1].lower().rstrip(".")
        if self._is_allowed(name):
            return None
        return Problem(
            421,
            f"this service is not known as {short(name)!r}; ask it by its address, or add the name "
            f"to HTTP_ALLOWED_HOSTS",
        )

    def _is_allowed(self, name: str) -> bool:
        if "." not in name or name.endswith(".localhost") or "*" in self._allowed:
            return True
        parents = (f"*{name[at:]}" for at, char in enumerate(name) if char == "." and at)
        return name in self._allowed or not self._allowed.isdisjoint(parents) or _is_address(name)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def _of_another_site(headers: dict[bytes, bytes], host: bytes | None) -> Problem | None:
    """The problem of a request that changes something, and that a page of another origin makes.

    As Go's `http.CrossOriginProtection` has it: what is no browser sends neither header.
    """
    site, origin = headers.get(b"sec-fetch-site"), headers.get(b"origin")
    if site is not None:
        if site in (b"same-origin", b"none"):
            return None
    elif origin is None or (host is not None and _authority(origin) == host.lower()):
        return None
    who = short((origin or b"another site").decode("latin-1"))
    return Problem(
        403,
        f"a page of {who} may not change anything here (Origin, Sec-Fetch-Site); send the request "
        f"from a program, or from a page of this service",
    )


def _authority(origin: bytes) -> bytes | None:
    try:
        return urlsplit(origin.lower()).netloc or None
    except ValueError:
        return None


class Bodies:
    """Turns away requests whose body is longer than `max_bytes`, announced or not. How long a
    client may take to send one is for the server to limit (`saga.runtime.server`)."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._max_bytes:
            await self._too_long()(scope, receive, send)
            return
        # Read it whole before the application does: what is within the limit fits in memory.
        messages: list[Message] = []
        length = 0
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return  # No client is left to be answered.
            messages.append(message)
            length += len(message.get("body", b""))
            if length > self._max_bytes:
                await self._too_long()(scope, receive, send)
                return
            if not message.get("more_body", False):
                break

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)

    def _too_long(self) -> JSONResponse:
        return Problem(413, f"the body may have at most {self._max_bytes} bytes").response()


class Deadline:
    """Answers 503 where the application has not begun to answer after `seconds`, and cancels it;
    and where the server cancels it, because it stops.

    What was to be done may then be done or not: a transaction that is under way is committed, or
    it is not. A client that asks again, under the same `Idempotency-Key` where there is one, learns
    it. The client has its answer even if a thread that the application waits for does not let it
    go.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        sent = _Sent(send)
        answering = asyncio.current_task()
        assert answering is not None  # noqa: S101 - this is a coroutine
        instead: list[asyncio.Task[None]] = []

        def give_up() -> None:
            if sent.begun:
                return
            sent.cut_off = True
            log.warning("%s was not answered within %g s", described(scope), self._seconds)
            within = f"within {self._seconds:g} s"
            answer = self._unfinished(scope["method"], within).response()
            instead.append(asyncio.create_task(answer(scope, receive, send)))
            answering.cancel()

        deadline = asyncio.get_running_loop().call_later(self._seconds, give_up)
        try:
            await self._app(scope, receive, sent)
        except asyncio.CancelledError:
            if answering.uncancel() or sent.begun:
                raise
            if not instead:  # It was the server, which stops and has waited long enough.
                problem = self._unfinished(scope["method"], "before the service stops")
                instead.append(asyncio.create_task(problem.response()(scope, receive, send)))
        except Exception as error:
            if not instead:
                raise
            log.warning("%s failed, after its deadline: %s", described(scope), error)
        finally:
            deadline.cancel()
        for answer in instead:
            await answer

    def _unfinished(self, method: str, when: str) -> Problem:
        if method in SAFE_METHODS:
            return unavailable(f"no answer {when}; try again later")
        return unavailable(
            f"not done {when}, and it may still be; ask again later, with the same "
            f"Idempotency-Key if you gave one"
        )


class Heads:
    """Answers HEAD with the headers that GET would have (RFC 9110, section 9.3.2)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return

        async def without_body(message: Message) -> None:
            if message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        await self._app({**scope, "method": "GET"}, receive, without_body)
