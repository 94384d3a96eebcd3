"""The console's application: what stands before its pages, what they have in common, and they."""

from __future__ import annotations

import logging
import mimetypes
from collections.abc import Callable
from http import HTTPStatus
from typing import Final

import httpx
import sqlalchemy as sa
from fastapi import APIRouter, FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.responses import RedirectResponse, Response, StreamingResponse
from pydantic_core import from_json
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from saga.console.access import (
    LOGGED_IN,
    OPEN_ROUTE,
    AuthenticationMiddleware,
    NotLoggedIn,
    declared,
    routes_in,
    session_of,
)
from saga.console.live import Sharing, is_live
from saga.console.pages import PAGES
from saga.console.settings import ConsoleSettings
from saga.console.site import Site, digest, security_policy, static
from saga.errors import Explained, InputError
from saga.http import said_by
from saga.runtime.doors import SAFE_METHODS, guard
from saga.runtime.headers import POLICY, SecurityHeaders
from saga.runtime.problem import PROBLEM, Problem, short

log = logging.getLogger(__name__)

READ_ONLY: Final = "this console shows, and changes nothing; start it with --write to change things"
NOT_LOGGED_IN: Final = (
    "The user is not logged in, or no longer: log in, and then ask again; nothing was done by this."
)
ALWAYS: Final = frozenset({"/login/key", "/logout"})
"""Forms that change nothing but who is logged in."""
LIVE: Final = "/live"
"""The stream of ticks."""
_FOREVER: Final = "public, max-age=31536000, immutable"

Routes = Callable[[Site], APIRouter]


def create(site: Site, settings: ConsoleSettings) -> FastAPI:
    """The application. Raises `RuntimeError` for a route that does not say who may."""
    app = FastAPI(
        title="saga console",
        openapi_url=None,
        redirect_slashes=False,
    )
    app.state.site = site
    app.add_middleware(PathPrefix, prefix=site.prefix)
    app.add_middleware(
        Sharing, ticker=site.ticker, apart=(LIVE, site.url(LIVE)), made_for=_made_for
    )
    app.add_middleware(ReadOnly, site=site)
    if site.access is not None:
        app.add_middleware(AuthenticationMiddleware, access=site.access)
    guard(app, settings)
    # Outside of what turns requests away: that is told on a page like any other.
    app.add_middleware(ProblemPages, site=site)
    own = {POLICY: security_policy().encode(), b"referrer-policy": b"same-origin"}
    app.add_middleware(SecurityHeaders, own=own)  # Without a referrer, forms have no Origin.
    for routes in PAGES:
        app.include_router(routes(site))

    @app.get("/static/{name}", dependencies=[OPEN_ROUTE])
    async def asset(name: str, v: str = "") -> Response:
        content = static(name)
        if content is None:
            raise HTTPException(404, f"there is no file {short(name)!r}")
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        caching = _FOREVER if v == digest(name) else "no-cache"
        return Response(content, media_type=kind, headers={"Cache-Control": caching})

    @app.get(LIVE, dependencies=[LOGGED_IN])
    async def live(request: Request) -> Response:
        session = session_of(request)
        whose = "" if session is None else session.caller.subject
        if not site.ticker.has_room_for(whose):
            raise Problem(429, "too many open pages are brought up to date: close some")
        return StreamingResponse(
            site.ticker.stream(whose),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )

    @app.get("/livez", dependencies=[OPEN_ROUTE])
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    for route in routes_in(app.routes):
        if declared(route) is None:
            raise RuntimeError(f"{route.path} does not say who may: declare it with `needs`")

    def trouble(request: Request, status: int, said: str) -> Response:
        return site.page(
            request, "trouble.html", title=HTTPStatus(status).phrase, status=status, said=said
        )

    @app.exception_handler(HTTPException)
    async def on_http(request: Request, error: HTTPException) -> Response:
        said = str(error.detail)
        if error.status_code == 404 and said == HTTPStatus(404).phrase:
            said = "There is no page of this address."
        return trouble(request, error.status_code, said)

    @app.exception_handler(NotLoggedIn)
    async def on_nobody(request: Request, _: NotLoggedIn) -> Response:
        page = site.below(request.url.path)
        page += f"?{request.url.query}" if request.url.query else ""
        if request.method in SAFE_METHODS and not is_live(request):
            return RedirectResponse(site.url("/login", page=page), 303)
        return trouble(request, 401, NOT_LOGGED_IN)

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> Response:
        said = "; ".join(
            f"{found['loc'][-1]}: {short(str(found['msg']))}" for found in error.errors()[:5]
        )
        return trouble(request, 422, said)

    @app.exception_handler(Problem)
    async def on_problem(request: Request, problem: Problem) -> Response:
        return trouble(request, problem.status, problem.detail)

    @app.exception_handler(InputError)
    async def on_input(request: Request, error: InputError) -> Response:
        return trouble(request, 422, str(error))

    @app.exception_handler(Explained)
    async def on_explained(request: Request, error: Explained) -> Response:
        return trouble(request, 503, str(error))

    @app.exception_handler(httpx.HTTPError)
    async def on_unreachable(request: Request, error: httpx.HTTPError) -> Response:
        return trouble(request, 503, f"A service cannot be asked ({said_by(error)}); does it run?")

    @app.exception_handler(sa.exc.DBAPIError)
    async def on_database(request: Request, error: sa.exc.DBAPIError) -> Response:
        log.warning("a database cannot be used: %s", error.orig)
        return trouble(request, 503, f"A database cannot be used: {error.orig}.")

    return app


class PathPrefix:
    """Serves pages with the prefix and without: some proxies leave it on, others take it off."""

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self._app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self._app({**scope, "root_path": self._prefix}, receive, send)


class ReadOnly:
    """Turns away everything that would change something, unless the console may."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app = app
        self._site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        changes = scope["type"] == "http" and scope["method"] not in SAFE_METHODS
        if changes and not self._site.write and not self._logs(scope):
            page = self._site.page(
                Request(scope), "trouble.html", title="Forbidden", status=403, said=READ_ONLY
            )
            await page(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _logs(self, scope: Scope) -> bool:
        """Whether it logs a user in or out, and changes nothing else."""
        return self._site.access is not None and self._site.below(scope["path"]) in ALWAYS


class ProblemPages:
    """Shows on a page what stands before all routes says as a problem: `saga.runtime.doors`."""

    def __init__(self, app: ASGIApp, site: Site) -> None:
        self._app = app
        self._site = site

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        problem: list[Message] = []

        async def unless_problem(message: Message) -> None:
            if problem or (message["type"] == "http.response.start" and _is_problem(message)):
                problem.append(message)
            else:
                await send(message)

        await self._app(scope, receive, unless_problem)
        if problem:
            start, *parts = problem
            status = start["status"]
            said = from_json(b"".join(part.get("body", b"") for part in parts))["detail"]
            page = self._site.page(
                Request({**scope, "root_path": self._site.prefix}),
                "trouble.html",
                title=HTTPStatus(status).phrase,
                status=status,
                said=said,
            )
            page.headers.update(_kept(start))
            await page(scope, receive, send)


def _kept(start: Message) -> dict[str, str]:
    """Of a problem's headers, those that count on a page too: when to come back."""
    return {n.decode(): v.decode() for n, v in start["headers"] if n.lower() == b"retry-after"}


def _made_for(request: Request) -> str | None:
    """Pages differ by who looks: by what they may, and by their forms. None for who is not logged
    in."""
    site: Site = request.app.state.site
    if site.access is None:
        return "all"
    session = session_of(request)
    return None if session is None else session.csrf


def _is_problem(start: Message) -> bool:
    return (b"content-type", PROBLEM.encode()) in start["headers"]
