"""Messages of the archive by what they are, the latest first."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive.store import events
from saga.archive.traffic import position_before, seen_in

LOOKED_AT_MAX: Final = 5_000
"""Events that are looked at for one page, so that a page of a few costs no more than that."""
_ATTEMPT: Final = b'"attempt"'
"""What the body of an event holds that did not come of a first attempt."""

_causes = events.alias("causes")
_answers = events.alias("answers")


@dataclass(frozen=True, slots=True)
class MessageSearch:
    """Which messages: those that fit all that is given, of any of the `types`, recorded after
    `since` and up to `until`, from `source`, because of one of the type `cause`, at least at that
    `attempt`.

    With `taken_by`, the source of a participant: those that it has published something because of.
    Times are then those at which that was recorded, and positions too.
    """

    since: datetime | None = None
    until: datetime | None = None
    types: Sequence[str] = ()
    source: str | None = None
    cause: str | None = None
    attempt: int = 1
    taken_by: str | None = None


@dataclass(frozen=True, slots=True)
class FoundMessage:
    """A message of the archive."""

    position: int
    id: str
    type: str
    source: str
    subject: str
    time: datetime
    recorded_at: datetime
    causation: str | None
    cause: str | None
    """The type of what it came of; None if that is not in the archive."""
    attempt: int
    body: bytes


@dataclass(frozen=True, slots=True)
class MessagePage:
    """Some messages, and from where to look on: None if that was all."""

    messages: Sequence[FoundMessage]
    before: int | None
    looked_at: int
    """How many there were to look at for these."""


def find_messages(
    connection: Connection, wanted: MessageSearch, limit: int, before: int | None = None
) -> MessagePage:
    """At most `limit` messages, the latest first, that were recorded before the position `before`.
    A page may have fewer, and others may follow: see `LOOKED_AT_MAX`. What was taken and led to
    several messages may be on the next page once more."""
    first, last = _within(connection, wanted, before)
    low = max(first, last - LOOKED_AT_MAX + 1)
    places = _places(connection, wanted, low, last, limit + 1)
    there = [position for position, _ in places[:limit]]
    query = _rows().where(events.c.position.in_(there))
    rows = {row.position: row for row in connection.execute(query)} if places else {}
    found = [_message(rows[position]) for position in there]
    if len(places) > limit:
        oldest = places[limit - 1][1]
        return MessagePage(found, oldest, last - oldest + 1)
    return MessagePage(found, low if low > first else None, max(last - low + 1, 0))


def _places(
    connection: Connection, wanted: MessageSearch, low: int, last: int, limit: int
) -> list[tuple[int, int]]:
    """Where the messages are that fit, each with the place that it is in the listing for: its own,
    or that of what came of it last. The latest first."""
    query = _fitting(wanted).where(_listed(wanted).c.position.between(low, last))
    if wanted.attempt == 1:
        return [(row[0], row[1]) for row in connection.execute(query.limit(limit))]
    rows = connection.execute(query.add_columns(events.c.body))
    tried = (
        (row[0], row[1])
        for row in rows
        if _ATTEMPT in row.body and seen_in(row.body).attempt >= wanted.attempt
    )
    return list(itertools.islice(tried, limit))


def _within(connection: Connection, wanted: MessageSearch, before: int | None) -> tuple[int, int]:
    """The first and the last position within the times that are wanted."""
    if wanted.until is None:
        last = connection.scalar(sa.select(sa.func.max(events.c.position))) or 0
    else:
        last = position_before(connection, wanted.until + timedelta(microseconds=1))
    first = 1
    if wanted.since is not None:
        first += position_before(connection, wanted.since + timedelta(microseconds=1))
    return first, last if before is None else min(last, before - 1)


def _fitting(wanted: MessageSearch) -> sa.Select[Any]:
    """The positions of what fits, but for the attempt and the times; see `_places`."""
    if wanted.taken_by is None:
        query = sa.select(events.c.position, events.c.position.label("listed"))
        query = query.order_by(events.c.position.desc())
    else:
        place = sa.func.max(_answers.c.position).label("listed")
        query = (
            sa.select(events.c.position, place)
            .join(_answers, _answers.c.causation == events.c.event_id)
            .where(_answers.c.source == wanted.taken_by)
            .group_by(events.c.event_id)  # Its key: PostgreSQL knows that the rest follows from it.
            .order_by(place.desc())
        )
    if wanted.types:
        query = query.where(events.c.type.in_(wanted.types))
    if wanted.source is not None:
        query = query.where(events.c.source == wanted.source)
    if wanted.cause is not None:
        caused = _causes.c.event_id == events.c.causation
        query = query.join(_causes, caused).where(_causes.c.type == wanted.cause)
    return query


def _listed(wanted: MessageSearch) -> sa.FromClause:
    """What the times and positions of a search are about."""
    return events if wanted.taken_by is None else _answers


def _rows() -> sa.Select[Any]:
    """Messages with the types of their causes, where the archive has those, the latest first."""
    return (
        sa.select(events, _causes.c.type.label("cause"))
        .join(_causes, _causes.c.event_id == events.c.causation, isouter=True)
        .order_by(events.c.position.desc())
    )


def _message(row: Any) -> FoundMessage:
    return FoundMessage(
        position=row.position,
        id=row.event_id,
        type=row.type,
        source=row.source,
        subject=row.subject,
        time=row.time,
        recorded_at=row.recorded_at,
        causation=row.causation,
        cause=row.cause,
        attempt=seen_in(row.body).attempt if _ATTEMPT in row.body else 1,
        body=row.body,
    )
