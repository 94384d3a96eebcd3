"""Questions to what the history service keeps; nothing here changes anything."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive.store import (
    Fact,
    Gap,
    LastRead,
    Stray,
    decoded,
    events,
    gaps,
    places,
    storable,
)
from saga.archive.subjects import SUBJECTS, Subject, around, subjects
from saga.choreography import Choreography
from saga.envelope import Attributes, Undecodable, rfc3339
from saga.message import Event
from saga.runtime.kernel.statements import any_of
from saga.runtime.kernel.tables import Utc


def place(connection: Connection) -> LastRead | None:
    """How far the stream was read; None if nothing was."""
    query = sa.select(places.c.offset, places.c.key, places.c.stream_number)
    row = connection.execute(query).first()
    return LastRead(*row) if row else None


def known_gaps(connection: Connection) -> list[Gap]:
    """What is missing of each stream that was read."""
    query = sa.select(gaps.c.first, gaps.c.last, gaps.c.stream_number)
    rows = connection.execute(query.order_by(gaps.c.stream_number, gaps.c.first))
    return [Gap(*row) for row in rows]


def facts_about(connection: Connection, subjects: Collection[str]) -> list[Fact]:
    """All events about these subjects, in the order in which they were recorded."""
    wanted = any_of(connection, events.c.subject, sorted(subjects))
    return facts_in(connection, ROWS.where(wanted).order_by(events.c.position))


ROWS: Final = sa.select(
    events.c.event_id,
    events.c.position,
    events.c.stream_offset,
    events.c.stream_number,
    events.c.recorded_at,
    events.c.body,
)
"""What `item_of` takes."""


def facts_in(connection: Connection, query: sa.Select[Any]) -> list[Fact]:
    """The events among these `ROWS`, but for those that are none any more; see `item_of`."""
    items = map(item_of, connection.execute(query))
    return [item for item in items if isinstance(item, Fact)]


def item_of(row: Any) -> Fact | Stray:
    """An event from its row. An older version, or another program, may have kept what is beyond the
    limits that hold now (`saga.limits`): such numbers cannot be computed with, so it is no
    event."""
    try:
        attributes = Attributes.of(row.body)
    except Undecodable as error:
        return Stray(
            key=storable(row.event_id),
            routing_key="",
            reason=error.reason,
            detail=f"kept as an event, but beyond what this version takes for one: {error}",
            body=row.body,
            stream_offset=row.stream_offset,
            recorded_at=row.recorded_at,
            stream_number=row.stream_number,
        )
    return Fact(
        attributes, row.body, row.stream_offset, row.position, row.recorded_at, row.stream_number
    )


@dataclass(frozen=True, slots=True)
class Search:
    """Which subjects: those that fit everything that is given. Times are of their first event, from
    `since` to before `until`; `type` is that of any of their events."""

    subject: str | None = None
    ended: bool | None = None
    ended_by: str | None = None
    settled: bool | None = None
    open: bool | None = None
    type: str | None = None
    since: datetime | None = None
    until: datetime | None = None


def search(
    connection: Connection, wanted: Search, limit: int, after: tuple[datetime, str] | None = None
) -> list[Subject]:
    """At most `limit` subjects, the latest first; `after` is first event and key of the last one
    that was seen already."""
    table = subjects.c
    given = (
        (table.subject, wanted.subject),
        (table.ended_by, wanted.ended_by),
        (table.settled, wanted.settled),
    )
    conditions = [column == value for column, value in given if value is not None]
    if wanted.open is not None:
        conditions.append(IS_OPEN if wanted.open else ~IS_OPEN)
    if wanted.ended is not None:
        at = table.ended_at
        conditions.append(at.is_not(None) if wanted.ended else at.is_(None))
    if wanted.type is not None:
        conditions.append(
            sa.type_coerce(table.types, sa.Text).contains(around(wanted.type), autoescape=True)
        )
    if wanted.since is not None:
        conditions.append(table.first_event_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(table.first_event_at < wanted.until)
    if after is not None:
        seen = sa.tuple_(sa.literal(after[0], Utc), sa.literal(after[1]))
        conditions.append(sa.tuple_(table.first_event_at, table.subject) < seen)
    newest = table.first_event_at.desc(), table.subject.desc()
    query = sa.select(table.subject).where(*conditions).order_by(*newest).limit(limit)
    keys = list(connection.scalars(query))
    found = SUBJECTS.load(connection, keys)
    return [found[key][0] for key in keys]


IS_OPEN: Final = sa.literal_column("open", sa.Integer) == sa.literal_column("1", sa.Integer)
"""As the index says it."""


def open_subjects(connection: Connection) -> list[str]:
    """The subjects about which a participant may owe something, the oldest first."""
    query = sa.select(subjects.c.subject).where(IS_OPEN)
    return list(connection.scalars(query.order_by(subjects.c.first_event_at, subjects.c.subject)))


def count_open(connection: Connection) -> int:
    """How many subjects a `search` for open ones finds."""
    query = sa.select(sa.func.count()).select_from(subjects).where(IS_OPEN)
    return connection.scalar(query) or 0


def known_among(connection: Connection, wanted: Collection[str]) -> list[str]:
    """Those of these subjects about which there is any event."""
    query = sa.select(subjects.c.subject)
    return list(connection.scalars(query.where(any_of(connection, subjects.c.subject, wanted))))


def events_until(
    facts: Iterable[Fact], choreography: Choreography, at: datetime | None = None
) -> list[tuple[Event, datetime]]:
    """Those of these events that can be read, each with its time; or only those up to some time."""
    known = (envelope for fact in facts if (envelope := decoded(fact, choreography)) is not None)
    return [(e.data, e.time) for e in known if at is None or e.time <= at]


def nothing_yet(
    what: str, facts: Iterable[Fact], choreography: Choreography, at: datetime | None
) -> str:
    """Why nothing is told of a subject: it was unknown at that time, or cannot be read at all."""
    times = [time for _, time in events_until(facts, choreography)]
    if at is None or not times:
        return f"none of the events about {what} can be read by this version"
    return f"{what} had no event by {rfc3339(at)}; its first was at {rfc3339(min(times))}"
