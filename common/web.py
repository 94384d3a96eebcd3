"""The HTTP side every service has: health, metrics, problem details (RFC 9457), a body limit."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

from fastapi import FastAPI, Header, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from sqlalchemy.engine import Connection
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.kernel.database import Database
from common.limits import Plain
from common.metrics import exposition
from common.text import harmless

log = logging.getLogger(__name__)

PROBLEM = "application/problem+json"
BUSY_RETRY_SECONDS = 5
ERRORS_MAX = 20
"""What is wrong with a request, beyond which no more is listed."""
TOLD_MAX_CHARACTERS = 200
"""Of what a client has sent, in an answer that refuses it."""

_SCHEMA = {
    "title": "Problem",
    "type": "object",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string", "format": "uri-reference"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
    },
}

IdempotencyKey = Annotated[Plain | None, Header(min_length=1, max_length=128)]
"""The header of a request that, sent again, is done once."""

T = TypeVar("T")
Checks = Callable[[], Awaitable[dict[str, str]]]


class Problem(Exception):
    """An answer that is not the wished-for one, as RFC 9457 problem details."""

    def __init__(
        self, status: int, detail: str, *, headers: dict[str, str] | None = None, **more: object
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.detail = detail
        self.headers = headers
        self.more = more

    def response(self) -> JSONResponse:
        """The problem as a response."""
        content = {
            "type": "about:blank",
            "title": HTTPStatus(self.status).phrase,
            "status": self.status,
            "detail": harmless(self.detail),
            **self.more,
        }
        return JSONResponse(
            content, status_code=self.status, headers=self.headers, media_type=PROBLEM
        )


@contextmanager
def unless_away(database: Database) -> Iterator[None]:
    """Turns a request away, with `Problem`, that meets a database which is away."""
    try:
        yield
    except Exception as error:
        if not database.is_away(error):
            raise
        log.warning("the database is away, a request is turned away: %s", error)
        raise Problem(
            503,
            "the database is away; try again later",
            headers={"Retry-After": str(BUSY_RETRY_SECONDS)},
        ) from error


async def answer_from(database: Database, query: Callable[[Connection], T]) -> T:
    """What a request asks of a database. Raises `Problem` while that is away."""
    with unless_away(database):
        return await database.read(query)


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How a route declares in its OpenAPI document the problems it may answer with."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {PROBLEM: {"schema": _SCHEMA}},
        }
        for status in statuses
    }


def create_app(
    title: str,
    *,
    body_max_bytes: int,
    not_ready: Checks,
    before_scrape: Callable[[], Awaitable[None]],
) -> FastAPI:
    """An application with what every service serves.

    `not_ready` names each thing that is missing, with the reason; nothing means ready.
    `before_scrape` brings up to date what is measured only when somebody asks.
    """
    app = FastAPI(title=title, version="1", redoc_url=None)
    app.add_middleware(_BodyLimit, max_bytes=body_max_bytes)

    @app.get("/livez", tags=["operations"])
    async def livez() -> dict[str, str]:
        """The process runs."""
        return {"status": "alive"}

    @app.get("/readyz", tags=["operations"], response_model=None, responses=problems(503))
    async def readyz() -> dict[str, str] | JSONResponse:
        """Broker, database and consumers are there."""
        missing = await not_ready()
        if missing:
            detail = "; ".join(f"{thing}: {why}" for thing, why in missing.items())
            return Problem(503, detail, missing=missing).response()
        return {"status": "ready"}

    @app.get("/metrics", tags=["operations"])
    async def scrape(request: Request) -> Response:
        """Prometheus metrics, as text or in OpenMetrics, which has exemplars."""
        await before_scrape()
        content, media_type = exposition(request.headers.get("accept", ""))
        return Response(content, headers={"Content-Type": media_type})

    @app.exception_handler(Problem)
    async def on_problem(_: Request, problem: Problem) -> JSONResponse:
        return problem.response()

    @app.exception_handler(HTTPException)
    async def on_http(_: Request, error: HTTPException) -> JSONResponse:
        headers = dict(error.headers) if error.headers else None
        return Problem(error.status_code, str(error.detail), headers=headers).response()

    @app.exception_handler(RequestValidationError)
    async def on_invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        errors = [
            {"where": _short(".".join(map(str, found["loc"]))), "why": _short(_why(found))}
            for found in error.errors()[:ERRORS_MAX]
        ]
        detail = "; ".join(f"{found['where']}: {found['why']}" for found in errors[:5])
        return Problem(422, detail, errors=errors).response()

    @app.exception_handler(Exception)
    async def on_fault(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s failed", request.method, request.url.path, exc_info=error)
        return Problem(500, "an internal error; the service's log tells more").response()

    return app


def _short(text: str) -> str:
    """A text that may be the client's own, so that it can be told back."""
    cut = text if len(text) <= TOLD_MAX_CHARACTERS else f"{text[:TOLD_MAX_CHARACTERS]}…"
    return harmless(cut)


def _why(error: dict[str, Any]) -> str:
    if error["type"] == "json_invalid":
        return f"{error['msg']}: {error['ctx']['error']}"
    return str(error["msg"])


class _BodyLimit:
    """Turns away requests whose body is longer than `max_bytes`, announced or not."""

    def __init__(self, app: ASGIApp, max_bytes: int) -> None:
        self._app = app
        self._max_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        too_long = Problem(413, f"the body may have at most {self._max_bytes} bytes").response()
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self._max_bytes:
            await too_long(scope, receive, send)
            return
        # Read it whole before anybody else does: what is within the limit fits in memory.
        messages: list[Message] = []
        length = 0
        while True:
            message = await receive()
            messages.append(message)
            length += len(message.get("body", b""))
            if length > self._max_bytes:
                await too_long(scope, receive, send)
                return
            if message["type"] != "http.request" or not message.get("more_body", False):
                break

        async def replay() -> Message:
            return messages.pop(0) if messages else await receive()

        await self._app(scope, replay, send)
