"""What all runs share: the saga's services, their databases, and the broker's topology.

A participant in another language is played in Python: the kernel runs a stand-in, which answers
each message by something that its signature allows, and keeps what it has said.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from functools import cache, partial
from typing import Any, Final

import sqlalchemy as sa

from saga.declaration import Saga, SagaError
from saga.discovery import tables_in
from saga.envelope import Envelope
from saga.foreign import Answers, ForeignState, foreign_in
from saga.graph.flow import Flow, Node
from saga.load.plan import Load
from saga.message import Ask, Command, Event, Intent, Message
from saga.purity import Sample, sampled
from saga.rules import Rules
from saga.runtime.kernel.tables import StateTable, Tables
from saga.runtime.messaging.topology import topology_of
from saga.runtime.service import Service
from saga.simulation.database import SimulatedStore
from saga.simulation.decoding import RememberingDecoder
from saga.simulation.doors import has_personal_data
from saga.simulation.keys import SimulatedKeys

PARTITIONS: Final = (1, 1, 1, 3)
"""What the number of partitions of a run is drawn from."""


class Scene:
    """Made once, as that takes longer than a run. Raises `SagaError` for a saga without a load."""

    def __init__(self, saga: Saga) -> None:
        if saga.load is None:
            raise SagaError(
                f"{saga.name} has no load: there is nothing to simulate; declare `load`, a "
                f"function that draws a `saga.load.plan.Plan`"
            )
        self.load: Load = saga.load
        foreign = foreign_in(saga.participants)
        self._seed = 0
        self.saga = saga = saga.with_(*(each.played(self._choose) for each in foreign))
        self.choreography = saga.choreography
        self.rules = Rules(saga)
        flow = Flow(self.choreography)
        self.ends_of_dues = {command.type: _first_ends(flow, command) for command in flow.dues}
        """Keyed by a due command's type: the types of events that end a saga and may come of it."""
        self.ends_of = cache(partial(_first_ends, flow))
        """The types of events that end a saga and may come of a command."""
        self.topologies = {n: topology_of(self.choreography, n) for n in {*PARTITIONS}}
        """Keyed by the number of partitions of its queues."""
        stand_ins = {participant.name for participant in foreign}
        self.is_personal = has_personal_data(self.choreography)
        """Whether there is anything to seal."""
        self.keys = SimulatedKeys() if self.is_personal else None
        self.tables = {
            p.name: _elsewhere() if p.name in stand_ins else tables_in(p.package)
            for p in saga.participants
        }
        """Keyed by participant."""
        self.sample = Sample()
        """Whether reactions depend on their arguments alone, as seen in this run."""
        self._playing = [
            p if p.name in stand_ins else sampled(p, self.sample)
            for p in self.choreography.participants
        ]
        self._remembered: dict[bytes, Envelope[Any]] = {}
        self.recorded = RememberingDecoder(self.choreography.recorded, self._remembered)
        """Reads what the history keeps."""
        self.taken = {
            p.name: RememberingDecoder((*p.consumes, *p.intake), self._remembered)
            for p in self._playing
        }
        """Keyed by participant: reads what it takes."""
        self.stores = {name: SimulatedStore(tables) for name, tables in self.tables.items()}
        """Keyed by participant."""

    def services(self, asks: Mapping[type[Intent], Ask]) -> list[Service]:
        """The services, which ask the outside in these ways."""
        found = []
        for participant in self._playing:
            intents = {i for reaction in participant.reactions for i in reaction.intends}
            own = {intent: ask for intent, ask in asks.items() if intent in intents}
            tables = self.tables[participant.name]
            found.append(Service(participant, tables, ask=own))
        return found

    def begin(self, seed: int) -> None:
        """Empty the databases for the run of a seed."""
        self._seed = seed
        self.sample.begin()
        self._remembered.clear()
        for store in self.stores.values():
            store.empty()
        if self.keys is not None:
            self.keys.empty()

    def _choose(self, message: Message, answers: Sequence[Answers]) -> Answers:
        """The same each time in the same run: a message may be decided on again."""
        return random.Random(f"{self._seed}/{message!r}").choice(answers)

    def close(self) -> None:
        for store in self.stores.values():
            store.close()
        if self.keys is not None:
            self.keys.close()


class _PublishedTypes(sa.TypeDecorator[frozenset[str]]):
    """Types of messages, one in each line."""

    impl = sa.Text
    cache_ok = True

    def process_bind_param(self, value: frozenset[str] | None, dialect: sa.Dialect) -> str:
        return "\n".join(sorted(value or ()))

    def process_result_value(self, value: str | None, dialect: sa.Dialect) -> frozenset[str]:
        return frozenset((value or "").split())


def _elsewhere() -> Tables:
    """The tables of a stand-in."""
    metadata = sa.MetaData()
    table = sa.Table(
        "elsewhere",
        metadata,
        sa.Column("key", sa.String(255), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("published", _PublishedTypes, nullable=False),
    )
    return Tables(metadata, StateTable(ForeignState, table))


def _first_ends(flow: Flow, command: type[Command]) -> frozenset[str]:
    """The types of the events that may end a saga because of a command, before any other does."""
    reached: set[Node] = set()
    ends: set[str] = set()
    waiting: list[Node] = [command]
    while waiting:
        node = waiting.pop()
        if node in reached:
            continue
        reached.add(node)
        if isinstance(node, type) and issubclass(node, Event) and node.role.terminal:
            ends.add(node.type)  # What follows ends it no more.
        else:
            waiting += flow.following.get(node, ())
    return frozenset(ends)
