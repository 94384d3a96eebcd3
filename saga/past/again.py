"""One participant's part of a recorded subject, decided again by this working tree.

What a participant decided is recorded as what it published. Each such decision is made again, on
the state that what it had *published* before leaves, so that one difference does not lead to the
next. What the history does not have is found by trying: what an outside answered, which command
from outside was carried out, and which messages were taken meanwhile without a word.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from itertools import product
from types import NoneType
from typing import Any, Final, get_args
from uuid import UUID

from pydantic import ValidationError

from saga.choreography import Choreography, Participant, Reaction, State
from saga.course import words_in
from saga.envelope import Envelope, derived_id, source_of
from saga.history.debts import LATE_SECONDS
from saga.history.story import missing_numbers, reaction_behind
from saga.message import Answer, Command, Decided, Event, Intent, Message
from saga.outside import Outside, OutsideError
from saga.past.findings import DifferenceGroup, DifferenceKind, PastFindings
from saga.past.recorded import Reached, RecordedEvent, RecordedSubject
from saga.past.shared import SharedPast
from saga.runtime.kernel.fold import Fold
from saga.runtime.kernel.step import (
    Find,
    Firing,
    StateId,
    cause_among_commands,
    due_source_of,
    evolved,
    id_among_causes,
    results_of,
)

ANSWERS_MAX: Final = 4
"""Answers in a row that lead to another question, and to no event."""
HYPOTHESES_MAX: Final = 200
"""What a participant may have done without a word, beyond which it is given up to explain it."""
COMMANDS_MAX: Final = 32
"""Contents of one command from outside that are tried."""
LOOKED_MAX: Final = 20
"""Events that may be published between a look at what is due and its being done."""
TIMER_PATIENCE: Final = timedelta(seconds=60)
"""So late something may be done that was due, while its service starts for instance."""
SHOWN_MAX_CHARACTERS: Final = 200
"""Of a value in an example."""

Recorded = Sequence[RecordedEvent]


@dataclass(frozen=True, slots=True)
class OnTheirWay:
    """Messages by participant and id: those that are `waiting`, in a queue or dead, and dead
    letters that an operator has put away, the `settled` ones. It is `whole` if all queues were
    looked through."""

    waiting: Collection[tuple[str, str]] = ()
    settled: Collection[tuple[str, str]] = ()
    whole: bool = False


@dataclass(frozen=True, slots=True)
class _OpenQuestion:
    """What a participant has committed to ask because of a message."""

    cause: str
    intent: Intent


@dataclass(frozen=True, slots=True)
class _Hypothesis:
    """What may have been, right before the participant published its event of number `at`, from 0.

    `states` are those about the subject alone, and `taken` the ids of what was taken without a
    word.
    """

    at: int
    states: Mapping[StateId, State]
    books: Mapping[str, Any]
    questions: tuple[_OpenQuestion, ...] = ()
    taken: frozenset[str] = frozenset()
    before: _Hypothesis | None = None
    note: _Note | None = None
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


@dataclass(frozen=True, slots=True)
class _Note:
    """A decision that was made again by a `reaction`, what of it cannot be compared, and how it
    differs; or why it was not looked at, and of how many events that is so."""

    reaction: str = ""
    left: Sequence[str] = ()
    group: DifferenceGroup | None = None
    recorded: str = ""
    decided: str = ""
    missing: str = ""
    count: int = 1


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What this working tree would do, where that is not what was recorded."""

    reaction: str
    kind: DifferenceKind
    what: str
    decided: str
    count: int
    """Recorded events that it was compared with."""
    before: _Hypothesis
    rank: int


@dataclass(frozen=True, slots=True)
class _Cause:
    """Why something is decided. `hidden` are the fields of the message that nobody has recorded."""

    id: str
    message: Message
    hidden: frozenset[str] = frozenset()


@dataclass
class Review:
    """How one participant stands to one subject. `pending` are the messages that it has still to
    take, `asking` what it asks outside, `dues` what its states have due."""

    states: Mapping[StateId, State] = field(default_factory=dict)
    pending: list[RecordedEvent] = field(default_factory=list)
    asking: int = 0
    dues: list[Firing] = field(default_factory=list)
    passed: list[Mapping[StateId, State]] = field(default_factory=list)
    """Its states between its events, the last ones behind."""


class Reviewer:
    """Decides again what one participant has decided."""

    def __init__(
        self,
        participant: Participant,
        graph: Choreography,
        outsides: Collection[Outside[Any]],
        findings: PastFindings,
        reached: Reached,
        *,
        shared: SharedPast | None = None,
        way: OnTheirWay | None = None,
    ) -> None:
        self.participant = participant
        self._name = participant.name
        self._source = source_of(participant.name)
        self._outsides = outsides
        self._findings = findings
        self._reached = reached
        self._shared = shared
        self._shared_kinds = shared.kinds if shared is not None else frozenset()
        self._way = way or OnTheirWay()
        self._fold = Fold(participant)
        kept = [kind for kind in participant.states if kind not in self._shared_kinds]
        self._only_own = kept[0] if len(kept) == 1 else None
        """The only kind of state that is about one subject, if there is one only."""
        sent = {command.type for command in graph.sent_to(participant)}
        self._takes = {
            kind.type
            for kind in participant.by_message
            if issubclass(kind, Event) or (issubclass(kind, Command) and kind.type in sent)
        }
        due = {command for commands in participant.dues.values() for command in commands}
        self._of_due = [r for r in participant.reactions if r.consumes in due]
        self._of_commands = [
            r
            for r in participant.reactions
            if issubclass(r.consumes, Command) and r.consumes not in due
        ]
        self._asks = any(reaction.intends for reaction in participant.reactions)
        self._patience = {
            kind: timedelta(seconds=LATE_SECONDS)
            + timedelta(milliseconds=sum(participant.retry_of(kind).waits_ms))
            for kind in participant.by_message
        }
        self._explaining: dict[tuple[type[Message], str, str], str] = {}
        """Keyed by what was taken, and by type and field of what was published: the field that this
        followed from last time, to be tried first."""
        self._blank = {outside.name: outside.blank for outside in outsides}

    def review(self, told: RecordedSubject) -> Review:
        """Decide again on what the participant took about one subject, and note what differs."""
        own: list[RecordedEvent] = []
        incoming: list[RecordedEvent] = []
        for event in told.events:
            envelope = event.envelope
            if envelope.source == self._source and not event.addressee:
                own.append(event)
            if event.addressee:
                if event.addressee == self._name:
                    incoming.append(event)
            elif envelope.type in self._takes:
                incoming.append(event)
        if not own and not incoming:
            return Review()
        # What an operator has corrected was taken in the place of what it corrects.
        corrected = {event.envelope.causationid for event in incoming if event.addressee}
        if corrected:
            incoming = [e for e in incoming if e.addressee or e.envelope.id not in corrected]
        if why := self._cannot_be_told(told, own):
            self._findings.miss(why, told.subject, max(1, len(own)))
            return Review()
        if len({self._fold.kind_of(event.envelope.type) for event in own}) <= 1:
            own.sort(key=lambda event: event.envelope.sequence or 0)
        part = _Share(told.subject, own, incoming, {e.envelope.id: e for e in told.events})
        first = _Hypothesis(0, {}, self._blank)
        last = self._explain(part, first, thorough=False) or self._explain(
            part, first, thorough=True
        )
        assert last is not None  # noqa: S101 - what cannot be explained is noted, and gone over
        return self._close(part, last)

    def _cannot_be_told(self, told: RecordedSubject, own: Recorded) -> str:
        """Why nothing can be said of the participant's part; empty if something can."""
        for source, type_ in told.unreadable:
            if source == self._source:
                return f"this version cannot read {type_} of {self._name}, nor what follows from it"
        numbers: dict[type[State] | None, list[int]] = {}
        for event in own:
            kind = self._fold.kind_of(event.envelope.type)
            if kind is None:
                return f"{self._name} publishes no {event.envelope.type} any more"
            numbers.setdefault(kind, []).append(event.envelope.sequence or 0)
        for seen in numbers.values():
            if next(missing_numbers(sorted(seen), max(seen)), None) is not None:
                return f"events of {self._name} are missing from the history"
            if len({*seen}) != len(seen):
                return f"events of {self._name} have the same number"
        return ""

    # --- what it published ----------------------------------------------------------------------

    def _explain(self, part: _Share, first: _Hypothesis, *, thorough: bool) -> _Hypothesis | None:
        """Go through what was published; the last hypothesis. None if that takes more thought:
        `thorough` tries before each event what may have been done without a word, and notes what is
        different even so."""
        waiting: dict[int, list[_Hypothesis]] = {0: [first]}
        last = first
        for at in range(len(part.own) + 1):
            ways = waiting.pop(at, [])
            if not ways:
                if waiting or at == len(part.own):
                    continue
                ways = [last]  # Cannot be: something is always gone over.
            last = ways[0]
            if at == len(part.own):
                break
            after = self._next(part, ways, thorough=thorough)
            if after and not thorough and self._asks and after[0].by_another_path:
                return None
            if not after and not waiting:
                if not thorough and self._asks:
                    return None
                after = [self._differ(part, ways)]
            for way in after:
                waiting.setdefault(way.at, []).append(way)
        return last

    def _next(
        self, part: _Share, ways: Sequence[_Hypothesis], *, thorough: bool
    ) -> list[_Hypothesis]:
        """What may be after the next decision, if that is as recorded."""
        found: list[_Hypothesis] = []
        for way in self._with_silent(part, ways) if thorough and self._asks else ways:
            after = self._as_recorded(part, way)
            if after is not None:
                found.append(after)
                if not thorough:
                    break
        as_before = [way for way in found if not way.by_another_path]
        return (as_before or found)[:HYPOTHESES_MAX]

    def _as_recorded(self, part: _Share, way: _Hypothesis) -> _Hypothesis | None:
        """What is after the next decision, if this working tree decides what was recorded."""
        doubtful = other_path = None
        for cause, before in self._causes(part, way):
            for after, told in self._steps(part, before, cause, 0):
                if after.by_another_path:
                    other_path = other_path or after
                elif not told.doubtful:
                    return after
                else:
                    doubtful = doubtful or after
        return doubtful or other_path

    def _tell(self, part: _Share, note: _Note) -> None:
        """Count what came of one decision."""
        name, findings = self._name, self._findings
        if note.missing:
            findings.miss(note.missing, part.subject, note.count)
            return
        if note.count:
            findings.published[name] += 1
            findings.taken[name, note.reaction] += 1
        for what in note.left:
            findings.leave(what, part.subject)
        if note.group is not None:
            findings.differ(note.group, part.subject, note.recorded, note.decided)

    def _causes(self, part: _Share, way: _Hypothesis) -> Iterator[tuple[_Cause, _Hypothesis]]:
        """What the next event may have followed from, and what was before that."""
        event = part.own[way.at].envelope
        cause_id = event.causationid or ""
        for question in way.questions:
            if question.cause == cause_id:
                rest = tuple(q for q in way.questions if q is not question)
                for answer, books in self._answers(way.books, question.intent):
                    hidden = _unknown_in(answer, part.subject)
                    yield (
                        _Cause(cause_id, answer, hidden),
                        replace(way, books=books, questions=rest),
                    )
        cause = part.known.get(cause_id)
        if cause is not None:
            yield _Cause(cause_id, cause.envelope.data), way
            return
        for firing in self._firings(part, way):
            if self._has_id(firing, cause_id):
                yield _Cause(cause_id, firing.due.command), way
                return
        for reaction in self._of_commands:
            if self._may_lead_to(reaction, event.type):
                for command, hidden in self._commands(part, way.at, reaction.consumes):
                    yield _Cause(cause_id, command, hidden), way

    def _firings(self, part: _Share, way: _Hypothesis) -> Iterator[Firing]:
        for kind in self.participant.dues:
            state = way.states.get((kind, part.subject))
            if state is not None and (firing := Firing.of(state)) is not None:
                yield firing

    def _has_id(self, firing: Firing, id: str | None) -> bool:
        """Whether that is the command's id: it tells the sequence that the state had when somebody
        looked what is due, and something may have been published until it was done."""
        first = max(0, firing.sequence - LOOKED_MAX)
        sequences = range(firing.sequence, first - 1, -1)
        return any(replace(firing, sequence=n).id(self._name) == id for n in sequences)

    def _may_lead_to(self, reaction: Reaction, type_: str, depth: int = 0) -> bool:
        """Whether a reaction may publish events of that type, at once or once it is answered."""
        if any(kind.type == type_ for kind in reaction.emits):
            return True
        answers = (self.participant.by_message.get(i.answer) for i in reaction.intends)
        return depth < ANSWERS_MAX and any(
            other is not None and self._may_lead_to(other, type_, depth + 1) for other in answers
        )

    def _steps(
        self, part: _Share, way: _Hypothesis, cause: _Cause, depth: int
    ) -> Iterator[tuple[_Hypothesis, _Told]]:
        """What may be after the reaction to a cause, if what it publishes is what was recorded
        next; or, if it only asks, after the answer."""
        event = part.own[way.at]
        try:
            decided = self._decide(part, way, cause.message, event.envelope.time, event.position)
        except Exception:  # Whatever a domain raises: that is not what was recorded.
            return
        if decided is None:
            return
        reaction, results, position = decided
        said = [result for result in results if not isinstance(result, Intent)]
        if said:
            compared = self._compare(part, way.at, cause.id, said)
            if self._shared is not None and (compared is None or compared.differing):
                near = self._near(part, way, cause, event)
                results, compared = near or (results, compared)
            if compared is None:
                return
            if compared.differing:
                solved = self._solve(part, way, cause, compared.differing, event, results)
                if solved is None:
                    return
                results, compared = solved.results, solved.told(compared)
            note = self._note_of(part, event.envelope, reaction, compared)
            yield self._after(part, way, reaction, results, cause, position, note), compared
        elif results and depth < ANSWERS_MAX:
            before = self._after(part, way, reaction, results, cause, position)
            (question,) = [q for q in before.questions if q.cause == cause.id][-1:]
            rest = tuple(q for q in before.questions if q is not question)
            for answer, books in self._answers(before.books, question.intent):
                heard = _Cause(cause.id, answer, _unknown_in(answer, part.subject))
                asked = replace(before, books=books, questions=rest)
                yield from self._steps(part, asked, heard, depth + 1)

    def _note_of(
        self, part: _Share, event: Envelope[Any], reaction: Reaction, compared: _Told
    ) -> _Note:
        """What is to be told of an event that a reaction publishes as it was recorded. Its id tells
        which reaction it was then: an outside may have been asked by one, and not by the other."""
        before = self._reaction_then(part, event, reaction)
        then, now = self._path(before or reaction), self._path(reaction)
        if then == now:
            return _Note(reaction.name, compared.left)
        what = f"{event.type}: {now}, where it was {then}"
        group = DifferenceGroup(self._name, reaction.name, DifferenceKind.PATH, what)
        return _Note(reaction.name, compared.left, group, f"{event.type} {then}", now)

    def _reaction_then(
        self, part: _Share, event: Envelope[Any], likely: Reaction
    ) -> Reaction | None:
        """The reaction that decided on an event, if there is still one of that name, and the cause
        is known; the likely one is tried first."""
        cause = part.known.get(event.causationid or "")
        id = None
        if cause is not None:
            id = id_among_causes(type(cause.envelope.data), cause.envelope.key)

        def decided(reaction: Reaction) -> bool:
            if id is None:
                return self._was_due(reaction, event)
            return derived_id(id, f"{self._name}.{reaction.name}.{event.type}") == event.id

        if decided(likely):
            return likely
        return next(filter(decided, self.participant.reactions), None)

    def _path(self, reaction: Reaction) -> str:
        """How a reaction comes to decide."""
        if not issubclass(reaction.consumes, Answer):
            return "decided at once"
        asked = dict.fromkeys(
            intent.__name__
            for other in self.participant.reactions
            for intent in other.intends
            if intent.answer is reaction.consumes
        )
        return f"decided after an answer to {' or '.join(asked)}"

    def _decide(
        self, part: _Share, way: _Hypothesis, message: Message, now: datetime, position: int
    ) -> tuple[Reaction, tuple[Any, ...], int] | None:
        """The results of the reaction to a message; None if there is no reaction. Raises what that
        raises."""
        reaction = self.participant.by_message.get(type(message))
        if reaction is None:
            return None
        self._findings.ran.add((self._name, reaction.name))
        find = self._finder(way.states, position)
        return (
            reaction,
            results_of(self.participant, reaction, message, part.subject, find, now),
            position,
        )

    def _finder(self, states: Mapping[StateId, State], position: int) -> Find:
        shared, kinds = self._shared, self._shared_kinds

        def find(id: StateId) -> State:
            state = states.get(id)
            if state is not None:
                return state
            if shared is not None and id[0] in kinds:
                return shared.at(id, position)
            return id[0](id[1])

        return find

    def _near(
        self, part: _Share, way: _Hypothesis, cause: _Cause, event: RecordedEvent
    ) -> tuple[tuple[Any, ...], _Told] | None:
        """The results with what the participant shares as it was right before or after, if they are
        what was recorded."""
        assert self._shared is not None  # noqa: S101 - it is called only then
        used: set[StateId] = set()
        find = self._finder(way.states, event.position)

        def noting(id: StateId) -> State:
            used.add(id)
            return find(id)

        reaction = self.participant.by_message[type(cause.message)]
        about = self.participant, reaction, cause.message, part.subject
        results_of(*about, noting, event.envelope.time)
        for position in self._shared.near(used, event.position):
            there = self._finder(way.states, position)
            try:
                results = results_of(*about, there, event.envelope.time)
            except Exception:  # noqa: S112 - then it was not at that moment
                continue
            said = [result for result in results if not isinstance(result, Intent)]
            told = self._compare(part, way.at, cause.id, said) if said else None
            if told is not None and not told.differing:
                told.left.append(
                    f"the order in which {self._name} changed what its subjects share: with that "
                    f"as it was right before or after, it decides the same"
                )
                return results, told
        return None

    def _compare(self, part: _Share, at: int, cause: str, said: Sequence[Any]) -> _Told | None:
        """How what is decided compares with what was recorded; None if they are other events."""
        recorded = part.own[at : at + len(said)]
        if len(recorded) < len(said):
            return None
        told = _Told()
        for number, (event, decided) in enumerate(zip(recorded, said, strict=True)):
            if event.envelope.causationid != cause and cause:
                return None
            newest = decided.newest()
            data = event.envelope.data
            if newest.type != data.type:
                return None
            if newest == data:
                continue
            for name in type(data).model_fields:
                if getattr(data, name) == getattr(newest, name, None):
                    continue
                if _was_said(event, name):
                    told.differing.append((number, name))
                else:
                    told.left.append(
                        f"{name} of {data.type}: it was published before there was such a field"
                    )
        return told

    def _solve(
        self,
        part: _Share,
        way: _Hypothesis,
        cause: _Cause,
        differing: Sequence[tuple[int, str]],
        event: RecordedEvent,
        results: tuple[Any, ...],
    ) -> _Solution | None:
        """The results, if what differs follows from fields of the message that nobody has recorded;
        and what that leaves open."""
        message = cause.message
        found = _Solution(results)
        said = [result.newest() for result in results if not isinstance(result, Intent)]
        for number, name in differing:
            recorded = part.own[way.at + number].envelope.data
            wanted = getattr(recorded, name)
            known = self._explaining.get((type(message), recorded.type, name), "")
            for hidden in sorted(cause.hidden, key=lambda hidden: (hidden != known, hidden)):
                value = getattr(message, hidden)
                varied = self._varied(part, way, message, hidden, (wanted, _another(value)), event)
                same = (
                    (other, after)
                    for other, after in varied
                    if list(map(type, after)) == list(map(type, said))
                    and getattr(after[number], name) != getattr(said[number], name)
                )
                if (one := next(same, None)) is None:
                    continue
                other, after = one
                if getattr(after[number], name) == wanted:
                    message, said = other, after
                    found.doubtful |= isinstance(wanted, Enum | bool)
                self._explaining[type(message), recorded.type, name] = hidden
                found.left.append(
                    f"{name} of {recorded.type}: it follows from {hidden} of "
                    f"{_what(cause.message)}, which is not recorded"
                )
                break
            else:
                return None
        if message is not cause.message:
            decided = self._decide(part, way, message, event.envelope.time, event.position)
            found.results = decided[1] if decided is not None else ()
        return found

    def _varied(
        self,
        part: _Share,
        way: _Hypothesis,
        message: Message,
        name: str,
        values: Iterable[Any],
        event: RecordedEvent,
    ) -> Iterator[tuple[Message, list[Any]]]:
        """The message with these values for one field, as far as they are of its type; and what
        would be published because of it."""
        value = getattr(message, name)
        for other in values:
            if other is not None and (value is None or type(other) is type(value)):
                varied = message.model_copy(update={name: other})
                yield varied, self._said(part, way, varied, event)

    def _said(
        self, part: _Share, way: _Hypothesis, message: Message, event: RecordedEvent
    ) -> list[Any]:
        """What would be published because of a message, in its newest version."""
        try:
            decided = self._decide(part, way, message, event.envelope.time, event.position)
        except Exception:
            return []
        results = decided[1] if decided is not None else ()
        return [result.newest() for result in results if not isinstance(result, Intent)]

    def _after(
        self,
        part: _Share,
        way: _Hypothesis,
        reaction: Reaction,
        results: Iterable[Any],
        cause: _Cause,
        position: int,
        note: _Note | None = None,
    ) -> _Hypothesis:
        """What is after these results, with what was recorded in the place of what is decided."""
        states = dict(way.states)
        at, intent = way.at, None
        own_id: StateId = (reaction.own, part.subject)
        find = self._finder(states, position)
        for result in results:
            if isinstance(result, Intent):
                intent = result
                self._evolve(states, own_id, result, find, part.time_at(at))
            else:
                self._fold_in(states, part.own[at], find)
                at += 1
        questions = way.questions
        if questions:
            questions = tuple(q for q in questions if q.cause != cause.id)
        if intent is not None:
            questions += (_OpenQuestion(cause.id, intent),)
        return _Hypothesis(at, states, way.books, questions, way.taken, way, note)

    def _fold_in(self, states: dict[StateId, State], event: RecordedEvent, find: Find) -> None:
        """What an own event makes of the states about its subject."""
        envelope = event.envelope
        kind = self._fold.kind_of(envelope.type)
        assert kind is not None  # noqa: S101 - see `_cannot_be_told`
        own_id: StateId = (kind, envelope.subject)
        self._evolve(states, own_id, envelope.data, find, envelope.time)
        if kind not in self._shared_kinds:
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
        if self._only_own and own_id[0] is self._only_own:
            before = find(own_id)
            fact = message if isinstance(message, Intent) else message.newest()
            after = before.evolve(fact, at)
            if after is not before:
                states[own_id] = after
            return
        changes = evolved(self.participant, own_id, message, find, at)
        own = (item for item in changes.items() if item[0][0] not in self._shared_kinds)
        states.update(own)

    # --- what nobody has recorded ---------------------------------------------------------------

    def _answers(
        self, books: Mapping[str, Any], intent: Intent
    ) -> Iterator[tuple[Answer, Mapping[str, Any]]]:
        """What the outside may say to a question, the usual answer first."""
        outside = next((each for each in self._outsides if type(intent) in each.intents), None)
        if outside is None:
            return
        seen: list[Answer] = []
        for decision in outside.decisions:
            try:
                answer, after, _ = outside.hear(books[outside.name], intent, decision)
            except OutsideError:
                raise
            except Exception:  # noqa: S112 - it failed, or would not have it: no answer came of it
                continue
            if answer not in seen:
                seen.append(answer)
                yield answer, {**books, outside.name: after}

    def _with_silent(self, part: _Share, ways: Sequence[_Hypothesis]) -> Iterator[_Hypothesis]:
        """These hypotheses, and those in which something was done without a word meanwhile."""
        found = list(ways)
        seen = {way.key for way in found}
        for way in found:  # It grows.
            yield way
            for after in self._silent(part, way):
                if len(found) < HYPOTHESES_MAX and after.key not in seen:
                    seen.add(after.key)
                    found.append(after)

    def _silent(self, part: _Share, way: _Hypothesis) -> Iterator[_Hypothesis]:
        """What may be after one more step of which no event tells: a question, or its answer."""
        position = part.own[way.at].position if way.at < len(part.own) else part.end
        for message in part.incoming:
            if part.earliest(message) <= way.at:
                id = message.envelope.id
                cause = _Cause(id, message.envelope.data)
                yield from self._quietly(part, way, cause, position, {*way.taken, id})
        for question in way.questions:
            rest = tuple(q for q in way.questions if q is not question)
            for answer, books in self._answers(way.books, question.intent):
                # The outside may have done it, and its answer was not heard.
                yield replace(way, books=books, before=way, note=None)
                heard = replace(way, books=books, questions=rest)
                cause = _Cause(question.cause, answer)
                yield from self._quietly(part, heard, cause, position, way.taken)

    def _quietly(
        self,
        part: _Share,
        way: _Hypothesis,
        cause: _Cause,
        position: int,
        taken: Collection[str],
    ) -> Iterator[_Hypothesis]:
        try:
            decided = self._decide(part, way, cause.message, part.time_at(way.at), position)
        except Exception:
            return
        if decided is None:
            return
        reaction, results, _ = decided
        if all(isinstance(result, Intent) for result in results):
            after = self._after(part, way, reaction, results, cause, position)
            yield replace(after, taken=frozenset(taken))

    def _commands(
        self, part: _Share, at: int, kind: type[Any]
    ) -> Iterator[tuple[Command, frozenset[str]]]:
        """Commands of that kind which may have led to an event: with what the event has under the
        same names, and in what else they hold, each with the names of that, whatever there is."""
        events = part.own[at : at + part.together(at)]
        given: dict[str, Any] = {}
        choices: dict[str, Sequence[Any]] = {}
        for name, info in kind.model_fields.items():
            told = (e.envelope.data for e in events if hasattr(e.envelope.data, name))
            if (data := next(told, None)) is not None:
                given[name] = getattr(data, name)
            elif (value := _of_subject(info.annotation, part.subject)) is not None and (
                info.is_required()
            ):
                choices[name] = (value, *_samples(info.annotation))
            else:
                first = () if info.is_required() else (info.get_default(call_default_factory=True),)
                choices[name] = tuple(dict.fromkeys((*first, *_samples(info.annotation))))
        hidden = frozenset(choices)
        for number, values in enumerate(product(*choices.values())):
            if number == COMMANDS_MAX:
                return
            try:
                command = kind(**given, **dict(zip(choices, values, strict=True)))
                if command.subject == part.subject:
                    yield command, hidden
            except (ValidationError, TypeError, ValueError):
                continue

    # --- what differs ---------------------------------------------------------------------------

    def _differ(self, part: _Share, ways: Sequence[_Hypothesis]) -> _Hypothesis:
        """Note that what was recorded next would not be decided; go on behind it."""
        way = ways[0]
        event = part.own[way.at]
        count, before = part.together(way.at), way
        recorded = " and ".join(e.envelope.type for e in part.own[way.at : way.at + count])
        best = None
        if not self._is_missing(part, event):
            attempts = (a for w in ways for a in self._attempts(part, w, recorded))
            best = min(attempts, key=lambda attempt: attempt.rank, default=None)
        if best is None:
            note = self._unexplained(part, event, recorded, count)
        else:
            group = DifferenceGroup(self._name, best.reaction, best.kind, best.what)
            note = _Note(best.reaction, (), group, recorded, best.decided)
            count, before = best.count, best.before
        states = dict(before.states)
        find = self._finder(states, event.position)
        for passed in part.own[way.at : way.at + count]:
            self._fold_in(states, passed, find)
        questions = tuple(q for q in way.questions if q.cause != event.envelope.causationid)
        return replace(
            before, at=way.at + count, states=states, questions=questions, before=before, note=note
        )

    def _unexplained(self, part: _Share, event: RecordedEvent, recorded: str, count: int) -> _Note:
        """Why nothing can be said of what was recorded."""
        envelope = event.envelope
        commands = [
            reaction.consumes.type
            for reaction in self._of_commands
            if issubclass(reaction.consumes, Command) and self._may_lead_to(reaction, envelope.type)
        ]
        known = (envelope.causationid or "") in part.known
        if commands and not known and not self._is_missing(part, event):
            what = (
                f"{recorded} of {self._name}: it followed from {' or '.join(commands)}, of which "
                f"the events tell too little"
            )
            return _Note(left=[what], count=0)
        missing = f"what led to {recorded} of {self._name} is not in the history"
        return _Note(missing=missing, count=count)

    def _is_missing(self, part: _Share, event: RecordedEvent) -> bool:
        """Whether an event followed from one that has to be in the history, and is not."""
        envelope = event.envelope
        known = (envelope.causationid or "") in part.known
        return not known and reaction_behind(self.participant, envelope) is not None

    def _attempts(self, part: _Share, way: _Hypothesis, recorded: str) -> Iterator[_Attempt]:
        """What this working tree would do in the place of what was recorded."""
        event = part.own[way.at].envelope
        known = part.known.get(event.causationid or "")
        if known is None:
            yield from self._of_another_due(part, way, recorded)
        for cause, before in self._causes(part, way):
            yield from self._attempts_at(part, before, cause, recorded, 0)
        if known is not None and type(known.envelope.data) not in self.participant.by_message:
            what = f"{recorded}, as no reaction takes {known.envelope.type}"
            reaction = f"({known.envelope.type})"
            yield _Attempt(
                reaction, DifferenceKind.SILENT, what, "nothing", part.together(way.at), way, 2
            )

    def _of_another_due(self, part: _Share, way: _Hypothesis, recorded: str) -> Iterator[_Attempt]:
        """If something was done because it was due, and would not be due then."""
        event = part.own[way.at].envelope
        firings = list(self._firings(part, way))
        if any(self._has_id(firing, event.causationid) for firing in firings):
            return
        together = part.together(way.at)
        for reaction in self._of_due:
            if not self._was_due(reaction, event):
                continue
            now = [f for f in firings if type(f.due.command) is reaction.consumes]
            if now:
                kind, said, what = DifferenceKind.DUE, f"due at {now[0].due.at}", recorded
            else:
                kind, said, what = DifferenceKind.SILENT, "nothing", f"{recorded}: nothing is due"
            yield _Attempt(reaction.name, kind, what, said, together, way, -1)

    def _was_due(self, reaction: Reaction, event: Envelope[Any]) -> bool:
        """Whether an event came of what was due, as its id tells."""
        step = f"{self._name}.{reaction.name}.{event.type}"
        return any(
            derived_id(cause_among_commands(event.causationid or "", source), step) == event.id
            for source in (
                due_source_of(self._name),
                due_source_of(self._name, brought_forward=True),
            )
        )

    def _attempts_at(
        self, part: _Share, way: _Hypothesis, cause: _Cause, recorded: str, depth: int
    ) -> Iterator[_Attempt]:
        event = part.own[way.at]
        together = part.together(way.at)
        named = self.participant.by_message.get(type(cause.message))
        if named is None:
            return
        try:
            decided = self._decide(part, way, cause.message, event.envelope.time, event.position)
        except Exception as error:
            why = f"{type(error).__name__}: {error}"
            what = f"{type(error).__name__} where it published {recorded}"
            yield _Attempt(named.name, DifferenceKind.RAISES, what, why, together, way, 4)
            return
        assert decided is not None  # noqa: S101 - there is a reaction
        reaction, results, position = decided
        said = [result for result in results if not isinstance(result, Intent)]
        if said:
            types = " and ".join(result.type for result in said)
            compared = self._compare(part, way.at, cause.id, said)
            if compared is None:
                # Of several answers, another one than what was given is the least likely.
                rank = 3 if isinstance(cause.message, Answer) else 1
                kind, what = DifferenceKind.OTHER_EVENT, f"{types} where it published {recorded}"
                yield _Attempt(reaction.name, kind, what, types, together, way, rank)
                return
            differing = [
                (number, name)
                for number, name in compared.differing
                if self._solve(part, way, cause, [(number, name)], event, results) is None
            ]
            shown = ", ".join(
                f"{name} {_value(getattr(said[n].newest(), name, None))} instead of "
                f"{_value(getattr(part.own[way.at + n].envelope.data, name))}"
                for n, name in differing
            )
            names = dict.fromkeys(f"{name} of {said[n].type}" for n, name in differing)
            what = ", ".join(names)
            yield _Attempt(
                reaction.name, DifferenceKind.OTHER_FIELDS, what, shown, len(said), way, 0
            )
        elif results and depth < ANSWERS_MAX:
            before = self._after(part, way, reaction, results, cause, position)
            question = before.questions[-1]
            rest = before.questions[:-1]
            answered = False
            for answer, books in self._answers(before.books, question.intent):
                answered = True
                heard = _Cause(cause.id, answer, _unknown_in(answer, part.subject))
                asked = replace(before, books=books, questions=rest)
                yield from self._attempts_at(part, asked, heard, recorded, depth + 1)
            if not answered:
                what = f"asks {type(question.intent).__name__} where it published {recorded}"
                yield _Attempt(
                    reaction.name, DifferenceKind.OTHER_EVENT, what, what, together, way, 3
                )
        else:
            yield _Attempt(
                reaction.name,
                DifferenceKind.SILENT,
                recorded,
                "nothing",
                together,
                way,
                2 if not isinstance(cause.message, Answer) else 5,
            )

    # --- what it took without a word ------------------------------------------------------------

    def _close(self, part: _Share, last: _Hypothesis) -> Review:
        """Look at what led to nothing, and at what is still to come."""
        path: list[_Hypothesis] = []
        way: _Hypothesis | None = last
        while way is not None:
            path.append(way)
            way = way.before
        path.reverse()
        for way in path:
            if way.note is not None:
                self._tell(part, way.note)
        review = Review(
            states=last.states,
            asking=len(last.questions),
            passed=[way.states for way in path],
        )
        answered = {event.envelope.causationid for event in part.own}
        for message in part.incoming:
            if message.envelope.id not in answered and message.envelope.id not in last.taken:
                self._look_at_silence(part, path, message, review)
        if self.participant.dues:
            self._look_at_dues(part, path, review)
        return review

    def _look_at_silence(
        self, part: _Share, path: Sequence[_Hypothesis], message: RecordedEvent, review: Review
    ) -> None:
        """A message led to nothing: it has to lead to nothing wherever it may have been taken, or
        is still on its way."""
        envelope = message.envelope
        reaction = self.participant.by_message.get(type(envelope.data))
        if reaction is None:
            return
        name, findings = self._name, self._findings
        earliest, latest = part.earliest(message), part.latest(message)
        said: tuple[str, DifferenceKind, str] | None = None
        quiet_later = False
        for way in path:
            if way.at < earliest:
                continue
            decided = self._aloud(part, way, message)
            if decided is None:
                if way.at <= latest:
                    findings.silent[name] += 1
                    findings.taken[name, reaction.name] += 1
                    return
                quiet_later = True
            elif said is None or way.at <= latest:
                said = decided
        if said is None:
            return
        if (name, envelope.id) in self._way.settled:
            findings.leave("dead letters that an operator has put away", part.subject)
            return
        # One that would be silent by now has been overtaken, or was taken in its turn.
        if self._is_on_its_way(message) and not quiet_later:
            review.pending.append(message)
            findings.pending[name] += 1
            return
        what, kind, shown = said
        lost = part.lost(self.participant, reaction, envelope)
        if lost:
            findings.miss(f"{lost} of {name} is not in the history", part.subject)
            return
        findings.silent[name] += 1
        findings.taken[name, reaction.name] += 1
        if quiet_later:
            kind = DifferenceKind.EARLY
        group = DifferenceGroup(name, reaction.name, kind, what)
        findings.differ(group, part.subject, "nothing", shown)

    def _aloud(
        self, part: _Share, way: _Hypothesis, message: RecordedEvent
    ) -> tuple[str, DifferenceKind, str] | None:
        """What a message would lead to there; None if that is nothing, or may be."""
        said = None
        for now, position in self._moments(part, way, message):
            said = self._aloud_at(part, way, message, now, position)
            if said is None:
                return None
        return said

    def _moments(
        self, part: _Share, way: _Hypothesis, message: RecordedEvent
    ) -> Iterator[tuple[datetime, int]]:
        """When a message may have been taken there, where that makes a difference: by the clock,
        and by a place in the history."""
        sent = message.envelope.time
        end = part.own[way.at].position if way.at < len(part.own) else part.end
        yield sent, end
        reaction = self.participant.by_message[type(message.envelope.data)]
        if any(kind is datetime for _, kind, _ in reaction.parameters):
            times = (part.time_at(way.at), self._reached.newest)
            yield from ((time, end) for time in times if time is not None and time > sent)
        if self._shared is not None:
            yield sent, message.position + 1

    def _aloud_at(
        self,
        part: _Share,
        way: _Hypothesis,
        message: RecordedEvent,
        now: datetime,
        position: int,
    ) -> tuple[str, DifferenceKind, str] | None:
        """The same at one moment."""
        envelope = message.envelope
        try:
            decided = self._decide(part, way, envelope.data, now, position)
        except Exception as error:
            said = f"{type(error).__name__}: {error}"
            return f"{type(error).__name__} because of {envelope.type}", DifferenceKind.RAISES, said
        if decided is None or not decided[1]:
            return None
        reaction, results, _ = decided
        published = [result for result in results if not isinstance(result, Intent)]
        if published:
            types = shown = " and ".join(result.type for result in published)
        else:
            cause = _Cause(envelope.id, envelope.data)
            after = self._after(part, way, reaction, results, cause, position)
            if self._may_stay_silent(part, after, position, 0):
                return None
            shown = type(results[-1]).__name__
            types = f"the question {shown}"
        return f"{types} because of {envelope.type}", DifferenceKind.SPEAKS, shown

    def _may_stay_silent(self, part: _Share, way: _Hypothesis, position: int, depth: int) -> bool:
        """Whether a question may be answered so that nothing comes of it."""
        question, rest = way.questions[-1], way.questions[:-1]
        for answer, books in self._answers(way.books, question.intent):
            heard = replace(way, books=books, questions=rest)
            try:
                decided = self._decide(part, heard, answer, part.time_at(way.at), position)
            except Exception:  # noqa: S112 - another answer may do
                continue
            if decided is None or not decided[1]:
                return True
            reaction, results, _ = decided
            if depth < ANSWERS_MAX and all(isinstance(result, Intent) for result in results):
                cause = _Cause(question.cause, answer)
                after = self._after(part, heard, reaction, results, cause, position)
                if self._may_stay_silent(part, after, position, depth + 1):
                    return True
        return False

    def _is_on_its_way(self, message: RecordedEvent) -> bool:
        """Whether a message may not have been taken yet."""
        envelope = message.envelope
        if (self._name, envelope.id) in self._way.waiting:
            return True
        answered = self._reached.answered.get(self._name)
        patience = self._patience[type(envelope.data)]
        if self._way.whole:  # Then it is in the participant's hands, if anywhere.
            patience = timedelta(seconds=LATE_SECONDS)
        return answered is None or envelope.time + patience > answered

    def _look_at_dues(self, part: _Share, path: Sequence[_Hypothesis], review: Review) -> None:
        """What was due, and was not done before something else was decided."""
        seen: set[str] = set()
        for way in path:
            for firing in self._firings(part, way):
                id, over = firing.id(self._name), firing.due.at + TIMER_PATIENCE
                if id in seen:
                    continue
                if way.at < len(part.own):
                    after = part.own[way.at].envelope
                    if after.time <= over or self._has_id(firing, after.causationid):
                        continue
                    kind = DifferenceKind.EARLY
                else:
                    answered = self._reached.answered.get(self._name)
                    if answered is None or answered <= over:
                        review.dues.append(firing)
                        continue
                    kind = DifferenceKind.SPEAKS
                seen.add(id)
                reaction = self.participant.by_message[type(firing.due.command)]
                what = f"what follows from {firing.due.command.type}, which is due"
                group = DifferenceGroup(self._name, reaction.name, kind, what)
                self._findings.differ(group, part.subject, "nothing", f"due at {firing.due.at}")


_EPOCH: Final = datetime.fromisoformat("1970-01-01T00:00:00+00:00")
_PLAIN: Final = (str, int, float, Decimal, datetime, date, timedelta, UUID, bytes)


@dataclass
class _Solution:
    """Results that are as recorded, but for what follows from what nobody has recorded. It is
    `doubtful` where that decides between few possibilities, one of which would have to fit."""

    results: tuple[Any, ...]
    left: list[str] = field(default_factory=list)
    doubtful: bool = False

    def told(self, compared: _Told) -> _Told:
        return replace(compared, left=[*compared.left, *self.left], doubtful=self.doubtful)


@dataclass
class _Told:
    """How something that was decided compares: by number of the event, the fields that differ, and
    what cannot be compared."""

    differing: list[tuple[int, str]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    doubtful: bool = False


class _Share:
    """A share in a subject: what one participant published, and what it may have taken."""

    def __init__(
        self,
        subject: str,
        own: Recorded,
        incoming: Recorded,
        known: Mapping[str, RecordedEvent],
    ) -> None:
        self.subject = subject
        self.own = own
        self.incoming = incoming
        self.known = known
        self._places = {event.envelope.id: place for place, event in enumerate(own)}
        self._earliest: dict[str, int] = {}

    @property
    def end(self) -> int:
        """A position behind all of it."""
        return max((e.position for e in (*self.own, *self.incoming)), default=0) + 1

    def time_at(self, at: int) -> datetime:
        """About when the participant was there."""
        if at < len(self.own):
            return self.own[at].envelope.time
        return max(e.envelope.time for e in (*self.own, *self.incoming))

    def together(self, at: int) -> int:
        """How many events were decided on together with that one, it included."""
        first = self.own[at].envelope
        count = 1
        for event in self.own[at + 1 :]:
            envelope = event.envelope
            if (envelope.causationid, envelope.time) != (first.causationid, first.time):
                break
            count += 1
        return count

    def earliest(self, message: RecordedEvent) -> int:
        """How many of its own events there were at least when it took a message: those from which
        that follows."""
        id = message.envelope.id
        found = self._earliest.get(id)
        if found is None:
            found, seen = 0, {id}
            cause = message.envelope.causationid
            if id in self._places:
                found = self._places[id] + 1
            while cause is not None and cause not in seen:
                seen.add(cause)
                if cause in self._places:
                    found = max(found, self._places[cause] + 1)
                    break
                event = self.known.get(cause)
                cause = event.envelope.causationid if event is not None else None
            self._earliest[id] = found
        return found

    def latest(self, message: RecordedEvent) -> int:
        """How many there were at most if messages do not overtake each other: until it decided on
        one that came later by the same queue, from the same publisher or because of this one."""
        for place, event in enumerate(self.own):
            cause = self.known.get(event.envelope.causationid or "")
            if (
                place >= self.earliest(message)
                and cause is not None
                and cause.position > message.position
                and cause.envelope.priority is message.envelope.priority
                and self._follows(cause, message)
            ):
                return place
        return len(self.own)

    def lost(self, participant: Participant, reaction: Reaction, cause: Envelope[Any]) -> str:
        """The type of what a participant published because of a cause, and what the history lacks:
        something is recorded that followed from it. Empty if there is none."""
        id = id_among_causes(type(cause.data), cause.key)
        causes = {event.envelope.causationid for event in self.known.values()} - self.known.keys()
        answers = (participant.by_message.get(intent.answer) for intent in reaction.intends)
        for one in filter(None, (reaction, *answers)):
            for kind in one.emits:
                step = f"{participant.name}.{one.name}.{kind.type}"
                if derived_id(id, step) in causes:
                    return kind.type
        return ""

    def _follows(self, later: RecordedEvent, message: RecordedEvent) -> bool:
        """Whether one message must have been sent after another one."""
        if later.envelope.source == message.envelope.source:
            return True
        seen: set[str] = set()
        cause = later.envelope.causationid
        while cause is not None and cause not in seen:
            if cause == message.envelope.id:
                return True
            seen.add(cause)
            event = self.known.get(cause)
            cause = event.envelope.causationid if event is not None else None
        return False


def _was_said(event: RecordedEvent, name: str) -> bool:
    """Whether an event could say a field when it was published."""
    if event.older is not None:
        return name in event.older.model_fields
    data = event.envelope.data
    # What has no value is not written.
    return name in data.model_fields_set or type(data).model_fields[name].default is None


def _unknown_in(answer: Answer, subject: str) -> frozenset[str]:
    """The fields of an answer that nobody has recorded."""
    fields = type(answer).model_fields
    return frozenset(name for name in fields if str(getattr(answer, name)) != subject)


def _what(message: Message) -> str:
    kind = type(message)
    return message.type if isinstance(message, Command) else kind.__name__


def _another(value: Any) -> Any:
    """A value of the same type, if it is of a plain one; None if there is none."""
    if isinstance(value, bool | Enum):
        return None
    match value:
        case str():
            return f"{value}x"
        case int() | float() | Decimal():
            return value + 1
        case datetime() | date():
            return value + timedelta(days=1)
        case timedelta():
            return value + timedelta(seconds=1)
        case UUID():
            return UUID(int=value.int ^ 1)
        case bytes():
            return value + b"x"
        case _:
            return None


def _of_subject(annotation: Any, subject: str) -> Any:
    """The subject as a value of that type; None if it is none."""
    try:
        return UUID(subject) if annotation is UUID else subject if annotation is str else None
    except ValueError:
        return None


def _samples(annotation: Any) -> tuple[Any, ...]:
    """A few values of a type: all of what it lists, or any one."""
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return tuple(annotation)
    if annotation is bool:
        return False, True
    if annotation is NoneType:
        return (None,)
    if words := words_in(annotation):
        return tuple(sorted(words))
    if arguments := get_args(annotation):
        return tuple(value for argument in arguments for value in _samples(argument))
    ones: dict[Any, Any] = {
        str: "x",
        int: 1,
        float: 1.0,
        datetime: _EPOCH,
        UUID: UUID(int=1),
    }
    return (ones[annotation],) if annotation in ones else ()


def _value(value: Any) -> str:
    return str(value)[:SHOWN_MAX_CHARACTERS] if value is not None else "nothing"
