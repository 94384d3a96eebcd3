"""The simulated event loop: its clock, its order, and what becomes of processes on it."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy.util import await_only

from saga.simulation.loop import SimulatedLoop, SimulatedProcess, current_process

LONG_SECONDS = 1_000.0


def run(work: Coroutine[Any, Any, Any], *, seed: int = 1) -> SimulatedLoop:
    """Run a process's task until nothing is left to do."""
    loop = SimulatedLoop(random.Random(seed))
    process = SimulatedProcess("p")
    loop.spawn(process, work)
    loop.run(LONG_SECONDS)
    loop.end(process)
    loop.close()
    return loop


def test_waiting_takes_simulated_time_only() -> None:
    async def wait() -> None:
        await asyncio.sleep(900)
        ends.append(asyncio.get_running_loop().time())

    ends: list[float] = []
    run(wait())
    assert 900 <= ends[0] < 900.01


def test_a_timeout_ends_what_takes_too_long() -> None:
    async def wait() -> None:
        try:
            async with asyncio.timeout(5):
                await asyncio.Event().wait()
        except TimeoutError:
            ends.append(asyncio.get_running_loop().time())

    ends: list[float] = []
    run(wait())
    assert 5 <= ends[0] < 5.01


def test_the_order_of_what_is_ready_is_the_seeds() -> None:
    def order(seed: int) -> list[int]:
        async def note(number: int) -> None:
            noted.append(number)

        async def begin() -> None:
            await asyncio.gather(*map(note, range(10)))

        noted: list[int] = []
        run(begin(), seed=seed)
        return noted

    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(20)}) == 20


def test_a_killed_process_does_nothing_more_and_others_go_on() -> None:
    loop = SimulatedLoop(random.Random(1))
    killed, other = SimulatedProcess("killed"), SimulatedProcess("other")
    done: list[str] = []

    async def work() -> None:
        name = current_process().name
        try:
            await asyncio.sleep(1)
            done.append(f"{name} begins")
            await asyncio.gather(asyncio.sleep(10), asyncio.sleep(20))
            done.append(f"{name} ends")
        finally:
            await asyncio.sleep(0)
            done.append(f"{name} has tidied up")

    for process in (killed, other):
        loop.spawn(process, work())
    loop.call_later(5, loop.kill, killed, context=other.context)
    loop.run(LONG_SECONDS)
    loop.end(other)
    loop.close()
    assert "killed begins" in done
    assert "killed ends" not in done
    assert "killed has tidied up" not in done
    assert done[-2:] == ["other ends", "other has tidied up"]


def test_what_is_cleaned_up_when_a_process_ends_finds_its_loop() -> None:
    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            loops.append(asyncio.get_running_loop())
            await asyncio.gather()

    loops: list[asyncio.AbstractEventLoop] = []
    loop = run(work())

    assert loops == [loop]
    with pytest.raises(RuntimeError):
        asyncio.get_running_loop()


def test_a_frozen_process_goes_on_later() -> None:
    async def work() -> None:
        loop.freeze(current_process(), 30)
        await asyncio.sleep(1)
        times.append(loop.time())

    loop = SimulatedLoop(random.Random(1))
    process = SimulatedProcess("p")
    times: list[float] = []
    loop.spawn(process, work())
    loop.run(LONG_SECONDS)
    loop.end(process)
    loop.close()
    assert 30 <= times[0] < 30.01


@pytest.mark.parametrize("kind", ["task", "future"])
def test_an_error_that_no_code_looks_at_is_reported_even_if_nothing_is_ever_collected(
    kind: str,
) -> None:
    held: list[object] = []

    async def fail() -> None:
        raise ValueError("unseen")

    async def begin() -> None:
        running = asyncio.get_running_loop()
        if kind == "task":
            held.append(running.create_task(fail()))
        else:
            future = running.create_future()
            future.set_exception(ValueError("unseen"))
            held.append(future)
        seen = running.create_future()
        seen.set_exception(ValueError("seen"))
        with pytest.raises(ValueError, match="seen"):
            await seen

    loop = SimulatedLoop(random.Random(1))
    reported: list[tuple[str, str]] = []
    loop.on_error = lambda message, error: reported.append((message, str(error)))
    process = SimulatedProcess("p")
    loop.spawn(process, begin())
    loop.run(LONG_SECONDS)
    loop.end(process)
    loop.close()
    once = [(f"{kind.title()} exception was never retrieved", "unseen")]
    assert reported == once
    held.clear()
    gc.collect()
    assert reported == once


def test_others_go_on_while_a_thread_waits_and_an_executor_has_one() -> None:
    said: list[str] = []

    def blocks(name: str, seconds: float) -> str:
        said.append(f"{name} begins")
        await_only(asyncio.sleep(seconds))
        said.append(f"{name} ends")
        return name

    async def ask() -> None:
        loop, one = asyncio.get_running_loop(), ThreadPoolExecutor(1)
        first = loop.run_in_executor(one, blocks, "first", 10)
        await asyncio.sleep(1)
        second = loop.run_in_executor(one, blocks, "second", 1)
        assert await asyncio.to_thread(blocks, "another", 1) == "another"
        assert (await first, await second) == ("first", "second")

    run(ask())
    assert said == [
        "first begins",
        "another begins",
        "another ends",
        "first ends",
        "second begins",
        "second ends",
    ]
