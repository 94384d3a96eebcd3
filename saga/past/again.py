"""One participant's part of a recorded subject, decided again by this working tree.

What a participant decided is recorded as what it published. Each such decision is made again (see
`steps`) and compared. Then what it took without a word: it has to lead to nothing, wherever it may
have been taken.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

from saga.choreography import State
from saga.history.debts import LATE_SECONDS
from saga.history.story import missing_numbers, reaction_behind
from saga.message import Answer, Command
from saga.past.comparing import Comparing
from saga.past.findings import DifferenceGroup, DifferenceKind
from saga.past.part import RecordedPart
from saga.past.recorded import RecordedEvent, RecordedSubject
from saga.past.steps import (
    Hypothesis,
    OpenQuestion,
    ParticipantPast,
    PastCause,
    StepAgain,
    StepNote,
    Steps,
)
from saga.runtime.kernel.step import Firing, StateId

HYPOTHESES_MAX: Final = 200
"""What a participant may have done without a word, beyond which it is given up to explain it."""
TIMER_PATIENCE: Final = timedelta(seconds=60)
"""So late something may be done that was due, while its service starts for instance."""


@dataclass(frozen=True, slots=True)
class _Attempt:
    """What this working tree would do, where that is not what was recorded. Of several, the one of
    the lowest `rank` is told."""

    rank: int
    reaction: str
    kind: DifferenceKind
    what: str
    decided: str
    before: Hypothesis
    count: int
    """Recorded events that it was compared with."""


@dataclass
class Review:
    """How one participant stands to one subject. `pending` are the messages that it has still to
    take, `asking` the ids of those because of which it is asking the outside, `dues` what its
    states have due."""

    states: Mapping[StateId, State] = field(default_factory=dict)
    pending: list[RecordedEvent] = field(default_factory=list)
    asking: list[str] = field(default_factory=list)
    dues: list[Firing] = field(default_factory=list)
    passed: list[Mapping[StateId, State]] = field(default_factory=list)
    """Its states between its events, the last ones behind."""


def review(past: ParticipantPast, told: RecordedSubject) -> Review:
    """Decide again on what a participant took about one subject, and note what differs."""
    own: list[RecordedEvent] = []
    incoming: list[RecordedEvent] = []
    for event in told.events:
        envelope = event.envelope
        if envelope.source == past.source and not event.addressee:
            own.append(event)
        if event.addressee:
            if event.addressee == past.name:
                incoming.append(event)
        elif envelope.type in past.takes:
            incoming.append(event)
    if not own and not incoming:
        return Review()
    # What an operator has corrected was taken in the place of what it corrects.
    corrected = {event.envelope.causationid for event in incoming if event.addressee}
    if corrected:
        incoming = [e for e in incoming if e.addressee or e.envelope.id not in corrected]
    if why := _cannot_be_told(past, told, own):
        past.findings.miss(why, told.subject, max(1, len(own)))
        return Review()
    if len({past.fold.kind_of(event.envelope.type) for event in own}) <= 1:
        own.sort(key=lambda event: event.envelope.sequence or 0)
    known = {event.envelope.id: event for event in told.events}
    return _SubjectReview(past, RecordedPart(told.subject, own, incoming, known)).run()


def _cannot_be_told(
    past: ParticipantPast, told: RecordedSubject, own: Sequence[RecordedEvent]
) -> str:
    """Why nothing can be said of the participant's part; empty if something can."""
    name = past.name
    for source, type_ in told.unreadable:
        if source == past.source:
            return f"this version cannot read {type_} of {name}, nor what follows from it"
    numbers: dict[type[State] | None, list[int]] = {}
    for event in own:
        kind = past.fold.kind_of(event.envelope.type)
        if kind is None:
            return f"{name} publishes no {event.envelope.type} any more"
        numbers.setdefault(kind, []).append(event.envelope.sequence or 0)
    for seen in numbers.values():
        if next(missing_numbers(sorted(seen), max(seen)), None) is not None:
            return f"events of {name} are missing from the history"
        if len({*seen}) != len(seen):
            return f"events of {name} have the same number"
    return ""


class _SubjectReview:
    """A review of one participant's part of one subject."""

    def __init__(self, past: ParticipantPast, part: RecordedPart) -> None:
        self._past = past
        self._findings = past.findings
        self._part = part
        self._steps = Steps(self._past, part)
        self._comparing = Comparing(self._steps)

    def run(self) -> Review:
        first = self._past.beginning
        last = self._explain(first, thorough=False) or self._explain(first, thorough=True)
        assert last is not None  # noqa: S101 - what cannot be explained is noted, and gone over
        path = last.path()
        for way in path:
            if way.note is not None:
                self._tell(way.note)
        review = Review(last.states, passed=[way.states for way in path])
        review.asking += [q.cause for q in last.questions if self._is_open(q, last)]
        answered = {event.envelope.causationid for event in self._part.own}
        for message in self._part.incoming:
            if message.envelope.id not in answered and message.envelope.id not in last.taken:
                self._look_at_silence(path, message, review)
        if self._past.participant.dues:
            self._look_at_dues(path, review)
        return review

    def _tell(self, note: StepNote) -> None:
        """Count what came of one decision."""
        name, findings, subject = self._past.name, self._findings, self._part.subject
        if note.missing:
            findings.miss(note.missing, subject, note.count)
            return
        findings.published[name] += 1
        findings.taken[name, note.reaction] += 1
        for what in note.left:
            findings.leave(what, subject)
        for what, value in note.dropped:
            group = DifferenceGroup(name, note.reaction, DifferenceKind.DROPPED, what)
            findings.differ(group, subject, value, "nothing")
        if note.group is not None:
            findings.differ(note.group, subject, note.recorded, note.decided)

    # --- what it published ----------------------------------------------------------------------

    def _explain(self, first: Hypothesis, *, thorough: bool) -> Hypothesis | None:
        """Go through what was published; the last hypothesis. None if that takes more thought:
        `thorough` tries before each event what may have been done without a word, and notes what is
        different even so."""
        thinks = self._past.asks and not thorough
        waiting: dict[int, list[Hypothesis]] = {0: [first]}
        last = first
        for at in range(len(self._part.own)):
            ways = waiting.pop(at, ())
            if not ways:
                continue
            last = ways[0]
            after = self._next(ways, thorough=thorough and self._past.asks)
            if thinks and (after[0].by_another_path if after else not waiting):
                return None
            if not after and not waiting:
                after = [self._differ(ways)]
            for way in after:
                waiting.setdefault(way.at, []).append(way)
        return next((ways[0] for ways in waiting.values()), last)

    def _next(self, ways: Sequence[Hypothesis], *, thorough: bool) -> list[Hypothesis]:
        """What may be after the next decision, if that is as recorded."""
        found: list[Hypothesis] = []
        for way in self._with_silent(ways) if thorough else ways:
            after = self._as_recorded(way)
            if after is not None:
                found.append(after)
                if not thorough:
                    break
        as_before = [way for way in found if not way.by_another_path]
        return (as_before or found)[:HYPOTHESES_MAX]

    def _with_silent(self, ways: Sequence[Hypothesis]) -> Iterator[Hypothesis]:
        """These hypotheses, and those in which something was done without a word meanwhile."""
        found = list(ways)
        seen = {way.key for way in found}
        for way in found:  # It grows.
            yield way
            for after in self._steps.quietly(way):
                if len(found) < HYPOTHESES_MAX and after.key not in seen:
                    seen.add(after.key)
                    found.append(after)

    def _decided(self, way: Hypothesis) -> Iterator[StepAgain]:
        """What this working tree does in the place of what was recorded next."""
        event = self._part.own[way.at]
        for cause, before in self._steps.causes(way):
            yield from self._steps.walk(before, cause, event.envelope.time, event.position)

    def _as_recorded(self, way: Hypothesis) -> Hypothesis | None:
        """What is after the next decision, if this working tree decides what was recorded."""
        doubtful = other_path = None
        for step in self._decided(way):
            found = self._comparing.compare(step) if step.published else None
            if found is None or found.differing:
                continue
            after = self._steps.after(found.step, self._comparing.note(found))
            if after.by_another_path:
                other_path = other_path or after
            elif not found.doubtful:
                return after
            else:
                doubtful = doubtful or after
        return doubtful or other_path

    # --- what differs ---------------------------------------------------------------------------

    def _differ(self, ways: Sequence[Hypothesis]) -> Hypothesis:
        """Note that what was recorded next would not be decided; go on behind it."""
        way = ways[0]
        count = self._part.together(way.at)
        recorded = " and ".join(e.envelope.type for e in self._part.own[way.at : way.at + count])
        best = None
        if not self._lacks_cause(way.at):
            attempts = (attempt for each in ways for attempt in self._attempts(each, recorded))
            best = min(attempts, key=lambda attempt: attempt.rank, default=None)
        if best is None:
            return self._steps.passed(way, count, self._unexplained(way.at, recorded, count))
        group = DifferenceGroup(self._past.name, best.reaction, best.kind, best.what)
        note = StepNote(best.reaction, (), group, recorded, best.decided)
        return self._steps.passed(best.before, best.count, note)

    def _unexplained(self, at: int, recorded: str, count: int) -> StepNote:
        """Why nothing can be said of what was recorded."""
        type_ = self._part.own[at].envelope.type
        reactions = [r for r in self._past.of_commands if self._past.may_lead_to(r, type_)]
        missing = f"what led to {recorded} of {self._past.name} is not in the history"
        if reactions and self._part.cause_of(at) is None and not self._lacks_cause(at):
            commands = [r.consumes.type for r in reactions if issubclass(r.consumes, Command)]
            missing = (
                f"{recorded} of {self._past.name}: it followed from {' or '.join(commands)}, whose "
                f"content cannot be guessed"
            )
        return StepNote(missing=missing, count=count)

    def _lacks_cause(self, at: int) -> bool:
        """Whether an event followed from one that has to be in the history, and is not."""
        behind = reaction_behind(self._past.participant, self._part.own[at].envelope)
        return self._part.cause_of(at) is None and behind is not None

    def _attempts(self, way: Hypothesis, recorded: str) -> Iterator[_Attempt]:
        """What this working tree would do in the place of what was recorded."""
        together = self._part.together(way.at)
        cause = self._part.cause_of(way.at)
        if cause is None:
            yield from self._of_another_due(way, recorded)
        elif type(cause.envelope.data) not in self._past.participant.by_message:
            type_ = cause.envelope.type
            what = f"{recorded}, as no reaction takes {type_}"
            kind = DifferenceKind.SILENT
            yield _Attempt(2, f"({type_})", kind, what, "nothing", way, together)
        for step in self._decided(way):
            rank, kind, what, decided = self._otherwise(step, recorded)
            # What differs in fields is compared; of the others, nothing else is.
            other_fields = kind is DifferenceKind.OTHER_FIELDS
            count = len(step.published) if other_fields else together
            yield _Attempt(rank, step.reaction.name, kind, what, decided, step.way, count)

    def _otherwise(self, step: StepAgain, recorded: str) -> tuple[int, DifferenceKind, str, str]:
        """How likely it is that a step is what became of what was recorded, 0 for the likeliest; in
        what way it differs, in what, and what is decided."""
        # Of several answers, another one than what was given is the least likely.
        answered = isinstance(step.cause.message, Answer)
        if (error := step.error) is not None:
            name = type(error).__name__
            what = f"{name} where it published {recorded}"
            return 4, DifferenceKind.RAISES, what, f"{name}: {error}"
        if step.silent:
            return 5 if answered else 2, DifferenceKind.SILENT, recorded, "nothing"
        if step.only_asks:
            what = f"asks {type(step.results[-1]).__name__} where it published {recorded}"
            return 6, DifferenceKind.OTHER_EVENT, what, what
        if (found := self._comparing.compare(step)) is not None:
            return 0, DifferenceKind.OTHER_FIELDS, *self._comparing.in_words(found)
        what = f"{step.types} where it published {recorded}"
        return 3 if answered else 1, DifferenceKind.OTHER_EVENT, what, step.types

    def _of_another_due(self, way: Hypothesis, recorded: str) -> Iterator[_Attempt]:
        """If something was done because it was due, and would not be due then."""
        event = self._part.own[way.at].envelope
        firings = list(self._steps.firings(way))
        if any(self._past.has_id(firing, event.causationid) for firing in firings):
            return
        together = self._part.together(way.at)
        for reaction in self._past.of_due:
            if not self._comparing.was_due(reaction, event):
                continue
            now = [f for f in firings if type(f.due.command) is reaction.consumes]
            if now:
                kind, said, what = DifferenceKind.DUE, f"due at {now[0].due.at}", recorded
            else:
                kind, said, what = DifferenceKind.SILENT, "nothing", f"{recorded}: nothing is due"
            yield _Attempt(-1, reaction.name, kind, what, said, way, together)

    # --- what it took without a word ------------------------------------------------------------

    def _look_at_silence(
        self, path: Sequence[Hypothesis], message: RecordedEvent, review: Review
    ) -> None:
        """A message led to nothing: it has to lead to nothing wherever it may have been taken, or
        is still on its way."""
        envelope, part = message.envelope, self._part
        reaction = self._past.participant.by_message.get(type(envelope.data))
        if reaction is None:
            return
        name, findings = self._past.name, self._findings
        earliest, latest = part.earliest(message), part.latest(message)
        said: tuple[str, DifferenceKind, str] | None = None
        quiet_later = False
        for way in path:
            if way.at < earliest:
                continue
            decided = self._aloud(way, message)
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
        if (name, envelope.id) in self._past.way.settled:
            findings.leave("dead letters that an operator has put away", part.subject)
            return
        # One that would be silent by now has been overtaken, or was taken in its turn.
        if self._is_on_its_way(message) and not quiet_later:
            review.pending.append(message)
            findings.pending[name] += 1
            if self._may_have_been_taken(message):
                self._miss_silence(f"taken {envelope.type}")
            return
        what, kind, shown = said
        lost = part.lost(self._past.participant, reaction, envelope)
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
        self, way: Hypothesis, message: RecordedEvent
    ) -> tuple[str, DifferenceKind, str] | None:
        """What a message would lead to there; None if that is nothing, or may be."""
        said = None
        envelope = message.envelope
        cause = PastCause(envelope.id, envelope.data)
        for now, position in self._moments(way, message):
            step = self._steps.take(way, cause, now, position)
            if step is None or step.silent:
                return None
            if (error := step.error) is not None:
                what, kind = type(error).__name__, DifferenceKind.RAISES
                shown = f"{what}: {error}"
            elif step.only_asks:
                # A question may be answered so that nothing comes of it.
                if any(each.silent for each in self._steps.walk(way, cause, now, position)):
                    return None
                shown, kind = type(step.results[-1]).__name__, DifferenceKind.SPEAKS
                what = f"the question {shown}"
            else:
                shown, kind = step.types, DifferenceKind.SPEAKS
                what = shown
            said = f"{what} because of {envelope.type}", kind, shown
        return said

    def _moments(self, way: Hypothesis, message: RecordedEvent) -> Iterator[tuple[datetime, int]]:
        """When a message may have been taken there, where that makes a difference: by the clock,
        and by a place in the history."""
        sent, end = message.envelope.time, self._part.position_at(way.at)
        yield sent, end
        reaction = self._past.participant.by_message[type(message.envelope.data)]
        if any(kind is datetime for _, kind, _ in reaction.parameters):
            times = (self._part.time_at(way.at), self._past.reached.newest)
            yield from ((time, end) for time in times if time is not None and time > sent)
        if self._past.shared is not None:
            yield sent, message.position + 1

    def _is_open(self, question: OpenQuestion, last: Hypothesis) -> bool:
        """Whether a question may not have been answered yet: nothing has been published since, or
        its message would still lead to something."""
        message, part = self._part.known.get(question.cause), self._part
        if message is not None and not self._is_on_its_way(message):
            return False
        if question.at == len(part.own):
            return True
        if message is None:
            return False
        cause = PastCause(question.cause, message.envelope.data)
        step = self._steps.take(last, cause, part.time_at(last.at), part.position_at(last.at))
        return step is not None and not step.silent

    def _is_on_its_way(self, message: RecordedEvent) -> bool:
        """Whether a message may not have been taken yet."""
        past, envelope = self._past, message.envelope
        name = past.name
        if (name, envelope.id) in past.way.waiting:
            return True
        answered = past.reached.answered.get(name)
        patience = past.patience[type(envelope.data)]
        if past.way.looked_at is not None:  # Then it waits for no try.
            patience = timedelta(seconds=LATE_SECONDS)
        if answered is not None and envelope.time + patience <= answered:
            return False
        return not past.way.has_taken(name, envelope)

    def _may_have_been_taken(self, message: RecordedEvent) -> bool:
        """Whether a message that may be on its way may as well have led to nothing, since the time
        for all tries is over, and no queue is known to have it."""
        past, envelope = self._past, message.envelope
        if (past.name, envelope.id) in past.way.waiting:
            return False
        over = envelope.time + past.patience[type(envelope.data)]
        return past.reached.newest is not None and over < past.reached.newest

    def _miss_silence(self, what: str) -> None:
        """Note that what seems to be on its way may have led to nothing."""
        name = self._past.name
        why = f"whether {name} has {what}: it has answered nothing newer, and no queue tells"
        self._findings.miss(why, self._part.subject)

    def _look_at_dues(self, path: Sequence[Hypothesis], review: Review) -> None:
        """What was due, and was not done before something else was decided."""
        seen: set[str] = set()
        own, name = self._part.own, self._past.name
        for way in path:
            for firing in self._steps.firings(way):
                id, over = firing.id(name), firing.due.at + TIMER_PATIENCE
                if id in seen:
                    continue
                if way.at < len(own):
                    after = own[way.at].envelope
                    if after.time <= over or self._past.has_id(firing, after.causationid):
                        continue
                    kind = DifferenceKind.EARLY
                else:
                    reached = self._past.reached
                    answered = reached.answered.get(name)
                    at_work = self._past.way.is_at_work(name, over)
                    if not at_work and (answered is None or answered <= over):
                        review.dues.append(firing)
                        if reached.newest is not None and over < reached.newest:
                            self._miss_silence(f"done {firing.due.command.type}, which was due")
                        continue
                    kind = DifferenceKind.SPEAKS
                seen.add(id)
                reaction = self._past.participant.by_message[type(firing.due.command)]
                what = f"what follows from {firing.due.command.type}, which is due"
                group = DifferenceGroup(name, reaction.name, kind, what)
                self._findings.differ(
                    group, self._part.subject, "nothing", f"due at {firing.due.at}"
                )
