"""The store of dead letters for those who only look."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from saga.dlq import DlqError
from saga.dlq.states import HERE, SETTLED, LetterState
from saga.dlq.tables import edits, letters, path_of, reading
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
    engine = sqlite_engine(url)
    try:
        with reading(engine) as connection:
            rows = connection.execute(query.group_by(letters.c.participant, letters.c.type))
            return {(participant, type_): number for participant, type_, number in rows}
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
