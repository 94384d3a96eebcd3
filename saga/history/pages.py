"""Reading a whole history a page at a time, the next one while the last one is worked on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import partial
from typing import Final, TypeVar

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive import queries
from saga.archive.store import Fact, Stray, events, strays
from saga.archive.traffic import position_before
from saga.envelope import MessageKey
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.statements import any_of
from saga.runtime.kernel.tables import inbox_key

SUBJECTS_AT_ONCE: Final = 500
EVENTS_AT_ONCE: Final = 2_000
STRAYS_AT_ONCE: Final = 500
STRAYS_MAX_BYTES: Final = 32_000_000
"""Bodies in one page, beyond which none is added: each may be as long as the broker lets a message
be."""

T = TypeVar("T")


def count(url: str) -> int:
    """How many events there are. Raises `DatabaseError`."""
    query = sa.select(sa.func.count()).select_from(events)
    return read_at_once(url, lambda connection: connection.scalar(query) or 0)


def last_position(url: str) -> int:
    """The position of the newest event; 0 if there is none."""
    query = sa.select(sa.func.max(events.c.position))
    return read_at_once(url, lambda connection: connection.scalar(query) or 0)


def began(url: str) -> datetime | None:
    """The time of the first event; None if there is none."""
    query = sa.select(events.c.time).order_by(events.c.position).limit(1)
    return read_at_once(url, lambda connection: connection.scalar(query))


def last_before(url: str, moment: datetime) -> int:
    """The position of the last event that was recorded before a time, as far as clocks tell; 0 if
    there is none."""
    return read_at_once(url, lambda connection: position_before(connection, moment))


def by_subject(url: str, up_to: int) -> Iterator[dict[str, list[Fact]]]:
    """The events up to a position, subject by subject, some subjects at a time."""

    def page(after: str | None, connection: Connection) -> dict[str, list[Fact]]:
        column = events.c.subject
        query = sa.select(column).distinct().order_by(column).limit(SUBJECTS_AT_ONCE)
        if after is not None:
            query = query.where(column > after)
        subjects = list(connection.scalars(query))
        found: dict[str, list[Fact]] = {subject: [] for subject in subjects}
        for fact in queries.facts_about(connection, subjects) if subjects else ():
            # Another program may have put down another subject than the event says.
            if fact.position <= up_to and fact.attributes.subject in found:
                found[fact.attributes.subject].append(fact)
        return found

    return paged(url, page, lambda found: list(found)[-1])


def by_position(url: str, up_to: int, *, after: int = 0) -> Iterator[list[Fact | Stray]]:
    """The events from behind one position up to another, in the order in which they were recorded;
    as strays those that are none any more, see `queries.item_of`."""

    def page(last: int | None, connection: Connection) -> list[tuple[int, Fact | Stray]]:
        column = events.c.position
        query = queries.ROWS.where(column > (last or after), column <= up_to)
        rows = connection.execute(query.order_by(column).limit(EVENTS_AT_ONCE))
        return [(row.position, queries.item_of(row)) for row in rows]

    for found in paged(url, page, lambda found: found[-1][0]):
        yield [item for _, item in found]


def strays_of(url: str) -> Iterator[list[Stray]]:
    """What was no event, by key, some at a time."""

    def page(after: str | None, connection: Connection) -> list[Stray]:
        column = strays.c.key
        sizes = sa.select(column, sa.func.length(strays.c.body)).order_by(column)
        if after is not None:
            sizes = sizes.where(column > after)
        keys: list[str] = []
        size = 0
        for key, length in connection.execute(sizes.limit(STRAYS_AT_ONCE)):
            keys.append(key)
            size += length
            if size >= STRAYS_MAX_BYTES:
                break
        query = sa.select(strays).where(any_of(connection, column, keys)).order_by(column)
        return [Stray(**row._mapping) for row in connection.execute(query)] if keys else []

    return paged(url, page, lambda found: found[-1].key)


def about(url: str, subjects: Collection[str]) -> dict[str, list[Fact]]:
    """The events about some subjects, by subject."""
    found: defaultdict[str, list[Fact]] = defaultdict(list)
    for fact in read_at_once(url, lambda c: queries.facts_about(c, subjects)):
        found[fact.attributes.subject].append(fact)
    return found


def subjects_of(url: str, source: str) -> Iterator[list[str]]:
    """What a participant has published events about, some subjects at a time."""

    def page(after: str | None, connection: Connection) -> list[str]:
        column = events.c.subject
        query = sa.select(column).where(events.c.source == source).distinct().order_by(column)
        if after is not None:
            query = query.where(column > after)
        return list(connection.scalars(query.limit(EVENTS_AT_ONCE)))

    return paged(url, page, lambda found: found[-1])


def with_keys(url: str, keys: Collection[MessageKey]) -> list[Fact]:
    """The events with these sources and ids."""
    ids = {id for key in keys for id in (key.id, inbox_key(key))}

    def read(connection: Connection) -> list[Fact]:
        there = any_of(connection, events.c.event_id, sorted(ids))
        found = queries.facts_in(connection, queries.ROWS.where(there))
        return [fact for fact in found if fact.attributes.key in keys]

    return read_at_once(url, read)


def known_among(url: str, keys: Collection[MessageKey]) -> set[MessageKey]:
    """Those of these events that there are."""
    ids = {id: key for key in keys for id in (key.id, inbox_key(key))}
    query = sa.select(events.c.event_id, events.c.source)

    def read(connection: Connection) -> set[MessageKey]:
        rows = connection.execute(query.where(any_of(connection, events.c.event_id, sorted(ids))))
        return {MessageKey(row.source, ids[row.event_id].id) for row in rows} & {*keys}

    return read_at_once(url, read)


def causes_among(url: str, source: str, keys: Collection[MessageKey]) -> set[str]:
    """The ids of those of these events because of which a participant has published something."""
    ids = sorted({id for key in keys for id in (key.id, inbox_key(key))})

    def read(connection: Connection) -> set[str]:
        there = any_of(connection, events.c.event_id, ids)
        about = sa.select(events.c.subject).where(there)
        query = sa.select(events.c.causation).where(
            events.c.subject.in_(about), events.c.source == source
        )
        return {cause for cause in connection.scalars(query) if cause is not None}

    return read_at_once(url, read)


def last_sequences(url: str, source: str) -> dict[str, int]:
    """Keyed by subject: the number of the last event that a participant has published about it."""
    columns = events.c.subject, sa.func.max(events.c.sequence)
    query = sa.select(*columns).where(events.c.source == source).group_by(events.c.subject)
    return read_at_once(url, lambda c: {row[0]: row[1] or 0 for row in c.execute(query)})


K = TypeVar("K")
P = TypeVar("P", bound=Collection[object])


def read_at_once(url: str, query: Callable[[Connection], T]) -> T:
    """Run `query` on a history, as of one moment; blocks. Raises `DatabaseError`."""
    # In a thread of its own: the caller may be in an event loop's greenlet, and reading from
    # PostgreSQL needs a loop.
    with ThreadPoolExecutor(1, thread_name_prefix="history-reader") as reader:
        return reader.submit(read_database, url, query).result()


def paged(
    url: str, page: Callable[[K | None, Connection], P], last: Callable[[P], K]
) -> Iterator[P]:
    """The pages of a history until an empty one: `page` reads the one behind what is `last` of the
    page before, while that one is worked on."""
    with ThreadPoolExecutor(1, thread_name_prefix="history-reader") as reader:
        ahead = reader.submit(read_database, url, partial(page, None))
        while found := ahead.result():
            ahead = reader.submit(read_database, url, partial(page, last(found)))
            yield found
