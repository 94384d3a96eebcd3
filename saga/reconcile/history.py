"""The event history, kept while it is read as far as rules look at it."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, NamedTuple

from saga.choreography import Choreography
from saga.dlq.letters import document_of
from saga.envelope import Decoder, Envelope, MessageKey, Undecodable, believed_of, source_of
from saga.runtime.messaging.dead_letters import ADDRESSEE, key_of
from saga.runtime.messaging.topology import EVENTS_EXCHANGE, queues_of, topology_of
from saga.runtime.messaging.trust import EDITOR_SOURCE, check_source

LOOKED_THROUGH_MAX = 1_000_000
"""Events of one participant about one subject that are looked through for gaps."""
BITS_MAX = 10_000
"""Those of them that are kept as bits. A single event may claim any number, and it must not cost
more than another one."""

LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(slots=True)
class OwedMessage:
    """A message some participant has to deal with. `copies` counts how often it was published;
    an undecodable one, which can only become a dead letter, has its routing key as `type`."""

    type: str
    subject: str | None
    at: datetime
    decodable: bool
    copies: int = 1
    source: str | None = None
    """Of the event; None for what cannot have been done."""


class KeptEvent(NamedTuple):
    """What is kept of an event; see `saga.view.Mark`. `body` only where a rule reads it."""

    id: str
    type: str
    source: str
    sequence: int | None
    body: bytes | None


class History:
    """Takes messages in any order, each as often as it comes, and counts each event once.

    A `saga.view.Told`: of events of the types in `read`, and of those that participants `asking` an
    outside have published, the whole is kept.
    """

    def __init__(
        self,
        choreography: Choreography,
        *,
        read: Collection[str] = (),
        asking: Collection[str] = (),
        decoder: Decoder | None = None,
    ) -> None:
        self._read = frozenset(read)
        self._asking = {source_of(name) for name in asking}
        self._decoder = decoder or Decoder(choreography.recorded)
        self._reactors = {
            message.type: frozenset(p.name for p in choreography.reacting_to(message.type))
            for message in choreography.recorded
        }
        self._participants = {source_of(p.name): p.name for p in choreography.participants}
        owners = {queue: p.name for p in choreography.participants for queue in queues_of(p)}
        bound: defaultdict[str, set[str]] = defaultdict(set)
        for binding in topology_of(choreography).bindings:
            if binding.exchange == EVENTS_EXCHANGE and binding.queue in owners:
                bound[binding.key].add(owners[binding.queue])
        self._bound = {key: frozenset(names) for key, names in bound.items()}

        self.first_offset = 0
        """The oldest offset the stream still has; above 0, retention has trimmed it."""
        self.made_anew = False
        """Whether there was another stream before, whose events this one does not have."""
        self.messages = 0
        """Messages in the stream."""
        self.undecodable = 0
        self.owed: dict[str, dict[str, OwedMessage]] = {
            p.name: {} for p in choreography.participants
        }
        """Keyed by participant and key: what it has to deal with."""
        self.replaced: defaultdict[str, set[str]] = defaultdict(set)
        """Keyed by participant: the keys of messages an operator has replaced by corrected
        copies."""
        self.last_event_at: dict[str, datetime] = {}
        """Keyed by subject: the highest time of an event."""
        self.latest_event_at: dict[str, datetime] = {}
        """Keyed by subject: the time of the event that came last. It differs where a clock was set
        back."""
        self.incomplete: set[str] = set()
        """The subjects of which a rule was told that their beginning is not known."""
        self._events: dict[str, dict[MessageKey, KeptEvent]] = {}
        """Keyed by subject and key."""
        self._seen: dict[str, dict[str, int]] = {p.name: {} for p in choreography.participants}
        """Keyed by participant and subject: the events known: bit n says that event n is."""
        self._seen_beyond: defaultdict[tuple[str, str], set[int]] = defaultdict(set)
        """Keyed by participant and subject: the numbers beyond those bits."""

    @property
    def trimmed(self) -> bool:
        """Whether the oldest events are gone: retention has removed them, or they were in another
        stream."""
        return self.first_offset > 0 or self.made_anew

    def take(
        self, routing_key: str, message_id: str | None, sent_at: datetime | None, body: bytes
    ) -> None:
        """Take a message of the stream."""
        self.messages += 1
        bound = self._bound.get(routing_key, frozenset())
        try:
            envelope = self._decoder.decode(body)
            if envelope.source != EDITOR_SOURCE:
                check_source(envelope.type, believed_of(type(envelope.data)), envelope.source)
        except Undecodable:
            self.undecodable += 1
            self._owe(
                bound,
                key_of(message_id, body),
                OwedMessage(routing_key, None, sent_at or LONG_AGO, False),
            )
            return
        if envelope.source == EDITOR_SOURCE:
            self._take_corrected(envelope, body)
            return
        reactors = self._reactors[envelope.type]
        self._owe(reactors, envelope.id, _owed(envelope, decodable=True))
        # A queue that gets what its participant has no reaction to: a dead letter, like any other
        # message it cannot read.
        self._owe(bound - reactors, key_of(message_id, body), _owed(envelope, decodable=False))
        self._keep(envelope, body)

    def _take_corrected(self, envelope: Envelope[Any], body: bytes) -> None:
        """Take a copy of a dead letter that an operator corrected: it went to one participant only,
        and is no fact of its own."""
        addressee = (document_of(body) or {}).get(ADDRESSEE)
        if addressee in self.owed:
            self._owe(frozenset({addressee}), envelope.id, _owed(envelope, decodable=True))
            if envelope.causationid is not None:
                self.replaced[addressee].add(envelope.causationid)

    def take_unpublished(self, body: bytes) -> None:
        """Take an event that waits in an outbox: it happened, and no participant owes a reaction
        yet."""
        self._keep(self._decoder.decode(body), body)

    # --- see `saga.view.Told`

    def events(self, types: Collection[str]) -> Iterator[Envelope[Any]]:
        for kept in self._events.values():
            for event in kept.values():
                if event.type in types and event.body is not None:
                    yield self._decoder.decode(event.body)

    def about(self, subject: str) -> Sequence[KeptEvent]:
        return list(self._events.get(subject, {}).values())

    def own(self, source: str, subject: str) -> Sequence[Envelope[Any]]:
        return [
            self._decoder.decode(event.body)
            for event in self._events.get(subject, {}).values()
            if event.source == source and event.body is not None
        ]

    def subjects(self) -> Collection[str]:
        return self._events.keys()

    # ---

    def missing(self, participant: str, subject: str, sequence: int) -> Iterator[int]:
        """Which of a participant's first `sequence` events about a subject are not known.

        Where the history has been trimmed, those before the oldest known are taken for trimmed.
        """
        seen = self._seen.get(participant, {}).get(subject, 0)
        beyond = self._seen_beyond.get((participant, subject), set())
        first = 1
        if self.trimmed:
            if not seen and not beyond:
                return
            first = (seen & -seen).bit_length() - 1 if seen else min(beyond)
        for number in range(first, min(sequence, LOOKED_THROUGH_MAX) + 1):
            known = seen >> number & 1 if number <= BITS_MAX else number in beyond
            if not known:
                yield number

    def last_numbers(self, participant: str) -> dict[str, int]:
        """Keyed by subject: the highest number known of a participant's events."""
        last = {subject: seen.bit_length() - 1 for subject, seen in self._seen[participant].items()}
        for (name, subject), numbers in self._seen_beyond.items():
            if name == participant:
                last[subject] = max(last.get(subject, 0), *numbers)
        return last

    def complete(self, participant: str, subject: str) -> bool:
        """Whether the history still has the beginning of what a participant said of a subject."""
        whole = not self.trimmed or bool(self._seen.get(participant, {}).get(subject, 0) & 2)
        if not whole:
            self.incomplete.add(subject)
        return whole

    def _owe(self, participants: frozenset[str], key: str, owed: OwedMessage) -> None:
        for name in participants:
            known = self.owed[name].get(key)
            copies = 1 if known is None else known.copies + 1
            # Whatever came under the id before: it is the event that has to be done.
            kept = owed if known is None or owed.decodable else known
            self.owed[name][key] = replace(kept, copies=copies)

    def _keep(self, envelope: Envelope[Any], body: bytes) -> None:
        subject = envelope.subject
        participant = self._participants.get(envelope.source)
        number = envelope.sequence or 0
        if participant is not None and 1 <= number <= BITS_MAX:
            seen = self._seen[participant]
            seen[subject] = seen.get(subject, 0) | 1 << number
        elif participant is not None and BITS_MAX < number <= LOOKED_THROUGH_MAX:
            self._seen_beyond[participant, subject].add(number)
        self.latest_event_at[subject] = envelope.time
        last = self.last_event_at.get(subject)
        if last is None or last < envelope.time:
            self.last_event_at[subject] = envelope.time
        source = sys.intern(envelope.source)
        whole = envelope.type in self._read or source in self._asking
        self._events.setdefault(subject, {}).setdefault(
            envelope.key,
            KeptEvent(
                envelope.id,
                sys.intern(envelope.type),
                source,
                envelope.sequence,
                body if whole else None,
            ),
        )


def _owed(envelope: Envelope[Any], *, decodable: bool) -> OwedMessage:
    source = envelope.source if decodable else None
    return OwedMessage(envelope.type, envelope.subject, envelope.time, decodable, source=source)
