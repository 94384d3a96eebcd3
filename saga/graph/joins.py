"""Joins, as signatures tell them: what a participant decides on once several facts have come.

A *leg* is a reaction to one of the facts. It returns what completes the join; or, where others are
still to come, a private fact instead, by which its state remembers that this one was there. Where
the private fact comes beside what completes it too, nothing is joined: messages are counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from saga.choreography import Participant, Reaction, State
from saga.graph.flow import Flow, Node, Step
from saga.message import Answer, Command, Decided, Event, Role

_NO: Final = (Role.FAILURE, Role.CANCELLATION)
"""What one leg alone decides, since it takes only one to say no."""


JOINED: Final = "⋈"
"""Stands on the map beside what completes a join."""


@dataclass(frozen=True, slots=True)
class Leg:
    """A reaction to one of the facts; `keeps` are the private facts by which it waits for others,
    none if it cannot wait."""

    step: Step
    keeps: tuple[type[Event], ...]


@dataclass(frozen=True, slots=True)
class Join:
    """What is completed, and the reactions any of which may complete it. All have one state."""

    participant: Participant
    state: type[State]
    completes: type[Event] | type[Command]
    legs: tuple[Leg, ...]

    @property
    def keeps(self) -> frozenset[str]:
        """The types of all private facts by which one of the legs waits."""
        return frozenset(kind.type for leg in self.legs for kind in leg.keeps)


def joins_of(flow: Flow) -> tuple[Join, ...]:
    """The joins of a choreography, broken ones too: of each, at least one leg can wait."""
    return tuple(
        join
        for participant in flow.choreography.participants
        for join in _joins(flow, participant)
        if join.keeps
    )


def completed_by(flow: Flow) -> Mapping[Node, Join]:
    """Keyed by what completes a join, as the map has it: the join."""
    return {join.completes: join for join in joins_of(flow)}


def told(join: Join) -> str:
    """A join in a line."""
    return f"joins {' and '.join(_taken(leg.step) for leg in join.legs)}"


def _taken(step: Step) -> str:
    taken = step.reaction.consumes
    return taken.__name__ if issubclass(taken, Answer) else taken.type


def steps_beside(flow: Flow, participant: Participant, state: type[State]) -> list[Step]:
    """The participant's reactions that this state numbers, but for those to commands: these are no
    facts, and may come when they like."""
    return [
        step
        for step in flow.steps
        if step.participant is participant
        and step.reaction.own is state
        and not issubclass(step.reaction.consumes, Command)
    ]


def _joins(flow: Flow, participant: Participant) -> Iterator[Join]:
    for state in participant.states:
        steps = steps_beside(flow, participant, state)
        for message in flow.choreography.recorded:
            if issubclass(message, Event) and message.private:
                continue
            legs = [
                Leg(step, _keeps(step.reaction, message.type))
                for step in steps
                if _completing(step.reaction, message.type)
            ]
            if legs:
                yield Join(participant, state, message, tuple(legs))


def _shapes(reaction: Reaction) -> Iterator[Sequence[type[Decided]]]:
    """What may be returned together, as far as it matters here."""
    yield from reaction.shapes
    yield from ((kind,) for kind in reaction.repeats)


def _completing(reaction: Reaction, type_: str) -> list[Sequence[type[Decided]]]:
    """The shapes in which a reaction returns a message of this type, and not because of a no."""
    return [
        shape
        for shape in _shapes(reaction)
        if type_ in _types(shape)
        and not any(issubclass(kind, Event) and kind.role in _NO for kind in shape)
    ]


def _keeps(reaction: Reaction, type_: str) -> tuple[type[Event], ...]:
    """The private facts that a reaction returns instead of a message of this type."""
    always = frozenset.intersection(*map(_types, _completing(reaction, type_)))
    waiting = [shape for shape in _shapes(reaction) if type_ not in _types(shape)]
    kept = {
        kind
        for shape in waiting
        for kind in shape
        if issubclass(kind, Event) and kind.private and kind.type not in always
    }
    return tuple(sorted(kept, key=lambda kind: kind.type))


def _types(shape: Iterable[type[Decided]]) -> frozenset[str]:
    return frozenset(kind.type for kind in shape if issubclass(kind, Event | Command))
