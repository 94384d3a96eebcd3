"""The model as states and steps: the real reactions, run by the kernel's real step.

A state is one integer. Its low fields say what each participant knows, and what the outside knows,
as the number of a value seen before. Above them is one bit for each fact (`facts`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import chain
from typing import Any, Generic, TypeVar

from saga.choreography import ChoreographyError, Participant, State
from saga.declaration import Stimulus
from saga.envelope import Envelope, derived_id, is_recorded, source_of, wrap
from saga.foreign import Foreign, ForeignState
from saga.message import Answer, Command, Event, Intent, Message, Priority
from saga.outside import Outside, OutsideError
from saga.purity import Calls, Impure, repeated
from saga.runtime.kernel.step import (
    Decision,
    DueStays,
    Firing,
    StateId,
    decided,
    reaction_to,
)
from saga.verify.facts import (
    FIELD,
    FIELD_BITS,
    Action,
    ActionOutcome,
    Answered,
    Asked,
    Fact,
    Handled,
    Sent,
)
from saga.verify.model import Beginning, Model, VerifyError
from saga.view import EventsInMemory, View, Violation

T = TypeVar("T")

Knowledge = Mapping[StateId, State]

ASKED_MAX = 3
"""How often an outside that is not idempotent may be asked the same without an effect: then it does
something about it, or a model would never end."""


class _Asks(State):
    """How often a participant has asked an outside that is not idempotent, because of one message:
    no participant knows it, but each time may have its effect."""


class _InInbox(State):
    """That a participant in another language has a message in its inbox."""


@dataclass(frozen=True, slots=True)
class _Heard:
    """What an outside knows; and, where it is not idempotent, the questions that had an effect."""

    books: Any
    questions: frozenset[Asked] = frozenset()


class Broken(Exception):
    """A step that breaks a rule by itself."""

    def __init__(self, violation: Violation) -> None:
        super().__init__(violation)
        self.violation = violation


class Machine:
    """The states and steps of one model. Unless that is left out, reactions are `checked` for
    depending on their arguments alone."""

    def __init__(self, model: Model, *, checked: bool = True) -> None:
        self.model = model
        self.participants = model.choreography.participants
        self._foreign = {n: p for n, p in enumerate(self.participants) if isinstance(p, Foreign)}
        """Keyed by number: those in other languages."""
        self.calls = [Calls(each, checked=checked) for each in self.participants]
        """Keyed by number: what each participant's reactions were called with."""
        self._broke: dict[tuple[Action, int], Broken] = {}
        """Steps that break a rule by themselves, by the field's value: what does not depend on its
        arguments alone might not break it again."""
        self._number_of = {p.name: number for number, p in enumerate(self.participants)}
        self._known: list[_Numbers[Knowledge]] = [_Numbers(p.name) for p in self.participants]
        self._books: list[_Numbers[Any]] = [_Numbers(each.name) for each in model.outside]
        """Keyed by outside: what it may know; their fields come after those of the participants."""
        self.names = [*(p.name for p in self.participants), *(o.name for o in model.outside)]
        """Of participants and outsides, by their fields."""
        self.base = (len(self.participants) + len(model.outside)) * FIELD_BITS
        """Where the facts begin."""
        self.reacted: set[tuple[str, str]] = set()
        """Participants and their reactions that were run."""
        self.published: set[str] = set()
        """The types of the events and commands that reactions decided on."""
        self.asked: set[tuple[str, str]] = set()
        """Participants and the names of the intents that they committed."""
        self.answered: set[tuple[str, str | None, str]] = set()
        """Participants, the type of what they took, and of what they published because of it; None
        for commands from outside and what is due, of which no history tells."""
        self.cut_short: set[str] = set()
        """The outsides whose refusals were followed `ASKED_MAX` times only."""
        self.visible = (1 << self.base) - 1
        """The part of a state that rules look at: what is known, and what was sent."""
        # Keyed by fact, whose number is its bit:
        self._facts: list[Fact] = []
        self._bits: dict[Fact, int] = {}
        self._actions: list[Sequence[Action]] = []
        self._sent = 0
        self._enabling = 0
        # Looked up again and again, by some of a state's facts:
        self._enabled: dict[int, Sequence[Action]] = {}
        self._owed: dict[int, int] = {}
        self._told: dict[int, Sequence[Envelope[Any]]] = {}

        self._due: list[tuple[int, int, dict[int, Sequence[Action]]]] = [
            (number, number * FIELD_BITS, {})
            for number, participant in enumerate(self.participants)
            if participant.dues
        ]
        """Of each participant about whose states something may be due: its number, where its field
        is in a state, and by the field's value what may be done."""
        self._firings: dict[tuple[int, Firing, datetime], Action] = {}

        self.on_outcomes: Callable[[Action, int, Sequence[ActionOutcome]], None] | None = None
        """Told what an action leads to by its field's value, once for each."""
        self.stimuli = [Action(self._number_of[s.participant], s, s.at) for s in model.stimuli]
        self.starts = {name: self._start(commands) for name, commands in model.starts.items()}
        self.starts |= {name: self._begin(beginning) for name, beginning in model.begun.items()}

    # --- states ---------------------------------------------------------------------------------

    def actions(self, state: int) -> Sequence[Action]:
        """What may happen in a state."""
        enabling = state >> self.base & self._enabling
        actions = self._enabled.get(enabling)
        if actions is None:
            actions = [action for bit in _set_bits(enabling) for action in self._actions[bit]]
            actions = self._enabled[enabling] = [*actions, *self.stimuli]
        if self.model.timers_last and not self.at_rest(state):
            return actions
        for participant, shift, due in self._due:
            value = state >> shift & FIELD
            firings = due.get(value)
            if firings is None:
                firings = due[value] = list(self.dues(participant, value))
            if firings:
                actions = [*actions, *firings]
        return actions

    def dues(self, participant: int, value: int) -> Iterator[Action]:
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

    def outcomes(self, action: Action, state: int) -> tuple[ActionOutcome, ...]:
        """What the action may lead to in a state. Raises `Broken`."""
        return self.outcomes_of(action, state >> action.shift & FIELD)

    def outcomes_of(self, action: Action, value: int) -> tuple[ActionOutcome, ...]:
        """What the action may lead to, by the value of its field. Raises `Broken`."""
        outcomes = action.outcomes.get(value)
        if outcomes is None:
            if (broke := self._broke.get((action, value))) is not None:
                raise broke
            try:
                outcomes = action.outcomes[value] = tuple(self._outcomes(action, value))
            except Broken as broken:
                self._broke[action, value] = broken
                raise
            if self.on_outcomes is not None:
                self.on_outcomes(action, value, outcomes)
        return outcomes

    def settled(self, state: int) -> int:
        """The state once everything has happened that changes nothing but hidden facts: a message
        was handled that led to nothing, a question was put or answered again.

        Whatever can happen in a state can happen after that as well, rules see the same, and no
        state at rest is out of reach that was not before: so nothing is lost by looking at the
        settled state alone.
        """
        settled = state
        while True:
            for action in self.actions(settled):
                value = settled >> action.shift & FIELD
                quiet = action.quiet.get(value)
                if quiet is None:
                    quiet = self._quiet(action, settled)
                for bits in quiet:
                    new = bits & ~settled
                    if new and not new & self.visible:
                        settled |= new
            if settled == state:
                return settled
            state = settled

    def _quiet(self, action: Action, state: int) -> tuple[int, ...]:
        """The facts that the action may add in a state without a change of its field."""
        value = state >> action.shift & FIELD
        try:
            outcomes = self.outcomes(action, state)
        except Broken:
            outcomes = ()  # It is found where the state is expanded.
        added = (o.bits & action.keep for o in outcomes if o.bits >> action.shift & FIELD == value)
        quiet = action.quiet[value] = tuple(filter(None, added))
        return quiet

    def at_rest(self, state: int) -> bool:
        """Whether all that was sent is done."""
        facts = state >> self.base
        sent = facts & self._sent
        owed = self._owed.get(sent)
        if owed is None:
            owed = self._owed[sent] = self._owed_for(sent)
        return facts & owed == owed

    def judge(self, state: int) -> Violation | None:
        """The first rule that a state breaks."""
        return next(self.violations(state), None)

    def violations(self, state: int) -> Iterator[Violation]:
        """Every rule that a state breaks."""
        at_rest = self.at_rest(state)
        events = self.told(state)
        view = self._view(state, events, at_rest)
        lost = _priorities_lost(events, self.model.priorities)
        return chain(self.model.judge(view, at_rest), _contradictions(events), lost)

    def facts(self, state: int) -> Iterator[Fact]:
        """The facts of a state, in the order in which facts were first seen."""
        return map(self.fact, self.bits(state))

    def bits(self, state: int) -> Iterator[int]:
        """The numbers of the facts of a state."""
        return _set_bits(state >> self.base)

    def fact(self, bit: int) -> Fact:
        """The fact of that number."""
        return self._facts[bit]

    def bit_of(self, fact: Fact) -> int | None:
        """The number of a fact, if there was one."""
        return self._bits.get(fact)

    def actions_about(self, bit: int) -> Sequence[Action]:
        """What the fact of that number makes possible; the same of all facts that are alike, and in
        the same order."""
        return self._actions[bit]

    def told(self, state: int) -> Sequence[Envelope[Any]]:
        """What was published by then, in the order in which it was first seen."""
        sent = state >> self.base & self._sent
        told = self._told.get(sent)
        if told is None:
            facts = (self._facts[bit] for bit in _set_bits(sent))
            told = self._told[sent] = [
                fact.envelope
                for fact in facts
                if isinstance(fact, Sent) and is_recorded(fact.envelope)
            ]
        return told

    def ends(self) -> Iterator[tuple[str, str]]:
        """The type and the outcome of each event that has ended a saga anywhere."""
        for fact in self._facts:
            if isinstance(fact, Sent):
                data = fact.envelope.data
                if isinstance(data, Event) and data.role.terminal:
                    yield data.type, data.outcome

    def known(self, state: int) -> Mapping[str, Knowledge]:
        """Keyed by participant: the states that it has then."""
        return {
            participant.name: self._known[number].values[state >> number * FIELD_BITS & FIELD]
            for number, participant in enumerate(self.participants)
        }

    def knowledge(self) -> Iterator[tuple[str, Knowledge]]:
        """All that each participant has known in any state by now, with its name."""
        for participant, known in zip(self.participants, self._known, strict=True):
            yield from ((participant.name, value) for value in known.values)

    def _view(self, state: int, events: Sequence[Envelope[Any]], at_rest: bool) -> View:
        fields = [
            numbers.values[state >> number * FIELD_BITS & FIELD]
            for number, numbers in enumerate([*self._known, *self._books])
        ]
        known = zip((p.name for p in self.participants), fields, strict=False)
        books = [heard.books for heard in fields[len(self.participants) :]]
        return View(dict(known), EventsInMemory(events), books, rests=lambda _: at_rest)

    # --- steps ----------------------------------------------------------------------------------

    def _outcomes(self, action: Action, value: int) -> Iterator[ActionOutcome]:
        match action.about:
            case Sent() as sent if action.whose in self._foreign:
                yield from self._answer(action, sent, value)
            case Sent() as sent:
                yield self._take(action, sent, sent.envelope.data, value)
            case Answered() as answered:
                yield self._take(action, answered.question.message, answered.answer, value)
            case Asked() as question:
                yield from self._hear(action, question, value)
            case Stimulus() as stimulus:
                yield from self._give(action, stimulus, value)
            case Firing() as firing:
                yield from self._fire(action, firing, value)

    def _take(self, action: Action, cause: Sent, message: Message, value: int) -> ActionOutcome:
        """A participant reacts to a message, or to the answer to what that made it ask."""
        decision, after = self._react(action, cause.envelope, message, value)
        progress: Fact = Handled(cause, action.whose)
        if decision.intent is not None:
            progress = self._asking(action, cause, decision.intent, after)
        return ActionOutcome(after | self._publish(decision) | self._fact(progress))

    def _answer(self, action: Action, sent: Sent, value: int) -> Iterator[ActionOutcome]:
        """A participant in another language answers a message, once, by anything that its signature
        allows. That it was answered is known to its own inbox."""
        participant, known = self._foreign[action.whose], self._known[action.whose]
        before, cause = known.values[value], sent.envelope
        in_inbox: StateId = (_InInbox, f"{cause.id}\t{cause.source}")
        if in_inbox in before:
            return

        def find(state_id: StateId) -> State:
            kind, key = state_id
            return before.get(state_id) or kind(key)

        reaction = reaction_to(participant, cause.data)
        self.reacted.add((participant.name, reaction.name))
        elsewhere = find((reaction.own, cause.subject))
        published = elsewhere.published if isinstance(elsewhere, ForeignState) else ()
        try:
            answers = participant.answers(cause.data, published)
        except ChoreographyError as error:
            raise VerifyError(str(error)) from error
        for answer in answers:
            decision = decided(participant, reaction, cause, answer, find, action.now)
            self._note(participant, cause, decision)
            after = {**before, **decision.changes, in_inbox: _InInbox(in_inbox[1])}
            number = known.number(frozenset(after.items()), after)
            bits = number << action.shift | self._publish(decision)
            reply = " and ".join(event.type for event in answer) or "nothing"
            yield ActionOutcome(bits | self._fact(Handled(sent, action.whose)), reply)

    def _hear(self, action: Action, question: Asked, value: int) -> Iterator[ActionOutcome]:
        """The outside hears a question, and has an answer; or the message is to be tried again, or
        is dead, which leaves things as they are."""
        number = action.whose - len(self.participants)
        outside, heard = self.model.outside[number], self._books[number].values[value]
        if question in heard.questions:
            return  # It was put once, and has arrived.
        labels: dict[tuple[Answer, Any], str] = {}
        for answer, after, said in self._answers(outside, heard.books, question):
            if question.number == ASKED_MAX and after == heard.books:
                self.cut_short.add(outside.name)
                continue
            labels.setdefault((answer, after), said)
        for (answer, books), said in labels.items():
            once = not outside.idempotent
            after = _Heard(books, heard.questions | {question} if once else heard.questions)
            known = self._books[number].number(after, after)
            answered = self._fact(Answered(question, said, answer))
            yield ActionOutcome(known << action.shift | answered, said)

    def _answers(
        self, outside: Outside[Any], books: Any, question: Asked
    ) -> Iterator[tuple[Answer, Any, str]]:
        """All that may come of a question: by each decision, and where the outside fails."""
        intent = question.intent
        try:
            for decision in outside.decisions:
                hear = partial(outside.hear, books, intent, decision)
                with suppress(*outside.fails):
                    yield repeated(hear, f"{outside.name}, asked {type(intent).__name__},")
            if outside.idempotent:  # Otherwise its decisions say what each failure has done.
                yield from outside.hear_in_vain(books, intent)
        except OutsideError as error:
            raise VerifyError(str(error)) from error
        except Impure as impure:
            raise Broken(Violation("impure", intent.subject, str(impure))) from impure
        except Exception as error:
            raise self._broken("question_refused", intent, error) from error

    def _give(self, action: Action, stimulus: Stimulus, value: int) -> Iterator[ActionOutcome]:
        """A participant carries out a command. That leaves no fact: it may be given again."""
        command, knowledge = stimulus.command, self._known[action.whose].values
        if not stimulus.when(_view_of(stimulus.participant, knowledge[value])):
            return
        # Given again after something was said about its subject, it is another command.
        said = sum(s.sequence for s in knowledge[value].values() if s.key == command.subject)
        cause = self._command(f"{stimulus.name}/{said}", command, stimulus.at)
        decision, after = self._react(action, cause, command, value)
        for violation in stimulus.then(
            _view_of(stimulus.participant, knowledge[after >> action.shift])
        ):
            raise Broken(violation)
        bits = after | self._publish(decision)
        if decision.intent is not None:
            # Only what is due about the state takes that up again after a crash.
            given = Sent(cause, (cause.id,), ())
            bits |= self._fact(self._asking(action, given, decision.intent, after))
        yield ActionOutcome(bits)

    def _asking(self, action: Action, cause: Sent, intent: Intent, after: int) -> Asked:
        """That the participant, whose field is this, has committed a question."""
        self.asked.add((self.participants[action.whose].name, type(intent).__name__))
        known = self._known[action.whose].values[after >> action.shift]
        asks = known.get(_asks(cause.envelope, intent))
        return Asked(cause, action.whose, intent, asks.sequence if asks else 0)

    def _fire(self, action: Action, firing: Firing, value: int) -> Iterator[ActionOutcome]:
        """A participant does what is due about a state. That leaves no fact: the state tells
        whether it is due again."""
        participant = self.participants[action.whose]
        cause = firing.envelope(participant.name, action.now)
        decision, after = self._react(action, cause, cause.data, value)
        if decision.intent is not None:
            raise VerifyError(
                f"what is due about {firing.kind.__name__} leads to the intent "
                f"{type(decision.intent).__name__}, which would not be taken up again after a "
                f"crash; let an event lead to it"
            )
        yield ActionOutcome(after | self._publish(decision))

    def _react(
        self, action: Action, cause: Envelope[Any], message: Message, value: int
    ) -> tuple[Decision, int]:
        """The kernel's step: what is decided, and the field after it."""
        if action.whose in self._foreign:
            raise VerifyError(
                f"{self.model.name} gives {type(message).__name__} to {self.names[action.whose]}, "
                f"which is in another language: what it makes of that at once is not known; name "
                f"it under `sent`, where any answer is tried"
            )
        before = self._known[action.whose].values[value]
        participant, firing = self.participants[action.whose], action.about
        reaction = participant.by_message.get(type(message))
        if reaction is not None:
            self.reacted.add((participant.name, reaction.name))

        def find(state_id: StateId) -> State:
            return before.get(state_id) or self.model.unsaid(participant.name, state_id)

        due = firing if isinstance(firing, Firing) else None
        try:
            decision = self.calls[action.whose].decide(due, cause, message, find, action.now)
        except Impure as impure:
            raise Broken(Violation("impure", message.subject, str(impure))) from impure
        except VerifyError:
            raise  # From `unsaid`.
        except DueStays as error:
            raise Broken(Violation("due_ignored", message.subject, str(error))) from error
        except Exception as error:
            raise self._broken("reaction_raised", message, error) from error
        if decision is None:
            raise VerifyError(f"{message!r} is due, and is not at {action.now}: a fault of ours")
        after = {**before, **decision.changes}
        if decision.intent is not None and not self._asked(decision.intent).idempotent:
            kind, key = asks = _asks(cause, decision.intent)
            asked = before.get(asks)
            after[asks] = kind(key, min((asked.sequence if asked else 0) + 1, ASKED_MAX))
        number = self._known[action.whose].number(frozenset(after.items()), after)
        self._note(participant, cause, decision)
        return decision, number << action.shift

    def _note(self, participant: Participant, cause: Envelope[Any], decision: Decision) -> None:
        taken = cause.type if is_recorded(cause) else None
        self.answered.update((participant.name, taken, event.type) for event in decision.events)

    def _broken(self, rule: str, message: Message, error: Exception) -> Broken:
        return Broken(
            Violation(
                rule,
                message.subject,
                f"{type(message).__name__} led to {type(error).__name__}: {error}",
            )
        )

    # --- facts ----------------------------------------------------------------------------------

    def _number_blanks(self) -> None:
        """Number what is known before anything is."""
        for known in self._known:
            known.number(frozenset(), {})  # number 0
        for outside, books in zip(self.model.outside, self._books, strict=True):
            books.number(_Heard(outside.blank), _Heard(outside.blank))

    def _begin(self, beginning: Beginning) -> int:
        """The state that is given. What was published and is on its way to no participant stays a
        fact."""
        self._number_blanks()
        state = 0
        for number, participant in enumerate(self.participants):
            known = {**beginning.known.get(participant.name, {})}
            field = self._known[number].number(frozenset(known.items()), known)
            state |= field << number * FIELD_BITS
        for number, outside in enumerate(self.model.outside):
            heard = _Heard(beginning.books.get(outside.name, outside.blank))
            field = self._books[number].number(heard, heard)
            state |= field << (len(self.participants) + number) * FIELD_BITS
        for event, receivers in beginning.told:
            identity = event.id, event.source, event.sequence, event.priority, event.data
            numbers = tuple(sorted(self._number_of[name] for name in receivers))
            state |= self._fact(Sent(event, identity, numbers))
        return state

    def _start(self, commands: Sequence[tuple[str, Command]]) -> int:
        """The state at the beginning, after these commands."""
        self._number_blanks()
        state = 0
        for name, command in commands:
            sent = self._given(command, name)
            action = Action(self._number_of[name], sent, self.model.moments[0])
            value = state >> action.shift & FIELD
            try:
                decision, after = self._react(action, sent.envelope, command, value)
            except Broken as broken:
                found = broken.violation
                raise VerifyError(
                    f"{self.model.name} cannot begin: {command.type} breaks {found.rule}: "
                    f"{found.detail}"
                ) from broken
            state = state & action.keep | after | self._publish(decision)
        places: Counter[tuple[str | None, str]] = Counter()
        for name, message in self.model.sent:
            place = message.publisher if isinstance(message, Event) else None, message.subject
            places[place] += 1
            state |= self._fact(self._given(message, name, places[place]))
        return state

    def sent_at_first(self) -> list[int]:
        """The numbers of the facts that the messages of the scenario are."""
        return [self._bits[self._given(message, name)] for name, message in self.model.sent]

    def _given(self, message: Command | Event, to: str, number: int = 1) -> Sent:
        """What is sent at the beginning; if it is an event, its publisher's one of that number."""
        envelope = self._command(f"{to}/{message!r}", message, self.model.moments[0], number)
        return Sent(envelope, (envelope.id,), (self._number_of[to],))

    def _command(
        self, name: str, message: Command | Event, at: datetime, number: int = 1
    ) -> Envelope[Any]:
        publisher = message.publisher if isinstance(message, Event) else None
        return wrap(
            message,
            id=derived_id(self.model.name, name),
            source=source_of(publisher or "world"),
            time=at,
            priority=self.model.priorities.get(message.subject, Priority.NORMAL),
            sequence=number if publisher else None,
        )

    def _publish(self, decision: Decision) -> int:
        bits = 0
        for event in decision.events:
            self.published.add(event.type)
            identity = event.id, event.source, event.sequence, event.priority, event.data
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
                self.visible |= 1 << self.base + bit
        return 1 << self.base + bit

    def _enabled_by(self, fact: Fact) -> Iterator[Action]:
        match fact:
            case Sent():
                for receiver in fact.receivers:
                    given = not is_recorded(fact.envelope)
                    for now in self._moments(receiver, fact.envelope.data, given=given):
                        yield Action(receiver, fact, now)
            case Asked():
                yield Action(self._outside_of(fact.intent), fact, self.model.moments[0])
            case Answered():
                asker = fact.question.participant
                for now in self._moments(asker, fact.answer):
                    yield Action(asker, fact, now)
            case Handled():
                pass

    def _asked(self, intent: Intent) -> Outside[Any]:
        return self.model.outside[self._outside_of(intent) - len(self.participants)]

    def may_come_late(self, action: Action) -> bool:
        """Whether it is how a question arrives that is not asked again, or its answer: that may
        be when all else is done. It is not asked again where the outside is not idempotent, nor
        where a command led to it that is given from outside, and goes to no participant as a
        message."""
        about = action.about
        question = about.question if isinstance(about, Answered) else about
        return isinstance(question, Asked) and not (
            question.message.receivers and self._asked(question.intent).idempotent
        )

    def outside_asked(self, intent: Intent) -> str:
        """The name of the outside that takes a question."""
        return self.names[self._outside_of(intent)]

    def _outside_of(self, intent: Intent) -> int:
        """The number of the field of the outside that takes a question."""
        for number, outside in enumerate(self.model.outside, len(self.participants)):
            if type(intent) in outside.intents:
                return number
        raise VerifyError(f"no outside is said to take {type(intent).__name__}")

    def _moments(
        self, participant: int, message: Message, *, given: bool = False
    ) -> Sequence[datetime]:
        """When a message may be reacted to. It matters only to a reaction that asks for the time,
        and for a command that is `given` from outside, that is the time when it was."""
        reaction = self.participants[participant].by_message.get(type(message))
        if given or reaction is None:
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
                    owed |= self._fact(Handled(fact, receiver))
        return owed >> self.base


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


def _asks(cause: Envelope[Any], intent: Intent) -> tuple[type[_Asks], str]:
    return _Asks, f"{cause.id}/{type(intent).__name__}"


def _view_of(participant: str, known: Knowledge) -> View:
    return View({participant: known}, EventsInMemory(()), rests=lambda _: False)


def _contradictions(events: Sequence[Envelope[Any]]) -> Iterator[Violation]:
    """Events that readers take for one another: an id is one event's, and so is a place in its
    sender's sequence."""
    ids: dict[str, Envelope[Any]] = {}
    places: dict[tuple[str, str, int | None], Envelope[Any]] = {}
    for event in events:
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


def _priorities_lost(
    events: Sequence[Envelope[Any]], priorities: Mapping[str, Priority]
) -> Iterator[Violation]:
    """Events that travel otherwise than what came from outside about their subject."""
    for event in events:
        priority = priorities.get(event.subject, event.priority)
        if event.priority is not priority:
            yield Violation(
                "priority_lost",
                event.subject,
                f"it is of {priority} priority, and its {event.type} of {event.priority}: say the "
                f"priority of what is due",
            )
