"""What holds for every saga, from the roles of its events; and its own invariants beside it.

A rule yields what breaks it. *Always* rules hold at any moment of a running system; *at rest* rules
only for subjects to which nothing more will happen by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from saga.choreography import Choreography, Participant, State
from saga.declaration import Saga
from saga.envelope import Envelope, source_of
from saga.graph.flow import Flow, Step
from saga.graph.sagas import Extent, extents_of
from saga.message import Answer, Event, Role
from saga.runtime.kernel.fold import Fold, is_shared
from saga.view import Broken, Mark, View, Violation
from saga.wording import counted

Explain = Callable[[str], str]
"""What a subject waits for, as the end of a sentence about it."""

RULES: Final[Mapping[str, str]] = {
    "outcome_changed": "A saga ends once.",
    "said_twice": "An event is published about a subject once, unless its class `repeats`.",
    "after_the_end": "A participant that ended a saga does nothing more about it.",
    "not_ended": "Each saga that was begun ends, if any event says that it ended well.",
    "endless": "Whatever never arrives, time ends a saga that was begun, if it can end one.",
    "effect_standing": "What was done is undone after a cancellation.",
    "question_open": "No state is left in the middle of a question to an outside.",
}
"""The rules that follow from roles."""


@dataclass(frozen=True)
class _Course:
    """What may happen about one subject from its beginning to an end, as types of messages."""

    ends: frozenset[str]
    cancellations: frozenset[str]
    undone_by: frozenset[tuple[str, frozenset[str]]]
    """Each effect, with what undoes it."""
    going_on: frozenset[str]
    """What leads to an end by reactions alone, but for what is sent together with an end: there a
    coordinator has undone what was done, which is no way to a second end."""
    begun: frozenset[str]
    """What leads to an end by itself: that, and what time ends. Nothing of a saga that need not
    end; see `_has_to_end`."""
    timers: frozenset[tuple[str, type[State], frozenset[str]]]
    """Who keeps states about which something may be due that leads to an end; and what comes of
    that first."""

    def ended_otherwise(self, marks: Sequence[Mark]) -> Iterator[Broken]:
        """What is wrong once an end was published."""
        ends = [mark for mark in marks if mark.type in self.ends]
        if len(ends) > 1:
            told = ", ".join(sorted(mark.type for mark in ends))
            yield "outcome_changed", f"these were published: {told}"
        for end in ends:
            for mark in marks:
                later = (mark.sequence or 0) > (end.sequence or 0)
                if mark.source == end.source and later and mark.type in self.going_on:
                    yield "after_the_end", f"{mark.type} was published after {end.type}"

    def unfinished(self, marks: Sequence[Mark], *, waits: bool) -> Iterator[Broken]:
        """What is wrong with a subject at rest, which `waits` for its time, or does not."""
        types = {mark.type for mark in marks}
        begun = types & self.begun
        if begun and not types & self.ends and not waits:
            yield "not_ended", f"{_several(begun)} was published, and no end"
        if types.isdisjoint(self.cancellations):
            return
        for effect, undoing in self.undone_by:
            for mark in marks:
                if mark.type == effect and not any(
                    other.type in undoing
                    and other.source == mark.source
                    and (other.sequence or 0) > (mark.sequence or 0)
                    for other in marks
                ):
                    yield "effect_standing", f"it was cancelled, and nothing undid {effect}"


def _courses(flow: Flow) -> Iterator[_Course]:
    """The course of each saga that ends."""
    for extent in extents_of(flow):
        messages = [node for node in extent.nodes if isinstance(node, type)]
        recorded = [each for each in flow.choreography.recorded if each in messages]
        events = [each for each in recorded if issubclass(each, Event)]
        # What is published again and again, such as each year, ends nothing for good.
        ends = [event for event in events if event.role.terminal and not event.repeats]
        if not ends:
            continue
        timers = [
            (participant.name, kind, command)
            for participant in flow.choreography.participants
            for kind, commands in participant.dues.items()
            for command in commands
            if not flow.reachable([command]).isdisjoint(ends)
            and any(isinstance(n, Step) and n.reaction.own is kind for n in extent.nodes)
        ]
        in_time = {kind for _, kind, _ in timers}
        leading = {
            message.type
            for message in recorded
            if message not in ends and not flow.reachable([message]).isdisjoint(ends)
        }
        timed = {
            kind.type
            for node in extent.nodes
            if isinstance(node, Step) and node.reaction.own in in_time
            for kind in node.reaction.emits
            if kind not in ends
        }
        has_to_end = _has_to_end(extent, ends, in_time)
        yield _Course(
            ends=frozenset(event.type for event in ends),
            cancellations=frozenset(
                event.type for event in ends if event.role is Role.CANCELLATION
            ),
            undone_by=frozenset(
                (
                    effect.type,
                    frozenset(
                        other.type
                        for other in events
                        if any(undone.type == effect.type for undone in other.undoes)
                    ),
                )
                for effect in events
                if effect.role is Role.EFFECT
            ),
            going_on=frozenset(
                leading - {each.type for end in ends for each in flow.sent_with(end)}
            ),
            begun=frozenset(leading | timed) if has_to_end else frozenset(),
            timers=frozenset(
                (
                    name,
                    kind,
                    frozenset(
                        emitted.type
                        for step in flow.takers(command)
                        for emitted in step.reaction.emits
                    ),
                )
                for name, kind, command in timers
            ),
        )


def _has_to_end(
    extent: Extent, ends: Sequence[type[Event]], in_time: Collection[type[State]]
) -> bool:
    """Whether an event says that the saga went well, or a state that ends it has its time. One
    that can only be cancelled goes well where nothing more happens."""
    return any(event.role is Role.COMPLETION for event in ends) or any(
        node.reaction.own in in_time and not set(ends).isdisjoint(node.reaction.publishes)
        for node in extent.nodes
        if isinstance(node, Step)
    )


def _endless(course: _Course, view: View) -> Iterator[str]:
    """Subjects that wait for something that may never arrive, though time could end the wait.

    Where several states about a subject have timers that lead to an end, one that is due is enough:
    a hold that can lapse need not, as long as there is a deadline.
    """
    timed: set[str] = set()
    due: set[str] = set()
    for participant, kind, _ in course.timers:
        for (of, key), state in view.known.get(participant, {}).items():
            if of is kind:
                timed.add(key)
                if state.due() is not None:
                    due.add(key)
    comes_of_it = frozenset[str]().union(*(types for *_, types in course.timers))
    for key in sorted(timed - due):
        types = {mark.type for mark in view.told.about(key)}
        if types & course.begun and not types & (course.ends | comes_of_it):
            yield key


def _expected(view: View) -> set[str]:
    """The subjects about which something is due before which nothing has to happen."""
    return {
        key
        for known in view.known.values()
        for (_, key), state in known.items()
        if (due := state.due()) is not None and due.expected
    }


class Rules:
    """All that must hold of one saga, for the participants that take part."""

    def __init__(self, saga: Saga, choreography: Choreography | None = None) -> None:
        graph = choreography or saga.choreography
        self._recorded = {message.type: message for message in graph.recorded}
        flow = Flow(graph)
        self._courses = list(dict.fromkeys(_courses(flow)))
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
        types = {event.type for event in graph.events}

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
        for course in self._courses:
            for subject in _endless(course, view):
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
        expected = _expected(view)
        for subject in view.told.subjects():
            # What the saga itself has said about a subject, it says better.
            if subject in said or not view.rests(subject):
                continue
            marks = view.told.about(subject)
            for course in self._courses:
                for rule, detail in course.unfinished(marks, waits=subject in expected):
                    yield Violation(rule, subject, detail + explain(subject))
        for subject, detail in self._open_questions(view):
            if subject not in said:
                yield Violation("question_open", subject, detail + explain(subject))

    def _about(self, subject: str, marks: Sequence[Mark]) -> Iterator[Violation]:
        """What is wrong with what was published about one subject, at any time."""
        if len(marks) < 2:
            return
        for type_, count in Counter(mark.type for mark in marks).items():
            message = self._recorded.get(type_)
            if count > 1 and message is not None and not message.repeats:
                detail = f"{type_} was published {counted(count, 'time')}, as different events"
                yield Violation("said_twice", subject, detail)
        for course in self._courses:
            for rule, detail in course.ended_otherwise(marks):
                yield Violation(rule, subject, detail)

    def _open_questions(self, view: View) -> Iterator[Broken]:
        for participant, source, kinds in self._asking:
            for (kind, key), state in view.known.get(participant.name, {}).items():
                if kind not in kinds or not view.rests(key) or view.busy(participant.name, key):
                    continue
                if (due := state.due()) is not None and not due.expected:
                    continue  # Time ends it.
                told = _told(participant, kind, state, view.told.own(source, key))
                if told is None:
                    view.told.complete(participant.name, key)  # It may have been trimmed.
                elif told != state:
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
