"""Which dead letters, and how they are read from the store."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa

from saga.dlq.letters import DeadLetter, from_text, raw_of
from saga.dlq.states import LetterState
from saga.dlq.tables import copies, letters
from saga.runtime.kernel.tables import utc_now

_OF_LETTER: Final = tuple(column for column in letters.c if column is not letters.c.copy)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters: those that fit everything that is given. Ages are in seconds, since the last
    failure; `queue` is an origin queue or a dead-letter queue, `error` a part of the error."""

    numbers: tuple[int, ...] = ()
    queue: str | None = None
    service: str | None = None
    type: str | None = None
    error: str | None = None
    fingerprint: str | None = None
    subject: str | None = None
    older_than: float | None = None
    newer_than: float | None = None

    @property
    def everything(self) -> bool:
        """Whether nothing is asked for in particular."""
        return self == Selection()

    def to_json(self) -> dict[str, Any]:
        """What was asked for, without what was not."""
        return {
            name: list(value) if isinstance(value, tuple) else value
            for name, value in asdict(self).items()
            if value not in (None, ())
        }


def query_of(
    selection: Selection, states: Collection[LetterState], contents: bool, now: datetime | None
) -> sa.Select[Any]:
    """Select the letters' rows; with `contents`, what is in their newest copies as well."""
    c = letters.c
    query = sa.select(*_OF_LETTER)
    if contents:
        joined = letters.join(copies, copies.c.id == c.copy)
        query = sa.select(
            *_OF_LETTER, copies.c.headers, copies.c.properties, copies.c.raw, copies.c.body
        ).select_from(joined)
    if selection.numbers:
        query = query.where(c.number.in_(selection.numbers))
    if states:
        query = query.where(c.state.in_(states))
    if selection.queue is not None:
        dlq = c.participant + ".dlq"
        query = query.where((c.queue == selection.queue) | (dlq == selection.queue))
    for column, value in (
        (c.participant, selection.service),
        (c.type, selection.type),
        (c.fingerprint, selection.fingerprint),
        (c.subject, selection.subject),
    ):
        if value is not None:
            query = query.where(column == value)
    if selection.error is not None:
        both = c.error_type + ": " + c.error
        query = query.where(both.icontains(selection.error, autoescape=True))
    moment = now or utc_now()
    if selection.older_than is not None:
        query = query.where(c.last_failed_at <= moment - timedelta(seconds=selection.older_than))
    if selection.newer_than is not None:
        query = query.where(c.last_failed_at >= moment - timedelta(seconds=selection.newer_than))
    return query


def letter_of(row: sa.Row[Any], contents: bool) -> DeadLetter:
    """The letter in a row of `query_of`."""
    values = row._mapping
    plain = {column.name: values[column.name] for column in _OF_LETTER}
    if not contents:
        return DeadLetter(**plain, properties={}, headers={}, raw=b"", body=b"")
    return DeadLetter(
        **plain,
        properties=(properties := from_text(row.properties)),
        headers=(headers := from_text(row.headers)),
        raw=row.raw if row.raw is not None else raw_of(properties, headers),
        body=row.body,
    )
