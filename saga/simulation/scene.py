"""What all runs share: the saga's services, their databases, and the broker's topology."""

from __future__ import annotations

from collections.abc import Mapping

from saga.declaration import Saga, SagaError
from saga.discovery import tables_in
from saga.graph.flow import Flow, Node
from saga.load.plan import Load
from saga.message import Ask, Command, Event, Intent
from saga.rules import Rules
from saga.runtime.messaging.topology import topology_of
from saga.runtime.service import Service
from saga.simulation.database import SimulatedStore


class Scene:
    """Made once, as that takes longer than a run. Raises `SagaError` for a saga without a load."""

    def __init__(self, saga: Saga) -> None:
        if saga.load is None:
            raise SagaError(
                f"{saga.name} has no load: there is nothing to simulate; declare `load`, a "
                f"function that draws a `saga.load.plan.Plan`"
            )
        self.saga = saga
        self.load: Load = saga.load
        self.choreography = saga.choreography
        self.rules = Rules(saga)
        flow = Flow(self.choreography)
        self.ends_of_dues = {command.type: _first_ends(flow, command) for command in flow.dues}
        """Keyed by a due command's type: the types of events that end a saga and may come of it."""
        self.topology = topology_of(self.choreography)
        self.tables = {p.name: tables_in(p.package) for p in saga.participants}
        """By participant."""
        self.stores = {name: SimulatedStore(tables) for name, tables in self.tables.items()}
        """By participant."""

    def services(self, asks: Mapping[type[Intent], Ask]) -> list[Service]:
        """The services, which ask the outside in these ways."""
        found = []
        for participant in self.choreography.participants:
            intents = {i for reaction in participant.reactions for i in reaction.intends}
            own = {intent: ask for intent, ask in asks.items() if intent in intents}
            tables = self.tables[participant.name]
            found.append(Service(participant, tables, ask=own))
        return found

    def close(self) -> None:
        for store in self.stores.values():
            store.close()


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
