"""The console's runs of the simulation: one at a time, a few kept, none too long."""

from __future__ import annotations

import asyncio

import pytest

from saga.console.playing import RUNS_MAX, SeedRuns
from saga.console.proving import PlayedRun, ProvingError, last_line
from tests.polling import until


async def test_one_run_is_played_at_a_time_and_what_gives_way_is_given_up() -> None:
    playing: list[int] = []
    go_on = asyncio.Event()

    async def play(seed: int) -> PlayedRun:
        playing.append(seed)
        try:
            await go_on.wait()
        finally:
            playing.remove(seed)
        return PlayedRun(seed, "", 0, 0.0, (), ())

    runs = SeedRuns(play)
    for seed in range(RUNS_MAX):
        runs.begin(seed)

    async def plays(seed: int) -> bool:
        return playing == [seed]

    await until(lambda: plays(0))
    runs.begin(RUNS_MAX)
    await until(lambda: plays(1))
    assert runs.get(0) is None
    go_on.set()

    async def all_are_done() -> bool:
        found = [runs.get(seed) for seed in range(1, RUNS_MAX + 1)]
        return all(run is not None and run.last is not None for run in found)

    await until(all_are_done)


async def test_a_line_that_is_too_long_is_not_read() -> None:
    stream = asyncio.StreamReader(limit=10)
    stream.feed_data(b"short\n" + b"x" * 100)
    stream.feed_eof()
    seen: list[bytes] = []

    with pytest.raises(ProvingError, match="more than is read"):
        await last_line(stream, seen.append)
    assert seen == [b"short\n"]
