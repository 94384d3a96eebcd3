"""The steps that a participant took, taken again by this working tree.

Each is decided on the state that what was *published* before leaves, so that one difference does
not lead to the next. What the history does not have is found by trying: what an outside answered,
and which command from outside was carried out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Final

from saga.choreography import Choreography, Participant, Reaction, State
from saga.envelope import source_of
from saga.history.debts import LATE_SECONDS
from saga.message import Answer, Command, Decided, Event, Intent, Message
from saga.outside import Outside, OutsideError
from saga.past import guesses
from saga.past.findings import DifferenceGroup, PastFindings
from saga.past.part import RecordedPart
from saga.past.recorded import PendingMessages, Reached, RecordedEvent
from saga.past.shared import SharedPast
from saga.runtime.kernel.fold import Fold
from saga.runtime.kernel.step import Find, Firing, StateId, evolved, results_of

ANSWERS_MAX: Final = 4
"""Answers in a row that lead to another question, and to no event."""
LOOKED_MAX: Final = 20
"""Events that may be published between a look at what is due and its being done."""


@dataclass(frozen=True, slots=True)
class OpenQuestion:
    """What a participant has committed to ask because of a message, once it had published so many
    events."""

    cause: str
    intent: Intent
    at: int


@dataclass(frozen=True, slots=True)
class StepNote:
    """A decision that was made again by a `reaction`, what of it cannot be compared, and how it
    differs; or why it was not looked at, and of how many events that is so."""

    reaction: str = ""
    left: Collection[str] = ()
    group: DifferenceGroup | None = None
    recorded: str = ""
    decided: str = ""
    missing: str = ""
    count: int = 1
    dropped: Collection[tuple[str, str]] = ()
    """Fields that were published and that no class reads any more, with their values."""


@dataclass(frozen=True, slots=True)
class Hypothesis:
    """What may have been, right before the participant published its event of number `at`, from 0.

    `states` are those about the subject alone, and `taken` the ids of what was taken without a
    word.
    """

    at: int
    states: Mapping[StateId, State]
    books: Mapping[str, Any]
    questions: tuple[OpenQuestion, ...] = ()
    taken: frozenset[str] = frozenset()
    before: Hypothesis | None = None
    note: StepNote | None = None
    """What is to be told of the step that led here."""

    @property
    def by_another_path(self) -> bool:
        """Whether the event before was decided on in another way than then."""
        return self.note is not None and self.note.group is not None

    @property
    def key(self) -> Any:
        """Two with one key go on in the same way."""
        asked = tuple((q.cause, type(q.intent)) for q in self.questions)
        return tuple(self.states.items()), tuple(self.books.items()), asked, self.taken

    def path(self) -> list[Hypothesis]:
        """All that led here, the first one in front, and this one."""
        path = [self]
        while (before := path[-1].before) is not None:
            path.append(before)
        return path[::-1]


@dataclass(frozen=True, slots=True)
class PastCause:
    """Why something is decided. `hidden` are the fields of the message that were not recorded."""

    id: str
    message: Message
    hidden: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class StepAgain:
    """What this working tree does because of a cause, there and then: these `results`, or an
    `error`. `now` is by the clock, `position` the place in the history."""

    way: Hypothesis
    cause: PastCause
    reaction: Reaction
    now: datetime
    position: int
    results: tuple[Any, ...] = ()
    error: Exception | None = None

    @property
    def published(self) -> list[Any]:
        return [result for result in self.results if not isinstance(result, Intent)]

    @property
    def only_asks(self) -> bool:
        return bool(self.results) and all(isinstance(each, Intent) for each in self.results)

    @property
    def silent(self) -> bool:
        return not self.results and self.error is None

    @property
    def types(self) -> str:
        """What it publishes, in words."""
        return " and ".join(result.type for result in self.published)


@dataclass
class ParticipantPast:
    """A participant as its record is gone over, whatever the subject: by what its `findings` are
    counted, how far the system has come, and what is on its way."""

    participant: Participant
    graph: Choreography
    outsides: Collection[Outside[Any]]
    findings: PastFindings
    reached: Reached
    way: PendingMessages
    shared: SharedPast | None = None
    explaining: dict[tuple[type[Message], str, str], str] = field(default_factory=dict)
    """Keyed by what was taken, and by type and field of what was published: the field that this
    followed from last time, to be tried first."""

    def __post_init__(self) -> None:
        participant = self.participant
        self.name = participant.name
        self.source = source_of(participant.name)
        self.fold = Fold(participant)
        self.shared_kinds = self.shared.kinds if self.shared is not None else frozenset()
        due = {command for commands in participant.dues.values() for command in commands}
        self.of_due = [r for r in participant.reactions if r.consumes in due]
        self.of_commands = [
            r
            for r in participant.reactions
            if issubclass(r.consumes, Command) and r.consumes not in due
        ]
        self.patience = {
            kind: timedelta(seconds=LATE_SECONDS)
            + timedelta(milliseconds=sum(participant.retry_of(kind).waits_ms))
            for kind in participant.by_message
        }
        self.asks = any(reaction.intends for reaction in participant.reactions)
        self.beginning = Hypothesis(
            0, {}, {outside.name: outside.blank for outside in self.outsides}
        )

    @cached_property
    def takes(self) -> Collection[str]:
        """The types of messages that come to it from participants."""
        sent = {command.type for command in self.graph.sent_to(self.participant)}
        return {
            kind.type
            for kind in self.participant.by_message
            if issubclass(kind, Event) or (issubclass(kind, Command) and kind.type in sent)
        }

    def may_lead_to(self, reaction: Reaction, type_: str, depth: int = 0) -> bool:
        """Whether a reaction may publish events of that type, at once or once it is answered."""
        if any(kind.type == type_ for kind in reaction.emits):
            return True
        answers = (self.participant.by_message.get(i.answer) for i in reaction.intends)
        return depth < ANSWERS_MAX and any(
            other is not None and self.may_lead_to(other, type_, depth + 1) for other in answers
        )

    def has_id(self, firing: Firing, id: str | None) -> bool:
        """Whether that is the command's id: it tells the sequence that the state had when it
        was read what is due, and something may have been published until it was done."""
        first = max(0, firing.sequence - LOOKED_MAX)
        sequences = range(firing.sequence, first - 1, -1)
        return any(replace(firing, sequence=n).id(self.name) == id for n in sequences)


class Steps:
    """The steps about one subject."""

    def __init__(self, past: ParticipantPast, part: RecordedPart) -> None:
        self.past = past
        self.part = part

    # --- why ------------------------------------------------------------------------------------

    def causes(self, way: Hypothesis) -> Iterator[tuple[PastCause, Hypothesis]]:
        """What the next event may have followed from, and what was before that."""
        past, part = self.past, self.part
        event = part.own[way.at].envelope
        id = event.causationid or ""
        for question in way.questions:
            if question.cause == id:
                yield from self.answers(way, question)
        if (cause := part.known.get(id)) is not None:
            yield PastCause(id, cause.envelope.data), way
            return
        for firing in self.firings(way):
            if past.has_id(firing, id):
                yield PastCause(id, firing.due.command), way
                return
        for reaction in past.of_commands:
            if past.may_lead_to(reaction, event.type):
                for command, hidden in guesses.commands(part, way.at, reaction.consumes):
                    yield PastCause(id, command, hidden), way

    def firings(self, way: Hypothesis) -> Iterator[Firing]:
        """What is due about the subject."""
        for kind in self.past.participant.dues:
            state = way.states.get((kind, self.part.subject))
            if state is not None and (firing := Firing.of(state)) is not None:
                yield firing

    def answers(
        self, way: Hypothesis, question: OpenQuestion
    ) -> Iterator[tuple[PastCause, Hypothesis]]:
        """What the outside may say to a question, the usual answer first, and what was before that:
        the question is asked no more."""
        asked = type(question.intent)
        outside = next((each for each in self.past.outsides if asked in each.intents), None)
        if outside is None:
            return
        rest = tuple(q for q in way.questions if q is not question)
        seen: list[Answer] = []
        for decision in outside.decisions:
            try:
                answer, after, _ = outside.hear(way.books[outside.name], question.intent, decision)
            except OutsideError:
                raise
            except Exception:  # noqa: S112 - it failed, or would not have it: no answer came of it
                continue
            if answer not in seen:
                seen.append(answer)
                books = {**way.books, outside.name: after}
                hidden = _unknown_in(answer, self.part.subject)
                yield (
                    PastCause(question.cause, answer, hidden),
                    replace(way, books=books, questions=rest),
                )

    # --- what -----------------------------------------------------------------------------------

    def walk(
        self, way: Hypothesis, cause: PastCause, now: datetime, position: int, depth: int = 0
    ) -> Iterator[StepAgain]:
        """What this working tree does because of a cause. If it only asks, then also what it does
        because of each answer."""
        step = self.take(way, cause, now, position)
        if step is None:
            return
        yield step
        if step.only_asks and depth < ANSWERS_MAX:
            asking = self.after(step)
            for answer, before in self.answers(asking, asking.questions[-1]):
                yield from self.walk(before, answer, now, position, depth + 1)

    def take(
        self, way: Hypothesis, cause: PastCause, now: datetime, position: int
    ) -> StepAgain | None:
        """What the reaction to a cause does; None if there is no reaction."""
        participant = self.past.participant
        reaction = participant.by_message.get(type(cause.message))
        if reaction is None:
            return None
        self.past.findings.ran.add((self.past.name, reaction.name))
        find = self._finder(way.states, position)
        try:
            results = results_of(participant, reaction, cause.message, self.part.subject, find, now)
        except Exception as error:  # Whatever a domain raises.
            return StepAgain(way, cause, reaction, now, position, error=error)
        return StepAgain(way, cause, reaction, now, position, results)

    def nearby(self, step: StepAgain) -> Iterator[StepAgain]:
        """The same step with what the participant shares as it was right before or after."""
        if self.past.shared is None or step.error is not None:
            return
        used: set[StateId] = set()
        find = self._finder(step.way.states, step.position)

        def noting(id: StateId) -> State:
            used.add(id)
            return find(id)

        message, subject = step.cause.message, self.part.subject
        results_of(self.past.participant, step.reaction, message, subject, noting, step.now)
        for position in self.past.shared.near(used, step.position):
            other = self.take(step.way, step.cause, step.now, position)
            if other is not None:
                yield other

    def _finder(self, states: Mapping[StateId, State], position: int) -> Find:
        shared, kinds = self.past.shared, self.past.shared_kinds

        def find(id: StateId) -> State:
            state = states.get(id)
            if state is not None:
                return state
            if shared is not None and id[0] in kinds:
                return shared.at(id, position)
            return id[0](id[1])

        return find

    # --- what is after it -----------------------------------------------------------------------

    def after(self, step: StepAgain, note: StepNote | None = None) -> Hypothesis:
        """What is after a step, with what was recorded in the place of what is decided."""
        way = step.way
        states = dict(way.states)
        at, intent = way.at, None
        own_id: StateId = (step.reaction.own, self.part.subject)
        find = self._finder(states, step.position)
        for result in step.results:
            if isinstance(result, Intent):
                intent = result
                self._evolve(states, own_id, result, find, self.part.time_at(at))
            else:
                self._fold_in(states, self.part.own[at], find)
                at += 1
        questions = way.questions
        if questions:
            questions = tuple(q for q in questions if q.cause != step.cause.id)
        if intent is not None:
            questions += (OpenQuestion(step.cause.id, intent, at),)
        return Hypothesis(at, states, way.books, questions, way.taken, way, note)

    def passed(self, way: Hypothesis, count: int, note: StepNote) -> Hypothesis:
        """What is after so many own events, however they came about."""
        events = self.part.own[way.at : way.at + count]
        states = dict(way.states)
        find = self._finder(states, events[0].position)
        for event in events:
            self._fold_in(states, event, find)
        cause = events[0].envelope.causationid
        questions = tuple(q for q in way.questions if q.cause != cause)
        return replace(
            way, at=way.at + count, states=states, questions=questions, before=way, note=note
        )

    def _fold_in(self, states: dict[StateId, State], event: RecordedEvent, find: Find) -> None:
        """What an own event makes of the states about its subject."""
        envelope = event.envelope
        kind = self.past.fold.kind_of(envelope.type)
        assert kind is not None  # noqa: S101 - of others nothing can be told, see `Reviewer`
        own_id: StateId = (kind, envelope.subject)
        self._evolve(states, own_id, envelope.data, find, envelope.time)
        if kind not in self.past.shared_kinds:
            states[own_id] = replace(find(own_id), sequence=envelope.sequence or 0)

    def _evolve(
        self,
        states: dict[StateId, State],
        own_id: StateId,
        message: Decided,
        find: Find,
        at: datetime,
    ) -> None:
        """See `evolved`; but for what several subjects share, which is known from elsewhere."""
        changes = evolved(self.past.participant, own_id, message, find, at)
        own = (item for item in changes.items() if item[0][0] not in self.past.shared_kinds)
        states.update(own)

    # --- what was done without a word -----------------------------------------------------------

    def quietly(self, way: Hypothesis) -> Iterator[Hypothesis]:
        """What may be after one more step of which no event tells: a question, or its answer."""
        part = self.part
        for message in part.incoming:
            if part.earliest(message) <= way.at:
                cause = PastCause(message.envelope.id, message.envelope.data)
                yield from self._after_silence(way, cause, {*way.taken, cause.id})
        for question in way.questions:
            for cause, heard in self.answers(way, question):
                # The outside may have done it, and its answer was not heard.
                yield replace(way, books=heard.books, before=way, note=None)
                yield from self._after_silence(heard, cause, way.taken)

    def _after_silence(
        self, way: Hypothesis, cause: PastCause, taken: Iterable[str]
    ) -> Iterator[Hypothesis]:
        part = self.part
        step = self.take(way, cause, part.time_at(way.at), part.position_at(way.at))
        if step is not None and (step.silent or step.only_asks):
            yield replace(self.after(step), taken=frozenset(taken))


def _unknown_in(answer: Answer, subject: str) -> frozenset[str]:
    """The fields of an answer that were not recorded."""
    fields = type(answer).model_fields
    return frozenset(name for name in fields if str(getattr(answer, name)) != subject)
