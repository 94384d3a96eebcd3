"""What the archive of any saga answers over HTTP: about every subject that it has events of."""

from __future__ import annotations

import base64
import binascii
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Self

from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from saga.archive import queries
from saga.archive.projection import Projection
from saga.archive.store import Fact
from saga.archive.subjects import Subject
from saga.archive.timeline import Hop, milliseconds, steps_of
from saga.auth.scopes import needs
from saga.limits import Moment, Text
from saga.message import Priority
from saga.runtime.kernel.database import Database
from saga.runtime.problem import Problem, problems
from saga.runtime.web import answer_from

PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 500
CURSOR_MAX: Final = 1_000
"""Characters. It holds a key in base64."""

Cursor = Annotated[str, Field(max_length=CURSOR_MAX)]


class SubjectSummary(BaseModel):
    """A subject as its events tell it, whatever saga it belongs to. Times are UTC.

    `kind` is what its saga calls such a subject; null if the signatures know no saga with events
    of these types. `ended_by` is the type of the event that ended it. `settled` says that it has
    ended and all effects of a cancelled one are undone; `open`, that by the types of its events
    a participant may owe one. `events` counts what was told of it.
    """

    model_config = ConfigDict(from_attributes=True)

    subject: str = Field(validation_alias="key")
    kind: str | None
    events: int = Field(validation_alias="sequence")
    types: tuple[str, ...]
    first_event_at: datetime
    last_event_at: datetime
    ended_by: str | None
    ended_at: datetime | None
    settled: bool
    open: bool
    duration_ms: float | None
    """From its first event to its end."""

    @classmethod
    def of(cls, subject: Subject) -> Self:
        return cls(
            key=subject.key,
            kind=subject.kind or None,
            sequence=subject.sequence,
            types=subject.types,
            first_event_at=subject.first_event_at,
            last_event_at=subject.last_event_at,
            ended_by=subject.ended_by,
            ended_at=subject.ended_at,
            settled=subject.settled,
            open=subject.open,
            duration_ms=milliseconds(subject.duration),
        )


class SubjectPage(BaseModel):
    """Some subjects, the latest first. `next` is to be given as `after` for those that follow."""

    subjects: list[SubjectSummary]
    next: str | None


class TimelineStep(BaseModel):
    """One event. `waited_ms` is how long its cause was on its way to the participant,
    `worked_ms` how long that had it in its hands; null where the cause is no event."""

    id: str
    type: str
    source: str
    time: datetime
    causation_id: str | None
    sequence: int | None
    priority: Priority
    attempt: int
    waited_ms: float | None
    worked_ms: float | None
    stream_offset: int | None
    data: Any

    @classmethod
    def of(cls, step: Hop) -> Self:
        attributes = step.attributes
        return cls(
            id=attributes.id,
            type=attributes.type,
            source=attributes.source,
            time=attributes.time,
            causation_id=attributes.causationid,
            sequence=attributes.sequence,
            priority=attributes.priority,
            attempt=attributes.attempt or 1,
            waited_ms=milliseconds(step.waited),
            worked_ms=milliseconds(step.worked),
            stream_offset=step.fact.stream_offset,
            data=from_json(step.fact.body).get("data"),
        )


class SubjectTimeline(BaseModel):
    """Every event about a subject, each after its cause."""

    subject: str
    steps: list[TimelineStep]


class SubjectsWanted(BaseModel):
    """Which subjects, and how many; all that is given has to fit. `type` is that of any of their
    events, and times are of their first."""

    model_config = ConfigDict(extra="forbid")

    subject: Text | None = None
    ended: bool | None = None
    ended_by: Text | None = None
    settled: bool | None = None
    open: bool | None = None
    type: Text | None = None
    since: Moment | None = None
    until: Moment | None = None
    limit: Annotated[int, Field(ge=1, le=PAGE_MAX)] = PAGE_DEFAULT
    after: Cursor | None = None

    @property
    def search(self) -> queries.Search:
        return queries.Search(**self.model_dump(exclude={"limit", "after"}))


Key = Annotated[Text, Path(description="What the subject is known by.")]


def routes(database: Database, projection: Projection) -> APIRouter:
    """`/subjects`."""
    router = APIRouter(tags=["subjects"])

    async def facts_of(subject: str) -> list[Fact]:
        facts = await answer_from(
            database, lambda connection: queries.facts_about(connection, [subject])
        )
        if not facts:
            raise Problem(404, f"nothing is known of {subject!r}")
        return facts

    @router.get("/subjects", responses=problems(422), dependencies=[needs("history:read")])
    async def search(wanted: Annotated[SubjectsWanted, Query()]) -> SubjectPage:
        """Subjects of all sagas, the latest first. `since` and `until` are about their first
        event."""
        seen = None if wanted.after is None else read_cursor(wanted.after)
        found = await answer_from(
            database,
            lambda connection: queries.search(connection, wanted.search, wanted.limit, seen),
        )
        more = len(found) == wanted.limit
        return SubjectPage(
            subjects=[SubjectSummary.of(subject) for subject in found],
            next=cursor(found[-1].first_event_at, found[-1].key) if more else None,
        )

    # Before the next one: a subject may have slashes in it.
    @router.get(
        "/subjects/{subject:path}/timeline",
        responses=problems(404, 422),
        dependencies=[needs("history:read", personal=True)],
    )
    async def timeline(subject: Key) -> SubjectTimeline:
        """Every event about a subject, each after its cause, with the time that each hop took."""
        steps = steps_of(await facts_of(subject))
        return SubjectTimeline(subject=subject, steps=[TimelineStep.of(step) for step in steps])

    @router.get(
        "/subjects/{subject:path}",
        responses=problems(404, 422),
        dependencies=[needs("history:read")],
    )
    async def get(subject: Key, at: Moment | None = None) -> SubjectSummary:
        """A subject as it stands, or as it stood `at` some time. One whose key ends in `/timeline`
        is found with `GET /subjects?subject=`."""
        facts = await facts_of(subject)
        told = (f.attributes for f in facts if at is None or f.attributes.time <= at)
        found = Subject(subject).after(told, projection.rules)
        if not found.sequence:
            raise Problem(
                404, queries.nothing_yet(f"{subject!r}", facts, projection.choreography, at)
            )
        return SubjectSummary.of(found)

    return router


def cursor(first_event_at: datetime, key: str) -> str:
    """The place in a listing after the subject of that key."""
    text = f"{first_event_at.isoformat()} {key}"
    return base64.urlsafe_b64encode(text.encode()).decode()


def read_cursor(text: str) -> tuple[datetime, str]:
    """What a cursor was made of. Raises `Problem`."""
    try:
        time, key = base64.urlsafe_b64decode(text).decode().split(" ", 1)
        moment = datetime.fromisoformat(time)
        # Beyond all limits it may be: it stands in a page that was given.
        if moment.utcoffset() == timedelta(0) and "\0" not in key:
            return moment, key
    except (ValueError, binascii.Error):
        pass
    raise Problem(422, f"after: {text!r} is no `next` of an earlier page")
