"""The store of dead letters for those who only look."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from saga.dlq import DlqError
from saga.dlq.states import HERE, SETTLED
from saga.dlq.tables import edits, letters, path_of, reading
from saga.runtime.kernel.sqlite import sqlite_engine


@dataclass(frozen=True, slots=True)
class KeptLetter:
    """What others need to know of a letter in the store."""

    participant: str
    key: str
    subject: str | None
    reason: str


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
        raise DlqError(f"cannot read the dead letters in {path_of(url)}: {error.orig}") from error
    finally:
        engine.dispose()
    return here, settled
