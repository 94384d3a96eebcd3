"""Killed at every seam of a delivery's life: no order is lost, none is done twice."""

from __future__ import annotations

from pathlib import Path

import pytest

from order_saga.orders import Shares
from saga.local.system import Database
from tests.faults.crash import POINTS
from tests.faults.kinds import SEAMS, run_until_it_dies
from tests.faults.load import Stage, chosen_databases, on_stage, package_of, under_load

SEED = 90210
ORDERS = 240
ORDERS_OF_REPLICAS = 1_000
"""While one of two restarts, the other goes on, and must not be through before it is there."""
# More cancellations and malformed messages than usual, so that their seams are met often, also by
# one replica of two on a busy machine, where most cancellations come before the charge.
SHARES = Shares(cancelled=0.25, malformed=0.08)
DIES_SECONDS = 60.0

KILLS = [
    ("order", "before-commit", 6),
    ("inventory", "between-commit-and-ack", 60),
    ("payment", "between-commit-and-publish", 6),
    ("inventory", "in-the-middle-of-publishing", 3),
    ("order", "between-publish-and-forget", 6),
    ("payment", "between-intent-and-call", 40),
    ("payment", "between-call-and-commit", 40),
    ("payment", "between-refund-intent-and-call", 2),
    ("payment", "between-refund-and-commit", 2),
    ("inventory", "between-setting-aside-and-ack", 1),
]


def test_every_point_has_a_seam() -> None:
    assert {point for _, point, _ in KILLS} == set(POINTS) == set(SEAMS)


async def kill_at(
    stage: Stage, service: str, point: str, times: int, *, orders: int = ORDERS
) -> None:
    async with under_load(stage, orders, SEED, shares=SHARES) as load:
        program = stage.program(
            service, "tests.faults.crash", package_of(service), point, str(times)
        )
        died = await run_until_it_dies(load, service, program, DIES_SECONDS)
        assert died, "the load ended before the point was reached"


# What `make test` holds; `make faults` goes through all of them.


@pytest.mark.long
@pytest.mark.asyncio(loop_scope="session")
async def test_a_service_killed_after_it_was_paid_loses_and_doubles_nothing(stage: Stage) -> None:
    await kill_at(stage, "payment", "between-call-and-commit", 40)


@pytest.mark.long
@pytest.mark.parametrize("database", chosen_databases())
@pytest.mark.parametrize(("service", "point", "times"), KILLS, ids=[point for _, point, _ in KILLS])
async def test_a_service_killed_at_a_seam_loses_and_doubles_nothing(
    service: str, point: str, times: int, database: Database, tmp_path: Path
) -> None:
    orders = ORDERS if database == "sqlite" else ORDERS_OF_REPLICAS
    async with on_stage(tmp_path, database) as stage:
        await kill_at(stage, service, point, times, orders=orders)
