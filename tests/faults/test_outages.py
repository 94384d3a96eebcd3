"""Broker or database away for a while under load: nothing dies of it, no attempt is used up, and
everything completes afterwards."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, closing
from pathlib import Path
from random import Random

import pytest

from saga.local.system import Database
from tests.faults.kinds import disk_full
from tests.faults.load import Load, Stage, chosen_databases, on_stage, under_load

SEED = 606
PER_SECOND = 60
"""Orders sent, while all is well and while it is not."""
AROUND_SECONDS = 2
"""How long the load lasts beyond the outage."""
BEFORE = 60
"""Orders that have ended before the outage begins."""

Outage = Callable[[Load, float], Awaitable[None]]


async def broker_away(load: Load, seconds: float) -> None:
    load.stage.node.kill()
    await asyncio.sleep(seconds)
    await asyncio.to_thread(load.stage.node.start)


async def network_away(load: Load, seconds: float) -> None:
    """Connections hang until they are given up for want of heartbeats."""
    for way in load.stage.brokers.values():
        way.silence()
    await asyncio.sleep(seconds)
    for way in load.stage.brokers.values():
        way.cut()
        way.heal()


async def files_locked(load: Load, seconds: float) -> None:
    """Another process writes to each service's database, for longer than they wait for it."""
    with ExitStack() as stack:
        for url in load.stage.system.deployment.database_urls.values():
            path = url.removeprefix("sqlite:///")
            writer = stack.enter_context(
                closing(sqlite3.connect(path, 10, isolation_level=None, check_same_thread=False))
            )
            await asyncio.to_thread(writer.execute, "BEGIN IMMEDIATE")
        await asyncio.sleep(seconds)


async def disks_full(load: Load, seconds: float) -> None:
    await disk_full(load, Random(SEED), seconds)


async def server_away(load: Load, seconds: float) -> None:
    await asyncio.to_thread(load.stage.cluster.kill)
    await asyncio.sleep(seconds)
    await asyncio.to_thread(load.stage.cluster.start)


OUTAGES: dict[Database, tuple[Outage, ...]] = {
    "sqlite": (broker_away, network_away, files_locked, disks_full),
    "postgresql": (broker_away, network_away, server_away),
}
SHORT_SECONDS, LONG_SECONDS = 2.0, 60.0
"""The short one is so long that every wait and back-off begins, and none is at its longest."""


async def goes_through(stage: Stage, outage: Outage, seconds: float) -> None:
    orders = BEFORE + int((seconds + AROUND_SECONDS) * PER_SECOND)
    tried_again = stage.counts["calls tried again"]
    async with under_load(stage, orders, SEED, rate=PER_SECOND) as load:
        await load.reached(BEFORE)
        await outage(load, seconds)
    # That nothing is dead but what is malformed is part of what every load is held to.
    assert stage.counts["calls tried again"] == tried_again


# What `make test` holds.


@pytest.mark.long
@pytest.mark.asyncio(loop_scope="session")
async def test_a_short_outage_of_the_broker_uses_up_no_attempts(stage: Stage) -> None:
    await goes_through(stage, broker_away, SHORT_SECONDS)


@pytest.mark.long
@pytest.mark.parametrize(
    ("database", "outage"),
    [
        pytest.param(database, outage, id=f"{outage.__name__}-{database}")
        for database in chosen_databases()
        for outage in OUTAGES[database]
    ],
)
async def test_an_outage_uses_up_no_attempts_and_everything_completes(
    database: Database, outage: Outage, tmp_path: Path
) -> None:
    async with on_stage(tmp_path, database) as stage:
        await goes_through(stage, outage, LONG_SECONDS)
