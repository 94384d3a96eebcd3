"""Ending tasks."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import CancelledError, ThreadPoolExecutor

import pytest

from saga.runtime import tasks
from saga.runtime.tasks import LoopThread, cancel_all, side_by_side


class Deaf:
    """Work that loses its first cancellations, as `asyncio.wait_for` does on Python 3.11."""

    def __init__(self) -> None:
        self.lost = 0

    async def __call__(self) -> None:
        while True:
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                if self.lost == 2:
                    raise
                self.lost += 1


@pytest.fixture
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "AGAIN_SECONDS", 0.01)


async def fail() -> None:
    raise ValueError


@pytest.mark.usefixtures("_impatient")
async def test_a_task_that_lost_its_cancellation_is_cancelled_again() -> None:
    deaf = Deaf()
    task = asyncio.create_task(deaf())
    await asyncio.sleep(0)
    await cancel_all(task)
    assert task.cancelled()
    assert deaf.lost == 2


async def test_how_they_ended_is_no_concern() -> None:
    failed = asyncio.create_task(fail())
    await asyncio.wait({failed})
    await cancel_all(failed, asyncio.create_task(asyncio.sleep(60)))
    await cancel_all()


@pytest.mark.usefixtures("_impatient")
async def test_what_goes_on_side_by_side_ends_however_often_it_has_to_be_cancelled() -> None:
    deaf = [Deaf(), Deaf()]
    together = asyncio.create_task(side_by_side(*(one() for one in deaf)))
    await asyncio.sleep(0.01)
    await cancel_all(together)
    assert together.cancelled()
    assert [one.lost for one in deaf] == [2, 2]


@pytest.mark.usefixtures("_impatient")
async def test_the_first_failure_ends_what_goes_on_beside() -> None:
    deaf = Deaf()
    with pytest.raises(ValueError, match=r"^$"):
        await side_by_side(deaf(), fail())
    assert deaf.lost == 2
    await side_by_side()


def test_what_is_asked_of_a_loop_in_a_thread_is_answered() -> None:
    async def answer() -> str:
        await asyncio.sleep(0)
        return threading.current_thread().name

    loop = LoopThread("elsewhere")
    try:
        assert loop.ask(answer()) == "elsewhere"
        with pytest.raises(ValueError):  # noqa: PT011 - `fail` says nothing
            loop.ask(fail())
    finally:
        loop.close()


def test_a_loop_in_a_thread_is_closed_once_all_on_it_has_cleaned_up() -> None:
    """Or who asked would wait for ever, and what cleans up would find no loop."""
    begun = threading.Event()
    cleaned: list[str] = []

    async def work() -> None:
        part = asyncio.create_task(asyncio.sleep(60))
        try:
            begun.set()
            await part
        finally:
            await cancel_all(part)
            await asyncio.sleep(0)
            cleaned.append("up")

    loop = LoopThread("elsewhere")
    with ThreadPoolExecutor(1) as asking:
        asked = asking.submit(loop.ask, work())
        begun.wait()
        loop.close()
        with pytest.raises(CancelledError):
            asked.result()

    assert cleaned == ["up"]
    assert loop.is_closed
    loop.close()
