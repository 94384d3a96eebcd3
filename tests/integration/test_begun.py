"""Sagas are counted and timed from their beginning to their end, whichever process has which."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY

from common.events import OrderLine, PlaceOrder
from order_saga import SAGA
from order_service.domain import PARTICIPANT, CancelOrder
from order_service.store import TABLES
from saga.course import course_of
from saga.due import OVERDUE_SECONDS
from saga.message import Priority
from saga.runtime.kernel.begun import Begun
from saga.runtime.kernel.tables import utc_now
from saga.runtime.metrics import DatabaseMetrics
from tests.integration.kernels import Replica, replica

LIMIT_SECONDS = 60


def place_order() -> PlaceOrder:
    line = OrderLine(sku="tea", quantity=1, unit_price_cents=5)
    return PlaceOrder(
        order_id=uuid4(),
        customer="ada",
        currency="EUR",
        lines=(line,),
        time_limit_seconds=LIMIT_SECONDS,
    )


class Watch:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = utc_now()

    def __call__(self) -> datetime:
        return self.now


def measuring(saga: str) -> Begun:
    """What one process measures of a saga that is called so, for this test alone."""
    course = course_of(SAGA, PARTICIPANT)
    assert course is not None
    return Begun(replace(course, saga=saga), TABLES)


async def place(service: Replica, priority: Priority = Priority.NORMAL) -> UUID:
    command = place_order()
    await service.kernel.give(command, priority=priority)
    return command.order_id


async def cancel(service: Replica, order_id: UUID) -> None:
    await service.kernel.give(CancelOrder(order_id=order_id))


def count(name: str, saga: str, **labels: Any) -> float:
    """The sum of a metric's samples with these labels."""
    wanted = {"saga": saga, **labels}.items()
    return sum(
        sample.value
        for family in REGISTRY.collect()
        for sample in family.samples
        if sample.name == name and wanted <= sample.labels.items()
    )


async def test_a_saga_counts_once_when_it_begins_and_once_when_it_ends(
    database_url: str, saga_name: str
) -> None:
    watch, begun = Watch(), measuring(saga_name)
    async with replica(database_url, PARTICIPANT, TABLES, clock=watch, begun=begun) as service:
        figures = DatabaseMetrics("order", TABLES, begun=begun, clock=watch)
        first, _ = await place(service), await place(service, Priority.HIGH)
        await service.database.read(figures.read)
        assert count("saga_begun_total", saga_name, priority="high") == 1
        assert count("saga_pending", saga_name) == 2

        watch.now += timedelta(seconds=7)
        await cancel(service, first)
        await cancel(service, first)
        await service.database.read(figures.read)

    assert count("saga_begun_total", saga_name) == 2
    ended = {"outcome": "order.cancelled", "reason": "customer_request", "in_time": "true"}
    assert count("saga_ended_total", saga_name, **ended) == 1
    assert count("saga_seconds_count", saga_name) == 1
    assert count("saga_seconds_sum", saga_name) == 7
    assert count("saga_pending", saga_name) == 1


async def test_what_one_process_began_another_times(database_url: str, saga_name: str) -> None:
    watch = Watch()
    async with replica(
        database_url, PARTICIPANT, TABLES, clock=watch, begun=measuring(saga_name)
    ) as service:
        order_id = await place(service)
    watch.now += timedelta(seconds=11)
    begun = measuring(saga_name)
    async with replica(database_url, PARTICIPANT, TABLES, clock=watch, begun=begun) as service:
        await cancel(service, order_id)

    assert count("saga_seconds_sum", saga_name) == 11


async def test_what_ends_after_its_deadline_is_not_in_time_and_was_overdue_before(
    database_url: str, saga_name: str
) -> None:
    watch, begun = Watch(), measuring(saga_name)
    async with replica(database_url, PARTICIPANT, TABLES, clock=watch, begun=begun) as service:
        figures = DatabaseMetrics("order", TABLES, begun=begun, clock=watch)
        order_id = await place(service)
        watch.now += timedelta(seconds=LIMIT_SECONDS + OVERDUE_SECONDS)
        await service.database.read(figures.read)
        assert count("saga_overdue", saga_name) == 1

        await cancel(service, order_id)
        await service.database.read(figures.read)

    assert count("saga_overdue", saga_name) == 0
    assert count("saga_ended_total", saga_name, in_time="false") == 1
    assert count("saga_ended_total", saga_name, in_time="true") == 0


async def test_a_database_in_use_that_was_not_measured_has_its_open_sagas_pending(
    database_url: str, saga_name: str
) -> None:
    async with replica(database_url, PARTICIPANT, TABLES) as service:
        open_, ended = await place(service), await place(service)
        await cancel(service, ended)
    begun = measuring(saga_name)
    async with replica(database_url, PARTICIPANT, TABLES, begun=begun) as service:
        figures = DatabaseMetrics("order", TABLES, begun=begun)
        await service.database.read(figures.read)
        assert count("saga_pending", saga_name) == 1

        await cancel(service, open_)
        await service.database.read(figures.read)

    assert count("saga_pending", saga_name) == 0
    assert count("saga_ended_total", saga_name) == 1
    assert count("saga_seconds_count", saga_name) == 0, "nobody knows when it began"


async def test_a_row_that_is_there_already_is_in_nobodys_way(
    database_url: str, saga_name: str
) -> None:
    begun = measuring(saga_name)
    async with replica(database_url, PARTICIPANT, TABLES, begun=begun) as service:
        command = place_order()
        row = sa.text("INSERT INTO saga_begun (subject) VALUES (:subject)")
        values = {"subject": str(command.order_id)}
        await service.database.transaction(lambda c: c.execute(row, values))

        async with asyncio.timeout(30):
            await service.kernel.give(command)

    assert count("saga_begun_total", saga_name) == 1


@pytest.fixture
def saga_name(request: pytest.FixtureRequest) -> str:
    """A saga's name that no other test has."""
    return str(request.node.name)
