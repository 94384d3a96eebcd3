"""The same system on PostgreSQL, with two replicas of every service."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from order_saga.demo import demo
from order_saga.orders import plan
from saga.discovery import choreography
from saga.local import SystemFault
from saga.local.system import System
from saga.status import READY, status
from tests.e2e.test_saga import as_predicted
from tests.forked import spawn
from tests.polling import until

ORDERS = 120


@pytest.mark.long  # With queues divided meanwhile, `test_partitions.py` does the same each time.
async def test_replicas_share_the_work_and_one_killed_loses_nothing(tmp_path: Path) -> None:
    ended = 0

    def count(orders: int) -> None:
        nonlocal ended
        ended += orders

    async with System(
        tmp_path, database="postgresql", replicas=2, disposable=True, spawn=spawn
    ) as system:
        load = asyncio.create_task(
            demo(system.deployment, choreography(), plan(ORDERS, 7), seed=7, ended=count)
        )
        await until(lambda: ended >= ORDERS // 4 or load.done())
        system.kill("payment-2")  # and stays away: what it had in hand is done by the other
        system.kill("inventory")
        assert not load.done()
        await system.start("inventory")
        as_predicted(await load)
        found = await status(system.deployment, choreography())
        assert found.services["inventory"] == READY
        assert found.services["payment"].startswith("no answer from")


@pytest.mark.long
async def test_a_killed_database_server_loses_nothing(tmp_path: Path) -> None:
    ended = 0

    def count(orders: int) -> None:
        nonlocal ended
        ended += orders

    async with System(tmp_path, database="postgresql", replicas=2, disposable=True) as system:
        assert system.cluster is not None
        load = asyncio.create_task(
            demo(system.deployment, choreography(), plan(ORDERS, 8), seed=8, ended=count)
        )
        await until(lambda: ended >= ORDERS // 4 or load.done())
        await asyncio.to_thread(system.cluster.kill)
        await asyncio.to_thread(system.cluster.start)
        as_predicted(await load)


@pytest.mark.parametrize("other", ["sqlite", "postgresql"])
async def test_a_folder_with_its_orders_elsewhere_is_refused(other: str, tmp_path: Path) -> None:
    if other == "sqlite":
        (tmp_path / "order.db").touch()
        system = System(tmp_path, database="postgresql")
    else:
        (tmp_path / "postgresql").mkdir()
        system = System(tmp_path)
    with pytest.raises(SystemFault, match=f"has its states in {other}"):
        await system.start()
    await system.stop()


def test_replicas_on_sqlite_are_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemFault, match="2 replicas cannot share a SQLite file"):
        System(tmp_path, replicas=2)
