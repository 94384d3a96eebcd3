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

from common.events import OrderLine, PaymentCharged, PlaceOrder
from order_service.app import routes
from order_service.domain import PARTICIPANT, Order, OrderStatus
from order_service.store import TABLES
from saga.envelope import source_of, wrap
from saga.message import Priority
from saga.reconcile.databases import Books, read_book
from saga.runtime.kernel import timer
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.rows import UnreadableRow
from saga.runtime.kernel.tables import utc_now
from saga.runtime.kernel.timer import Timekeeper
from saga.runtime.tasks import cancel_all
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
    return Timekeeper(service.kernel, service.database, TABLES, poll_seconds=0.01)


async def status_of(service: Replica, number: int) -> OrderStatus | None:
    order = await service.find(Order, UUID(int=number))
    return order.status if order is not None else None


async def is_cancelled(service: Replica, number: int) -> bool:
    return await status_of(service, number) is OrderStatus.CANCELLED


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
        read = partial(read_book, PARTICIPANT, TABLES, Books())

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


class Looks:
    """Counts how often a timekeeper asks whether it has to wait."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._count = 0
        monkeypatch.setattr(Kernel, "held_back", property(self._look))

    def _look(self, kernel: Kernel) -> bool:
        self._count += 1
        return kernel._held_back

    async def several(self) -> None:
        """Wait for some more."""
        wanted = self._count + 3
        await until(lambda: self._count > wanted)


async def test_an_order_whose_payment_was_held_back_beyond_its_time_is_confirmed(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks = Looks(monkeypatch)
    async with overdue(database_url, 1) as service:
        service.kernel.hold_back(True)
        keeping = asyncio.create_task(keeper_of(service).run())
        charged = PaymentCharged(
            order_id=UUID(int=0), currency="EUR", amount_cents=1, reference="reference"
        )
        event = wrap(
            charged,
            id="charged",
            source=source_of("payment"),
            time=utc_now(),
            priority=Priority.NORMAL,
        )
        confirming = asyncio.create_task(service.kernel.handle(event))
        await looks.several()
        assert await status_of(service, 0) is OrderStatus.PENDING

        service.kernel.hold_back(False)
        await looks.several()
        await confirming

        assert await status_of(service, 0) is OrderStatus.CONFIRMED
        await cancel_all(keeping)


async def test_what_became_overdue_while_it_was_held_back_ends_some_time_after(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timer, "AFTER_HOLD_SECONDS", 0.05)
    looks = Looks(monkeypatch)
    async with overdue(database_url, 1) as service:
        service.kernel.hold_back(True)
        keeping = asyncio.create_task(keeper_of(service).run())
        await looks.several()
        assert not await is_cancelled(service, 0)

        service.kernel.hold_back(False)
        await until(lambda: is_cancelled(service, 0))
        await cancel_all(keeping)
