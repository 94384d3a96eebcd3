"""A disk that fills up under load: the load stops while there is room, nothing ends that is not
brought back, and with room again every order ends as its seed says."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import pytest

from saga.http import client
from saga.local.system import Database, System
from saga.runtime.disk import WAITING_SHARE, servers_min_bytes
from saga.runtime.settings import Settings
from tests.faults.load import Stage, chosen_databases, on_stage, under_load
from tests.polling import until
from tests.small_disk import SmallDisk, small_disk

SEED = 808
PER_SECOND = 60
TIMES = 2
EACH = 700
"""Orders that are sent around each time."""
BEFORE = 200
"""Of those, the ones that have ended before the disk fills up."""
DISK_MEGABYTES: Final = {"sqlite": 400, "postgresql": 700}
LIMIT_BYTES: Final = Settings.model_fields["disk_free_min_bytes"].default
BELOW: Final = 0.9
"""Of each limit, what is left free: just less than it takes."""
ASK_SECONDS = 10.0
SECONDS = 180.0
"""How long everything may take to go on."""


async def readyz(url: str) -> dict[str, str]:
    """What a service lacks."""
    try:
        async with client(url, ASK_SECONDS) as service:
            answer = await service.get("/readyz")
    except httpx.TransportError as error:
        return {"http": str(error)}
    return dict(answer.json().get("missing", {}))


def urls(system: System) -> list[str]:
    return [url for replicas in system.deployment.http_urls.values() for url in replicas]


async def all_say(system: System, words: str) -> bool:
    """Whether every service says that of its disk."""
    found = await asyncio.gather(*map(readyz, urls(system)))
    return all(words in missing.get("disk", "") for missing in found)


async def all_ready(system: System) -> bool:
    return not any(await asyncio.gather(*map(readyz, urls(system))))


async def has_alarm(stage: Stage) -> bool:
    found = await asyncio.to_thread(stage.node.ctl, "eval", "rabbit_alarm:get_alarms().")
    return "disk" in found


@asynccontextmanager
async def watched(system: System) -> AsyncIterator[None]:
    """The system as `saga up` has it: nothing is started by hand."""
    watching = asyncio.ensure_future(system.watch())
    try:
        yield
        assert not watching.done(), watching.exception()
    finally:
        watching.cancel()
        await asyncio.wait({watching})


async def fill_up(stage: Stage, disk: SmallDisk) -> None:
    """Limit by limit, as it goes when something else grows."""
    disk.fill(int(LIMIT_BYTES * BELOW))
    await until(lambda: all_say(stage.system, "nothing new is begun"))
    disk.fill(int(LIMIT_BYTES / WAITING_SHARE * BELOW))
    await until(lambda: all_say(stage.system, "what has begun waits"))
    disk.fill(int(servers_min_bytes(LIMIT_BYTES) * BELOW))
    await until(lambda: has_alarm(stage))


@pytest.mark.long
@pytest.mark.parametrize("to_the_last_byte", [False, True], ids=["to-the-limits", "all"])
@pytest.mark.parametrize("database", chosen_databases())
async def test_a_disk_that_fills_up_stops_the_load_and_nothing_is_lost(
    database: Database, to_the_last_byte: bool, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk", DISK_MEGABYTES[database]) as disk:
        async with (
            on_stage(disk.path / "data", database) as stage,
            watched(stage.system),
            under_load(stage, TIMES * EACH, SEED, rate=PER_SECOND) as load,
        ):
            for time in range(TIMES):
                load.allow((time + 1) * EACH)
                await load.reached(time * EACH + BEFORE)
                await fill_up(stage, disk)
                if to_the_last_byte:
                    disk.fill()
                    await until(lambda: all_say(stage.system, "0 kB free"))
                assert not load.over
                disk.make_room()
                await until(lambda: all_ready(stage.system), seconds=SECONDS)
