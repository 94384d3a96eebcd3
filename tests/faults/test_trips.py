"""Faults of all kinds on a saga of another project, `examples/trips`: no outcome changes.

    make faults ROUNDS=20 ARGS='-k trips'

The load is the saga's own, with the ends that it predicts: refusals, cancellations, holds that
lapse and time limits among them.
"""

from __future__ import annotations

import logging
import os
import random
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, cast

import pytest

from saga.discovery import saga
from saga.load.run import LoadResult, plan_of, see_through, send
from tests.faults import kinds
from tests.faults.load import Load, Stage, on_stage

PROJECT: Final = Path(__file__).parents[2] / "examples" / "trips"
PACKAGE: Final = "trips"
ROUNDS: Final = int(os.environ.get("ROUNDS", "1"))
SEED: Final = int(os.environ.get("SEED", "1"))
TRIPS: Final = 100
STRIKES: Final = 3
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
class Under:
    """What a fault needs of a load that is on its way: it is never over before the faults are."""

    stage: Stage
    over: bool = False


@pytest.fixture
def _project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The example is the project, without the tests beside it."""
    project = tmp_path / "project"
    shutil.copytree(PROJECT / PACKAGE, project / PACKAGE)
    shutil.copy(PROJECT / "pyproject.toml", project)
    # The scripts that make its tables follow from them, and are not in the repository.
    subprocess.run([sys.executable, "-m", "saga.cli", "generate"], cwd=project, check=True)
    monkeypatch.syspath_prepend(project)
    monkeypatch.setenv("PYTHONPATH", str(project))
    monkeypatch.setenv("SAGA", f"{PACKAGE}:SAGA")


@pytest.mark.long
@pytest.mark.usefixtures("_project")
@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
async def test_faults_of_all_kinds_change_no_trip(seed: int, tmp_path: Path) -> None:
    async with on_stage(tmp_path / "system", "sqlite") as stage:
        result = await _through_faults(stage, seed)

    assert result.unexpected == []
    assert [*result.report.violations] == []


async def _through_faults(stage: Stage, seed: int) -> LoadResult:
    """What came of a load. The faults strike once all of it is sent, and are over before the books
    are looked at: connections of ours, the test's, are interrupted as well."""
    deployment, dice = stage.system.deployment, random.Random(seed)
    plan = plan_of(saga(), TRIPS, seed)
    await send(deployment, plan)
    for kind in dice.sample(KINDS, STRIKES):
        log.warning(f"seed {seed}: {kinds.name_of(kind)}")
        await kind(cast("Load", Under(stage)), dice)
    stage.heal()
    return await see_through(deployment, saga(), replace(plan, given=(), before=()), seed=seed)
