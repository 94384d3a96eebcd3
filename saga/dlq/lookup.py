"""The store of dead letters for those who only look."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from saga.dlq import DlqError
from saga.dlq.states import HERE, SETTLED, LetterState
from saga.dlq.tables import chunks, copies, edits, letters, path_of, reading
from saga.runtime.kernel.sqlite import sqlite_engine


@dataclass(frozen=True, slots=True)
class KeptLetter:
    """What others need to know of a letter in the store."""

    participant: str
    key: str
    subject: str | None
    reason: str


def count(
    url: str | None, failed: tuple[datetime, datetime] | None = None
) -> dict[tuple[str, str], int]:
    """How many letters there are, by participant and type: those in the store and nowhere else; or,
    whatever has become of them, those that `failed` first after one time and up to another."""
    if url is None or not path_of(url).is_file():
        return {}
    # In each case by the index, which begins with the state.
    query = sa.select(letters.c.participant, letters.c.type, sa.func.count()).where(
        letters.c.state.in_(HERE if failed is None else tuple(LetterState))
    )
    if failed is not None:
        after, until = failed
        query = query.where(letters.c.first_failed_at > after, letters.c.first_failed_at <= until)
    rows = _read(url, query.group_by(letters.c.participant, letters.c.type))
    return {(participant, type_): number for participant, type_, number in rows}


def count_stored(url: str | None) -> dict[str, int]:
    """Keyed by participant: how many letters' messages are in the store and nowhere else, corrected
    copies that were not sent included: as many as `look` finds."""
    if url is None or not path_of(url).is_file():
        return {}
    mine, number = letters.c.participant, sa.func.count()
    # From an index alone: those who watch a system ask this every few seconds.
    here = sa.select(mine, number).where(letters.c.state.in_(HERE)).group_by(mine)
    unsent = sa.select(mine, number).select_from(edits.join(letters)).where(~edits.c.sent)
    found: Counter[str] = Counter()
    for query in (here, unsent.group_by(mine)):
        for participant, count_ in _read(url, query):
            found[participant] += count_
    return dict(found)


@dataclass(frozen=True, slots=True)
class LetterWith:
    """A letter with something in it that was looked for."""

    number: int
    participant: str
    type: str
    state: LetterState


def letters_with(url: str | None, is_in: Callable[[Iterable[bytes]], bool]) -> list[LetterWith]:
    """The letters in which something is: in what their messages carry, in what went wrong, or in a
    corrected copy. Raises `DlqError`."""
    if url is None or not path_of(url).is_file():
        return []
    c = letters.c
    of_letter = (c.number, c.participant, c.type, c.state)
    carried = (copies.c.headers, copies.c.properties, copies.c.raw, copies.c.body)
    queries = (
        sa.select(*of_letter, c.error, c.key, c.event_id, c.subject, c.note),
        sa.select(*of_letter, *carried).join_from(letters, copies),
        sa.select(*of_letter, edits.c.diff, edits.c.body).join_from(letters, edits),
    )
    found: dict[int, LetterWith] = {}
    for query in queries:
        for row in _read(url, query):
            number, participant, type_, state, *texts = row
            if number not in found and is_in(_bytes_of((type_, *texts))):
                found[number] = LetterWith(number, participant, type_, state)
    return [found[number] for number in sorted(found)]


def _bytes_of(values: Iterable[str | bytes | None]) -> list[bytes]:
    parts = (v.encode() if isinstance(v, str) else v for v in values if v)
    return [b"\0".join(parts)]


def known_among(url: str | None, participant: str, keys: Collection[str]) -> set[str]:
    """Those of the keys of which the store has a letter of that participant, dead or settled."""
    if url is None or not path_of(url).is_file():
        return set()
    c = letters.c
    found: set[str] = set()
    for part in chunks(keys):
        query = sa.select(c.key).where(
            c.participant == participant, c.key.in_(part), c.state.in_((*HERE, *SETTLED))
        )
        found.update(row.key for row in _read(url, query))
    return found


def _read(url: str, query: sa.Select[Any]) -> Sequence[Any]:
    engine = sqlite_engine(url)
    try:
        with reading(engine) as connection:
            return connection.execute(query).all()
    except sa.exc.DBAPIError as error:
        raise _unreadable(url, error) from error
    finally:
        engine.dispose()


def _unreadable(url: str, error: sa.exc.DBAPIError) -> DlqError:
    return DlqError(f"cannot read the dead letters in {path_of(url)}: {error.orig}")


def look(url: str | None) -> tuple[list[KeptLetter], list[KeptLetter]]:
    """The letters whose message is in the store and nowhere else, corrected copies that were not
    sent included; and those that an operator has settled. Makes no store where there is none."""
    if url is None or not path_of(url).is_file():
        return [], []
    engine = sqlite_engine(url)
    columns = (letters.c.participant, letters.c.subject, letters.c.reason)
    try:
        with reading(engine) as connection:
            query = sa.select(*columns, letters.c.key, letters.c.state).where(
                letters.c.state.in_((*HERE, *SETTLED))
            )
            here: list[KeptLetter] = []
            settled: list[KeptLetter] = []
            for row in connection.execute(query):
                kept = KeptLetter(row.participant, row.key, row.subject, row.reason)
                (here if row.state in HERE else settled).append(kept)
            unsent = sa.select(*columns, edits.c.id).join(letters).where(~edits.c.sent)
            here += (
                KeptLetter(row.participant, row.id, row.subject, row.reason)
                for row in connection.execute(unsent)
            )
    except sa.exc.DBAPIError as error:
        raise _unreadable(url, error) from error
    finally:
        engine.dispose()
    return here, settled
