"""What was on a broker that is gone: the messages that a participant has not dealt with.

A message that a participant has dealt with has a row in its inbox. What the history knows, or its
publisher still keeps, and what has no such row, is owed: it was in a queue, waited for its next
try, or was dead. Whoever reads the books while services are at work may take for owed what is
being done; done again, it is known then.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from common.choreography import Choreography, Participant
from common.envelope import Attributes, Decoder, MessageKey, Undecodable, source_of
from common.kernel.database import read_database
from common.kernel.kept import kept_events
from common.kernel.tables import Tables, utc_now
from common.message import Priority
from common.messaging.dead_letters import ADDRESSEE
from common.messaging.topology import EVENTS_EXCHANGE, queues_of, topology_of
from common.messaging.trust import EDITOR_SOURCE
from history_service.store import Fact, Stray
from saga.deployment import Deployment
from saga.dlq.examine import decoder_of
from saga.dlq.letters import document_of
from saga.history import pages
from saga.history.archive import Archive
from saga.history.sources import tables_of
from saga.reconcile.databases import sequences_in
from saga.recovery import RecoveryError

SLACK: Final = timedelta(minutes=10)
"""By how much clocks and deployments may differ."""

Progress = Callable[[int], None]


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
    """Events that a participant has counted as said, from `first` to `last`, and no book holds."""

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
    unknown: list[Unknown] = field(default_factory=list)


class Surveyor:
    """Reads the books of one system. Blocks; raises `RecoveryError` and `DatabaseError`."""

    def __init__(
        self,
        deployment: Deployment,
        graph: Choreography,
        since: datetime,
        progress: Progress = lambda _: None,
    ) -> None:
        self._deployment = deployment
        self._graph = graph
        self._history_url = Archive(deployment).url
        self._progress = progress
        self._tables: dict[str, Tables] = {p.name: tables_of(p.name) for p in graph.participants}
        self._first_done: dict[tuple[str, str], datetime] = {}
        """Keyed by participant and type: the time of the oldest event that it has done."""
        self._bound: defaultdict[str, list[Participant]] = defaultdict(list)
        """Keyed by routing key: who gets such messages."""
        for binding in topology_of(graph).bindings:
            for participant in graph.participants:
                if binding.exchange == EVENTS_EXCHANGE and binding.queue in queues_of(participant):
                    self._bound[binding.key].append(participant)
        self._decoders = {p.name: decoder_of(p) for p in graph.participants}
        self._survey = Survey(since)

    def run(self) -> Survey:
        """Read all books."""
        survey = self._survey
        for participant in self._graph.participants:
            self._read_kept(participant)
        up_to = pages.last_position(self._history_url)
        after = pages.last_before(self._history_url, survey.since)
        for page in pages.by_position(self._history_url, up_to, after=after):
            self._judge(page)
        self._judge(
            [
                Fact(attributes, body)
                for body in survey.unrecorded.values()
                if (attributes := _attributes_of(body)) is not None
            ]
        )
        for strays in pages.strays_of(self._history_url):
            self._judge([s for s in strays if s.recorded_at and s.recorded_at >= survey.since])
        self._leave_out_what_is_too_old()
        survey.owed.sort(key=lambda one: (one.priority is not Priority.HIGH, one.at))
        return survey

    def still_owed(self, owed: Sequence[Owed]) -> list[Owed]:
        """Those that have not been dealt with since."""
        by_participant: defaultdict[str, list[Owed]] = defaultdict(list)
        for one in owed:
            by_participant[one.participant].append(one)
        left: list[Owed] = []
        for name, mine in by_participant.items():
            done = self._done(name, {one.key for one in mine})
            left += [one for one in mine if one.key not in done]
        return left

    # --- the participants' books -----------------------------------------------------------------

    def _url(self, participant: str) -> str:
        url = self._deployment.database_urls.get(participant)
        if url is None:
            raise RecoveryError(
                f"the deployment names no database of {participant}; add its URL to database_urls"
            )
        return url

    def _read_kept(self, participant: Participant) -> None:
        """Note what a participant has published that the history does not know, and what it has
        counted as said."""
        name = participant.name
        tables = self._tables[name]

        def read(connection: Connection) -> tuple[bool, dict[str, int], dict[str, int]]:
            """All as of one moment: what is counted is kept, unless it is too old for that."""
            there = sa.select(sa.literal(1)).select_from(tables.inbox).limit(1)
            has_inbox = connection.execute(there).first() is not None
            kept: dict[str, int] = {}
            for bodies in kept_events(connection, tables):
                self._note_unrecorded(bodies, kept)
            return has_inbox, kept, sequences_in(connection, tables)

        has_inbox, kept, said = read_database(self._url(name), read)
        recorded = pages.last_sequences(self._history_url, source_of(name))
        if recorded and not has_inbox:
            raise RecoveryError(
                f"the database of {name} is empty, and the history knows what it has said: make it "
                f"again first, with `saga history rebuild {name}`"
            )
        for subject, last in sorted(said.items()):
            known = max(recorded.get(subject, 0), kept.get(subject, 0))
            if known < last:
                self._survey.unknown.append(Unknown(name, subject, known + 1, last))

    def _note_unrecorded(self, bodies: Iterable[bytes], kept: dict[str, int]) -> None:
        found: dict[MessageKey, bytes] = {}
        for body in bodies:
            if (attributes := _attributes_of(body)) is not None:
                found[attributes.key] = body
                kept[attributes.subject] = max(
                    kept.get(attributes.subject, 0), attributes.sequence or 0
                )
        recorded = pages.known_among(self._history_url, found.keys()) if found else set()
        self._survey.unrecorded.update(
            (key, body) for key, body in found.items() if key not in recorded
        )

    def _done(self, participant: str, keys: Collection[MessageKey]) -> set[MessageKey]:
        if not keys:
            return set()
        tables = self._tables[participant]
        return read_database(
            self._url(participant), lambda c: {*tables.already_done(c, keys).keys()}
        )

    # --- judging -----------------------------------------------------------------------------

    def _judge(self, page: Sequence[Fact | Stray]) -> None:
        """Note which of these messages are owed."""
        by_name: defaultdict[str, dict[MessageKey, Fact | Stray]] = defaultdict(dict)
        for item in page:
            key = item.attributes.key if isinstance(item, Fact) else MessageKey("", item.key)
            for participant in self._addressees(item):
                by_name[participant.name][key] = item
        for name, items in by_name.items():
            done = self._done(name, items.keys())
            for key, item in items.items():
                if key not in done:
                    self._survey.owed.append(self._owed(name, key, item))
                    if isinstance(item, Stray):
                        self._survey.strays[key.id] = item
                elif isinstance(item, Fact):
                    kind, at = (name, item.attributes.type), item.attributes.time
                    self._first_done[kind] = min(at, self._first_done.get(kind, at))
        self._survey.events += len(page)
        self._progress(len(page))

    def _owed(self, name: str, key: MessageKey, item: Fact | Stray) -> Owed:
        if isinstance(item, Fact):
            event = item.attributes
            readable = _can_read(self._decoders[name], item.body)
            return Owed(name, key, event.type, event.time, event.priority, readable)
        type_, _, priority = item.routing_key.rpartition(".")
        urgent = Priority.HIGH if priority == Priority.HIGH else Priority.NORMAL
        at = item.recorded_at or self._survey.since
        return Owed(name, key, type_, at, urgent, readable=False)

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
        first that it did at all."""
        survey, now = self._survey, utc_now()
        first_of_all: dict[str, datetime] = {}
        for (name, _), at in self._first_done.items():
            first_of_all[name] = min(at, first_of_all.get(name, at))
        slack = {p.name: SLACK + _longest_wait(p) for p in self._graph.participants}
        owed: list[Owed] = []
        for one in survey.owed:
            name = one.participant
            first = self._first_done.get((name, one.type), first_of_all.get(name, now))
            too_old = one.readable and one.at < first - slack[name]
            (survey.too_old if too_old else owed).append(one)
        survey.owed = owed


def _longest_wait(participant: Participant) -> timedelta:
    """How long a message may take to be done by a participant that tries it again and again."""
    policies = map(participant.retry_of, [None, *participant.by_message])
    return timedelta(milliseconds=max(sum(policy.waits_ms) for policy in policies))


def _can_read(decoder: Decoder, body: bytes) -> bool:
    try:
        decoder.decode(body)
    except Undecodable:
        return False
    return True


def _attributes_of(body: bytes) -> Attributes | None:
    """None for what is no event, as a damaged row of an outbox may be."""
    try:
        return Attributes.of(body)
    except (Undecodable, TypeError):
        return None
