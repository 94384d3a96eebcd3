"""The store of dead letters in figures, for those who only count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final

import sqlalchemy as sa

from saga.dlq import DlqError
from saga.dlq.states import HERE, ItemState
from saga.dlq.tables import items, letters, path_of
from saga.runtime.kernel.sqlite import sqlite_engine

FINGERPRINTS_MAX: Final = 20
"""Kinds of failure told apart, those with most letters; the rest is `other`."""
OTHER: Final = "other"


@dataclass(frozen=True, slots=True)
class Figures:
    """How many letters are in the store and nowhere else, and what became of replayed ones."""

    here: Mapping[tuple[str, str, str], int] = field(default_factory=dict)
    """Keyed by participant, reason and fingerprint."""
    oldest: Mapping[str, datetime] = field(default_factory=dict)
    """Keyed by participant: the first failure of the letter that failed first."""
    replayed: Mapping[ItemState, int] = field(default_factory=dict)
    """In all replays together; a letter counts in each."""


def figures(url: str | None) -> Figures:
    """Count what is in the store; makes no store where there is none. Raises `DlqError`."""
    if url is None or not path_of(url).is_file():
        return Figures()
    of_letter = (letters.c.participant, letters.c.reason, letters.c.fingerprint)
    count = sa.func.count().label("letters")
    kinds = sa.select(*of_letter, count, sa.func.min(letters.c.first_failed_at).label("first"))
    kinds = kinds.where(letters.c.state.in_(HERE)).group_by(*of_letter).order_by(count.desc())
    replays = sa.select(items.c.state, sa.func.count()).group_by(items.c.state)
    engine = sqlite_engine(url)
    try:
        with engine.connect().execution_options(reads=True) as connection:
            rows = connection.execute(kinds).all()
            replayed = {row[0]: row[1] for row in connection.execute(replays)}
    except sa.exc.DBAPIError as error:
        raise DlqError(f"cannot read the dead letters in {path_of(url)}: {error.orig}") from error
    finally:
        engine.dispose()
    here: dict[tuple[str, str, str], int] = {}
    oldest: dict[str, datetime] = {}
    for number, row in enumerate(rows):
        kind = row.participant, row.reason, row.fingerprint if number < FINGERPRINTS_MAX else OTHER
        here[kind] = here.get(kind, 0) + row.letters
        oldest[row.participant] = min(row.first, oldest.get(row.participant, row.first))
    return Figures(here, oldest, replayed)
