"""The messages behind a figure of the map."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Final

from fastapi import APIRouter, Query
from fastapi.responses import Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import from_json
from starlette.requests import Request

from saga.archive.messages import LOOKED_AT_MAX, FoundMessage, MessageSearch, find_messages
from saga.console.access import needs
from saga.console.moments import read_moment
from saga.console.site import Site, segment
from saga.dlq.quotations import masked
from saga.envelope import source_of
from saga.limits import ATTEMPT_MAX, INTEGER_MAX, Text

PAGE: Final = 25
BODY_CHARACTERS: Final = 1_200
"""Of a body, what is shown here; its saga's page has the whole."""
SECONDS_MAX: Final = 366 * 86_400.0
_SOURCE: Final = source_of("")


class MessagesWanted(BaseModel):
    """Which messages: `at` is the end of the time that is looked at, and `seconds` its length."""

    model_config = ConfigDict(extra="forbid")

    type: Annotated[list[Text], Field(max_length=50)] = []
    participant: Text | None = None
    cause: Text | None = None
    taken_by: Text | None = None
    attempt: Annotated[int, Field(ge=1, le=ATTEMPT_MAX)] = 1
    at: Annotated[str | None, Field(max_length=64)] = None
    seconds: Annotated[float | None, Field(gt=0, le=SECONDS_MAX)] = None
    before: Annotated[int | None, Field(ge=1, le=INTEGER_MAX)] = None

    @model_validator(mode="before")
    @classmethod
    def _left_blank(cls, given: Any) -> Any:
        """A form sends the fields that are left blank, too."""
        if not isinstance(given, dict):
            return given
        return {name: value for name, value in given.items() if value not in ("", [""])}

    @property
    def until(self) -> datetime | None:
        """Raises `Problem`."""
        return read_moment(self.at)

    @property
    def search(self) -> MessageSearch:
        until = self.until
        since = None
        if until is not None and self.seconds is not None:
            since = until - timedelta(seconds=self.seconds)
        return MessageSearch(
            since=since,
            until=until,
            types=self.type,
            source=None if self.participant is None else source_of(self.participant),
            cause=self.cause,
            attempt=self.attempt,
            taken_by=None if self.taken_by is None else source_of(self.taken_by),
        )

    @property
    def query(self) -> dict[str, Any]:
        """What is given, but for the place in the listing."""
        return self.model_dump(exclude={"before"}, exclude_none=True, exclude_defaults=True)


@dataclass(frozen=True)
class MessageRow:
    """A message, as a line of the table."""

    message: FoundMessage
    participant: str
    page: str
    body: str


def routes(site: Site) -> APIRouter:
    """`/messages`."""
    router = APIRouter()

    @router.get("/messages", dependencies=[needs("messages:read", personal=True)])
    async def messages(request: Request, wanted: Annotated[MessagesWanted, Query()]) -> Response:
        search = wanted.search
        found = await site.watched.read(
            lambda connection: find_messages(connection, search, PAGE, wanted.before)
        )
        graph = site.watched.graph
        return site.page(
            request,
            "messages.html",
            title="Messages",
            command="saga history export",
            still=True,
            wanted=wanted,
            search=search,
            found=found,
            rows=[_row(site, message, bare=site.clear(request)) for message in found.messages],
            types=[kind.type for kind in graph.recorded],
            participants=[participant.name for participant in graph.participants],
            looked_at_max=LOOKED_AT_MAX,
        )

    return router


def _row(site: Site, message: FoundMessage, *, bare: bool) -> MessageRow:
    return MessageRow(
        message,
        message.source.removeprefix(_SOURCE),
        site.url(f"/sagas/{segment(message.subject)}"),
        _body(message.body, bare=bare),
    )


def _body(body: bytes, *, bare: bool) -> str:
    """What a message says, or its shape."""
    try:
        said = from_json(body)
    except ValueError:
        return f"{len(body)} bytes that are no JSON"
    data = said.get("data") if isinstance(said, dict) else said
    text = json.dumps(data if bare else masked(data), indent=1, ensure_ascii=False)
    if len(text) <= BODY_CHARACTERS:
        return text
    return f"{text[:BODY_CHARACTERS]}… and {len(text) - BODY_CHARACTERS} characters more"
