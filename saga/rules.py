"""What holds for every saga, from the roles of its events; and its own invariants beside it.

A rule yields what breaks it. *Always* rules hold at any moment of a running system; *at rest* rules
only for subjects to which nothing more will happen by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final

from common.choreography import Choreography, Participant, State
from common.envelope import Envelope, source_of
from common.kernel.fold import Fold, is_shared
from common.message import Answer, Event, Role
from saga.declaration import Saga
from saga.graph.flow import Flow
from saga.view import Broken, Mark, View, Violation

Explain = Callable[[str], str]
"""What a subject waits for, as the end of a sentence about it."""

RULES: Final[Mapping[str, str]] = {
    "outcome_changed": "A saga ends once.",
    "said_twice": "An event is published about a subject once, unless its class `repeats`.",
    "after_the_end": "Whoever ended a saga goes on with nothing of it.",
    "not_ended": "Each saga that was begun ends.",
    "endless": "Whatever never arrives, time ends a saga that was begun, if it can end one.",
    "effect_standing": "What was done is undone after a cancellation.",
    "question_open": "No state is left in the middle of a question to an outside.",
}
"""The rules that follow from roles."""


class Rules:
    """All that must hold of one saga, for the participants that take part."""

    def __init__(self, saga: Saga, choreography: Choreography | None = None) -> None:
        self.saga = saga
        graph = self._graph = choreography or saga.choreography
        self._events = {event.type: event for event in graph.events}
        self._terminal = {t for t, event in self._events.items() if event.role.terminal}
        self._cancellations = {
            t for t, event in self._events.items() if event.role is Role.CANCELLATION
        }
        flow = Flow(graph)
        self._leads_to_an_end = {
            message.type
            for message in graph.recorded
            if message.type not in self._terminal
            and any(
                isinstance(node, type) and issubclass(node, Event) and node.role.terminal
                for node in flow.reachable([message])
            )
        }
        self._ended_by_time = {
            kind
            for participant in graph.participants
            for kind, commands in participant.dues.items()
            for command in commands
            if self._terminal
            & {
                node.type
                for node in flow.reachable([command])
                if isinstance(node, type) and issubclass(node, Event)
            }
        }
        self._asking: list[tuple[Participant, str, tuple[type[State], ...]]] = []
        for participant in graph.participants:
            kinds = {
                reaction.own
                for reaction in participant.reactions
                if reaction.intends or issubclass(reaction.consumes, Answer)
            }
            if kinds := {kind for kind in kinds if not is_shared(kind)}:
                self._asking.append((participant, source_of(participant.name), tuple(kinds)))
        taking_part = {p.name for p in graph.participants}
        states = {kind for p in graph.participants for kind in p.states}
        types = set(self._events)

        def applies(reads: Any) -> bool:
            if isinstance(reads, tuple):
                return any(kind.type in types for kind in reads)
            if issubclass(reads, State):
                return any(issubclass(kind, reads) for kind in states)
            return any(
                type(outside.blank) is reads and outside.asked_by in taking_part
                for outside in saga.outside
            )

        self.always = [i for i in saga.always_holds if all(map(applies, i.reads))]
        self.at_rest = [i for i in saga.holds_at_rest if all(map(applies, i.reads))]

    def judge(
        self, view: View, *, at_rest: bool = True, explain: Explain = lambda _: ""
    ) -> Iterator[Violation]:
        """Everything that breaks a rule, the saga's own first; without `at_rest`, one of those that
        always hold."""
        for invariant in self.always:
            for subject, detail in invariant.broken(view):
                yield Violation(invariant.name, subject, detail)
        for subject in view.told.subjects():
            yield from self._about(subject, view.told.about(subject))
        for subject in self._endless(view):
            detail = "it was begun and has not ended, and nothing is due that would end it"
            yield Violation("endless", subject, detail)
        if not at_rest:
            return
        said: set[str] = set()
        for invariant in self.at_rest:
            for subject, detail in invariant.broken(view):
                if view.rests(subject):
                    said.add(subject)
                    yield Violation(invariant.name, subject, detail + explain(subject))
        for subject in view.told.subjects():
            # What the saga itself has said about a subject, it says better.
            if subject not in said and view.rests(subject):
                for rule, detail in self._ended(view.told.about(subject)):
                    yield Violation(rule, subject, detail + explain(subject))
        for subject, detail in self._open_questions(view):
            if subject not in said:
                yield Violation("question_open", subject, detail + explain(subject))

    def _about(self, subject: str, marks: Sequence[Mark]) -> Iterator[Violation]:
        """What is wrong with what was published about one subject, at any time."""
        if len(marks) < 2:
            return
        types = Counter(mark.type for mark in marks)
        ends = sorted(mark.type for mark in marks if mark.type in self._terminal)
        if len(ends) > 1:
            detail = f"these were published: {', '.join(ends)}"
            yield Violation("outcome_changed", subject, detail)
        for type_, count in types.items():
            event = self._events.get(type_)
            if count > 1 and event is not None and not event.repeats:
                detail = f"{type_} was published {count} times, as different events"
                yield Violation("said_twice", subject, detail)
        for end in marks:
            if end.type in self._terminal:
                for mark in marks:
                    if self._goes_on(end, mark):
                        detail = f"{mark.type} was published after {end.type}"
                        yield Violation("after_the_end", subject, detail)

    def _goes_on(self, end: Mark, mark: Mark) -> bool:
        event = self._events.get(mark.type)
        return (
            event is not None
            and mark.source == end.source
            and (mark.sequence or 0) > (end.sequence or 0)
            and not event.final
            and not event.role.terminal
            and event.role is not Role.COMPENSATION
        )

    def _ended(self, marks: Sequence[Mark]) -> Iterator[Broken]:
        """What is wrong with what was published about a subject at rest."""
        types = {mark.type for mark in marks}
        begun = types & self._leads_to_an_end
        if begun and not types & self._terminal:
            yield "not_ended", f"{_several(begun)} was published, and no end"
        if types.isdisjoint(self._cancellations):
            return
        for mark in marks:
            effect = self._events.get(mark.type)
            if effect is None or effect.role is not Role.EFFECT:
                continue
            if not any(
                other.source == mark.source
                and (other.sequence or 0) > (mark.sequence or 0)
                and (undoing := self._events.get(other.type)) is not None
                and any(undone.type == effect.type for undone in undoing.undoes)
                for other in marks
            ):
                yield "effect_standing", f"it was cancelled, and nothing undid {mark.type}"

    def _endless(self, view: View) -> Iterator[str]:
        """Subjects that wait for something that may never arrive, without an end to the wait."""
        if not self._ended_by_time:
            return
        waiting = {
            key
            for known in view.known.values()
            for (kind, key), state in known.items()
            if kind in self._ended_by_time and state.due() is not None
        }
        for subject in view.told.subjects():
            types = {mark.type for mark in view.told.about(subject)}
            begun = types & self._leads_to_an_end and not types & self._terminal
            if begun and subject not in waiting:
                yield subject

    def _open_questions(self, view: View) -> Iterator[Broken]:
        for participant, source, kinds in self._asking:
            for (kind, key), state in view.known.get(participant.name, {}).items():
                if kind not in kinds or not view.rests(key) or view.busy(participant.name, key):
                    continue
                if state.due() is not None:
                    continue  # Time ends it.
                told = _told(participant, kind, state, view.told.own(source, key))
                if told is not None and told != state:
                    yield (
                        key,
                        f"the {kind.__name__} of {participant.name} is in the middle of a "
                        f"question: no event tells of what it is now",
                    )


def _told(
    participant: Participant, kind: type[State], live: State, events: Sequence[Envelope[Any]]
) -> State | None:
    """A state as those of its participant's own events tell it that it counts; None if some of them
    are not known."""
    own = sorted(events, key=lambda event: event.sequence or 0)[: live.sequence]
    fold = Fold(participant)
    for number, event in enumerate(own, 1):
        if event.sequence != number or fold.kind_of(event.type) is not kind:
            return None
        fold.take(event)
    return fold.find((kind, live.key)) if len(own) == live.sequence else None


def _several(types: Iterable[str]) -> str:
    return " and ".join(sorted(types))
