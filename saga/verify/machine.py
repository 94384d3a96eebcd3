"""The model as states and steps: the real reactions, run by the kernel's real step.

A state is one integer. Its low fields say what each participant knows, and what the outside knows,
as the number of a value seen before. Above them is one bit for each fact (`facts`).
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from datetime import datetime
from itertools import chain
from typing import Any, Generic, TypeVar

from common.choreography import State
from common.envelope import Envelope, derived_id, source_of, wrap
from common.kernel.step import Decision, DueStays, Firing, StateId, react, react_to_due
from common.message import Command, Event, Message, Priority
from saga.verify.facts import (
    FIELD,
    FIELD_BITS,
    Action,
    Answered,
    Asked,
    Done,
    Fact,
    Outcome,
    Sent,
)
from saga.verify.model import Model, Stimulus, VerifyError, View, Violation

T = TypeVar("T")

Knowledge = Mapping[StateId, State]


class Broken(Exception):
    """A step that breaks a rule by itself."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(violation)
        self.violation = violation


class Machine:
    """The states and steps of one model."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.participants = model.choreography.participants
        self._number_of = {p.name: number for number, p in enumerate(self.participants)}
        self._known: list[_Numbers[Knowledge]] = [_Numbers(p.name) for p in self.participants]
        self._outside: _Numbers[Any] = _Numbers(model.outside_name)
        self._outsides = len(self.participants)
        """The number of the outside's field."""
        self._base = (self._outsides + 1) * FIELD_BITS
        """Where the facts begin."""
        self.visible = (1 << self._base) - 1
        """The part of a state that rules look at: what is known, and what was sent."""
        # By fact, whose number is its bit:
        self._facts: list[Fact] = []
        self._bits: dict[Fact, int] = {}
        self._actions: list[Sequence[Action]] = []
        self._sent = 0
        self._enabling = 0
        # Looked up again and again, by some of a state's facts:
        self._enabled: dict[int, Sequence[Action]] = {}
        self._owed: dict[int, int] = {}

        self._due: list[tuple[int, int, dict[int, Sequence[Action]]]] = [
            (number, number * FIELD_BITS, {})
            for number, participant in enumerate(self.participants)
            if participant.dues
        ]
        """Of each participant about whose states something may be due: its number, where its field
        is in a state, and by the field's value what may be done."""
        self._firings: dict[tuple[int, Firing, datetime], Action] = {}

        self._stimuli = [Action(self._number_of[s.participant], s, s.at) for s in model.stimuli]
        self.starts = {name: self._start(commands) for name, commands in model.starts.items()}

    # --- states ---------------------------------------------------------------------------------

    def actions(self, state: int) -> Sequence[Action]:
        """What may happen in a state."""
        enabling = state >> self._base & self._enabling
        actions = self._enabled.get(enabling)
        if actions is None:
            actions = [action for bit in _set_bits(enabling) for action in self._actions[bit]]
            actions = self._enabled[enabling] = [*actions, *self._stimuli]
        for participant, shift, due in self._due:
            value = state >> shift & FIELD
            firings = due.get(value)
            if firings is None:
                firings = due[value] = list(self._dues(participant, value))
            if firings:
                actions = [*actions, *firings]
        return actions

    def _dues(self, participant: int, value: int) -> Iterator[Action]:
        """What a participant may do because it is due, by what it knows."""
        found = map(Firing.of, self._known[participant].values[value].values())
        for firing in filter(None, found):
            for now in self._moments_from(firing.due.at):
                key = participant, firing, now
                if key not in self._firings:
                    self._firings[key] = Action(participant, firing, now)
                yield self._firings[key]

    def _moments_from(self, at: datetime) -> Sequence[datetime]:
        """When what is due at a time may be done: never before, and as late as may be."""
        return [moment for moment in self.model.moments if moment >= at] or [at]

    def outcomes(self, action: Action, state: int) -> tuple[Outcome, ...]:
        """What the action may lead to in a state. Raises `Broken`."""
        value = state >> action.shift & FIELD
        outcomes = action.outcomes.get(value)
        if outcomes is None:
            outcomes = action.outcomes[value] = tuple(self._outcomes(action, value))
        return outcomes

    def at_rest(self, state: int) -> bool:
        """Whether all that was sent is done."""
        facts = state >> self._base
        sent = facts & self._sent
        owed = self._owed.get(sent)
        if owed is None:
            owed = self._owed[sent] = self._owed_for(sent)
        return facts & owed == owed

    def judge(self, state: int) -> Violation | None:
        """The first rule that a state breaks."""
        view = self._view(state)
        found = chain(self.model.judge(view, self.at_rest(state)), _contradictions(view))
        return next(found, None)

    def facts(self, state: int) -> Iterator[Fact]:
        """The facts of a state, in the order in which facts were first seen."""
        return (self._facts[bit] for bit in _set_bits(state >> self._base))

    def _view(self, state: int) -> View:
        return View(
            {
                participant.name: known.values[state >> number * FIELD_BITS & FIELD]
                for number, (participant, known) in enumerate(
                    zip(self.participants, self._known, strict=True)
                )
            },
            [
                fact.envelope
                for fact in self.facts(state)
                if isinstance(fact, Sent) and isinstance(fact.envelope.data, Event)
            ],
            self._outside.values[state >> self._outsides * FIELD_BITS & FIELD],
        )

    # --- steps ----------------------------------------------------------------------------------

    def _outcomes(self, action: Action, value: int) -> Iterator[Outcome]:
        match action.about:
            case Sent() as sent:
                yield self._take(action, sent, sent.envelope.data, value)
            case Answered() as answered:
                yield self._take(action, answered.question.message, answered.answer, value)
            case Asked() as question:
                yield from self._hear(question, value)
            case Stimulus() as stimulus:
                yield from self._give(action, stimulus, value)
            case Firing() as firing:
                yield from self._fire(action, firing, value)

    def _take(self, action: Action, cause: Sent, message: Message, value: int) -> Outcome:
        """A participant reacts to a message, or to the answer to what that made it ask."""
        decision, after = self._react(action, cause.envelope, message, value)
        progress: Fact = Done(cause, action.whose)
        if decision.intent is not None:
            progress = Asked(cause, action.whose, decision.intent)
        return Outcome(after | self._publish(decision) | self._fact(progress))

    def _hear(self, question: Asked, value: int) -> Iterator[Outcome]:
        """The outside hears a question, and has an answer."""
        try:
            replies = list(self.model.ask(self._outside.values[value], question.intent))
        except VerifyError:
            raise
        except Exception as error:
            raise self._broken("question_refused", question.intent, error) from error
        for reply in replies:
            after = self._outside.number(reply.outside, reply.outside)
            answered = self._fact(Answered(question, reply.label, reply.answer))
            yield Outcome(after << self._outsides * FIELD_BITS | answered, reply.label)

    def _give(self, action: Action, stimulus: Stimulus, value: int) -> Iterator[Outcome]:
        """A participant carries out a command. That leaves no fact: it may be given again."""
        command, knowledge = stimulus.command, self._known[action.whose].values
        if not stimulus.when(View({stimulus.participant: knowledge[value]})):
            return
        # Given again after something was said about its subject, it is another command.
        said = sum(s.sequence for s in knowledge[value].values() if s.key == command.subject)
        cause = self._command(f"{stimulus.name}/{said}", command, stimulus.at)
        decision, after = self._react(action, cause, command, value)
        if decision.intent is not None:
            raise VerifyError(
                f"{stimulus.name!r} leads to the intent {type(decision.intent).__name__}, which "
                f"nobody would take up again after a crash; let a message lead to it"
            )
        for violation in stimulus.then(
            View({stimulus.participant: knowledge[after >> action.shift]})
        ):
            raise Broken(violation)
        yield Outcome(after | self._publish(decision))

    def _fire(self, action: Action, firing: Firing, value: int) -> Iterator[Outcome]:
        """A participant does what is due about a state. That leaves no fact: the state tells
        whether it is due again."""
        participant = self.participants[action.whose]
        cause = firing.envelope(participant.name, action.now)
        decision, after = self._react(action, cause, cause.data, value)
        if decision.intent is not None:
            raise VerifyError(
                f"what is due about {firing.kind.__name__} leads to the intent "
                f"{type(decision.intent).__name__}, which nobody would take up again after a "
                f"crash; let an event lead to it"
            )
        yield Outcome(after | self._publish(decision))

    def _react(
        self, action: Action, cause: Envelope[Any], message: Message, value: int
    ) -> tuple[Decision, int]:
        """The kernel's step: what is decided, and the field after it."""
        before = self._known[action.whose].values[value]
        participant, firing = self.participants[action.whose], action.about

        def find(state_id: StateId) -> State:
            kind, key = state_id
            return before.get(state_id) or kind(key)

        try:
            if isinstance(firing, Firing):
                decision = react_to_due(participant, firing, cause, find, action.now)
            else:
                decision = react(participant, cause, message, find, action.now)
        except DueStays as error:
            raise Broken(Violation("due_ignored", message.subject, str(error))) from error
        except Exception as error:
            raise self._broken("reaction_raised", message, error) from error
        if decision is None:
            raise VerifyError(f"{message!r} is due, and is not at {action.now}: a fault of ours")
        after = {**before, **decision.changes}
        number = self._known[action.whose].number(frozenset(after.items()), after)
        return decision, number << action.shift

    def _broken(self, rule: str, message: Message, error: Exception) -> Broken:
        return Broken(
            Violation(
                rule,
                message.subject,
                f"{type(message).__name__} led to {type(error).__name__}: {error}",
            )
        )

    # --- facts ----------------------------------------------------------------------------------

    def _start(self, commands: Sequence[tuple[str, Command]]) -> int:
        """The state at the beginning, after these commands."""
        state = self._outside.number(self.model.outside, self.model.outside)
        state <<= self._outsides * FIELD_BITS
        for known in self._known:
            known.number(frozenset(), {})  # number 0
        for name, command in commands:
            sent = self._given(command, name)
            action = Action(self._number_of[name], sent, self.model.moments[0])
            value = state >> action.shift & FIELD
            decision, after = self._react(action, sent.envelope, command, value)
            state = state & action.keep | after | self._publish(decision)
        for name, command in self.model.sent:
            state |= self._fact(self._given(command, name))
        return state

    def _given(self, command: Command, to: str) -> Sent:
        envelope = self._command(f"{to}/{command!r}", command, self.model.moments[0])
        return Sent(envelope, (envelope.id,), (self._number_of[to],))

    def _command(self, name: str, command: Command, at: datetime) -> Envelope[Any]:
        return wrap(
            command,
            id=derived_id(self.model.name, name),
            source=source_of("world"),
            time=at,
            priority=Priority.NORMAL,
        )

    def _publish(self, decision: Decision) -> int:
        bits = 0
        for event in decision.events:
            identity = event.id, event.source, event.sequence, event.data
            reacting = self.model.choreography.reacting_to(event.type)
            receivers = tuple(self._number_of[p.name] for p in reacting)
            bits |= self._fact(Sent(event, identity, receivers))
        return bits

    def _fact(self, fact: Fact) -> int:
        """The fact's bit in a state. A new fact brings what it makes possible."""
        bit = self._bits.get(fact)
        if bit is None:
            bit = self._bits[fact] = len(self._facts)
            self._facts.append(fact)
            self._actions.append(list(self._enabled_by(fact)))
            if self._actions[bit]:
                self._enabling |= 1 << bit
            if isinstance(fact, Sent):
                self._sent |= 1 << bit
                self.visible |= 1 << self._base + bit
        return 1 << self._base + bit

    def _enabled_by(self, fact: Fact) -> Iterator[Action]:
        match fact:
            case Sent():
                for receiver in fact.receivers:
                    for now in self._moments(receiver, fact.envelope.data):
                        yield Action(receiver, fact, now)
            case Asked():
                yield Action(self._outsides, fact, self.model.moments[0])
            case Answered():
                asker = fact.question.participant
                for now in self._moments(asker, fact.answer):
                    yield Action(asker, fact, now)
            case Done():
                pass

    def _moments(self, participant: int, message: Message) -> Sequence[datetime]:
        """When a message may be reacted to. It matters only to a reaction that asks for the time,
        and for a command that is the time it was given."""
        reaction = self.participants[participant].by_message.get(type(message))
        if isinstance(message, Command) or reaction is None:
            return self.model.moments[:1]
        asks = any(kind is datetime for _, kind, _ in reaction.parameters)
        return self.model.moments if asks else self.model.moments[:1]

    def _owed_for(self, sent: int) -> int:
        """The facts that have to be there for these messages to be done."""
        owed = 0
        for bit in _set_bits(sent):
            fact = self._facts[bit]
            if isinstance(fact, Sent):
                for receiver in fact.receivers:
                    owed |= self._fact(Done(fact, receiver))
        return owed >> self._base


class _Numbers(Generic[T]):
    """Numbers values from 0, in the order of their coming; equal keys have equal values."""

    def __init__(self, whose: str) -> None:
        self._whose = whose
        self._numbers: dict[Hashable, int] = {}
        self.values: list[T] = []

    def number(self, key: Hashable, value: T) -> int:
        number = self._numbers.setdefault(key, len(self.values))
        if number == len(self.values):
            if number > FIELD:
                raise VerifyError(
                    f"there are more than {FIELD} different things that {self._whose} may know; "
                    f"make the model smaller, or look for what a reaction keeps adding to"
                )
            self.values.append(value)
        return number


def _set_bits(number: int) -> Iterator[int]:
    while number:
        lowest = number & -number
        yield lowest.bit_length() - 1
        number ^= lowest


def _contradictions(view: View) -> Iterator[Violation]:
    """Events that readers take for one another: an id is one event's, and so is a place in its
    sender's sequence."""
    ids: dict[str, Envelope[Any]] = {}
    places: dict[tuple[str, str, int | None], Envelope[Any]] = {}
    for event in view.events:
        other = ids.setdefault(event.id, event)
        if other is not event:
            yield Violation(
                "id_reused",
                event.subject,
                f"two different events have one id, {other.type} and {event.type}: who has seen "
                f"one will skip the other",
            )
        other = places.setdefault((event.source, event.subject, event.sequence), event)
        if other is not event:
            yield Violation(
                "sequence_reused",
                event.subject,
                f"{other.type} and {event.type} are both number {event.sequence} of {event.source}",
            )
