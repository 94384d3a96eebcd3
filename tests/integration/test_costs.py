"""What an order costs, in things that can be counted: they do not depend on the machine.

Publishes, acknowledgements and bytes are read from the wire between services and broker; statements
from the databases' drivers. Whoever makes one of them dearer finds it here.
"""

from __future__ import annotations

import asyncio
import re
import struct
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Final
from uuid import UUID

import pytest
import sqlalchemy as sa
import yarl
from sqlalchemy.engine import Connection

from notification_service.domain import NotificationStatus
from notification_service.store import NOTIFICATIONS
from tests.faults.proxy import Proxy
from tests.integration.staged import Stage, staged
from tests.polling import until

ORDERS: Final = 9
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


Transaction = list[tuple[str, str]]
"""The verb and the table of each of its statements."""

_STATEMENT: Final = re.compile(
    r"(SELECT|INSERT|UPDATE|DELETE)\b(?:.*\bFROM|\s+INTO)? +\"?(\w+)", re.S
)


@contextmanager
def transactions() -> Iterator[list[Transaction]]:
    """What is written to any database, and what was read for it, in the order of the commits."""
    begun: defaultdict[int, Transaction] = defaultdict(list)
    committed: list[Transaction] = []

    def execute(connection: Connection, _cursor: object, statement: str, *_: object) -> None:
        if found := _STATEMENT.match(statement):
            begun[_id(connection)].append((found[1], found[2]))

    def commit(connection: Connection) -> None:
        statements = begun.pop(_id(connection), [])
        if any(verb != "SELECT" for verb, _ in statements):
            committed.append(statements)

    def roll_back(connection: Connection) -> None:
        begun.pop(_id(connection), None)

    listeners: dict[str, Callable[..., None]] = {
        "before_cursor_execute": execute,
        "commit": commit,
        "rollback": roll_back,
    }
    for name, listener in listeners.items():
        sa.event.listen(sa.Engine, name, listener)
    try:
        yield committed
    finally:
        for name, listener in listeners.items():
            sa.event.remove(sa.Engine, name, listener)


def _id(connection: Connection) -> int:
    return id(connection.connection.dbapi_connection)


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


async def test_a_lone_order_takes_these_statements(stage: Stage) -> None:
    await confirm(stage, 1)
    with transactions() as committed:
        await confirm(stage, 1)

    assert [shown for transaction in committed if (shown := without_cleaning(transaction))] == [
        ["SELECT inbox", "SELECT orders", "INSERT inbox", "INSERT orders", "INSERT outbox"],
        [
            "SELECT inbox", "SELECT reservations", "SELECT stock",
            "INSERT inbox", "INSERT reservations", "UPDATE stock", "INSERT outbox",
        ],
        ["SELECT inbox", "SELECT payments", "INSERT payments"],
        ["SELECT inbox", "SELECT payments", "INSERT inbox", "UPDATE payments", "INSERT outbox"],
        ["SELECT inbox", "SELECT orders", "INSERT inbox", "UPDATE orders", "INSERT outbox"],
        ["SELECT inbox", "SELECT notifications", "INSERT notifications", "INSERT outbox"],
        [
            "SELECT inbox", "SELECT notifications",
            "INSERT inbox", "UPDATE notifications", "INSERT outbox",
        ],
    ]  # fmt: skip


def without_cleaning(transaction: Transaction) -> list[str]:
    """Without the removal of rows whose events are confirmed, which goes with whichever group is
    next; and without the provider's books, which are not the saga's."""
    return [
        f"{verb} {table}"
        for verb, table in transaction
        if (verb, table) != ("DELETE", "outbox") and table not in {"charges", "accounts", "faults"}
    ]


async def test_more_orders_take_no_more_statements_in_a_group(stage: Stage) -> None:
    with transactions() as committed:
        await confirm(stage, ORDERS)

    for transaction in committed:
        assert max(Counter(transaction).values()) == 1, transaction
