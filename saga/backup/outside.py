"""What the outside may have been asked since a backup, put into the restored books.

An outside that keeps idempotency keys gives the same answer again; what its ledger has and our
books do not is put in the middle of that question, so that whatever comes next settles it under the
same key. An outside without keys would do it twice; so nothing that it may have done already is
asked of it again by a service: a person decides. Only looked up, never asked.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from pathlib import Path
from typing import Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from common.choreography import Participant, State
from common.envelope import rfc3339
from common.kernel.fold import Fold
from common.kernel.rows import writing
from common.kernel.tables import Tables, utc_now
from history_service.order_table import order_views
from notification_service.mail import mailed_in
from notification_service.store import put_in_question
from saga.backup import BackupError
from saga.backup.parts import Part
from saga.history.outside import Remembered

AT_ONCE: Final = 500


@dataclass(frozen=True, slots=True)
class Asked:
    """What the outside knows and the restored books did not."""

    subjects: Sequence[str] = ()
    """The states that were put in the middle of their questions."""
    contradictions: Sequence[str] = ()


def put_asked(
    connection: Connection, participant: Participant, tables: Tables, outside: Remembered
) -> Asked:
    """Put states where the outside was asked and the books do not tell so into the middle of that
    question. What it has given back since is not asked for again: that was cancelled, and waits to
    be cancelled once more."""
    now = utc_now()
    subjects: list[str] = []
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
            subjects += [state.key for state, _ in changed]
    return Asked(subjects, contradictions)


def put_unsure(connection: Connection, order_ids: Collection[str], taken_at: datetime) -> int:
    """Leave the mails about these orders to a person, but for those whose outcome is known. Returns
    how many they are."""
    why = f"it may have been sent after {rfc3339(taken_at)}, the time of the backup restored here"
    return put_in_question(connection, order_ids, why)


def orders_in(part: Part, connection: Connection) -> set[str]:
    """The orders that one database knows."""
    if isinstance(part.schema, Tables):
        columns = [
            column
            for state in part.schema.states.values()
            for column in state.table.primary_key.columns
        ]
    else:
        columns = [order_views.c.order_id]
    return {
        key for column in columns for key in connection.scalars(sa.select(column)) if _is_order(key)
    }


def orders_mailed(folder: Path) -> set[str]:
    """The orders about which there are mails in a folder, if there is such a folder. Raises
    `BackupError`."""
    if not folder.is_dir():
        return set()
    try:
        return {order_id for order_id in mailed_in(folder) if _is_order(order_id)}
    except OSError as error:
        raise BackupError(f"cannot read the mails in {folder}: {error.strerror}") from error


def _is_order(key: str) -> bool:
    """Whether a state's key may be an order's; a SKU is none."""
    with suppress(ValueError):
        return str(UUID(key)) == key
    return False


def _some(keys: Iterable[str]) -> Iterator[list[str]]:
    rest = iter(keys)
    while page := list(islice(rest, AT_ONCE)):
        yield page
