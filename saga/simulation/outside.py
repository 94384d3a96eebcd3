"""Whom the services ask, and no process of ours can touch but by asking."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from saga.envelope import Envelope, MessageKey
from saga.message import Answer, Ask, Intent
from saga.outside import Desk, Outside
from saga.retry import TransientError
from saga.runtime.telemetry import ABOUT
from saga.simulation.doors import Doors
from saga.simulation.loop import SimulatedLoop, SimulatedProcess, current_process, settle
from saga.simulation.trace import SimulationTrace
from saga.simulation.weather import FaultSchedule

OUTAGE_SECONDS = 60.0
"""How long it may be away."""
SLOW_SECONDS = 20.0
"""What a slow answer may take."""


T = TypeVar("T")
Heard = tuple[T, Any, str]
"""What a question comes to, the books after it, and how it was taken."""


class SimulatedOutside:
    """An outside with books of its own. It takes questions, and answers whether or not the asker
    still lives.

    What it decides on something new is in the plan, or else the usual, and in a storm anything.
    """

    def __init__(
        self,
        outside: Outside[Any],
        loop: SimulatedLoop,
        weather: FaultSchedule,
        trace: SimulationTrace,
        world: SimulatedProcess,
        chance: random.Random,
        planned: Callable[[Intent], Any] | None,
        on_crash: Callable[[SimulatedProcess], None],
        trouble: Callable[[str, str], None],
        doors: Doors | None = None,
    ) -> None:
        self._trouble = trouble
        self._effects: set[tuple[type[Intent], str, MessageKey]] = set()
        """The questions that had one, each with the message that led to it."""
        self.unusual: set[str] = set()
        """Subjects about which it has decided otherwise than usual."""
        self._on_crash = on_crash
        self._away_until = 0.0
        self.books = outside.blank
        self.heard: set[type[Intent]] = set()
        """What it was asked."""
        self._outside = outside
        self._loop = loop
        self._weather = weather
        self._trace = trace
        self._world = world
        self._chance = chance
        self._planned = planned
        self._doors = doors

    @property
    def name(self) -> str:
        return self._outside.name

    @property
    def asks(self) -> Mapping[type[Intent], Ask]:
        """How each of its questions is put."""
        return dict.fromkeys(self._outside.intents, self._ask)

    async def _ask(self, intent: Intent) -> Answer:
        """Put a question, by what opens what is sealed in it in a run with doors."""
        outside = self._outside
        if self._doors is None or outside.opens is None:
            return await self.reach(intent, lambda decision: self._at_once(intent, decision))
        desk = _DistantDesk(self, self._doors, intent)
        return await outside.opens(desk, self._doors.here)[type(intent)](intent)

    def _at_once(self, intent: Intent, decision: Any) -> Heard[Answer]:
        return self._outside.hear(self.books, intent, decision)

    async def reach(self, intent: Intent, hear: Callable[[Any], Heard[T]]) -> T:
        """The question goes there, where it is heard, and its answer, or error, comes back."""
        answer: asyncio.Future[T] = self._loop.create_future()
        asker, cause = current_process(), ABOUT.get()

        def take() -> None:
            result: T | Exception
            try:
                result = self._hear(intent, cause, hear)
            except Exception as error:
                result = error
            name = type(intent).__name__
            slow = self._weather.strikes("slow_outside", self._outside.name, name)
            seconds = self._weather.seconds(SLOW_SECONDS) if slow else self._weather.latency()
            self._loop.call_later(seconds, settle, answer, result, context=asker.context)
            if self._weather.strikes("crash_at_question", self._outside.name, name):
                self._on_crash(asker)

        self._loop.call_later(self._weather.latency(), take, context=self._world.context)
        return await answer

    def _hear(
        self, intent: Intent, cause: Envelope[Any] | None, hear: Callable[[Any], Heard[T]]
    ) -> T:
        weather, outside, name = self._weather, self._outside, type(intent).__name__
        if outside.idempotent and self._is_away(name):
            raise TransientError("simulated: away")
        self.heard.add(type(intent))
        decision = self._decision(intent)
        if decision != outside.decisions[0]:
            self.unusual.add(intent.subject)
        answer, books, said = hear(decision)
        if books != self.books:
            self.books = books
            if not outside.idempotent and cause is not None:
                self._check_effect(intent, cause)
            self._trace.note(outside.name, f"{said}: {type(intent).__name__} {intent.subject[:8]}")
        if outside.idempotent and weather.strikes("lost_answer", outside.name, name):
            raise TransientError("simulated: the answer is lost")
        return answer

    def _check_effect(self, intent: Intent, cause: Envelope[Any]) -> None:
        effect = type(intent), intent.subject, cause.key
        if effect in self._effects:
            self._trouble(
                "effect_twice",
                f"{cause.type} {cause.id} had {self._outside.name} do twice what it was asked by "
                f"{type(intent).__name__} about {intent.subject}",
            )
        self._effects.add(effect)

    def _is_away(self, name: str) -> bool:
        weather, where = self._weather, self._outside.name
        if weather.strikes("outside_outage", where, name):
            self._away_until = self._loop.time() + weather.seconds(OUTAGE_SECONDS)
            self._trace.note(where, "is away")
        gone = not weather.calm and self._loop.time() < self._away_until
        return gone or weather.strikes("outside_away", where, name)

    def _decision(self, intent: Intent) -> Any:
        if self._planned is not None:
            return self._planned(intent)
        usual, *others = self._outside.decisions
        if others and self._weather.strikes(
            "outside_unusual", self._outside.name, type(intent).__name__
        ):
            return self._chance.choice(others)
        return usual


class _DistantDesk(Desk[Any]):
    """The outside as an adapter knows it that first opens what is sealed in a question."""

    def __init__(self, outside: SimulatedOutside, doors: Doors, intent: Intent) -> None:
        self._outside = outside
        self._doors = doors
        self._intent = intent

    async def hear(self, question: Callable[[], T], told: Callable[[], str] = str) -> T:
        read, asked_at = told(), asyncio.get_running_loop().time()

        def hear(decision: Any) -> Heard[T]:
            self.books, self.decision, self.said = self._outside.books, decision, ""
            self._doors.told(self._outside.name, self._intent, read, asked_at)
            answer = question()
            return answer, self.books, self.said or str(decision)

        return await self._outside.reach(self._intent, hear)
