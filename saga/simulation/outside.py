"""Whom the services ask, and no process of ours can touch but by asking."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from saga.simulation.loop import Process, SimulatedLoop, current_process, settle
from saga.simulation.trace import Trace
from saga.simulation.weather import Weather

SLOW_SECONDS = 20.0
"""What a slow answer may take."""

T = TypeVar("T")


class Outside:
    """Somebody who takes questions, and answers whether or not the asker still lives."""

    def __init__(self, loop: SimulatedLoop, weather: Weather, trace: Trace, world: Process) -> None:
        self._loop = loop
        self._weather = weather
        self._trace = trace
        self._world = world

    async def _ask(self, question: Callable[[], T], slow_rate: float) -> T:
        """The question goes there, where it is run, and its answer, or error, comes back."""
        answer: asyncio.Future[T] = self._loop.create_future()
        asker = current_process()

        def take() -> None:
            result: T | Exception
            try:
                result = question()
            except Exception as error:
                result = error
            slow = self._weather.happens(slow_rate)
            seconds = self._weather.seconds(SLOW_SECONDS) if slow else self._weather.latency()
            self._loop.call_later(seconds, settle, answer, result, context=asker.context)

        self._loop.call_later(self._weather.latency(), take, context=self._world.context)
        return await answer
