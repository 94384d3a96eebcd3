"""Faults of all kinds under load, round after round: no outcome changes.

In the environment, `ROUNDS` says how many rounds on each database (1 by default), `SEED` with which
seed to begin, `DATABASE` on which database only, and `FAULTS_REPORT` where to write what came of
them.
"""

from __future__ import annotations

import logging
import os
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from order_saga.orders import Shares
from saga.local.system import Database
from tests.faults.kinds import KINDS, name_of
from tests.faults.load import Load, Stage, chosen_databases, on_stage, under_load
from tests.faults.report import Report, Tally

ROUNDS = int(os.environ.get("ROUNDS", "1"))
SEED = int(os.environ.get("SEED", "1"))
ROUNDS_ON_ONE_SYSTEM = 5
"""Then it is an old one, and a new one, on another RabbitMQ if there are several, has its turn."""
ORDERS = 300
PER_SECOND = 60
"""So slow that the faults strike while orders are on their way."""
IN_FLIGHT = 30
"""Orders that are on their way when a fault strikes, or more."""
STRIKES = 3
"""Faults in one round."""
# More cancellations and malformed messages than usual: refunds and dead letters meet faults, too.
SHARES = Shares(cancelled=0.05, malformed=0.02)

log = logging.getLogger(__name__)
report = Report()


def batches() -> list[range]:
    """The seeds of the rounds, by the system they have in common."""
    firsts = range(SEED, SEED + ROUNDS, ROUNDS_ON_ONE_SYSTEM)
    return [range(first, min(first + ROUNDS_ON_ONE_SYSTEM, SEED + ROUNDS)) for first in firsts]


@pytest.mark.long
@pytest.mark.parametrize(
    ("turn", "seeds"),
    [
        pytest.param(turn, seeds, id=f"{seeds[0]} to {seeds[-1]}")
        for turn, seeds in enumerate(batches())
    ],
)
@pytest.mark.parametrize("database", chosen_databases())
async def test_faults_of_all_kinds_change_no_outcome(
    database: Database, turn: int, seeds: Sequence[int], rabbitmq: str, tmp_path: Path
) -> None:
    tally = report.of(database)
    started = time.monotonic()
    async with on_stage(tmp_path, database) as stage:
        try:
            for seed in seeds:
                tally.rounds.append(seed)
                tally.brokers[rabbitmq] += 1
                await go_through(stage, database, seed, tally)
        finally:
            tally.found.update(stage.counts)
            tally.seconds += time.monotonic() - started
            report.write()


async def go_through(stage: Stage, database: Database, seed: int, tally: Tally) -> None:
    """One round."""
    dice = random.Random(seed)
    kinds = dice.sample(KINDS[database], STRIKES)
    moments = sorted(dice.sample(range(1, ORDERS - 4 * IN_FLIGHT), STRIKES))
    load: Load | None = None
    try:
        async with under_load(stage, ORDERS, seed, shares=SHARES, rate=PER_SECOND) as load:
            load.allow(moments[0] + IN_FLIGHT)
            for number, kind in enumerate(kinds, start=1):
                await load.reached(moments[number - 1])
                await stage.count()
                said = f"seed {seed}: {name_of(kind)}, with {load.ended} of {ORDERS} orders ended"
                log.warning(said)
                # Some are left for the next fault, and after the last one.
                load.allow([*moments, ORDERS - 3 * IN_FLIGHT][number] + IN_FLIGHT)
                await kind(load, dice)
                tally.strikes[name_of(kind)] += 1
            stage.heal()
    finally:
        tally.add(load.result if load is not None else None)
