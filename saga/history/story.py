"""What the kept events tell of one order: its steps, its view, its participants' states, its holes.

Pure: nothing here reads a database or asks a broker.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.choreography import Choreography, Participant, Reaction
from common.envelope import Envelope, derived_id, source_of
from common.kernel.fold import Fold
from common.message import Answer, Command, Event
from history_service.domain import OrderView, view_of
from history_service.store import Fact, decoded
from history_service.timeline import Step, steps_of


@dataclass(frozen=True, slots=True)
class Hole:
    """An event that must have been, and is not in the history."""

    participant: str
    subject: str
    detail: str

    def __str__(self) -> str:
        return f"{self.detail} about {self.subject} is not in the history"


@dataclass(frozen=True)
class Story:
    """One order, as the history has it."""

    order_id: str
    steps: Sequence[Step]
    """Every event about it, each after its cause; those too that nobody can read."""
    events: Mapping[str, Envelope[Any]]
    """Those of them that can be read, by id, in the same order."""
    view: OrderView
    folds: Mapping[str, Fold]
    """By participant, its states as its events leave them."""
    holes: Sequence[Hole]


def tell(graph: Choreography, order_id: str, facts: Sequence[Fact]) -> Story:
    """The story that these events tell."""
    steps = steps_of(facts)
    read = ((step, decoded(step.fact)) for step in steps)
    events = {step.attributes.id: envelope for step, envelope in read if envelope is not None}
    return Story(
        order_id=order_id,
        steps=steps,
        events=events,
        view=view_of(order_id, ((event.data, event.time) for event in events.values())),
        folds={p.name: fold_of(p, events.values()) for p in graph.participants},
        holes=list(holes_of(graph, events.values())),
    )


def fold_of(participant: Participant, events: Iterable[Envelope[Any]]) -> Fold:
    """A participant's states after those of these events that it published."""
    fold = Fold(participant)
    own = [e for e in events if e.source == fold.source and fold.publishes(e.type)]
    for event in sorted(own, key=lambda event: event.sequence or 0):
        fold.take(event)
    return fold


def holes_of(graph: Choreography, events: Iterable[Envelope[Any]]) -> Iterator[Hole]:
    """What is missing among events about one or more subjects: numbers that their publishers did
    not leave out, and causes that must have been events."""
    known = {event.id for event in events}
    for participant in graph.participants:
        name, source = participant.name, source_of(participant.name)
        numbers: defaultdict[str, set[int]] = defaultdict(set)
        missing: dict[str, tuple[str, str]] = {}
        for event in events:
            if event.source != source:
                continue
            if event.sequence is not None:
                numbers[event.subject].add(event.sequence)
            cause = event.causationid
            if cause is not None and cause not in known:
                reaction = reaction_behind(participant, event)
                if reaction is not None and (taken := _event_taken(participant, reaction)):
                    missing[cause] = (event.subject, f"{taken} {cause}, to which {name} reacted,")
        for subject, seen in numbers.items():
            for number in sorted(set(range(1, max(seen))) - seen):
                yield Hole(name, subject, f"event {number} of {name}")
        for subject, what in missing.values():
            yield Hole(name, subject, what)


def reaction_behind(participant: Participant, event: Envelope[Any]) -> Reaction | None:
    """The reaction that decided on an event, which the event's id tells."""
    for reaction in participant.reactions:
        step = f"{participant.name}.{reaction.name}.{event.type}"
        if event.causationid and derived_id(event.causationid, step) == event.id:
            return reaction
    return None


def _event_taken(participant: Participant, reaction: Reaction) -> str | None:
    """The type of the event that must have caused what a reaction decided on, if it was one.

    The cause of what follows from an answer is the message that led to the question.
    """
    consumed = reaction.consumes
    if issubclass(consumed, Answer):
        askers = [
            other.consumes
            for other in participant.reactions
            if any(intent.answer is consumed for intent in other.intends)
        ]
        asking = {kind for kind in askers if not issubclass(kind, Answer)}
        if any(issubclass(kind, Command) for kind in asking):
            return None
        return " or ".join(sorted(kind.type for kind in asking if issubclass(kind, Event)))
    return consumed.type if issubclass(consumed, Event) else None
