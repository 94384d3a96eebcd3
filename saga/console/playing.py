"""Runs of the simulation that pages have asked for."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Coroutine
from typing import Any, Final

from saga.console.inquiry import Inquiry
from saga.console.proving import PlayedRun

RUNS_MAX: Final = 4
"""Runs that are kept, or wait for their turn."""


class SeedRuns:
    """The runs that were asked for last, one of which is played at a time. Belongs to one event
    loop."""

    def __init__(self, play: Callable[[int], Coroutine[Any, Any, PlayedRun]]) -> None:
        self._play = play
        self._turn = asyncio.Lock()
        self._kept: OrderedDict[int, Inquiry[PlayedRun]] = OrderedDict()

    def get(self, seed: int) -> Inquiry[PlayedRun] | None:
        """The run of that seed; None if it is not kept."""
        if seed in self._kept:
            self._kept.move_to_end(seed)
        return self._kept.get(seed)

    def begin(self, seed: int) -> Inquiry[PlayedRun]:
        """The run of that seed, which is begun unless it is kept; the one that was asked for
        longest ago gives way to it."""
        run = self.get(seed)
        if run is None:
            run = self._kept[seed] = Inquiry(lambda: self._in_turn(seed))
        if run.last is None:
            run.begin()
        while len(self._kept) > RUNS_MAX:
            _, oldest = self._kept.popitem(last=False)
            oldest.cancel()
        return run

    async def _in_turn(self, seed: int) -> PlayedRun:
        async with self._turn:
            return await self._play(seed)
