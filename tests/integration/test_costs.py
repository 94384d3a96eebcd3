"""What an order costs, in things that can be counted: they do not depend on the machine.

Publishes, acknowledgements and bytes are read from the wire between services and broker; statements
from the databases' drivers. A change that makes one of them dearer fails here.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import sqlite3
import struct
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import asyncpg
import pytest
import sqlalchemy as sa
import yarl
from prometheus_client import REGISTRY
from sqlalchemy.engine import AdaptedConnection, Connection

from common.events import OrderLine, OrderPlaced, PlaceOrder
from inventory_service.domain import PARTICIPANT as INVENTORY
from inventory_service.domain import AddStock
from inventory_service.store import TABLES as INVENTORY_TABLES
from notification_service.domain import NotificationStatus
from notification_service.store import NOTIFICATIONS
from order_service.domain import PARTICIPANT as ORDER
from order_service.store import TABLES as ORDER_TABLES
from payment_service.gateway import Fault, FaultMode
from saga.choreography import Participant
from saga.envelope import Envelope, source_of, wrap
from saga.message import Command, Event, Priority
from saga.runtime.garbage import collected_seldom
from saga.runtime.kernel import rows
from saga.runtime.kernel.tables import Tables, utc_now
from saga.runtime.messaging.consumer import PREFETCH
from tests.faults.proxy import Proxy
from tests.integration.kernels import replica
from tests.integration.staged import Stage, staged
from tests.polling import until

ORDERS: Final = 9
IN_HAND: Final = 2 * PREFETCH
"""Messages at once: what both queues may have delivered."""
BYTES_MAX: Final = 9_900
"""Of an order, both ways, headers and trace context included; a twentieth more than it takes."""
_METHOD_FRAME: Final = 1
_FRAME_HEADER: Final = struct.Struct(">BHI")
_METHOD: Final = struct.Struct(">HH")
_GREETING: Final = b"AMQP"
_NAMES: Final = {(60, 40): "publish", (60, 60): "deliver", (60, 80): "ack"}


class Wire:
    """Counts methods and bytes of AMQP 0.9.1, both ways."""

    def __init__(self) -> None:
        self.methods: Counter[str] = Counter()
        self.bytes = 0
        self._rest: defaultdict[object, bytes] = defaultdict(bytes)

    def see(self, end: object, data: bytes) -> None:
        self.bytes += len(data)
        rest = self._rest[end] + data
        if rest.startswith(_GREETING):
            rest = rest[8:]
        while len(rest) >= _FRAME_HEADER.size:
            kind, _, size = _FRAME_HEADER.unpack_from(rest)
            if len(rest) < _FRAME_HEADER.size + size + 1:
                break
            if kind == _METHOD_FRAME:
                method = _METHOD.unpack_from(rest, _FRAME_HEADER.size)
                self.methods[_NAMES.get(method, "other")] += 1
            rest = rest[_FRAME_HEADER.size + size + 1 :]
        self._rest[end] = rest


Transaction = list[str]
"""The verb and the table of each of its statements."""

_STATEMENT: Final = re.compile(
    r"(SELECT|INSERT|UPDATE|DELETE)\b(?:.*?\bFROM|\s+INTO)? +\"?(\w+)", re.S
)


class Counted:
    """A driver's connection to SQLite that tells what the kernel has it execute."""

    def __init__(self, driver: sqlite3.Connection, told: Transaction) -> None:
        self._driver = driver
        self._told = told
        self.in_transaction = driver.in_transaction

    def execute(self, statement: str, values: Sequence[object]) -> sqlite3.Cursor:
        self._told.append(_name(statement))
        return self._driver.execute(statement, values)

    def executemany(self, statement: str, rows: Sequence[Sequence[object]]) -> sqlite3.Cursor:
        self._told.append(_name(statement))
        return self._driver.executemany(statement, rows)


def _name(statement: str) -> str:
    found = _STATEMENT.match(statement)
    return f"{found[1]} {found[2]}" if found is not None else statement


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Transaction]]:
    """What kernels write to any SQLite database, and read for it, in the order of the commits."""
    begun: defaultdict[object, Transaction] = defaultdict(list)
    found: list[Transaction] = []

    def driver(connection: Connection) -> Counted:
        below: Any = connection.connection.dbapi_connection
        return Counted(below, begun[below])

    def end(below: sqlite3.Connection, statement: str) -> None:
        if statement == "ROLLBACK":
            begun.pop(below, None)
        elif statement == "COMMIT":
            statements = begun.pop(below, [])
            if any(not statement.startswith("SELECT") for statement in statements):
                found.append(statements)

    def watch(below: sqlite3.Connection, _: object) -> None:
        below.set_trace_callback(partial(end, below))

    monkeypatch.setattr(rows, "_driver", driver)
    sa.event.listen(sa.Engine, "connect", watch)
    yield found
    sa.event.remove(sa.Engine, "connect", watch)


@pytest.fixture
async def wire() -> Wire:
    return Wire()


@pytest.fixture
async def stage(tmp_path: Path, amqp_url: str, wire: Wire) -> AsyncIterator[Stage]:
    url = yarl.URL(amqp_url)
    assert url.port is not None
    port = url.port
    async with (
        Proxy(lambda: port, wire.see) as proxy,
        staged(tmp_path, str(url.with_port(proxy.port))) as stage,
    ):
        yield stage


async def confirm(stage: Stage, count: int) -> None:
    """Place orders, all at once, and wait until nothing is left to do, without a word to the
    broker."""
    orders = await asyncio.gather(*(stage.place() for _ in range(count)))
    for order in orders:
        await until(partial(stage.is_order, order, "confirmed"))
        await until(partial(is_mailed, stage, order))
    await until(lambda: all(m.kernel.idle and m.outbox.idle for m in stage.members))


async def is_mailed(stage: Stage, order: UUID) -> bool:
    *_, notification = stage.members
    found = await notification.database.read(lambda c: NOTIFICATIONS.find(c, str(order)))
    return found is not None and found.status is NotificationStatus.SENT


async def test_each_event_is_published_once_and_each_delivery_acknowledged_at_most_once(
    stage: Stage, wire: Wire
) -> None:
    await confirm(stage, 1)  # From now on all connections are open.
    wire.methods.clear()
    wire.bytes = 0
    await confirm(stage, ORDERS)

    # Placed, reserved, charged, confirmed; the mail begun and sent.
    assert wire.methods["publish"] == 6 * ORDERS
    assert wire.methods["deliver"] == 4 * ORDERS
    # The broker's for what was published, and the services' for what was delivered.
    assert 0 < wire.methods["ack"] <= 6 * ORDERS + 4 * ORDERS
    assert wire.methods["other"] == 0
    assert 0 < wire.bytes <= BYTES_MAX * ORDERS


async def test_a_lone_order_takes_these_statements(
    committed: list[Transaction], stage: Stage
) -> None:
    await confirm(stage, 1)
    committed.clear()
    await confirm(stage, 1)

    assert [shown for transaction in committed if (shown := without_cleaning(transaction))] == [
        ["SELECT orders", "INSERT inbox", "INSERT orders", "INSERT outbox"],
        [
            "SELECT reservations", "SELECT stock",
            "INSERT inbox", "INSERT reservations", "UPDATE stock", "INSERT outbox",
        ],
        ["SELECT payments", "SELECT inbox", "INSERT payments"],
        ["SELECT payments", "INSERT inbox", "UPDATE payments", "INSERT outbox"],
        ["SELECT orders", "INSERT inbox", "UPDATE orders", "INSERT outbox"],
        ["SELECT notifications", "SELECT inbox", "INSERT notifications", "INSERT outbox"],
        ["SELECT notifications", "INSERT inbox", "UPDATE notifications", "INSERT outbox"],
    ]  # fmt: skip


def without_cleaning(transaction: Transaction) -> list[str]:
    """Without the removal of rows whose events are confirmed, which goes with any group."""
    return [statement for statement in transaction if statement != "DELETE outbox"]


async def test_more_orders_take_no_more_statements_in_a_group(
    committed: list[Transaction], stage: Stage
) -> None:
    await confirm(stage, ORDERS)

    assert committed
    for transaction in committed:
        assert max(Counter(transaction).values()) == 1, transaction


@pytest.fixture
def no_collector() -> Iterator[None]:
    """Only the test collects garbage."""
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collector")
async def test_orders_leave_nothing_for_the_garbage_collector(stage: Stage, tmp_path: Path) -> None:
    def mails() -> int:  # A query would leave something.
        return len([*(tmp_path / "mail").glob("*.eml")])

    await confirm(stage, 1)
    gc.collect()
    await asyncio.gather(*(stage.place() for _ in range(ORDERS)))
    await until(lambda: mails() == 1 + ORDERS)
    await until(lambda: all(m.kernel.idle and m.outbox.idle for m in stage.members))

    assert gc.collect() == 0


@pytest.mark.usefixtures("no_collector")
async def test_failures_leave_nothing_for_the_garbage_collector(
    stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """A traceback holds frames, and they hold all that led to the error."""
    caplog.set_level(logging.CRITICAL, "saga")  # What is logged here is kept, errors included.

    def failed() -> float:
        labels = {"participant": "payment", "type": "stock.reserved"}
        return REGISTRY.get_sample_value("saga_messages_retried_total", labels) or 0.0

    stage.provider.set_fault(Fault(FaultMode.UNAVAILABLE))
    before = failed()
    await stage.place()
    await until(lambda: failed() > before)
    gc.collect()
    before = failed()
    await asyncio.gather(*(stage.place() for _ in range(ORDERS)))
    await until(lambda: failed() >= before + 2 * ORDERS)

    assert gc.collect() == 0


async def test_messages_in_hand_do_not_call_the_garbage_collector(tmp_path: Path) -> None:
    """As Python sets it, it would come seventy times and more."""
    url = f"sqlite:///{tmp_path / 'order.db'}"
    async with replica(url, ORDER, ORDER_TABLES) as service:
        with collected_seldom(ORDER.name):
            before = collections()
            for wave in range(0, 10 * IN_HAND, IN_HAND):
                messages = map(to_place, range(wave, wave + IN_HAND))
                await asyncio.gather(*map(service.kernel.handle, messages))

            assert collections() == before


def collections() -> int:
    return sum(generation["collections"] for generation in gc.get_stats())


TEA: Final = (OrderLine(sku="tea", quantity=1, unit_price_cents=100),)
TEA_IN_STOCK: Final = AddStock(
    delivery_id=UUID(int=1), sku="tea", quantity=20, unit_price_cents=100, currency="EUR"
)


def sent(message: Command | Event) -> Envelope[Any]:
    return wrap(
        message,
        id=f"{message.type} {message.subject}",
        source=source_of("test"),
        time=utc_now(),
        priority=Priority.NORMAL,
    )


def to_place(number: int) -> Envelope[Any]:
    order_id = UUID(int=number)
    return sent(PlaceOrder(order_id=order_id, customer="c", currency="EUR", lines=TEA))


def placed(number: int) -> Envelope[Any]:
    order = OrderPlaced(
        order_id=UUID(int=number),
        customer="c",
        currency="EUR",
        lines=TEA,
        total_cents=100,
        priority=Priority.NORMAL,
        deadline=utc_now() + timedelta(minutes=5),
    )
    return sent(order)


@pytest.mark.parametrize(
    ("participant", "tables", "message", "reads"),
    [(ORDER, ORDER_TABLES, to_place, 1), (INVENTORY, INVENTORY_TABLES, placed, 2)],
    ids=["order", "inventory"],
)
async def test_on_postgresql_a_group_takes_a_round_trip_per_table_read_and_one_to_write(
    postgres_url: str,
    participant: Participant,
    tables: Tables,
    message: Callable[[int], Envelope[Any]],
    reads: int,
) -> None:
    """It begins no transaction, and takes no lock before it writes."""
    asked: list[str] = []

    def log(query: asyncpg.connection.LoggedQuery) -> None:
        asked.append(query.query.split()[0])

    def listen(driver: AdaptedConnection, *_: object) -> None:
        driver.driver_connection.add_query_logger(log)

    sa.event.listen(sa.Pool, "connect", listen)
    try:
        async with replica(postgres_url, participant, tables, lease_seconds=600) as service:
            if participant is INVENTORY:
                await service.kernel.give(TEA_IN_STOCK)
            await service.kernel.handle(message(0))
            await until(lambda: service.outbox.idle)
            await asyncio.sleep(0)  # The driver tells a turn later.
            asked.clear()
            await asyncio.gather(*map(service.kernel.handle, map(message, range(1, 10))))
            taken = asked.copy()
    finally:
        sa.event.remove(sa.Pool, "connect", listen)

    assert taken == [*["SELECT"] * reads, "WITH"]
