"""One participant's part of a recorded subject: what it published, and what it may have taken."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any

from saga.choreography import Participant, Reaction
from saga.envelope import Envelope, derived_id
from saga.past.recorded import RecordedEvent
from saga.runtime.kernel.step import id_among_causes


class RecordedPart:
    """What one participant published about a subject, its `own` events, and what it may have taken,
    the `incoming` ones. `known` are all events about the subject, keyed by id."""

    def __init__(
        self,
        subject: str,
        own: Sequence[RecordedEvent],
        incoming: Sequence[RecordedEvent],
        known: Mapping[str, RecordedEvent],
    ) -> None:
        self.subject = subject
        self.own = own
        self.incoming = incoming
        self.known = known
        self._places = {event.envelope.id: place for place, event in enumerate(own)}
        self._earliest: dict[str, int] = {}

    def position_at(self, at: int) -> int:
        """The position of its own event of that number, from 0, or one behind all events."""
        if at < len(self.own):
            return self.own[at].position
        return max((e.position for e in (*self.own, *self.incoming)), default=0) + 1

    def time_at(self, at: int) -> datetime:
        """About when the participant was there."""
        if at < len(self.own):
            return self.own[at].envelope.time
        return max(e.envelope.time for e in (*self.own, *self.incoming))

    def cause_of(self, at: int) -> RecordedEvent | None:
        """The event because of which its own event of that number came about, if there is one."""
        return self.known.get(self.own[at].envelope.causationid or "")

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
        if id not in self._earliest:
            places = (self._places.get(each) for each in (id, *self._behind(message)))
            self._earliest[id] = next((place + 1 for place in places if place is not None), 0)
        return self._earliest[id]

    def latest(self, message: RecordedEvent) -> int:
        """How many there were at most if messages do not overtake each other: until it decided on
        one that came later by the same queue, from the same publisher or because of this one."""
        for at in range(self.earliest(message), len(self.own)):
            cause = self.cause_of(at)
            if (
                cause is not None
                and cause.position > message.position
                and cause.envelope.priority is message.envelope.priority
                and (
                    cause.envelope.source == message.envelope.source
                    or message.envelope.id in self._behind(cause)
                )
            ):
                return at
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

    def _behind(self, message: RecordedEvent) -> Iterator[str]:
        """The ids of what led to a message, the nearest first."""
        seen = {message.envelope.id}
        cause = message.envelope.causationid
        while cause is not None and cause not in seen:
            seen.add(cause)
            yield cause
            event = self.known.get(cause)
            cause = event.envelope.causationid if event is not None else None
