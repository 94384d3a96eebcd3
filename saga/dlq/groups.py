"""Dead letters grouped by what went wrong, counted where they are kept."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.dlq.selection import Selection, conditions_of, states_there
from saga.dlq.states import LetterState
from saga.dlq.tables import AT_ONCE, chunks, letters

_COLUMNS: Final[Mapping[str, sa.Column[str]]] = {
    "fingerprint": letters.c.fingerprint,
    "type": letters.c.type,
    "service": letters.c.participant,
}
"""What letters may be grouped by."""


@dataclass(frozen=True, slots=True)
class LetterGroup:
    """Letters that have `by` in common, a fingerprint say, whose value is `key`. What is said of
    the error is that of the letter that died last for the first time."""

    by: str
    key: str
    letters: int
    subjects: int
    services: Sequence[str]
    queues: Sequence[str]
    types: Sequence[str]
    reason: str
    error_type: str
    error: str
    replayed_before: int
    first_failed_at: datetime
    last_failed_at: datetime
    example: int

    def to_json(self) -> dict[str, Any]:
        return {
            self.by: self.key,
            "letters": self.letters,
            "subjects": self.subjects,
            "services": list(self.services),
            "queues": list(self.queues),
            "types": list(self.types),
            "reason": self.reason,
            "error_type": self.error_type,
            "error": self.error,
            "replayed_before": self.replayed_before,
            "first_failed_at": self.first_failed_at.isoformat(),
            "last_failed_at": self.last_failed_at.isoformat(),
            "example": self.example,
        }


def groups_in(
    connection: Connection,
    selection: Selection,
    states: Collection[LetterState],
    by: str,
    *,
    limit: int | None = None,
    after: tuple[int, str] | None = None,
) -> list[LetterGroup]:
    """The groups, the largest first: so many, and those behind the one with so many letters and
    that key."""
    column, there = _COLUMNS[by], states_there(connection, states)
    wanted = conditions_of(selection, there, None)
    count = sa.func.count().label("size")
    # Columns beside a maximum are from its row, as SQLite has it
    # (https://www.sqlite.org/lang_select.html#bareagg): `latest` is the last letter's number.
    last = sa.func.max(letters.c.first_failed_at)
    query = (
        sa.select(column.label("key"), count, last, letters.c.number.label("latest"))
        .where(*wanted)
        .group_by(column)
        .order_by(count.desc(), column)
        .limit(limit)
    )
    if after is not None:
        most, key = after
        query = query.having((count < most) | ((count == most) & (column > key)))
    rows = connection.execute(query).all()
    if limit is not None:  # What more is said of the others is not read.
        wanted = [*wanted, column.in_([row.key for row in rows])]
    details = _details(connection, column, wanted)
    kinds = _kinds(connection, column, wanted)
    errors = _errors(connection, [row.latest for row in rows])
    return [
        LetterGroup(
            by,
            row.key,
            row.size,
            (more := details[row.key]).subjects,
            *kinds[row.key],
            *errors[row.latest],
            more.replayed,
            more.first,
            more.last,
            more.example,
        )
        for row in rows
    ]


def deaths_in(
    connection: Connection,
    selection: Selection,
    states: Collection[LetterState],
    by: str,
    groups: Sequence[LetterGroup],
    until: datetime,
    parts: int,
) -> dict[str, list[int]]:
    """How many letters of each group died last in each of so many equal parts of the time from
    their first failure `until` then. Keyed by the group's key."""
    found = {group.key: [0] * parts for group in groups}
    if not groups:
        return found
    column, died = _COLUMNS[by], sa.type_coerce(letters.c.last_failed_at, sa.BigInteger)
    begin = min(group.first_failed_at for group in groups)
    part = max((until - begin) / parts, timedelta(microseconds=1))
    number = ((died - _microseconds(begin)) // (part // timedelta(microseconds=1) + 1)).label(
        "part"
    )
    wanted = conditions_of(selection, states_there(connection, states), None)
    query = sa.select(column, number, sa.func.count()).where(*wanted).group_by(column, number)
    if len(groups) <= AT_ONCE:
        query = query.where(column.in_([group.key for group in groups]))
    for key, at, count in connection.execute(query):
        if key in found:
            found[key][min(max(at, 0), parts - 1)] += count
    return found


def _microseconds(moment: datetime) -> int:
    """A time as `Utc` stores it."""
    return (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(microseconds=1)


def _kinds(
    connection: Connection, key: sa.Column[str], wanted: Sequence[sa.ColumnElement[bool]]
) -> Mapping[str, tuple[list[str], list[str], list[str]]]:
    """The services, queues and types that letters of a group have, by the group's key."""
    c = letters.c
    found: defaultdict[str, tuple[set[str], set[str], set[str]]] = defaultdict(
        lambda: (set(), set(), set())
    )
    query = sa.select(key, c.participant, c.queue, c.type).where(*wanted).distinct()
    for group, *values in connection.execute(query):
        for there, value in zip(found[group], values, strict=True):
            there.add(value)
    return {
        group: (sorted(services), sorted(queues), sorted(types))
        for group, (services, queues, types) in found.items()
    }


def _details(
    connection: Connection, key: sa.Column[str], wanted: Sequence[sa.ColumnElement[bool]]
) -> Mapping[str, Any]:
    """Keyed by the group's key: what is counted of its letters."""
    c = letters.c
    query = (
        sa.select(
            key,
            sa.func.count(sa.func.nullif(c.subject, "").distinct()).label("subjects"),
            sa.func.sum(sa.cast(c.replays > 0, sa.Integer)).label("replayed"),
            sa.func.min(c.first_failed_at).label("first"),
            sa.func.max(c.last_failed_at).label("last"),
            sa.func.min(c.number).label("example"),
        )
        .where(*wanted)
        .group_by(key)
    )
    return {row[0]: row for row in connection.execute(query)}


def _errors(connection: Connection, numbers: Sequence[int]) -> Mapping[int, tuple[str, str, str]]:
    """Keyed by letter: reason, type of error and error."""
    c = letters.c
    query = sa.select(c.number, c.reason, c.error_type, c.error)
    return {
        row.number: (row.reason, row.error_type, row.error)
        for part in chunks(numbers)
        for row in connection.execute(query.where(c.number.in_(part)))
    }
