"""The history of a whole system: complete whatever happens to its service."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import sqlalchemy as sa

from common.messaging.connection import connect
from common.messaging.stream import FIRST, last_offset, reading
from history_service import store
from saga.demo import demo
from saga.deployment import Deployment
from saga.discovery import choreography
from saga.history.archive import Archive
from saga.orders import plan
from saga.system import System
from tests.e2e.test_saga import as_predicted

SEED = 40104


async def published(deployment: Deployment) -> list[str]:
    """The ids of all messages in the stream, each as often as it is there."""
    found: list[str] = []
    connection = await connect(deployment.amqp_url, name="test")
    async with connection:
        last = await last_offset(connection)
        assert last is not None
        async with reading(connection, FIRST) as reader:
            offset = -1
            while offset < last:
                records = await reader.take(1_000, 10)
                assert records
                found += (record.key for record in records)
                offset = records[-1].offset
    return found


async def kept(deployment: Deployment) -> list[str]:
    """The ids of all that is kept, of events and of what is none."""
    queries = sa.select(store.events.c.event_id), sa.select(store.strays.c.key)
    return await Archive(deployment).read(
        lambda c: [id for query in queries for id in c.scalars(query)]
    )


@pytest.mark.parametrize(
    "orders", [150, pytest.param(2_000, marks=[pytest.mark.long, pytest.mark.timeout(600)])]
)
async def test_a_history_that_was_down_during_a_load_is_complete_afterwards_with_no_doubles(
    orders: int, tmp_path: Path
) -> None:
    async with System(tmp_path, disposable=True) as system:
        archive = Archive(system.deployment)
        system.kill("history")
        as_predicted(await demo(system.deployment, choreography(), plan(orders, SEED), seed=SEED))
        assert await archive.behind() > orders
        await system.start("history")
        assert await archive.caught_up(60)

        ids = await published(system.deployment)
        assert sorted(await kept(system.deployment)) == sorted(set(ids))

        # And once more from the first offset, into a fresh database.
        system.kill("history")
        for suffix in ("", "-wal", "-shm"):
            (tmp_path / f"history.db{suffix}").unlink(missing_ok=True)
        await system.start("history")
        assert await archive.caught_up(60)
        assert sorted(await kept(system.deployment)) == sorted(set(ids))


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_the_history_catches_up_faster_than_the_whole_saga_goes(tmp_path: Path) -> None:
    async with System(tmp_path, disposable=True) as system:
        archive = Archive(system.deployment)
        system.kill("history")
        began = time.monotonic()
        as_predicted(await demo(system.deployment, choreography(), plan(2_000, SEED), seed=SEED))
        saga_seconds = time.monotonic() - began
        await system.start("history")
        began = time.monotonic()
        assert await archive.caught_up(120)
        assert time.monotonic() - began < saga_seconds
