"""Ending tasks."""

from __future__ import annotations

import asyncio

import pytest

from saga.runtime import tasks
from saga.runtime.tasks import cancel_all


async def test_a_task_that_lost_its_cancellation_is_cancelled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0.01)
    lost: list[int] = []

    async def work() -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if len(lost) == 2:
                    raise
                lost.append(1)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    await cancel_all(task)
    assert task.cancelled()
    assert len(lost) == 2


async def test_how_they_ended_is_no_concern() -> None:
    async def fail() -> None:
        raise ValueError

    failed = asyncio.create_task(fail())
    await asyncio.wait({failed})
    await cancel_all(failed, asyncio.create_task(asyncio.sleep(60)))
    await cancel_all()
