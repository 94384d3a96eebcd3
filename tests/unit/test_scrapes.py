"""Metrics that are read too often are told once more, and not made again."""

from __future__ import annotations

import asyncio

from prometheus_client import CollectorRegistry, Counter

from saga.runtime.metrics import SCRAPES_PER_SECOND, Scrapes
from saga.runtime.rates import BURST_SECONDS

OPEN_METRICS = "application/openmetrics-text; version=1.0.0"


async def test_metrics_that_are_read_now_and_then_are_what_is_measured_now() -> None:
    registry = CollectorRegistry()
    asked = Counter("asked", "How often.", registry=registry)

    async def before() -> None:
        asked.inc()

    scrapes = Scrapes(before, registry)

    for number in range(1, 4):
        content, media = await scrapes.answer("")
        assert f"asked_total {number}.0" in content.decode()
        assert media.startswith("text/plain")


async def test_a_client_that_reads_them_all_the_time_costs_a_few_a_second() -> None:
    now, made = 0.0, 0

    async def before() -> None:
        nonlocal made
        made += 1

    scrapes = Scrapes(before, CollectorRegistry(), lambda: now)
    for _ in range(1_000):
        await asyncio.gather(scrapes.answer(""), scrapes.answer(OPEN_METRICS))
    burst = made
    now += 1.0
    for _ in range(1_000):
        await scrapes.answer("")

    assert burst <= 2 * (SCRAPES_PER_SECOND * BURST_SECONDS + 1)
    assert 0 < made - burst <= SCRAPES_PER_SECOND + 1
    assert (await scrapes.answer(OPEN_METRICS))[1].startswith("application/openmetrics-text")
