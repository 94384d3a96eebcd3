"""What the kept events tell of one subject: its steps, its participants' states, its holes.

Pure: nothing here reads a database or asks a broker.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Final

from saga.archive.store import Fact, decoded
from saga.archive.subjects import Subject
from saga.archive.timeline import Hop, steps_of
from saga.archive.view import SubjectView
from saga.archive.views import projection_of
from saga.choreography import Choreography, Participant, Reaction, State
from saga.envelope import Attributes, Envelope, MessageKey, believed_of, derived_id, source_of
from saga.message import Answer, Command, Event
from saga.runtime.kernel.fold import Fold
from saga.runtime.kernel.step import id_among_causes
from saga.runtime.messaging.trust import EDITOR_SOURCE

HOLES_MAX: Final = 100
"""Missing numbers in a row that are told one by one."""


@dataclass(frozen=True, slots=True)
class Hole:
    """An event that must have been, and is not in the history.

    `publishers` are those who may have published it: one, unless nothing tells.
    """

    publishers: tuple[str, ...]
    subject: str
    detail: str

    def __str__(self) -> str:
        return f"{self.detail} about {self.subject} is not in the history"


@dataclass(frozen=True)
class Story:
    """One subject, as the history has it."""

    subject: str
    steps: Sequence[Hop]
    """Every event about it, each after its cause; those too that cannot be read."""
    events: Mapping[MessageKey, Envelope[Any]]
    """Those of them that can be read, by source and id, in the same order."""
    summary: Subject
    """What is told of it as of any subject."""
    view: State | None
    """What its saga's own view tells of it; None where the saga declares none."""
    declared: SubjectView[Any] | None
    """That view's declaration."""
    folds: Mapping[str, Fold]
    """Keyed by participant: its states as its events leave them."""
    holes: Sequence[Hole]


def tell(graph: Choreography, subject: str, facts: Sequence[Fact]) -> Story:
    """The story that these events tell."""
    steps = steps_of(facts)
    projection = projection_of(graph)
    declared = projection.view
    read = ((step, decoded(step.fact, graph)) for step in steps)
    events = {step.attributes.key: envelope for step, envelope in read if envelope is not None}
    told = [(event.data, event.time) for event in events.values()]
    return Story(
        subject=subject,
        steps=steps,
        events=events,
        summary=Subject(subject).after((fact.attributes for fact in facts), projection.rules),
        view=declared.of(subject, told) if declared is not None else None,
        declared=declared,
        folds={p.name: fold_of(p, events.values()) for p in graph.participants},
        holes=list(holes_of(graph, events.values(), corrected_in(facts))),
    )


def fold_of(participant: Participant, events: Iterable[Envelope[Any]]) -> Fold:
    """A participant's states after those of these events that it published."""
    fold = Fold(participant)
    own = [e for e in events if e.source == fold.source and fold.kind_of(e.type)]
    for event in sorted(own, key=lambda event: event.sequence or 0):
        fold.take(event)
    return fold


def corrected_in(facts: Iterable[Fact]) -> frozenset[str]:
    """The ids of copies that an operator corrected: no facts, and causes all the same."""
    found = (fact.attributes for fact in facts)
    return frozenset(each.id for each in found if each.source == EDITOR_SOURCE)


def holes_of(
    graph: Choreography, events: Collection[Envelope[Any]], corrected: Set[str] = frozenset()
) -> Iterator[Hole]:
    """What is missing among events about some subjects: numbers that their publishers did not leave
    out, and causes that must have been events or copies that were `corrected`."""
    known = {event.id for event in events} | corrected
    follow: dict[str, tuple[str, str]] | None = None
    for participant in graph.participants:
        name, source = participant.name, source_of(participant.name)
        numbers: defaultdict[str, set[int]] = defaultdict(set)
        causes: dict[str, tuple[str, frozenset[str]]] = {}
        for event in events:
            if event.source != source:
                continue
            if event.sequence is not None:
                numbers[event.subject].add(event.sequence)
            cause = event.causationid
            if cause is not None and cause not in known:
                reaction = reaction_behind(participant, event)
                if reaction is not None and (types := _types_taken(participant, reaction)):
                    causes[cause] = (event.subject, types)
        for subject, seen in numbers.items():
            for missing in missing_numbers(sorted(seen), max(seen)):
                yield Hole((name,), subject, f"{missing} of {name}")
        for cause, (subject, types) in causes.items():
            if follow is None:
                follow = _what_follows(graph, events)
            publishers, type_ = _missing(graph, types, follow.get(cause))
            yield Hole(publishers, subject, f"{type_} {cause}, to which {name} reacted,")


def missing_numbers(seen: Sequence[int], last: int) -> Iterator[str]:
    """Which events from 1 to `last` are not among the numbers seen, given in order: `event 2`, or
    `events 102 to 999` where there are very many in a row. (A single event may claim any number.)
    """
    before = 0
    for number in (*seen, last + 1):
        first = before + 1
        told = min(number, first + HOLES_MAX)
        yield from (f"event {missing}" for missing in range(first, told))
        if told < number - 1:
            yield f"events {told} to {number - 1}"
        elif told < number:
            yield f"event {told}"
        before = number


def _what_follows(
    graph: Choreography, events: Iterable[Envelope[Any]]
) -> dict[str, tuple[str, str]]:
    """Keyed by its id: each event that may have followed from these: its publisher and its type."""
    ids = [id_among_causes(type(event.data), event.key) for event in events]
    return {
        derived_id(id, f"{participant.name}.{reaction.name}.{kind.type}"): (
            participant.name,
            kind.type,
        )
        for participant in graph.participants
        for reaction in participant.reactions
        for kind in reaction.emits
        for id in ids
    }


def _missing(
    graph: Choreography, types: frozenset[str], follows: tuple[str, str] | None
) -> tuple[tuple[str, ...], str]:
    """Who published a missing event of one of these types, and its type, which its id may tell."""
    if follows is not None:
        return (follows[0],), follows[1]
    publishers = [p.name for p in graph.participants if any(kind.type in types for kind in p.emits)]
    return tuple(publishers), " or ".join(sorted(types))


def reaction_behind(participant: Participant, event: Attributes) -> Reaction | None:
    """The reaction that decided on an event, which the event's id tells; None if none did because
    of a message of which the history knows."""
    if event.causationid is None:
        return None
    for reaction in participant.reactions:
        step = f"{participant.name}.{reaction.name}.{event.type}"
        for kind in _kinds_taken(participant, reaction):
            for source in believed_of(kind) or ():
                cause = id_among_causes(kind, MessageKey(source, event.causationid))
                if derived_id(cause, step) == event.id:
                    return reaction
    return None


def _kinds_taken(
    participant: Participant, reaction: Reaction
) -> frozenset[type[Event] | type[Command]]:
    """The messages that may have caused what a reaction decided on.

    The cause of what follows from an answer is the message that led to the question.
    """
    taken = {reaction.consumes}
    if issubclass(reaction.consumes, Answer):
        taken = {
            other.consumes
            for other in participant.reactions
            if any(intent.answer is reaction.consumes for intent in other.intends)
        }
    return frozenset(kind for kind in taken if issubclass(kind, Event | Command))


def _types_taken(participant: Participant, reaction: Reaction) -> frozenset[str]:
    """The types of the messages of which one must have caused what a reaction decided on, all of
    which the history has; none where it may have been a command from outside."""
    kinds = _kinds_taken(participant, reaction)
    if any(issubclass(kind, Command) and not kind.senders for kind in kinds):
        return frozenset()
    return frozenset(kind.type for kind in kinds)
