"""What is left to people because an outside cannot be asked twice, and what explains each of it.

A question to an outside that is not idempotent has one effect. Where it is unknown whether it had
that, an operator decides: rightly so only where something went wrong between the first message
about a subject and the answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

from sqlalchemy.engine import Connection

from saga.choreography import Participant, State
from saga.message import Command
from saga.runtime.kernel.step import StateId
from saga.runtime.kernel.tables import StateTable
from saga.simulation.database import SimulatedStore
from saga.simulation.loop import SimulatedLoop, SimulatedProcess
from saga.simulation.outside import SimulatedOutside
from saga.simulation.scene import Scene
from saga.view import EventsInMemory, Invariant, View


class UnclearAnswers:
    """What is left to people in one run, by the saga's own rules for that."""

    def __init__(
        self, scene: Scene, outsides: Collection[SimulatedOutside], loop: SimulatedLoop
    ) -> None:
        self._saga = scene.saga
        self._decoder = scene.recorded
        self._stores: Mapping[str, SimulatedStore] = scene.stores
        self._tables = scene.tables
        self._outsides = outsides
        self._loop = loop
        self._met: dict[tuple[str, str], float] = {}
        """Keyed by participant and subject: when it first got to know of that."""
        self._processes: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        """Keyed by participant and subject: which processes of its did."""
        self._faults: dict[str, float] = {}
        """Keyed by participant: when it was last interrupted."""

    # --- what explains it ------------------------------------------------------------------------

    def meets(self, participant: str, process: SimulatedProcess, subject: str) -> None:
        """A process of a participant gets a message about a subject."""
        self._met.setdefault((participant, subject), self._loop.time())
        self._processes[participant, subject].add(id(process))

    def interrupted(self, participant: str) -> None:
        """A process of it was killed, or does not know what became of a transaction."""
        self._faults[participant] = self._loop.time()

    def _is_explained(self, participant: str, subject: str) -> bool:
        met = self._met.get((participant, subject), 0.0)
        return (
            self._faults.get(participant, -1.0) >= met
            # Another replica got a message again that the first one was asking about.
            or len(self._processes[participant, subject]) > 1
            or any(subject in outside.unusual for outside in self._outsides)
        )

    def unexplained(self) -> Iterator[tuple[str, str]]:
        """What is left to people though nothing went wrong about it: a subject, and why."""
        for invariant in self._saga.left_to_people:
            for participant in self._asking_once(invariant):
                for subject, why in invariant.broken(self._view(invariant)):
                    if not self._is_explained(participant.name, subject):
                        yield subject, f"{invariant.name}: {why}, and nothing had gone wrong"

    def _asking_once(self, invariant: Invariant) -> Iterator[Participant]:
        """The participants whose questions, of which each has an effect once, it is about."""
        for participant in self._saga.participants:
            intents = {
                intent
                for outside in self._saga.asked_by(participant.name)
                if not outside.idempotent
                for intent in outside.intents
            }
            asking = {r.own for r in participant.reactions if intents.intersection(r.intends)}
            if asking.intersection(invariant.states):
                yield participant

    # --- what is left, and how one decides -------------------------------------------------------

    def open(self) -> Iterator[tuple[str, str, list[Command]]]:
        """Each subject that is left, with the participant where an operator decides on it, and the
        commands by which."""
        for choice in self._saga.choices:
            if choice.commands:
                (rule,) = (i for i in self._saga.left_to_people if i.name == choice.rule)
                for subject, _ in rule.broken(self._view(rule)):
                    ways = [choice.commands[way](subject) for way in sorted(choice.commands)]
                    yield subject, choice.participant, ways

    def _view(self, invariant: Invariant) -> View:
        """As much of everything as the rule reads."""
        known: dict[str, dict[StateId, State]] = {}
        for name, tables in self._tables.items():
            for kind, table in tables.states.items():
                if any(issubclass(kind, read) for read in invariant.states):
                    pages = self._stores[name].read(partial(_pages, table))
                    found = known.setdefault(name, {})
                    for states, _ in pages:
                        found |= {(kind, key): state for key, state in states.items()}
        events: list[Any] = []
        if invariant.events:
            for participant in self._saga.participants:
                events += map(self._decoder.decode, self._stores[participant.name].committed())
        books = [outside.books for outside in self._outsides]
        return View(known, EventsInMemory(events), books, rests=lambda _: True)


def _pages(table: StateTable[Any], connection: Connection) -> list[Any]:
    return list(table.pages(connection))
