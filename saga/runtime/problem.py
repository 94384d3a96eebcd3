"""Answers that are not the wished-for ones, as problem details (RFC 9457)."""

from __future__ import annotations

import math
from http import HTTPStatus
from typing import Any, Final

from fastapi.responses import JSONResponse

from saga.text import harmless

PROBLEM: Final = "application/problem+json"
BUSY_RETRY_SECONDS: Final = 5
TOLD_MAX_CHARACTERS: Final = 200
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


class Problem(Exception):
    """An answer that is not the wished-for one."""

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


def unavailable(detail: str) -> Problem:
    """A problem that goes away by itself: 503, with the time after which to try again."""
    return Problem(503, detail, headers={"Retry-After": str(BUSY_RETRY_SECONDS)})


def headers_too_long(max_bytes: int) -> Problem:
    """The problem of a request whose line and headers are beyond the limit."""
    return Problem(431, f"the request's line and headers may have at most {max_bytes} bytes")


def too_many(per_second: float, who: str, wait_seconds: float) -> Problem:
    """The problem of a caller who asks more than `per_second`, with the time to wait."""
    seconds = math.ceil(wait_seconds)
    return Problem(
        429,
        f"more than {per_second:g} requests a second from {short(who)}; ask again in {seconds} s",
        headers={"Retry-After": str(seconds)},
    )


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """How a route declares in its OpenAPI document the problems it may answer with."""
    return {
        status: {
            "description": HTTPStatus(status).phrase,
            "content": {PROBLEM: {"schema": _SCHEMA}},
        }
        for status in statuses
    }


def short(text: str) -> str:
    """A text that may be the client's own, so that it can be told back."""
    cut = text if len(text) <= TOLD_MAX_CHARACTERS else f"{text[:TOLD_MAX_CHARACTERS]}…"
    return harmless(cut)
