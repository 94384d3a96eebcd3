"""What is due is done, whatever else cannot be read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from functools import partial
from uuid import UUID

import pytest
import sqlalchemy as sa

from common.events import OrderLine, PlaceOrder
from common.kernel import timer
from common.kernel.rows import UnreadableRow
from common.kernel.tables import utc_now
from common.kernel.timer import Timekeeper
from common.message import Priority
from common.tasks import cancel_all
from order_service.app import EXPIRY, routes
from order_service.domain import PARTICIPANT, Order, OrderStatus
from order_service.store import TABLES
from saga.reconcile.databases import Books, read_book
from tests.integration.kernels import Replica, client_of, replica
from tests.polling import until

RUINED = {
    "the lines are no JSON": {"lines": "'{'"},
    "the priority is none": {"priority": "'urgent'"},
    "the customer's name is no text": {"customer": "CAST(x'ff' AS TEXT)"},
    "the lines are of another shape": {"lines": "'[1]'"},
    "the order's id is none": {"order_id": "'x'"},
}


@asynccontextmanager
async def overdue(url: str, orders: int) -> AsyncIterator[Replica]:
    """An order service with so many overdue orders, the first one the longest."""
    now = utc_now() - timedelta(hours=1)
    async with replica(url, PARTICIPANT, TABLES, clock=lambda: now) as service:
        for number in range(orders):
            line = OrderLine(sku="tea", quantity=1, unit_price_cents=1)
            await service.kernel.give(
                PlaceOrder(
                    order_id=UUID(int=number),
                    customer="ada",
                    currency="EUR",
                    lines=(line,),
                    priority=Priority.NORMAL,
                    time_limit_seconds=1 + number,
                )
            )
        now = utc_now()
        yield service


async def ruin(service: Replica, number: int, column: str, value: str) -> None:
    change = f"UPDATE orders SET {column} = {value} WHERE order_id = '{UUID(int=number)}'"  # noqa: S608
    await service.database.transaction(lambda connection: connection.execute(sa.text(change)))


def keeper_of(service: Replica) -> Timekeeper:
    return Timekeeper(EXPIRY, service.kernel, service.database, poll_seconds=0.01)


async def is_cancelled(service: Replica, number: int) -> bool:
    order = await service.find(Order, UUID(int=number))
    return order is not None and order.status is OrderStatus.CANCELLED


@pytest.mark.parametrize("ruined", RUINED.values(), ids=RUINED.keys())
async def test_one_order_that_cannot_be_read_keeps_no_other_deadline_from_being_kept(
    database_url: str, ruined: dict[str, str]
) -> None:
    if "CAST" in str(ruined) and not database_url.startswith("sqlite"):
        pytest.skip("PostgreSQL keeps no text that is none")
    async with overdue(database_url, 3) as service:
        for column, value in ruined.items():
            await ruin(service, 0, column, value)
        keeper = keeper_of(service)
        keeping = asyncio.create_task(keeper.run())
        for number in (1, 2):
            await until(partial(is_cancelled, service, number))

        looking, giving = keeper.retry_loops
        assert not looking.failing
        assert len(giving.failing) == 1, "and it is told of"
        assert not giving.vital, "all other orders are served"
        assert not keeping.done()
        await cancel_all(keeping)


async def test_reconcile_names_the_row_that_it_cannot_read(database_url: str) -> None:
    async with overdue(database_url, 2) as service:
        await ruin(service, 1, "status", "'lost'")
        read = partial(read_book, PARTICIPANT.name, TABLES, Books())

        with pytest.raises(UnreadableRow, match=rf"'{UUID(int=1)}' .* orders .*'lost'"):
            await service.database.read(read)


async def test_a_request_for_it_is_told_what_is_wrong(database_url: str) -> None:
    async with overdue(database_url, 1) as service, client_of(service, routes) as client:
        await ruin(service, 0, "lines", "'{'")
        answer = await client.get(f"/orders/{UUID(int=0)}")

    assert answer.status_code == 500
    assert str(UUID(int=0)) in answer.json()["detail"]


async def test_a_full_batch_of_orders_that_cannot_be_read_hides_none_behind_it(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timer, "BATCH_MAX", 2)
    async with overdue(database_url, 6) as service:
        for number in range(5):
            await ruin(service, number, "lines", "'{'")
        keeper = keeper_of(service)
        keeping = asyncio.create_task(keeper.run())
        await until(lambda: is_cancelled(service, 5))

        assert len(keeper.retry_loops[1].failing) == 5
        await cancel_all(keeping)


async def test_what_was_ruined_and_is_mended_is_done_and_no_trouble_any_more(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timer, "PUT_OFF_SECONDS", 0.05)
    async with overdue(database_url, 1) as service:
        await ruin(service, 0, "priority", "'urgent'")
        keeper = keeper_of(service)
        keeping = asyncio.create_task(keeper.run())
        await until(lambda: len(keeper.retry_loops[1].failing) == 1)
        await ruin(service, 0, "priority", "'normal'")
        await until(lambda: is_cancelled(service, 0))
        await until(lambda: not keeper.retry_loops[1].failing)
        await cancel_all(keeping)
