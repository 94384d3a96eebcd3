"""Faults of all kinds on a saga of another project, `examples/trips`: no outcome changes.

    make faults ROUNDS=20 ARGS='-k trips'

The load is the saga's own, with the ends that it predicts: refusals, cancellations, holds that
lapse and time limits among them.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import pytest

from saga.discovery import saga
from saga.load.run import LoadResult, plan_of, see_through
from tests.faults import kinds
from tests.faults.load import Load, Stage, on_stage
from tests.polling import until

PACKAGE: Final = Path(__file__).parents[2] / "examples" / "trips" / "trips"
ROUNDS: Final = int(os.environ.get("ROUNDS", "1"))
SEED: Final = int(os.environ.get("SEED", "1"))
TRIPS: Final = 100
STRIKES: Final = 3
REACHED_SECONDS: Final = 120.0
KINDS: Final = (
    kinds.service_killed,
    kinds.service_frozen,
    kinds.broker_killed,
    kinds.connections_closed_by_the_broker,
    kinds.memory_alarm,
    kinds.network_cut,
    kinds.network_silent,
    kinds.network_half_open,
    kinds.network_slow,
    kinds.events_repeated,
    kinds.deliveries_reordered,
    kinds.database_locked,
)
"""Those that are about no participant by name."""

log = logging.getLogger(__name__)


@dataclass
class Progress:
    """How far a load is; what a fault needs of one."""

    stage: Stage
    task: asyncio.Task[LoadResult] | None = None
    sent: int = 0
    ended: int = 0

    @property
    def over(self) -> bool:
        return self.task is not None and self.task.done()

    def count_sent(self, commands: int) -> None:
        self.sent += commands

    def count_ended(self, trips: int) -> None:
        self.ended += trips


@pytest.mark.long
@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
async def test_faults_of_all_kinds_change_no_trip(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "package").mkdir()
    (tmp_path / "package" / "trips").symlink_to(PACKAGE)  # without the tests beside it
    monkeypatch.syspath_prepend(tmp_path / "package")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "package"))
    monkeypatch.setenv("SAGA", "trips:SAGA")
    async with on_stage(tmp_path / "system", "sqlite") as stage:
        result = await _through_faults(stage, seed)

    assert result.unexpected == []
    assert [*result.report.violations] == []


async def _through_faults(stage: Stage, seed: int) -> LoadResult:
    """What came of a load; the faults strike once all of it is sent."""
    dice = random.Random(seed)
    plan = plan_of(saga(), TRIPS, seed)
    load = Progress(stage)
    load.task = asyncio.create_task(
        see_through(
            stage.system.deployment,
            saga(),
            plan,
            seed=seed,
            sent=load.count_sent,
            ended=load.count_ended,
        )
    )
    try:
        await until(lambda: load.over or load.sent == len(plan.given), seconds=REACHED_SECONDS)
        for kind in dice.sample(KINDS, STRIKES):
            log.warning(
                f"seed {seed}: {kinds.name_of(kind)}, with {load.ended} of {TRIPS} trips ended"
            )
            await kind(cast("Load", load), dice)
        stage.heal()
        return await load.task
    finally:
        load.task.cancel()
        await asyncio.wait({cast("asyncio.Task[Any]", load.task)})
