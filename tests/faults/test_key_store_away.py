"""A key store of persons that is locked by another process, or whose disk is full, under load: no
health check waits for it, who is new is sealed once it is there again, and every order ends as its
seed says."""

from __future__ import annotations

import asyncio
import itertools
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Final

import pytest

from saga.http import client
from saga.local.system import System
from saga.personal.keystore import LOCKED_SECONDS
from saga.personal.opening import STORE_FILE
from saga.runtime.tasks import cancel_all
from saga.runtime.urls import sqlite_url
from tests.faults.load import on_stage, under_load
from tests.polling import until
from tests.small_disk import SmallDisk, small_disk

SEED = 707
PER_SECOND = 30
ORDERS = 600
BEFORE = 60
"""Orders that have ended before the key store is away."""
AWAY_SECONDS: Final = 3 * LOCKED_SECONDS
"""How long it stays so, after the first one was turned away."""
DISK_MEGABYTES: Final = 16
CHECK_SECONDS: Final = 5.0
"""How long Kubernetes waits for a check: `timeoutSeconds` in deploy/kubernetes/base."""
PAUSE_SECONDS: Final = 0.2
ASK_SECONDS: Final = 30.0
NOTHING: Final = {
    "currency": "EUR",
    "lines": [{"sku": "nothing", "quantity": 1, "unit_price_cents": 1}],
}
"""What is ordered to see whether anything is: there is none of it."""

Away = Callable[[System, SmallDisk], Awaitable[None]]


async def locked(system: System, disk: SmallDisk) -> None:
    """Another process writes to the file and does not come to an end."""
    file = disk.path / STORE_FILE
    with closing(sqlite3.connect(file, 10, isolation_level=None, check_same_thread=False)) as other:
        await asyncio.to_thread(other.execute, "BEGIN IMMEDIATE")
        await is_away(system, "database is locked")
        await asyncio.sleep(AWAY_SECONDS)


async def full(system: System, disk: SmallDisk) -> None:
    disk.fill()
    await is_away(system, "database or disk is full")
    await asyncio.sleep(AWAY_SECONDS)
    disk.make_room()


async def is_away(system: System, why: str) -> None:
    """Return once a new customer is turned away for that reason."""
    numbers = itertools.count()

    async def refused() -> bool:
        order = NOTHING | {"customer": f"{why} {next(numbers)}"}
        async with client(system.deployment.http_urls["order"][0], ASK_SECONDS) as service:
            answer = await service.post("/orders", json=order)
        assert answer.status_code in (202, 503), answer.text
        return why in answer.json().get("detail", "")

    await until(refused)


@asynccontextmanager
async def checked(system: System) -> AsyncIterator[None]:
    """Meanwhile every service answers each health check in time."""
    urls = [url for replicas in system.deployment.http_urls.values() for url in replicas]

    async def check(url: str) -> None:
        async with client(url, CHECK_SECONDS) as service:
            while True:
                assert (await service.get("/livez")).status_code == 200
                assert (await service.get("/readyz")).status_code == 200
                await asyncio.sleep(PAUSE_SECONDS)

    checks = [asyncio.create_task(check(url)) for url in urls]
    try:
        yield
        for each in checks:
            assert not each.done(), each.exception()
    finally:
        await cancel_all(*checks)


@pytest.mark.long
@pytest.mark.parametrize("direct", [False, True], ids=["over-http", "over-the-broker"])
@pytest.mark.parametrize("away", [locked, full], ids=["locked", "full"])
async def test_a_key_store_that_is_away_stalls_no_health_check_and_loses_nothing(
    away: Away, direct: bool, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", DISK_MEGABYTES) as disk:
        environment = {
            "PERSONAL": "sealed",
            "PERSONS_DATABASE_URL": sqlite_url(disk.path / STORE_FILE),
            "PERSONAL_CACHE_SECONDS": "0.2",
        }
        async with (
            on_stage(tmp_path / "system", "sqlite", environment=environment) as stage,
            under_load(stage, ORDERS, SEED, rate=PER_SECOND, direct=direct) as load,
        ):
            await load.reached(BEFORE)
            async with checked(stage.system):
                await away(stage.system, disk)
            assert not load.over
