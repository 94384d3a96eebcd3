"""Readiness is known before it is asked for, and being slow is not being gone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from saga.runtime import readiness as module
from saga.runtime.readiness import STALE_SECONDS, Look, Missing, Readiness
from saga.runtime.tasks import cancel_all
from tests.polling import until


class Broker:
    """What is looked at: answers, takes its time, or fails."""

    def __init__(self) -> None:
        self.looks = 0
        self.missing: dict[str, str] = {}
        self.error: Exception | None = None
        self.answers = asyncio.Event()
        self.answers.set()

    async def look(self) -> Missing:
        self.looks += 1
        await self.answers.wait()
        if self.error is not None:
            raise self.error
        return self.missing


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def watching(broker: Broker, clock: Clock) -> AsyncIterator[Readiness]:
    look = Look(broker.look, explain=lambda why: {"broker": why})
    readiness = Readiness(look, monotonic=clock)
    running = asyncio.create_task(readiness.run())
    try:
        yield readiness
    finally:
        await cancel_all(running)


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_SECONDS", 0.02)
    monkeypatch.setattr(module, "LOOK_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(module, "LOOK_SECONDS", 0.05)


async def test_what_nobody_has_looked_at_yet_is_missing() -> None:
    broker = Broker()
    broker.answers.clear()
    async with watching(broker, Clock()) as readiness:
        await until(lambda: broker.looks == 1)

        assert readiness.missing() == {"broker": "nothing is known yet"}


async def test_a_broker_that_takes_its_time_is_not_a_broker_that_is_gone() -> None:
    broker, clock = Broker(), Clock()
    async with watching(broker, clock) as readiness:
        await until(lambda: not readiness.missing())
        broker.answers.clear()
        looks = broker.looks
        await until(lambda: broker.looks > looks + 2)

        clock.now += STALE_SECONDS
        assert readiness.missing() == {}
        assert readiness.age_seconds == STALE_SECONDS

        clock.now += 1
        assert readiness.missing() == {"broker": f"no answer for {STALE_SECONDS + 1:.0f} s"}

        broker.answers.set()
        await until(lambda: not readiness.missing())


async def test_a_broker_that_is_gone_is_missing_at_once_and_there_again_at_once() -> None:
    broker = Broker()
    async with watching(broker, Clock()) as readiness:
        await until(lambda: not readiness.missing())
        broker.error = ConnectionError("refused\nby a firewall")
        await until(lambda: readiness.missing() == {"broker": "refused"})
        broker.error = TimeoutError()
        await until(lambda: readiness.missing() == {"broker": "TimeoutError"})
        broker.error, broker.missing = None, {"consumers": "nobody reads"}
        await until(lambda: readiness.missing() == {"consumers": "nobody reads"})
        broker.missing = {}
        await until(lambda: not readiness.missing())


async def test_one_that_is_slow_does_not_keep_another_one_from_being_looked_at() -> None:
    slow, quick = Broker(), Broker()
    slow.answers.clear()
    readiness = Readiness(
        Look(slow.look, explain=lambda why: {"slow": why}),
        Look(quick.look, explain=lambda why: {"quick": why}),
        known=lambda: {"loop": "stuck"},
    )
    running = asyncio.create_task(readiness.run())
    await until(lambda: quick.looks > 5)

    assert readiness.missing() == {"slow": "nothing is known yet", "loop": "stuck"}
    await cancel_all(running)


async def test_what_has_changed_is_looked_at_without_waiting(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY_SECONDS", 1_000.0)
    broker = Broker()
    async with watching(broker, Clock()) as readiness:
        await until(lambda: not readiness.missing())
        broker.missing = {"consumers": "nobody reads"}
        readiness.look_again()
        await until(lambda: bool(readiness.missing()))
