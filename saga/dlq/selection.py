"""Which dead letters, and how they are read from the store."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any, Final, Self

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.dlq.letters import DeadLetter, from_text, raw_of
from saga.dlq.states import LetterState
from saga.dlq.tables import copies, letters
from saga.errors import InputError
from saga.limits import moment_of
from saga.runtime.kernel.tables import utc_now

DAY_SECONDS: Final = 86_400
_AGE_MAX_SECONDS: Final = 100.0 * 365 * DAY_SECONDS
_DURATION: Final = re.compile(r"(-?\d+(?:\.\d+)?)([smhd]?)")
_UNIT_SECONDS: Final = {"": 1, "s": 1, "m": 60, "h": 3_600, "d": DAY_SECONDS}
_NEWEST: Final = copies.alias("newest")
_BODY: Final = (
    sa.select(_NEWEST.c.body).where(_NEWEST.c.id == letters.c.copy).correlate(letters)
).scalar_subquery()
"""What is in a letter's newest copy."""
_OF_LETTER: Final = tuple(column for column in letters.c if column is not letters.c.copy)


@dataclass(frozen=True, slots=True)
class Selection:
    """Which letters: those that fit everything that is given. Ages are in seconds, since the last
    failure; `queue` is an origin queue or a dead-letter queue, `error` a part of the error.
    Who is not shown all that an error says could find the rest out by what is found, so that their
    search is for a part of what they are shown: `masked_error` of an error without what it quotes,
    `nameless_error` of one without whom its message names."""

    numbers: tuple[int, ...] = ()
    queue: str | None = None
    service: str | None = None
    type: str | None = None
    error: str | None = None
    masked_error: str | None = None
    nameless_error: str | None = None
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


@dataclass(frozen=True, slots=True)
class FrozenSelection:
    """The letters that a selection had `at` one moment, as an operator confirmed them.

    What arrives after the `newest` of them, or reaches an age after that moment, is not among them.
    `digest` tells these letters from all others: 16 hexadecimal digits.
    """

    newest: int
    at: datetime
    digest: str

    @classmethod
    def of(cls, numbers: Collection[int], at: datetime) -> Self:
        """The letters with these numbers, as they were selected `at` then."""
        return cls(max(numbers, default=0), at, _digest(numbers))

    @classmethod
    def read(cls, text: str) -> Self:
        """What `str` made a text of. Raises `InputError`."""
        newest, _, rest = text.partition("/")
        at, _, digest = rest.partition("/")
        moment = moment_of(at)
        if moment is None or not (newest.isascii() and newest.isdecimal() and len(newest) < 20):
            raise InputError("what was confirmed is not what a page of letters says; look again")
        return cls(int(newest), moment, digest)

    def __str__(self) -> str:
        return f"{self.newest}/{self.at.isoformat()}/{self.digest}"

    def within(self, numbers: Iterable[int]) -> list[int]:
        """Those of the numbers that are of letters which were there then."""
        return [number for number in numbers if number <= self.newest]

    def are(self, numbers: Iterable[int]) -> bool:
        """Whether it is these letters, in any order."""
        return _digest(numbers) == self.digest


def _digest(numbers: Iterable[int]) -> str:
    listed = ",".join(map(str, sorted(numbers)))
    return hashlib.sha256(listed.encode()).hexdigest()[:16]


def age_seconds(name: str, text: str | None) -> float | None:
    """The age that is given as `name`, such as `15m`; None if none is. Raises `InputError`."""
    if text is None:
        return None
    match = _DURATION.fullmatch(text)
    seconds = math.nan if match is None else float(match[1]) * _UNIT_SECONDS[match[2]]
    if not 0 <= seconds <= _AGE_MAX_SECONDS:
        raise InputError(
            f"{name} is {text!r}; it takes an age of 0 or more: seconds, or 15m, 2h, 7d"
        )
    return seconds


def conditions_of(
    selection: Selection, states: Collection[LetterState], now: datetime | None
) -> Sequence[sa.ColumnElement[bool]]:
    """What has to hold for a letter's row to be selected."""
    c = letters.c
    found: list[sa.ColumnElement[bool]] = []
    if selection.numbers:
        found.append(c.number.in_(selection.numbers))
    if states:
        found.append(c.state.in_(states))
    if selection.queue is not None:
        dlq = c.participant + ".dlq"
        parts = c.queue.startswith(f"{selection.queue}.", autoescape=True)
        found.append((c.queue == selection.queue) | parts | (dlq == selection.queue))
    found += (
        column == value
        for column, value in (
            (c.participant, selection.service),
            (c.type, selection.type),
            (c.fingerprint, selection.fingerprint),
            (c.subject, selection.subject),
        )
        if value is not None
    )
    errors: tuple[tuple[str | None, sa.ColumnElement[str]], ...] = (
        (selection.error, c.error),
        (selection.masked_error, sa.func.masked_error(c.error)),
        (selection.nameless_error, sa.func.nameless_error(c.error, _BODY)),
    )
    found += (
        (c.error_type + ": " + shown).icontains(said, autoescape=True)
        for said, shown in errors
        if said is not None
    )
    moment = now or utc_now()
    if selection.older_than is not None:
        found.append(c.last_failed_at <= moment - timedelta(seconds=selection.older_than))
    if selection.newer_than is not None:
        found.append(c.last_failed_at >= moment - timedelta(seconds=selection.newer_than))
    return found


def states_there(connection: Connection, states: Collection[LetterState]) -> list[LetterState]:
    """Those of the states that some letter has; none of them means any. With one, as a rule, rows
    come in the order of an index, and need not be sorted."""
    some = sa.select(letters.c.number).limit(1)
    found = [
        state
        for state in states or tuple(LetterState)
        if connection.scalar(some.where(letters.c.state == state)) is not None
    ]
    return found or list(states)


def query_of(
    selection: Selection, states: Collection[LetterState], contents: bool, now: datetime | None
) -> sa.Select[Any]:
    """Select the letters' rows; with `contents`, what is in their newest copies as well."""
    query = sa.select(*_OF_LETTER)
    if contents:
        joined = letters.join(copies, copies.c.id == letters.c.copy)
        query = sa.select(
            *_OF_LETTER, copies.c.headers, copies.c.properties, copies.c.raw, copies.c.body
        ).select_from(joined)
    return query.where(*conditions_of(selection, states, now))


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
