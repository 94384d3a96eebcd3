"""What was on a broker that is gone: the messages that a participant has not dealt with.

A message that a participant has dealt with has a row in its inbox. What the history knows, or its
publisher still keeps, and what has no such row, is owed: it was in a queue, waited for its next
try, or was dead. If the books are read while services are at work, what is being done may
seem owed; done again, it is known then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from typing import Any, Final, Protocol

from saga.archive.store import Fact, Stray
from saga.choreography import Choreography, Participant
from saga.dlq.examine import decoder_of
from saga.dlq.letters import document_of
from saga.envelope import Attributes, Decoder, Envelope, MessageKey, Undecodable
from saga.message import Priority
from saga.recovery import RecoveryError
from saga.runtime.messaging import frames
from saga.runtime.messaging.dead_letters import ADDRESSEE, BY_BODY
from saga.runtime.messaging.frames import Posting
from saga.runtime.messaging.publisher import posting_of
from saga.runtime.messaging.topology import EVENTS_EXCHANGE, queue_of, queues_of, topology_of
from saga.runtime.messaging.trust import EDITOR_SOURCE, check_sender

SLACK: Final = timedelta(minutes=10)
"""How much clocks and deployments may differ."""

AT_ONCE: Final = 2_000
"""Events that are looked up together."""
BEGINNER: Final = timedelta(days=1)
"""A participant that did its first event so soon after the saga began was there from the start; one
that has done nothing yet has been there for so long."""

Progress = Callable[[int], None]
Known = Callable[[Collection[MessageKey]], Collection[MessageKey]]
"""Tells which of some events the history knows."""


@dataclass
class Publications:
    """What one participant's own database tells of what it has published, as of one moment."""

    source: str
    """The publisher's. Others' events are none of its business."""
    counts: Mapping[str, int]
    """Keyed by subject: how many events it has published, by its own state."""
    first: dict[str, int] = field(default_factory=dict)
    last: dict[str, int] = field(default_factory=dict)
    """Keyed by subject: the numbers of the first and the last event that are kept."""
    unrecorded: dict[MessageKey, bytes] = field(default_factory=dict)
    """The bodies of kept events that the history does not know."""
    has_inbox: bool = True
    """Whether it has ever done anything, as far as it remembers."""

    @property
    def blank(self) -> bool:
        """Whether its database has nothing in it."""
        return not (self.has_inbox or self.counts)

    def take(self, bodies: Iterable[bytes], known: Known) -> None:
        """Take some of the events that are kept."""
        rest = iter(bodies)
        while page := [*islice(rest, AT_ONCE)]:
            found: dict[MessageKey, bytes] = {}
            for body in page:
                event = attributes_of(body)
                if event is None or event.source != self.source:
                    continue
                found[event.key] = body
                number = event.sequence or 0
                self.first[event.subject] = min(number, self.first.get(event.subject, number))
                self.last[event.subject] = max(number, self.last.get(event.subject, number))
            recorded = known(found.keys()) if found else ()
            self.unrecorded |= {key: body for key, body in found.items() if key not in recorded}


class Evidence(Protocol):
    """What the books of one system tell. Reading them blocks."""

    def kept(self, participant: str) -> Publications:
        """What a participant keeps of what it has published."""
        ...

    def done(self, participant: str, keys: Collection[MessageKey]) -> Collection[MessageKey]:
        """Those of these messages that a participant's inbox knows; of one in another language,
        those that it has published something because of. Its inbox knows the others."""
        ...

    def recorded(self, since: datetime) -> Iterator[Sequence[Fact | Stray]]:
        """What the history has recorded since then: events in their order, then all else."""
        ...

    def began(self) -> datetime | None:
        """The time of the first event that the history has; None if it has none."""
        ...

    def last_recorded(self, participant: str) -> Mapping[str, int]:
        """Keyed by subject: the number of the last event of a participant that the history has."""
        ...

    def bodies(self, keys: Collection[MessageKey]) -> Mapping[MessageKey, bytes]:
        """The bodies of events of the history."""
        ...


@dataclass(frozen=True, slots=True)
class Owed:
    """A message that a participant has not dealt with. One that is no event has no source; its id
    is what it is recognised by."""

    participant: str
    key: MessageKey
    type: str
    at: datetime
    priority: Priority
    readable: bool
    """Whether its participant can read it. What it cannot, can only become a dead letter."""


@dataclass(frozen=True, slots=True)
class Unknown:
    """Events that a participant has published, from `first` to `last`, and no book holds."""

    participant: str
    subject: str
    first: int
    last: int


@dataclass
class Survey:
    """What the books tell of a broker that is gone."""

    since: datetime
    """What is older was not looked at."""
    events: int = 0
    """Looked at, in the history and beside it."""
    owed: list[Owed] = field(default_factory=list)
    unrecorded: dict[MessageKey, bytes] = field(default_factory=dict)
    """The bodies of events that the history has not read."""
    strays: dict[str, Stray] = field(default_factory=dict)
    """Those that are owed, by key."""
    too_old: list[Owed] = field(default_factory=list)
    """What is older than all of its type that its participant has done. Perhaps it did not react to
    that then, so these are not put back."""
    refused: int = 0
    """Messages that the broker had let in, and their receivers had not, because of who sent them.
    They were dead letters; put back by an operator, they would be taken."""
    unknown: list[Unknown] = field(default_factory=list)


class Surveyor:
    """Reads all books, and tells what is owed. Blocks; raises what its evidence raises."""

    def __init__(
        self,
        evidence: Evidence,
        graph: Choreography,
        since: datetime,
        now: datetime,
        progress: Progress = lambda _: None,
    ) -> None:
        self._evidence = evidence
        self._now = now
        self._graph = graph
        self._progress = progress
        self._first_done: dict[tuple[str, str], datetime] = {}
        """Keyed by participant and type: the time of the oldest event that it has done."""
        self._bound: defaultdict[str, list[Participant]] = defaultdict(list)
        """Keyed by routing key: who gets such messages."""
        for binding in topology_of(graph).bindings:
            for participant in graph.participants:
                if binding.exchange == EVENTS_EXCHANGE and binding.queue in queues_of(participant):
                    self._bound[binding.key].append(participant)
        self._named = {p.name: p for p in graph.participants}
        self._decoders = {p.name: decoder_of(p) for p in graph.participants}
        self._survey = Survey(since)

    def run(self) -> Survey:
        """Read all books. Raises `RecoveryError` too."""
        survey = self._survey
        for participant in self._graph.participants:
            self._take_kept(participant.name)
        for page in self._evidence.recorded(survey.since):
            self._judge(page)
        bodies = iter(survey.unrecorded.values())
        while page := [Fact(Attributes.of(body), body) for body in islice(bodies, AT_ONCE)]:
            self._judge(page)
        self._leave_out_what_is_too_old()
        survey.owed.sort(key=lambda one: (one.priority is not Priority.HIGH, one.at))
        return survey

    def still_owed(self, owed: Sequence[Owed]) -> list[Owed]:
        """Those that have not been dealt with since."""
        by_participant: defaultdict[str, list[MessageKey]] = defaultdict(list)
        for one in owed:
            by_participant[one.participant].append(one.key)
        done = {name: self._evidence.done(name, keys) for name, keys in by_participant.items()}
        return [one for one in owed if one.key not in done[one.participant]]

    def postings(self, owed: Sequence[Owed]) -> list[Posting]:
        """What puts messages back into their participants' queues, by the default exchange."""
        survey = self._survey
        bodies = dict(self._evidence.bodies({one.key for one in owed if one.key.source}))
        postings = []
        for one in owed:
            queue = queue_of(self._named[one.participant], one.type, one.priority)
            if one.key.source:
                body = survey.unrecorded.get(one.key) or bodies[one.key]
                postings.append(posting_of(body, queue))
            else:
                stray = survey.strays[one.key.id]
                postings.append(Posting(queue, properties_of(stray), stray.body))
        return postings

    def _take_kept(self, name: str) -> None:
        """Note what a participant has published that the history does not know, and what it has
        counted as said and no book holds."""
        kept = self._evidence.kept(name)
        recorded = self._evidence.last_recorded(name)
        if recorded and kept.blank:
            raise RecoveryError(
                f"the database of {name} is empty, and the history knows what it has said: make it "
                f"again first, with `saga history rebuild {name}`"
            )
        self._survey.unrecorded |= kept.unrecorded
        for subject, count in sorted(kept.counts.items()):
            known = recorded.get(subject, 0)
            if subject in kept.first:
                self._note_unknown(name, subject, known + 1, kept.first[subject] - 1)
                known = max(known, kept.last[subject])
            self._note_unknown(name, subject, known + 1, count)

    def _note_unknown(self, name: str, subject: str, first: int, last: int) -> None:
        if first <= last:
            self._survey.unknown.append(Unknown(name, subject, first, last))

    # --- judging -----------------------------------------------------------------------------

    def _judge(self, page: Sequence[Fact | Stray]) -> None:
        """Note which of these messages are owed."""
        by_name: defaultdict[str, dict[MessageKey, Fact | Stray]] = defaultdict(dict)
        for item in page:
            key = item.attributes.key if isinstance(item, Fact) else MessageKey("", item.key)
            for participant in self._addressees(item):
                by_name[participant.name][key] = item
        for name, items in by_name.items():
            done = self._evidence.done(name, items.keys())
            for key, item in items.items():
                if key not in done:
                    self._note_owed(name, key, item)
                elif isinstance(item, Fact):
                    kind, at = (name, item.attributes.type), item.attributes.time
                    self._first_done[kind] = min(at, self._first_done.get(kind, at))
        self._survey.events += len(page)
        self._progress(len(page))

    def _note_owed(self, name: str, key: MessageKey, item: Fact | Stray) -> None:
        envelope = _read(self._decoders[name], item.body)
        if isinstance(item, Fact):
            event = item.attributes
            readable = envelope is not None
            owed = Owed(name, key, event.type, event.time, event.priority, readable)
        else:
            if envelope is not None and not _is_rightly_routed(item.routing_key, envelope):
                self._survey.refused += 1
                return
            type_, _, priority = item.routing_key.rpartition(".")
            urgent = Priority.HIGH if priority == Priority.HIGH else Priority.NORMAL
            at = item.recorded_at or self._survey.since
            owed = Owed(name, key, type_, at, urgent, readable=False)
            self._survey.strays[key.id] = item
        self._survey.owed.append(owed)

    def _addressees(self, item: Fact | Stray) -> Iterable[Participant]:
        """Whose queues a message went into."""
        if isinstance(item, Stray):
            return self._bound.get(item.routing_key, ())
        if item.attributes.source == EDITOR_SOURCE:
            addressee = (document_of(item.body) or {}).get(ADDRESSEE)
            return [p for p in self._graph.participants if p.name == addressee]
        return self._graph.reacting_to(item.attributes.type)

    def _leave_out_what_is_too_old(self) -> None:
        """A participant is not owed what was published before it reacted to such events. The first
        that it did of a type tells when that was, as far as anything does; where it did none, the
        first that it did at all. One that has been there since the saga began, or has done nothing
        yet, reacted to everything."""
        survey = self._survey
        began = self._evidence.began()
        first_of_all: dict[str, datetime] = {}
        for (name, _), at in self._first_done.items():
            first_of_all[name] = min(at, first_of_all.get(name, at))
        slack = {p.name: SLACK + _longest_wait(p) for p in self._graph.participants}
        owed: list[Owed] = []
        for one in survey.owed:
            name = one.participant
            first_of_any = first_of_all.get(name, self._now - BEGINNER)
            first = self._first_done.get((name, one.type), first_of_any)
            too_old = (
                one.readable
                and one.at < first - slack[name]
                and (began is None or began < first_of_any - BEGINNER)
            )
            (survey.too_old if too_old else owed).append(one)
        survey.owed = owed


def _longest_wait(participant: Participant) -> timedelta:
    """How long a message may take to be done by a participant that tries it again and again."""
    policies = map(participant.retry_of, [None, *participant.by_message])
    return timedelta(milliseconds=max(sum(policy.waits_ms) for policy in policies))


def _read(decoder: Decoder, body: bytes) -> Envelope[Any] | None:
    try:
        return decoder.decode(body)
    except Undecodable:
        return None


def _is_rightly_routed(routing_key: str, envelope: Envelope[Any]) -> bool:
    """Whether a message came as what it says it is, from who may say so."""
    try:
        check_sender(EVENTS_EXCHANGE, routing_key, envelope, "")
    except Undecodable:
        return False
    return True


def attributes_of(body: bytes) -> Attributes | None:
    """None for what is no event, as a damaged row of an outbox may be."""
    try:
        return Attributes.of(body)
    except (Undecodable, TypeError):
        return None


def properties_of(stray: Stray) -> bytes:
    """As many of a message's properties as the history keeps."""
    values = {"delivery_mode": b"\x02"}
    if not stray.key.startswith(BY_BODY):
        values["message_id"] = frames.short(stray.key, cut=True)
    return frames.join(values)
