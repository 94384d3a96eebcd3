"""Two replicas of a service on one database, made to meet where no row exists yet.

What one has in hand is held just before its commit, until the other waits for it: by then that one
has read that there is nothing, so it has to decide again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self, TypeVar
from uuid import UUID, uuid4

import asyncpg
import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY
from sqlalchemy.engine import Connection
from sqlalchemy.util import await_only

import inventory_service.store
from common.events import (
    CancellationReason,
    DeclineReason,
    HeldLine,
    OrderCancelled,
    OrderLine,
    OrderPlaced,
    PaymentDeclined,
    PaymentVoided,
    StockReleased,
    StockReserved,
)
from inventory_service.domain import PARTICIPANT as INVENTORY
from inventory_service.domain import AddStock, Reservation, StockItem
from payment_service.app import build_with
from payment_service.domain import Payment
from payment_service.gateway import Account, SandboxGateway
from saga.choreography import Participant, State
from saga.envelope import Envelope, wrap
from saga.message import Ask, Decided, Event, Intent, Priority
from saga.runtime.kernel.rows import WriteSet
from saga.runtime.kernel.tables import StateTable, Tables
from saga.runtime.kernel.work import Done, Duplicate, Outcome
from tests.integration.kernels import Replica, Slow, replica, until_somebody_waits
from tests.integration.toy import (
    NOW,
    PARTICIPANT,
    RecordingPublisher,
    Tally,
    cancelled,
    make_tables,
)
from tests.polling import until

T = TypeVar("T")

ORDER = UUID(int=1)
LINES = (HeldLine(sku="tea", quantity=2),)
PRICE_CENTS = 250
LEASE_SECONDS = 2.0
"""So long that what is asked about before it is over is asked in time."""
LONG_AGO = datetime(1970, 1, 1, tzinfo=UTC)


def event(data: Event) -> Envelope[Any]:
    return wrap(
        data,
        id=f"{data.type} of {data.subject}",
        source="/services/test",
        time=NOW,
        priority=Priority.NORMAL,
        sequence=1,
    )


def order_of(sku: str) -> OrderPlaced:
    return OrderPlaced(
        order_id=ORDER,
        customer="rich",
        currency="EUR",
        lines=(OrderLine(sku=sku, quantity=2, unit_price_cents=PRICE_CENTS),),
        total_cents=2 * PRICE_CENTS,
        priority=Priority.NORMAL,
        deadline=NOW + timedelta(minutes=5),
    )


def stock_of(sku: str) -> AddStock:
    return AddStock(
        delivery_id=uuid4(), sku=sku, quantity=10, unit_price_cents=PRICE_CENTS, currency="EUR"
    )


PLACED = event(order_of("tea"))
RESERVED = event(
    StockReserved(
        order_id=ORDER,
        customer="rich",
        currency="EUR",
        total_cents=2 * PRICE_CENTS,
        lines=LINES,
    )
)
CANCELLED = event(
    OrderCancelled(order_id=ORDER, customer="rich", reason=CancellationReason.CUSTOMER_REQUEST)
)


@asynccontextmanager
async def pair(
    url: str,
    participant: Participant,
    tables: Tables,
    ask: Mapping[type[Intent], Ask] | None = None,
) -> AsyncIterator[tuple[Replica, Replica]]:
    """Two replicas; the first is slow."""
    async with (
        replica(url, participant, tables, ask, through=lambda it: Slow(it, url)) as slow,
        replica(url, participant, tables, ask) as other,
    ):
        yield slow, other


async def meet(
    pair: tuple[Replica, Replica], first: Envelope[Any], second: Envelope[Any]
) -> tuple[Outcome, Outcome]:
    """Decide on the second message in the other replica before the first one's commit."""
    slow, other = pair
    before = conflicts()
    assert isinstance(slow.database, Slow)
    slow.database.arm()
    handling = asyncio.create_task(slow.kernel.handle(first))
    await slow.database.holding.wait()
    outcomes = await asyncio.gather(handling, other.kernel.handle(second))
    assert conflicts() > before, "nobody had to decide again"
    return outcomes


def conflicts() -> float:
    """How often a replica had to decide again, up to now."""
    found = [
        sample.value
        for metric in REGISTRY.collect()
        for sample in metric.samples
        if sample.name == "saga_commit_conflicts_total"
    ]
    return sum(found)


def published(pair: tuple[Replica, Replica]) -> set[str]:
    return {id for it in pair for id in it.publisher.published}


@pytest.mark.parametrize(("first", "second"), [(PLACED, CANCELLED), (CANCELLED, PLACED)])
async def test_an_order_and_its_cancellation_at_two_replicas_of_inventory_hold_no_stock(
    first: Envelope[Any], second: Envelope[Any], postgres_url: str
) -> None:
    async with pair(postgres_url, INVENTORY, inventory_service.store.TABLES) as both:
        await both[0].kernel.give(stock_of("tea"))
        outcomes = await meet(both, first, second)

        assert [isinstance(outcome, Done) for outcome in outcomes] == [True, True]
        reservation = await both[0].find(Reservation, ORDER)
        shelf = await both[0].find(StockItem, "tea")
        assert reservation is not None
        assert reservation.status == "released"
        assert shelf is not None
        assert (shelf.free, shelf.held) == (10, 0)
        assert reservation.sequence == (2 if first is PLACED else 1)


@pytest.mark.parametrize(("first", "second"), [(RESERVED, CANCELLED), (CANCELLED, RESERVED)])
async def test_reserved_stock_and_the_cancellation_at_two_replicas_of_payment_take_no_money(
    first: Envelope[Any], second: Envelope[Any], postgres_url: str, tmp_path: Path
) -> None:
    provider = SandboxGateway(f"sqlite:///{tmp_path / 'provider.db'}")
    provider.set_accounts([Account("rich")])
    service = build_with(provider)
    async with pair(postgres_url, service.participant, service.tables, service.ask) as both:
        outcomes = await meet(both, first, second)

        assert [isinstance(outcome, Done) for outcome in outcomes] == [True, True]
        payment = await both[0].find(Payment, ORDER)
        assert payment is not None
        charges = [(charge.amount_cents, charge.refunded_cents) for charge in provider.ledger()]
        if first is RESERVED:
            assert payment.status == "refunded"
            assert charges == [(2 * PRICE_CENTS, 2 * PRICE_CENTS)]
        else:
            assert payment.status == "voided"
            assert charges == []
    await provider.close()


async def test_what_another_replica_writes_after_it_was_read_is_decided_on_again(
    postgres_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Payment reads without a lock, in no transaction."""
    provider = SandboxGateway(f"sqlite:///{tmp_path / 'provider.db'}")
    provider.set_accounts([Account("rich")])
    service = build_with(provider)
    arguments = (postgres_url, service.participant, service.tables, service.ask)
    async with replica(*arguments) as slow, replica(*arguments) as other:
        execute, late = WriteSet.execute, [True]

        def execute_late(writes: WriteSet, connection: Connection) -> None:
            if late:
                late.clear()
                await_only(other.kernel.handle(CANCELLED))
            execute(writes, connection)

        monkeypatch.setattr(WriteSet, "execute", execute_late)
        before = conflicts()
        assert isinstance(await slow.kernel.handle(RESERVED), Done)

        assert conflicts() == before + 1
        payment = await slow.find(Payment, ORDER)
        assert payment is not None
        assert payment.status == "voided"
        assert list(provider.ledger()) == []
    await provider.close()


@dataclass(frozen=True, slots=True)
class Day(State):
    """Who is on call by day."""

    on_call: int = 1

    def evolve(self, message: Decided, at: datetime) -> Self:
        return replace(self, on_call=0) if isinstance(message, StockReleased) else self


@dataclass(frozen=True, slots=True)
class Night(State):
    """Who is on call by night."""

    on_call: int = 1

    def evolve(self, message: Decided, at: datetime) -> Self:
        return replace(self, on_call=0) if isinstance(message, PaymentVoided) else self


def leave_by_day(event: OrderCancelled, day: Day, night: Night) -> StockReleased | None:
    return StockReleased(order_id=event.order_id, lines=()) if night.on_call else None


def leave_by_night(event: PaymentDeclined, night: Night, day: Day) -> PaymentVoided | None:
    return PaymentVoided(order_id=event.order_id) if day.on_call else None


@pytest.mark.parametrize("known", [("days", "nights"), ("days",), ("nights",)])
async def test_of_two_who_leave_only_if_the_other_stays_one_stays(
    known: Sequence[str], postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each decision reads what the other one writes, and writes something else. One of the two may
    not have been written yet."""
    metadata = sa.MetaData()
    for name in ("days", "nights"):
        columns = [sa.Column(column, sa.Integer) for column in ("version", "sequence", "on_call")]
        sa.Table(name, metadata, sa.Column("key", sa.String(36), primary_key=True), *columns)
    tables = Tables(
        metadata,
        StateTable(Day, metadata.tables["days"]),
        StateTable(Night, metadata.tables["nights"]),
    )
    hospital = Participant("hospital", leave_by_day, leave_by_night)
    declined = PaymentDeclined(order_id=ORDER, reason=DeclineReason.INSUFFICIENT_FUNDS)
    async with (
        replica(postgres_url, hospital, tables) as slow,
        replica(postgres_url, hospital, tables) as other,
    ):
        fill = [{"key": str(ORDER), "version": 1, "sequence": 0, "on_call": 1}]

        def insert(connection: Connection) -> None:
            for name in known:
                connection.execute(metadata.tables[name].insert(), fill)

        await slow.database.transaction(insert)
        execute, late = WriteSet.execute, [True]
        meanwhile: list[asyncio.Task[Outcome]] = []

        def execute_late(writes: WriteSet, connection: Connection) -> None:
            if late:
                late.clear()
                meanwhile.append(asyncio.create_task(other.kernel.handle(event(declined))))
                await_only(asyncio.wait(meanwhile, timeout=0.5))
            execute(writes, connection)

        monkeypatch.setattr(WriteSet, "execute", execute_late)
        await slow.kernel.handle(CANCELLED)
        await meanwhile[0]

        by_day = await slow.find(Day, ORDER) or Day(str(ORDER))
        by_night = await slow.find(Night, ORDER) or Night(str(ORDER))
        assert by_day.on_call + by_night.on_call == 1


async def test_a_group_that_locks_takes_nothing_before_what_it_may_have_to_wait_for(
    postgres_url: str,
) -> None:
    """All stock in the order of articles, be it one message's subject or another's line; or two
    replicas could wait for each other."""
    raw = await asyncpg.connect(postgres_url)
    async with replica(postgres_url, INVENTORY, inventory_service.store.TABLES) as inventory:
        for sku in ("apple", "tea"):
            await inventory.kernel.give(stock_of(sku), id=sku)
        assert await inventory.kernel.give(stock_of("tea"), id="tea") == Duplicate()
        async with raw.transaction():
            await raw.execute("SELECT 1 FROM stock WHERE sku = 'apple' FOR UPDATE")
            handling = [
                asyncio.create_task(inventory.kernel.give(stock_of("tea"), id="more tea")),
                asyncio.create_task(inventory.kernel.handle(event(order_of("apple")))),
            ]
            await until_somebody_waits(postgres_url)
            await raw.execute("SELECT 1 FROM stock WHERE sku = 'tea' FOR UPDATE NOWAIT")
        outcomes = await asyncio.gather(*handling)
        assert [type(outcome) for outcome in outcomes] == [Done, Done]
    await raw.close()


async def test_a_message_delivered_to_two_replicas_at_once_is_done_once(postgres_url: str) -> None:
    async with pair(postgres_url, PARTICIPANT, make_tables()) as both:
        outcomes = await meet(both, cancelled(1), cancelled(1))

        assert [type(outcome) for outcome in outcomes] == [Done, Duplicate]
        tally = await both[0].find(Tally, ORDER)
        assert tally is not None
        assert tally.count == 1
        await until(lambda: len(published(both)) == 1)


# --- leases on the outbox -------------------------------------------------------------------------


def away() -> RecordingPublisher:
    publisher = RecordingPublisher()
    publisher.error = ConnectionError("the broker is away")
    return publisher


async def test_what_a_killed_replica_has_not_published_another_publishes(
    postgres_url: str,
) -> None:
    tables = make_tables()
    async with replica(postgres_url, PARTICIPANT, tables, lease_seconds=LEASE_SECONDS) as left:
        async with replica(
            postgres_url, PARTICIPANT, tables, publisher=away(), lease_seconds=LEASE_SECONDS
        ) as killed:
            await asyncio.gather(*(killed.kernel.handle(cancelled(order)) for order in range(1, 6)))
        assert left.publisher.published == []
        await until(lambda: len(left.publisher.published) == 5)
        await until(lambda: left.outbox.idle)
        assert await left.outbox_rows() == 0


async def test_a_replica_whose_lease_ran_out_leaves_what_it_had_to_the_others(
    postgres_url: str,
) -> None:
    tables = make_tables()
    async with (
        replica(postgres_url, PARTICIPANT, tables, publisher=away()) as slow,
        replica(postgres_url, PARTICIPANT, tables, lease_seconds=LEASE_SECONDS) as other,
    ):
        await asyncio.gather(*(slow.kernel.handle(cancelled(order)) for order in range(1, 6)))
        over = tables.leases.update().where(tables.leases.c.owner == slow.outbox.owner)
        await slow.database.transaction(lambda c: c.execute(over.values(until=LONG_AGO)))
        await until(lambda: len(other.publisher.published) == 5)
        taken = set(other.publisher.published)
        slow.publisher.error = None
        await slow.kernel.handle(cancelled(6))
        await until(lambda: len(slow.publisher.published) == 1)

        assert not taken & set(slow.publisher.published)
