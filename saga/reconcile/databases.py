"""The services' own books, and the provider's: read as they are, while their owners go on."""

from __future__ import annotations

import asyncio
import importlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from common.choreography import Participant
from common.envelope import MessageKey
from common.kernel.database import DatabaseError, read_database
from common.kernel.rows import UnreadableRow
from common.kernel.tables import Tables, inbox_keys, utc_now
from history_service import queries
from history_service.domain import OBSERVER
from inventory_service.domain import PARTICIPANT as INVENTORY
from inventory_service.domain import ReservationStatus
from inventory_service.store import reservations, stock
from notification_service.domain import PARTICIPANT as NOTIFICATION
from notification_service.domain import NotificationStatus
from notification_service.store import count_in_question, notifications
from order_service.domain import PARTICIPANT as ORDER
from order_service.store import orders
from payment_service.domain import PARTICIPANT as PAYMENT
from payment_service.gateway import Outcome, SandboxGateway, ledger_file
from payment_service.store import payments
from saga.deployment import Deployment
from saga.reconcile.facts import (
    OrderFact,
    PaymentFact,
    ProviderCharge,
    ReconcileError,
    StockFact,
)
from saga.reconcile.history import LONG_AGO, Owed

ROWS_AT_ONCE = 10_000


@dataclass(slots=True)
class Books:
    """What the databases say. Each database is read in one transaction."""

    orders: dict[str, OrderFact] = field(default_factory=dict)
    payments: dict[str, PaymentFact] = field(default_factory=dict)
    reservations: int = 0
    held_orders: set[str] = field(default_factory=set)
    held_units: Counter[str] = field(default_factory=Counter)
    stock: dict[str, StockFact] = field(default_factory=dict)
    provider: list[ProviderCharge] = field(default_factory=list)
    sequences: dict[str, dict[str, int]] = field(default_factory=dict)
    outbox: list[bytes] = field(default_factory=list)
    mails_unknown: list[str] = field(default_factory=list)
    """The orders whose mail was sent or was not: nobody knows."""
    mails_in_question: int = 0
    """Orders that have not ended yet, and whose mail may have been sent before a restore."""


def read_books(deployment: Deployment, participants: Mapping[str, Participant]) -> Books:
    """Read every participant's database, but not the provider's ledger; blocks.

    `participants` are by package. Raises `ReconcileError`.
    """
    books = Books()
    # Whoever hears of an order later is read later, so that nobody seems ahead of its cause;
    # what is left of such races is gone at the next reading.
    ordered = sorted(participants.items(), key=lambda item: (item[1].name != ORDER.name, item[0]))
    for package, participant in ordered:
        read = partial(read_book, participant.name, _tables(package), books)
        _read(deployment, participant.name, read)
    return books


def read_book(name: str, tables: Tables, books: Books, connection: Connection) -> None:
    """Add one participant's database to the books."""
    if read := _OWN_BOOKS.get(name):
        try:
            read(connection, books)
        except (ValueError, TypeError, OverflowError):
            for table in tables.states.values():
                for _, unreadable in table.pages(connection):
                    if unreadable:
                        raise unreadable[0] from None
            raise
    books.sequences[name] = sequences_in(connection, tables)
    books.outbox += connection.scalars(sa.select(tables.outbox.c.body))


async def read_provider(url: str) -> list[ProviderCharge]:
    """Read the provider's ledger. Raises `ReconcileError`."""
    await asyncio.to_thread(_must_exist, url)
    try:
        gateway = await asyncio.to_thread(SandboxGateway, url)
        try:
            ledger = await asyncio.to_thread(gateway.ledger)
        finally:
            await gateway.close()
    except (sa.exc.DBAPIError, ValueError) as error:
        raise ReconcileError(f"cannot read the payment provider's ledger: {error}") from error
    return [
        ProviderCharge(
            order_id=charge.key,
            currency=charge.currency,
            amount_cents=charge.amount_cents,
            declined=charge.outcome is not Outcome.CHARGED,
            refunded_cents=charge.refunded_cents,
        )
        for charge in ledger
    ]


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
    deployment: Deployment,
    participants: Mapping[str, Participant],
    owed: Mapping[str, Mapping[str, Owed]],
) -> dict[str, dict[str, Owed]]:
    """What each participant owes and has no inbox row for; blocks. Raises `ReconcileError`.

    What is so old that it may have done and forgotten it, nobody can tell: that is left out.
    """
    forgotten = utc_now() - timedelta(days=deployment.inbox_days)
    left: dict[str, dict[str, Owed]] = {}
    for package, participant in participants.items():
        left[participant.name] = mine = {
            key: message
            for key, message in owed[participant.name].items()
            if not LONG_AGO < message.at < forgotten
        }
        _read(deployment, participant.name, partial(strike_out, mine, _tables(package).inbox))
    return left


def strike_out(owed: dict[str, Owed], inbox: sa.Table, connection: Connection) -> None:
    """Leave of what a participant owes what it has no inbox row for."""
    by_row: dict[str, str] = {
        row: key
        for key, message in owed.items()
        if message.source is not None
        for row in inbox_keys(MessageKey(message.source, key))
    }
    for row in _stream(connection, sa.select(inbox.c.message_id)):
        if (key := by_row.get(row.message_id)) is not None:
            owed.pop(key, None)


def _tables(package: str) -> Tables:
    tables = importlib.import_module(f"{package}.store").TABLES
    if not isinstance(tables, Tables):
        raise ReconcileError(f"{package}.store.TABLES is no Tables; name the service's tables so")
    return tables


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


def _must_exist(sandbox_url: str) -> None:
    """The sandbox would make an empty ledger of one that is not there."""
    path = ledger_file(sandbox_url)
    if not path.is_file():
        raise ReconcileError(
            f"the payment provider's ledger is not at {path}; start the service, or correct its URL"
        )


def _stream(connection: Connection, query: sa.Select[Any]) -> Iterable[Any]:
    """The query's rows, a bounded number in memory."""
    return connection.execute(query.execution_options(yield_per=ROWS_AT_ONCE))


def sequences_in(connection: Connection, tables: Tables) -> dict[str, int]:
    """Keyed by subject: how many events a participant has counted as said."""
    found: dict[str, int] = {}
    for state in tables.states.values():
        (key,) = state.table.primary_key.columns
        found.update(
            (row[0], row[1])
            for row in _stream(connection, sa.select(key, state.table.c.sequence))
            if row[1]
        )
    return found


def _read_orders(connection: Connection, books: Books) -> None:
    query = sa.select(
        orders.c.order_id,
        orders.c.status,
        orders.c.currency,
        orders.c.total_cents,
        sa.func.coalesce(orders.c.ended_at, orders.c.placed_at, type_=orders.c.ended_at.type),
    )
    for row in _stream(connection, query):
        books.orders[row[0]] = OrderFact(*row[1:])


def _read_inventory(connection: Connection, books: Books) -> None:
    held = reservations.c.status == ReservationStatus.HELD
    lines = sa.select(reservations.c.order_id, reservations.c.lines).where(held)
    for row in _stream(connection, lines):
        books.held_orders.add(row.order_id)
        for line in row.lines:
            books.held_units[line.sku] += line.quantity
    books.reservations = connection.scalars(
        sa.select(sa.func.count()).select_from(reservations)
    ).one()
    shelf = sa.select(stock.c.sku, stock.c.free, stock.c.held, stock.c.sequence)
    for row in _stream(connection, shelf):
        books.stock[row[0]] = StockFact(*row[1:])


def _read_payments(connection: Connection, books: Books) -> None:
    query = sa.select(
        payments.c.order_id, payments.c.status, payments.c.currency, payments.c.amount_cents
    )
    for row in _stream(connection, query):
        books.payments[row[0]] = PaymentFact(*row[1:])


def _read_notifications(connection: Connection, books: Books) -> None:
    unknown = notifications.c.status == NotificationStatus.UNKNOWN
    query = sa.select(notifications.c.order_id).where(unknown)
    books.mails_unknown = list(connection.scalars(query.order_by(notifications.c.order_id)))
    books.mails_in_question = count_in_question(connection)


_OWN_BOOKS: Mapping[str, Callable[[Connection, Books], None]] = {
    ORDER.name: _read_orders,
    INVENTORY.name: _read_inventory,
    PAYMENT.name: _read_payments,
    NOTIFICATION.name: _read_notifications,
}
"""How each participant's own states are read; one without any here still has in- and outbox."""
