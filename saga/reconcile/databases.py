"""The services' databases, and the outsides' books: read as they are, while their owners go on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache, partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive import OBSERVER, queries
from saga.choreography import Participant, State
from saga.declaration import Saga
from saga.deployment import Deployment
from saga.discovery import tables_in
from saga.envelope import MessageKey
from saga.generate.naming import Owned
from saga.graph.flow import Flow
from saga.outside import OutsideError
from saga.reconcile.facts import ReconcileError
from saga.reconcile.history import LONG_AGO, OwedMessage
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.rows import UnreadableRow
from saga.runtime.kernel.step import StateId
from saga.runtime.kernel.tables import Tables, inbox_keys, utc_now

ROWS_AT_ONCE = 10_000


@dataclass(slots=True)
class Books:
    """What the databases say. Each database is read in one transaction."""

    known: dict[str, dict[StateId, State]] = field(default_factory=dict)
    """Keyed by participant: its states."""
    rows: dict[Owned, int] = field(default_factory=dict)
    """Keyed by participant and table of states: its rows."""
    figures: dict[Owned, int] = field(default_factory=dict)
    """Keyed by participant and name: what else it counts."""
    sequences: dict[str, dict[str, int]] = field(default_factory=dict)
    outbox: list[bytes] = field(default_factory=list)


def read_books(deployment: Deployment, saga: Saga) -> Books:
    """Read every participant's database; blocks. Raises `ReconcileError`."""
    books = Books()
    # Participants that hear of a subject later are read later, so that none seems ahead of its
    # cause; what is left of such races is gone at the next reading.
    order = Flow(saga.choreography).participants
    for participant in sorted(saga.choreography.in_python, key=lambda p: order.index(p.name)):
        read = partial(read_book, participant, tables_in(participant.package), books)
        _read(deployment, participant.name, read)
    return books


def read_book(
    participant: Participant, tables: Tables, books: Books, connection: Connection
) -> None:
    """Add one participant's database to the books."""
    known: dict[StateId, State] = books.known.setdefault(participant.name, {})
    for kind, table in tables.states.items():
        count = 0
        for states, unreadable in table.pages(connection):
            if unreadable:
                raise unreadable[0]
            known |= {(kind, key): state for key, state in states.items()}
            count += len(states)
        books.rows[participant.name, table.table.name] = count
    for name, figure in tables.figures.items():
        books.figures[participant.name, name] = figure(connection)
    books.sequences[participant.name] = sequences_in(connection, tables)
    books.outbox += connection.scalars(_streamed(tables.outbox.c.body))


def read_outside(deployment: Deployment, saga: Saga) -> dict[str, Any]:
    """Read the outsides' books, those that there are; blocks. Raises `ReconcileError`."""
    found: dict[str, Any] = {}
    for outside in saga.outside:
        if outside.read is None:
            continue
        try:
            found[outside.name] = outside.read(deployment.outside_url(outside))
        except (OutsideError, OSError) as error:
            raise ReconcileError(str(error)) from error
    return found


def streams_before(deployment: Deployment) -> bool:
    """Whether the history service has read another stream before the one there is; blocks.

    Without its database nothing tells: then there was none.
    """
    url = deployment.database_urls.get(OBSERVER.name)
    if url is None:
        return False
    try:
        place = read_database(url, queries.place)
    except DatabaseError:
        return False
    return place is not None and place.stream_number > 1


def undone(
    deployment: Deployment, saga: Saga, owed: Mapping[str, Mapping[str, OwedMessage]]
) -> dict[str, dict[str, OwedMessage]]:
    """What each participant owes and has no inbox row for; blocks. Raises `ReconcileError`.

    Of those in other languages that is unknown. What is so old that a participant may have
    done and forgotten it, is unknown too, and left out.
    """
    forgotten = utc_now() - timedelta(days=deployment.inbox_days)
    left: dict[str, dict[str, OwedMessage]] = {}
    for participant in saga.choreography.in_python:
        left[participant.name] = mine = {
            key: message
            for key, message in owed[participant.name].items()
            if not LONG_AGO < message.at < forgotten
        }
        inbox = tables_in(participant.package).inbox
        _read(deployment, participant.name, partial(strike_out, mine, inbox))
    return left


def strike_out(owed: dict[str, OwedMessage], inbox: sa.Table, connection: Connection) -> None:
    """Leave of what a participant owes what it has no inbox row for."""
    by_row: dict[str, str] = {
        row: key
        for key, message in owed.items()
        if message.source is not None
        for row in inbox_keys(MessageKey(message.source, key))
    }
    for row in connection.execute(_streamed(inbox.c.message_id)):
        if (key := by_row.get(row.message_id)) is not None:
            owed.pop(key, None)


def table_of(saga: Saga, kind: type[State]) -> Owned:
    """The participant that keeps states of a kind, and its table. Raises `ReconcileError`."""
    for participant in saga.choreography.in_python:
        if (table := tables_in(participant.package).states.get(kind)) is not None:
            return participant.name, table.table.name
    raise ReconcileError(f"no participant of {saga.name} keeps {kind.__name__}")


def _read(deployment: Deployment, participant: str, query: Callable[[Connection], None]) -> None:
    """Run `query` as of one moment; the database's owner is neither locked out nor waited for."""
    url = deployment.database_urls.get(participant)
    if url is None:
        raise ReconcileError(f"the deployment names no database of {participant}; add its URL")
    try:
        read_database(url, query)
    except (DatabaseError, UnreadableRow, sa.exc.DBAPIError, ValueError) as error:
        reason = error.orig if isinstance(error, sa.exc.DBAPIError) else error
        raise ReconcileError(f"cannot read the database of {participant}: {reason}") from error


@lru_cache(maxsize=256)
def _streamed(*columns: sa.Column[Any]) -> sa.Select[Any]:
    """All rows, a bounded number of them in memory. Built once: that takes longer than to execute
    it on few rows."""
    return sa.select(*columns).execution_options(yield_per=ROWS_AT_ONCE)


def sequences_in(connection: Connection, tables: Tables) -> dict[str, int]:
    """Keyed by subject: how many events a participant has counted as said."""
    found: dict[str, int] = {}
    for state in tables.states.values():
        (key,) = state.table.primary_key.columns
        found.update(
            (row[0], row[1])
            for row in connection.execute(_streamed(key, state.table.c.sequence))
            if row[1]
        )
    return found
