"""How what this working tree decides compares with what was recorded."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from saga.choreography import Reaction
from saga.envelope import Envelope, derived_id
from saga.message import Answer, Command, Message
from saga.past import guesses
from saga.past.findings import DifferenceGroup, DifferenceKind
from saga.past.recorded import SHOWN_MAX_CHARACTERS, RecordedEvent
from saga.past.steps import StepAgain, StepNote, Steps
from saga.runtime.kernel.step import cause_among_commands, due_source_of, id_among_causes


@dataclass
class AgainstRecord:
    """A step that publishes what was recorded next, but for the `differing` fields, each with the
    number of its event. `left` is what cannot be compared.

    It is `doubtful` where what was not recorded decides between few possibilities, one of which
    would have to fit.
    """

    step: StepAgain
    differing: list[tuple[int, str]] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    dropped: list[tuple[str, str]] = field(default_factory=list)
    doubtful: bool = False


class Comparing:
    """Compares steps about one subject with what was recorded."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._past = steps.past
        self._part = steps.part

    def compare(self, step: StepAgain) -> AgainstRecord | None:
        """How what a step publishes compares with what was recorded next; None if they are other
        events. What differs only by what was not recorded does not differ."""
        found = self._hold(step)
        if found is None or found.differing:
            found = self._right_before_or_after(step) or found
        if found is not None and found.differing and step.cause.hidden:
            self._solve(found)
        return found

    def _hold(self, step: StepAgain) -> AgainstRecord | None:
        published = step.published
        recorded = self._part.own[step.way.at : step.way.at + len(published)]
        if not published or len(recorded) < len(published):
            return None
        found = AgainstRecord(step)
        for number, (event, decided) in enumerate(zip(recorded, published, strict=True)):
            if event.envelope.causationid != step.cause.id and step.cause.id:
                return None
            newest = decided.newest()
            data = event.envelope.data
            if newest.type != data.type:
                return None
            found.dropped += ((f"{name} of {data.type}", value) for name, value in event.unread)
            found.left += (
                f"{name} of {data.type}: the newest version has no such field"
                for name in event.outdated
            )
            if newest == data:
                continue
            for name in type(data).model_fields:
                if getattr(data, name) == getattr(newest, name, None):
                    continue
                if _was_said(event, name):
                    found.differing.append((number, name))
                else:
                    found.left.append(
                        f"{name} of {data.type}: it was published before there was such a field"
                    )
        return found

    def _right_before_or_after(self, step: StepAgain) -> AgainstRecord | None:
        """The same, with what the participant shares as it was then, if that is as recorded."""
        for other in self._steps.nearby(step):
            found = self._hold(other)
            if found is not None and not found.differing:
                found.left.append(
                    f"the order in which {self._past.name} changed what its subjects share: with "
                    f"that as it was right before or after, it decides the same"
                )
                return found
        return None

    def _solve(self, found: AgainstRecord) -> None:
        """Treat fields as equal that follow from unrecorded fields of the message, and note
        that."""
        step = found.step
        differing, found.differing = found.differing, []
        for number, name in differing:
            recorded = self._part.own[step.way.at + number].envelope.data
            wanted = getattr(recorded, name)
            about = type(step.cause.message), recorded.type, name
            known = self._past.explaining.get(about, "")
            for hidden in sorted(step.cause.hidden, key=lambda hidden: (hidden != known, hidden)):
                other = self._varied(found.step, hidden, wanted, number, name)
                if other is None:
                    continue
                if getattr(other.published[number].newest(), name) == wanted:
                    found.step = other
                    found.doubtful |= isinstance(wanted, Enum | bool)
                self._past.explaining[about] = hidden
                found.left.append(
                    f"{name} of {recorded.type}: it follows from {hidden} of "
                    f"{_what(step.cause.message)}, which is not recorded"
                )
                break
            else:
                found.differing.append((number, name))

    def _varied(
        self, step: StepAgain, hidden: str, wanted: Any, number: int, name: str
    ) -> StepAgain | None:
        """The step with another value for a field of its message, by which this field of what it
        publishes, and no type of it, becomes another; if possible the one that is wanted."""
        message = step.cause.message
        value = getattr(message, hidden)
        before = [result.newest() for result in step.published]
        for other in (wanted, guesses.another(value)):
            if other is None or not (value is None or type(other) is type(value)):
                continue
            cause = replace(step.cause, message=message.model_copy(update={hidden: other}))
            after = self._steps.take(step.way, cause, step.now, step.position)
            if after is None:
                continue
            results = [result.newest() for result in after.published]
            if list(map(type, results)) == list(map(type, before)) and (
                getattr(results[number], name) != getattr(before[number], name)
            ):
                return after
        return None

    # --- which reaction it was ------------------------------------------------------------------

    def note(self, found: AgainstRecord) -> StepNote:
        """What is to be told of events that a reaction publishes as they were recorded. Their ids
        tell which reaction it was then: an outside may have been asked by one, and not by the
        other."""
        reaction = found.step.reaction
        event = self._part.own[found.step.way.at].envelope
        then = _path(self._past.participant.reactions, self._reaction_then(event, reaction))
        now = _path(self._past.participant.reactions, reaction)
        note = StepNote(reaction.name, found.left, dropped=found.dropped)
        if then == now:
            return note
        what = f"{event.type}: {now}, where it was {then}"
        group = DifferenceGroup(self._past.name, reaction.name, DifferenceKind.PATH, what)
        return replace(note, group=group, recorded=f"{event.type} {then}", decided=now)

    def _reaction_then(self, event: Envelope[Any], likely: Reaction) -> Reaction:
        """The reaction that decided on an event; the likely one, if there is none of that name any
        more, or the cause is not known."""
        cause = self._part.known.get(event.causationid or "")
        id = None
        if cause is not None:
            id = id_among_causes(type(cause.envelope.data), cause.envelope.key)

        def decided(reaction: Reaction) -> bool:
            if id is None:
                return self.was_due(reaction, event)
            return derived_id(id, f"{self._past.name}.{reaction.name}.{event.type}") == event.id

        if decided(likely):
            return likely
        return next(filter(decided, self._past.participant.reactions), likely)

    def was_due(self, reaction: Reaction, event: Envelope[Any]) -> bool:
        """Whether an event came of what was due, as its id tells."""
        name, cause = self._past.name, event.causationid or ""
        step = f"{name}.{reaction.name}.{event.type}"
        sources = (due_source_of(name), due_source_of(name, brought_forward=True))
        return any(derived_id(cause_among_commands(cause, s), step) == event.id for s in sources)

    # --- in words -------------------------------------------------------------------------------

    def in_words(self, found: AgainstRecord) -> tuple[str, str]:
        """The fields that differ, and how."""
        names: dict[str, None] = {}
        values: list[str] = []
        for number, name in found.differing:
            decided = found.step.published[number].newest()
            recorded = self._part.own[found.step.way.at + number].envelope.data
            names[f"{name} of {decided.type}"] = None
            now, then = _shown(getattr(decided, name, None)), _shown(getattr(recorded, name))
            values.append(f"{name} {now} instead of {then}")
        return ", ".join(names), ", ".join(values)


def _path(reactions: Iterable[Reaction], reaction: Reaction) -> str:
    """How a reaction comes to decide."""
    if not issubclass(reaction.consumes, Answer):
        return "decided at once"
    asked = dict.fromkeys(
        intent.__name__
        for other in reactions
        for intent in other.intends
        if intent.answer is reaction.consumes
    )
    return f"decided after an answer to {' or '.join(asked)}"


def _was_said(event: RecordedEvent, name: str) -> bool:
    """Whether an event could say a field when it was published."""
    if event.older is not None:
        return name in event.older.model_fields
    data = event.envelope.data
    # What has no value is not written.
    return name in data.model_fields_set or type(data).model_fields[name].default is None


def _what(message: Message) -> str:
    return message.type if isinstance(message, Command) else type(message).__name__


def _shown(value: Any) -> str:
    return str(value)[:SHOWN_MAX_CHARACTERS] if value is not None else "nothing"
