"""The broker is gone with all it held, under load, and is rebuilt from the services' books.

`ROUNDS`, `SEED` and `DATABASE` in the environment are as for the other rounds.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import shutil
import sys
from pathlib import Path
from typing import Final

import pytest

from order_saga.orders import Shares
from saga.local.system import Database
from tests.faults.load import Stage, chosen_databases, on_stage, under_load

ROUNDS: Final = int(os.environ.get("ROUNDS", "1"))
SEED: Final = int(os.environ.get("SEED", "1"))
ORDERS: Final = 300
PER_SECOND: Final = 60
IN_FLIGHT: Final = 30
"""Orders that are on their way when the broker is lost, or more."""
# What another program sent to the broker, and no service has read, is recorded nowhere.
SHARES: Final = Shares(cancelled=0.05, malformed=0)

log = logging.getLogger(__name__)


@pytest.mark.long
@pytest.mark.parametrize(
    ("turn", "seed"),
    [pytest.param(seed, seed, id=f"{seed}") for seed in range(SEED, SEED + ROUNDS)],
)
@pytest.mark.parametrize("database", chosen_databases())
async def test_a_lost_broker_is_made_again_and_no_outcome_changes(
    database: Database, turn: int, seed: int, rabbitmq: str, tmp_path: Path
) -> None:
    dice = random.Random(seed)
    async with on_stage(tmp_path, database) as stage:
        for number in (1, 2):
            moment = dice.randint(1, ORDERS - 4 * IN_FLIGHT)
            async with under_load(
                stage, ORDERS, 1_000 * number + seed, shares=SHARES, rate=PER_SECOND
            ) as load:
                load.allow(moment + IN_FLIGHT)
                unread = dice.random() < 0.5
                if unread:  # Then only those who have published it know of what is lost.
                    stage.system.kill("history")
                await load.reached(moment)
                log.warning("seed %d: the broker is lost with %d orders ended", seed, load.ended)
                load.allow(ORDERS - IN_FLIGHT)
                await lose_broker(stage)
                if dice.random() < 0.5:
                    await recover(stage, kill_after_seconds=dice.uniform(0.5, 3.0))
                await recover(stage)
                if unread:
                    await stage.system.start("history")


async def lose_broker(stage: Stage) -> None:
    """Kill it, and start an empty one in its place."""
    stage.node.kill()
    shutil.rmtree(stage.node.folder / "data")
    await asyncio.to_thread(stage.node.start)


async def recover(stage: Stage, *, kill_after_seconds: float | None = None) -> None:
    """Run the command as an operator, or begin to."""
    command = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "saga.cli",
        "recover",
        "broker",
        "--data-dir",
        str(stage.system.folder),
        stderr=asyncio.subprocess.PIPE,
    )
    if kill_after_seconds is not None:
        await asyncio.wait({asyncio.ensure_future(command.wait())}, timeout=kill_after_seconds)
        if command.returncode is None:
            command.kill()
    _, told = await command.communicate()
    log.warning("%s", told.decode())
    if kill_after_seconds is None:
        assert command.returncode == 0, told.decode()
