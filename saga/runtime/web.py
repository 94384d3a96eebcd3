"""The HTTP side every service has: health, metrics, problem details, what stands before routes."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from email.message import Message as Headers
from typing import Annotated, Any, Final, TypeVar

from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from prometheus_client import REGISTRY, CollectorRegistry
from pydantic import Field
from sqlalchemy.engine import Connection
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from saga.auth.access import access_of
from saga.auth.scopes import ASKING, Asking, OwnedByAnother, settle
from saga.limits import Plain
from saga.runtime.docs import documentation
from saga.runtime.doors import described, guard
from saga.runtime.headers import SecurityHeaders
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.rows import UnreadableRow
from saga.runtime.metrics import OPENMETRICS, TEXT, Scrapes, refused
from saga.runtime.problem import Problem, problems, short, unavailable
from saga.runtime.readiness import Readiness
from saga.runtime.settings import HttpSettings

log = logging.getLogger(__name__)

ERRORS_MAX: Final = 20
"""What is wrong with a request, beyond which no more is listed."""
ALWAYS: Final = (400, 408, 421, 429, 431, 503)
"""The problems that any request may meet: it cannot be read, is not sent in time, is meant for
another host, is one too many, is too long, or cannot be answered in time."""
CHANGING: Final = (403, 413)
"""Those that a request which changes something may meet besides."""
WITH_BODY: Final = (*CHANGING, 415, 422)
"""And those of one with a body."""

IdempotencyKey = Annotated[
    Annotated[str, Field(min_length=1, max_length=128), Plain] | None, Header()
]
"""The header of a request that, sent again, is done once."""

HEALTH: Final = "health:read"
"""The scope that it takes to be told why a process is not ready, beyond what is missing."""
WHY_NOT: Final = f"why, is told to who may {HEALTH}"

T = TypeVar("T")


@contextmanager
def unless_away(database: Database) -> Iterator[None]:
    """Turns a request away, with `Problem`, that meets a database which is away."""
    try:
        yield
    except Exception as error:
        if not database.is_away(error):
            raise
        cause = str(error).partition("\n")[0]
        log.warning("the database is away, a request is turned away: %s", cause)
        raise unavailable("the database is away; try again later") from error


async def answer_from(database: Database, query: Callable[[Connection], T]) -> T:
    """What a request asks of a database. Raises `Problem` while that is away."""
    with unless_away(database):
        return await database.read(query)


def create_app(
    title: str,
    settings: HttpSettings,
    *,
    readiness: Readiness,
    before_scrape: Callable[[], Awaitable[None]],
    registry: CollectorRegistry = REGISTRY,
    process: str = "saga",
) -> FastAPI:
    """An application with what every service serves; `serve_routes` adds a service's own.

    `before_scrape` brings up to date what is measured only when metrics are read. `process` is what
    its audit trail is called. Raises `SettingsError` where strangers would reach it, and that is
    not said on purpose.
    """
    app = FastAPI(
        title=title,
        version="1",
        docs_url=None,  # Its page fetches from elsewhere; ours does not.
        redoc_url=None,
        redirect_slashes=False,  # Where to, would be for the request's Host header to say.
        responses=problems(*ALWAYS),
    )
    access = access_of(settings)
    app.state.closed = access is not None
    guard(app, settings, access, process=process)
    app.add_middleware(SecurityHeaders)
    app.include_router(documentation(title))
    scrapes = Scrapes(before_scrape, registry)

    @app.get("/livez", tags=["operations"])
    async def livez() -> dict[str, str]:
        """The process runs. A supervisor may restart it where this does not answer."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["operations"], response_model=None)
    async def readyz(request: Request) -> dict[str, Any] | JSONResponse:
        """Broker, database and consumers were there when they were last looked at. `troubles` are
        what an operator should look into nevertheless. Why, is told to who may read that."""
        age = round(readiness.age_seconds, 1)
        missing, troubles = readiness.missing(), dict(readiness.troubles())
        if not _is_told_why(request):
            missing, troubles = (dict.fromkeys(found, WHY_NOT) for found in (missing, troubles))
        if missing:
            detail = "; ".join(f"{thing}: {why}" for thing, why in missing.items())
            return Problem(503, detail, missing=missing, checked_seconds_ago=age).response()
        return {
            "status": "ready",
            "checked_seconds_ago": age,
            "troubles": troubles,
        }

    @app.get(
        "/metrics",
        tags=["operations"],
        response_class=Response,
        responses={
            200: {
                "description": "Prometheus metrics",
                "content": {media: {"schema": {"type": "string"}} for media in (TEXT, OPENMETRICS)},
            }
        },
    )
    async def scrape(request: Request) -> Response:
        """Prometheus metrics, as text or in OpenMetrics, which has exemplars."""
        content, media_type = await scrapes.answer(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": media_type})

    @app.exception_handler(UnreadableRow)
    async def on_unreadable(request: Request, error: UnreadableRow) -> JSONResponse:
        log.error("%s: %s", described(request.scope), error)
        return Problem(500, str(error)).response()

    @app.exception_handler(OwnedByAnother)
    async def on_anothers(request: Request, problem: OwnedByAnother) -> JSONResponse:
        settle(request, "it is another's")
        refused("not_theirs")
        return problem.response()

    @app.exception_handler(Problem)
    async def on_problem(_: Request, problem: Problem) -> JSONResponse:
        return problem.response()

    @app.exception_handler(HTTPException)
    async def on_http(_: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers) if error.headers else None
        detail = str(error.detail)
        if error.status_code == 400 and error.__cause__ is not None:
            detail = f"the body cannot be read: {short(str(error.__cause__))}"
        return Problem(error.status_code, detail, headers=headers).response()

    @app.exception_handler(RequestValidationError)
    async def on_invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        unread = isinstance(error.body, bytes) and error.body
        if unread and (problem := _not_json(request.headers.get("content-type"))) is not None:
            return problem.response()
        errors = [
            {"where": short(".".join(map(str, found["loc"]))), "why": short(_why(found))}
            for found in error.errors()[:ERRORS_MAX]
        ]
        detail = "; ".join(f"{found['where']}: {found['why']}" for found in errors[:5])
        return Problem(422, detail, errors=errors).response()

    return app


def _is_told_why(request: Request) -> bool:
    """Whether who asks may read the texts of errors, in which addresses and paths may be."""
    asking: Asking | None = request.scope.get(ASKING)
    if asking is None:
        return True  # `AUTH` is off.
    caller = asking.caller
    return caller is not None and caller.owner is None and caller.may(HEALTH)


class Entrance:
    """What a server serves: an application that may give way to another one."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.app(scope, receive, send)


def starting_app(process: str, settings: HttpSettings) -> FastAPI:
    """What a process serves until its database is open, which takes as long as that is waited for
    or its tables are changed: it is alive, and not ready."""

    async def nothing() -> None: ...

    readiness = Readiness(known=lambda: {"database": "it is not open yet"})
    app = create_app(
        f"{process} service", settings, readiness=readiness, before_scrape=nothing, process=process
    )

    @app.exception_handler(404)
    async def not_yet(_: Request, __: HTTPException) -> JSONResponse:
        return unavailable("the service is starting; try again later").response()

    return app


def _not_json(content_type: str | None) -> Problem | None:
    """The problem of a body that is said to be something else, or nothing."""
    if not content_type:
        return Problem(415, "the Content-Type is missing; send the body as application/json")
    headers = Headers()
    headers["Content-Type"] = content_type
    kind = headers.get_content_type()
    if kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json")):
        return None
    return Problem(
        415,
        f"the Content-Type {short(content_type)!r} is not read here; send the body as "
        f"application/json",
    )


def _why(error: dict[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"{error['msg']}: {error['ctx']['error']}"
    return str(error["msg"])
