"""Services and broker killed at random under load, round after round.

`ROUNDS` in the environment says how many rounds (1 by default); `SEED` with which seed to begin.
A round that fails names its seed. What the rounds did is written to `FAULTS_REPORT`, if that names
a file.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
import json
import os
import random
from collections import Counter
from pathlib import Path

import httpx
import pytest

from saga.demo import demo
from saga.discovery import choreography
from saga.orders import plan
from saga.system import System
from tests.e2e.test_saga import as_predicted
from tests.polling import until

ROUNDS = int(os.environ.get("ROUNDS", "1"))
SEED = int(os.environ.get("SEED", "1"))
ORDERS = 200
KILLS = 3
"""Kills in one round."""

report: Counter[str] = Counter()


@pytest.mark.long
@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
async def test_services_killed_at_random_change_no_outcome(seed: int, tmp_path: Path) -> None:
    dice = random.Random(seed)
    ended = 0

    def count(orders: int) -> None:
        nonlocal ended
        ended += orders

    def reached(orders: int) -> bool:
        return ended >= orders or load.done()

    async with System(tmp_path, disposable=True) as system:
        load = asyncio.create_task(
            demo(system.deployment, choreography(), plan(ORDERS, seed), seed=seed, ended=count)
        )
        for orders in sorted(dice.sample(range(1, ORDERS - 20), KILLS)):
            await until(functools.partial(reached, orders))
            victim = dice.choice(system.services)
            system.kill(victim)
            report[f"kills of {victim}"] += 1
            await system.start(victim)
        result = await load
        as_predicted(result)
        report["rounds"] += 1
        report["orders"] += ORDERS
        report["duplicates skipped"] += await duplicates(system)
    write_report()


async def duplicates(system: System) -> int:
    """Messages skipped by the inboxes since the services were last started."""
    found = 0.0
    async with httpx.AsyncClient(trust_env=False) as client:
        for url in itertools.chain(*system.deployment.http_urls.values()):
            metrics = (await client.get(f"{url}/metrics")).text
            for line in metrics.splitlines():
                if line.startswith("saga_messages_consumed_total") and '"duplicate"' in line:
                    found += float(line.rpartition(" ")[2])
    return int(found)


def write_report() -> None:
    if path := os.environ.get("FAULTS_REPORT"):
        Path(path).write_text(json.dumps(dict(sorted(report.items())), indent=2) + "\n")
