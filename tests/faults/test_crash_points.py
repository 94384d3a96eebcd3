"""Killed at every seam of a delivery's life: no order is lost, none is done twice."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from saga.demo import demo
from saga.discovery import choreography
from saga.orders import Shares, plan
from saga.system import System
from tests.e2e.test_saga import as_predicted
from tests.faults.crash import POINTS
from tests.polling import until

SEED = 90210
ORDERS = 240
# More cancellations and malformed messages than usual, so that their seams are met often.
SHARES = Shares(cancelled=0.1, malformed=0.05)

SEAMS = [
    ("order", "before-commit", 6),
    ("inventory", "between-commit-and-ack", 60),
    ("payment", "between-commit-and-publish", 6),
    ("inventory", "in-the-middle-of-publishing", 3),
    ("order", "between-publish-and-forget", 6),
    ("payment", "between-intent-and-call", 40),
    ("payment", "between-call-and-commit", 40),
    ("payment", "between-refund-intent-and-call", 5),
    ("payment", "between-refund-and-commit", 5),
    ("inventory", "between-setting-aside-and-ack", 2),
]


def test_every_point_has_a_seam() -> None:
    assert {point for _, point, _ in SEAMS} == set(POINTS)


# What `make test` holds; `make faults` goes through all of them.
SHORT = {"between-call-and-commit"}


@pytest.mark.parametrize(
    ("service", "point", "times"),
    [
        pytest.param(*seam, id=seam[1], marks=[] if seam[1] in SHORT else [pytest.mark.long])
        for seam in SEAMS
    ],
)
async def test_a_service_killed_at_a_seam_loses_and_doubles_nothing(
    service: str, point: str, times: int, tmp_path: Path
) -> None:
    async with System(tmp_path, disposable=True) as system:
        system.kill(service)
        system.programs[service] = (
            "-m", "tests.faults.crash", f"{service}_service", point, str(times)
        )  # fmt: skip
        await system.start(service)
        load = asyncio.create_task(
            demo(system.deployment, choreography(), plan(ORDERS, SEED, SHARES), seed=SEED)
        )
        await until(lambda: load.done() or not system.alive(service))
        assert not system.alive(service), "the load ended before the point was reached"
        del system.programs[service]
        await system.start(service)
        as_predicted(await load)
