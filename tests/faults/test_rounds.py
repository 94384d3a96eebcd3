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
from pathlib import Path

import pytest

from saga.orders import Shares
from saga.system import Database
from tests.faults.kinds import KINDS, name_of
from tests.faults.load import Load, chosen_databases, under_load
from tests.faults.report import Report

ROUNDS = int(os.environ.get("ROUNDS", "1"))
SEED = int(os.environ.get("SEED", "1"))
ORDERS = 400
PER_SECOND = 60
"""So slow that the faults strike while orders are on their way."""
IN_FLIGHT = 40
"""Orders that are on their way when a fault strikes, or more."""
STRIKES = 3
"""Faults in one round."""
SHORT: Database = "sqlite"
"""Where `make test` goes through one round."""
# More cancellations and malformed messages than usual: refunds and dead letters meet faults, too.
SHARES = Shares(cancelled=0.05, malformed=0.02)

log = logging.getLogger(__name__)
report = Report()


@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
@pytest.mark.parametrize(
    "database",
    [
        pytest.param(database, marks=[] if database == SHORT else [pytest.mark.long])
        for database in chosen_databases()
    ],
)
async def test_faults_of_all_kinds_change_no_outcome(
    database: Database, seed: int, rabbitmq: str, tmp_path: Path
) -> None:
    dice = random.Random(seed)
    kinds = dice.sample(KINDS[database], STRIKES)
    moments = sorted(dice.sample(range(1, ORDERS - 3 * IN_FLIGHT), STRIKES))
    tally = report.of(database)
    tally.seeds.append(seed)
    tally.brokers[rabbitmq] += 1
    started = time.monotonic()
    load: Load | None = None
    try:
        async with under_load(
            tmp_path, ORDERS, seed, database=database, shares=SHARES, rate=PER_SECOND
        ) as load:
            load.allow(moments[0] + IN_FLIGHT)
            for number, kind in enumerate(kinds, start=1):
                await load.reached(moments[number - 1])
                await load.count()
                log.warning("%s after %d of %d orders", name_of(kind), load.ended, ORDERS)
                # Some are left for the next fault, and after the last one.
                load.allow([*moments, ORDERS - 2 * IN_FLIGHT][number] + IN_FLIGHT)
                await kind(load, dice)
                tally.strikes[name_of(kind)] += 1
    finally:
        tally.seconds += time.monotonic() - started
        if load is not None:
            report.add(database, load.result, load.counts)
        report.write()
