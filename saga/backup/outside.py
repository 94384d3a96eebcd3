"""What the outside may have been asked since a backup, put into the restored books.

An outside that keeps idempotency keys gives the same answer again; what its ledger has and our
books do not is put in the middle of that question, so that whatever comes next settles it under the
same key. An outside without keys would do it twice; so nothing that it may have done already is
asked of it again by a service: an operator decides. Only looked up, never asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive.subjects import subjects
from saga.backup import BackupError
from saga.backup.parts import Part
from saga.choreography import Participant, State
from saga.envelope import rfc3339
from saga.history.outside import Remembered
from saga.outside import Outside
from saga.runtime.kernel.fold import Fold
from saga.runtime.kernel.rows import writing
from saga.runtime.kernel.tables import Tables, utc_now

AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class AskedAgain:
    """What the outside knows and the restored books did not."""

    subjects: Sequence[str] = ()
    """The states that were put in the middle of their questions."""
    contradictions: Sequence[str] = ()


def put_asked(
    connection: Connection, participant: Participant, tables: Tables, outside: Remembered
) -> AskedAgain:
    """Put states where the outside was asked and the books do not tell so into the middle of that
    question. What it has given back since is not asked for again: that was cancelled, and waits to
    be cancelled once more."""
    now = utc_now()
    changed_subjects: list[str] = []
    contradictions: list[str] = []
    for kind in dict.fromkeys(reaction.own for reaction in participant.reactions):
        table = tables.states[kind]
        for keys in _some(sorted(outside.keys)):
            found = table.load(connection, keys)
            fold = Fold(participant)
            fold.states = {(kind, key): state for key, (state, _) in found.items()}
            changed: list[tuple[State, int]] = []
            for key in keys:
                state = fold.find((kind, key))
                contradictions += (f"{key}: {said}" for said in outside.contradictions(state))
                for questions in (outside.asked, outside.taken_back):
                    for intent in questions(fold.find((kind, key))):
                        fold.ask(intent, now)
                if (asked := fold.find((kind, key))) != state:
                    changed.append((asked, found[key][1] if key in found else 0))
            with writing(connection) as writes:
                table.save(writes, changed)
            changed_subjects += [state.key for state, _ in changed]
    return AskedAgain(changed_subjects, contradictions)


def subjects_in(part: Part, connection: Connection) -> set[str]:
    """The subjects that one database knows."""
    if isinstance(part.schema, Tables):
        tables = (state.table for state in part.schema.states.values())
        columns = [column for table in tables for column in table.primary_key.columns]
    else:
        columns = [subjects.c.subject]
    return {key for column in columns for key in connection.scalars(sa.select(column))}


def subjects_traced(outside: Outside[Any], folder: Path) -> set[str]:
    """What a system's folder tells of subjects that an outside was asked about. Raises
    `BackupError`."""
    try:
        return set(outside.traces(folder)) if outside.traces else set()
    except OSError as error:
        raise BackupError(
            f"cannot read what {outside.name} was asked: {error.filename}: {error.strerror}"
        ) from error


def why_in_doubt(taken_at: datetime) -> str:
    """Why it is not known what an outside was asked."""
    return f"it may have been sent after {rfc3339(taken_at)}, the time of the backup restored here"


def _some(keys: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(keys)
    while page := list(islice(rest, AT_ONCE)):
        yield page
