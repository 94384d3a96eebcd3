"""Making a broker again that is gone: topology, what is owed, and the history's stream."""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import blake2b
from itertools import islice
from typing import Final
from uuid import uuid4

import aiormq

from saga.archive.store import Fact
from saga.broker.setup import missing_queues, partitions_at
from saga.choreography import Choreography
from saga.deployment import Deployment
from saga.dlq.letters import DeadLetter, message_key_of
from saga.dlq.letters import posting_of as posting_again
from saga.envelope import Attributes, MessageKey
from saga.history.letters import letters_in, sent_in
from saga.history.whereabouts import in_store, look
from saga.recovery.evidence import DatabaseEvidence
from saga.recovery.owed import Evidence, Progress, Survey, Surveyor, properties_of
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.messaging.frames import Posting
from saga.runtime.messaging.permissions import REPLAY
from saga.runtime.messaging.publisher import CONFIRM_TIMEOUT_SECONDS, BrokerPublisher, posting_of
from saga.runtime.messaging.stream import FIRST, StreamError, last_offset, reading, restored
from saga.runtime.messaging.topology import EVENTS_EXCHANGE, HISTORY_STREAM
from saga.runtime.messaging.trust import EDITOR_SOURCE
from saga.runtime.urls import printable
from saga.wording import counted

BATCH_MAX: Final = 500
"""Messages published together."""
STREAM_DAYS: Final = 30
"""How far back the stream is filled: as long as it keeps events at least."""
LISTED_MAX: Final = 20
"""Lost events that are listed one by one."""
READ_AT_ONCE: Final = 2_000
STALL_SECONDS: Final = 30.0


@dataclass
class Recovered:
    """What was found, and what was done about it."""

    survey: Survey
    resting: int = 0
    """Owed messages that are on the broker, or among the operator's dead letters."""
    put_back: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Keyed by participant and type: messages put back into its queues, or that would be."""
    filled: int = 0
    """Messages put back into the stream."""
    in_stream: int = 0
    """Messages that were there."""
    takers: tuple[str, ...] = ()
    """The participants that take commands from outside over the broker."""
    partitions: int = 1
    """How many each queue has that events are routed to, or would have."""
    partitions_known: bool = True
    """Whether that is what they had before the broker lost its queues, if it has."""

    @property
    def complete(self) -> bool:
        """Whether nothing is known to be lost."""
        return not self.survey.unknown

    def remarks(self) -> list[str]:
        """What was done, and what is to be known of it, a line each."""
        survey = self.survey
        lines = [
            f"{counted(survey.events, 'event')} looked at; "
            f"{counted(self.put_back.total(), 'message')} put back into "
            f"queues, {self.filled} into the history's stream"
        ]
        if self.partitions > 1:
            lines.append(
                f"the queues are divided into {counted(self.partitions, 'partition')} each"
            )
        elif not self.partitions_known:
            lines.append(
                "the queues are not divided, and nothing notes whether they were: if so, run "
                "`saga topology apply --partitions N` with the number they had"
            )
        if self.resting:
            lines.append(
                f"on the broker already, or dead letters in the operator's store: "
                f"{counted(self.resting, 'message')}"
            )
        if survey.refused:
            lines.append(
                f"not put back: {counted(survey.refused, 'message')} that became dead letters "
                f"because their senders had no right to them"
            )
        if self.takers:
            lines.append(
                f"commands sent to the queues of {', '.join(self.takers)} and not taken yet are in "
                f"no book: their sender has to send them again, under the same ids"
            )
        too_old = Counter((one.participant, one.type) for one in survey.too_old)
        lines += [
            f"not put back: {count} of {type_}, older than all that {participant} has done of that "
            f"type, so it is taken that it did not react to it then"
            for (participant, type_), count in sorted(too_old.items())
        ]
        lines += [
            f"lost: events {one.first} to {one.last} of {one.participant} about {one.subject}"
            for one in survey.unknown[:LISTED_MAX]
        ]
        if len(survey.unknown) > LISTED_MAX:
            lines.append(
                f"lost: events about {counted(len(survey.unknown) - LISTED_MAX, 'more subject')}"
            )
        return lines


async def recover(
    deployment: Deployment,
    graph: Choreography,
    *,
    since: datetime | None = None,
    partitions: int | None = None,
    dry_run: bool = False,
    looked_at: Progress = lambda _: None,
    put_back: Progress = lambda _: None,
    filled: Progress = lambda _: None,
) -> Recovered:
    """Put back into the queues what is owed to their participants, and into the stream what it
    lacks. The topology has to be there, and services may be at work.

    What is older than `since` is not looked at, by default than services remember. `partitions` is
    how many the queues had, if that is known. May be called
    again: what was put back twice is done once. With `dry_run`, nothing is published. The others
    are told of each message looked at, put back into a queue, and into the stream. Raises
    `RecoveryError`, `BrokerError`, `DatabaseError`, `HistoryError` and `DlqError`.
    """
    now = utc_now()
    remembered = now - timedelta(days=deployment.inbox_days)
    evidence = await asyncio.to_thread(DatabaseEvidence, deployment, graph)
    surveyor = Surveyor(evidence, graph, max(since or remembered, remembered), now, looked_at)
    survey = await asyncio.to_thread(surveyor.run)
    letters = await asyncio.to_thread(letters_in, deployment.dead_letters_url)
    there = await partitions_at(deployment.amqp_url, graph)
    missing: list[str] = []
    if dry_run:
        had = partitions or 1
        missing = await missing_queues(deployment.amqp_url, graph, partitions_min=had)
        there = max(there, had)
    if missing:
        resting = {*in_store(letters)}
    else:
        seen = await look(deployment, graph, letters)
        resting = {*seen.found, *((copy.participant, copy.key) for copy in seen.dead)}
    owed = [one for one in survey.owed if (one.participant, one.key.id) not in resting]
    recovered = Recovered(
        survey,
        resting=len(survey.owed) - len(owed),
        takers=tuple(p.name for p in graph.participants if graph.given_to(p)),
        partitions=there,
        partitions_known=partitions is not None,
    )
    publisher = BrokerPublisher(deployment.amqp_url_of(REPLAY), "saga recover")
    try:
        for start in range(0, len(owed), BATCH_MAX):
            batch = await asyncio.to_thread(surveyor.still_owed, owed[start : start + BATCH_MAX])
            if not dry_run:
                await _publish(publisher, await asyncio.to_thread(surveyor.postings, batch))
            recovered.put_back.update((one.participant, one.type) for one in batch)
            put_back(len(batch))
        known = resting | {(one.participant, one.key.id) for one in owed}
        replayed = await asyncio.to_thread(_replayed, deployment, evidence, known)
        for start in range(0, len(replayed), BATCH_MAX):
            some = replayed[start : start + BATCH_MAX]
            if not dry_run:
                await _publish(publisher, [posting_again(one, one.replays) for one in some])
            recovered.put_back.update((one.participant, one.type) for one in some)
            put_back(len(some))
        stream = _Stream()
        if HISTORY_STREAM not in missing:
            stream = await _read_stream(deployment)
        recovered.in_stream = len(stream.bodies)
        lacking = _lacking(evidence, survey, stream, now - timedelta(days=STREAM_DAYS))
        while postings := await asyncio.to_thread(lambda: [*islice(lacking, BATCH_MAX)]):
            if not dry_run:
                await _publish(publisher, postings)
            recovered.filled += len(postings)
            filled(len(postings))
    finally:
        await publisher.close()
    return recovered


def _replayed(
    deployment: Deployment, evidence: Evidence, known: Collection[tuple[str, str]]
) -> list[DeadLetter]:
    """The letters that were replayed, are not done, and are not `known` to be elsewhere or owed, by
    participant and id: commands, most of all, which are in no history. Blocks."""
    letters = sent_in(deployment.dead_letters_url)
    keys: defaultdict[str, set[MessageKey]] = defaultdict(set)
    for letter in letters:
        if (key := message_key_of(letter.body)) is not None:
            keys[letter.participant].add(key)
    done = {name: evidence.done(name, mine) for name, mine in keys.items()}
    return [
        letter
        for letter in letters
        if (letter.participant, letter.message_id) not in known
        and message_key_of(letter.body) not in done.get(letter.participant, ())
    ]


async def _publish(publisher: BrokerPublisher, postings: Sequence[Posting]) -> None:
    """Publish to the default exchange, and return once all of it is confirmed."""
    if not postings:
        return
    channel = await publisher.open()
    errors = await channel.publish("", postings, CONFIRM_TIMEOUT_SECONDS)
    for posting, error in zip(postings, errors, strict=True):
        if error is not None:
            raise BrokerError(
                f"the broker did not take a message for {posting.routing_key}: "
                f"{error}; run this again once it is well"
            )


@dataclass(frozen=True)
class _Stream:
    """What is in the stream: digests of all bodies, and from when on it has everything."""

    bodies: set[bytes] = field(default_factory=set)
    since: datetime | None = None
    """Retention has removed what is older; None if it has removed nothing."""


async def _read_stream(deployment: Deployment) -> _Stream:
    connection = await connect(deployment.amqp_url, name="saga recover")
    bodies: set[bytes] = set()
    since: datetime | None = None
    try:
        last = await last_offset(connection)
        if last is None:
            return _Stream()
        async with reading(connection, FIRST) as reader:
            first = True
            while records := await reader.take(READ_AT_ONCE, STALL_SECONDS):
                if first and records[0].offset > 0:
                    since = records[0].sent_at
                first = False
                bodies.update(_digest(record.body) for record in records)
                if records[-1].offset >= last:
                    return _Stream(bodies, since)
        raise BrokerError(f"the broker stopped sending {HISTORY_STREAM}; try again once it is well")
    except StreamError as error:
        raise BrokerError(str(error)) from error
    except (aiormq.exceptions.AMQPError, ConnectionError) as error:
        raise BrokerError(
            f"RabbitMQ at {printable(deployment.amqp_url)} failed while it was read: {error}"
        ) from error
    finally:
        await connection.close()


def _lacking(
    evidence: Evidence, survey: Survey, stream: _Stream, since: datetime
) -> Iterator[Posting]:
    """What puts back into the stream what it lacks, in the order of the history; blocks."""
    run = uuid4().hex
    since = max(since, stream.since or since)
    for page in evidence.recorded(since):
        for item in page:
            # An event's own time may be anything.
            if item.recorded_at is None or item.recorded_at < since:
                continue
            if _digest(item.body) in stream.bodies:
                continue
            if isinstance(item, Fact):
                yield _event_again(item.attributes, item.body, run)
            elif item.routing_key:
                properties = properties_of(item)
                yield restored(item.body, properties, EVENTS_EXCHANGE, item.routing_key, run=run)
    for body in survey.unrecorded.values():
        if _digest(body) not in stream.bodies:
            yield _event_again(Attributes.of(body), body, run)


def _event_again(event: Attributes, body: bytes, run: str) -> Posting:
    posting = posting_of(body, HISTORY_STREAM)
    if event.source == EDITOR_SOURCE:
        return posting  # As it came there first.
    return restored(body, posting.properties, EVENTS_EXCHANGE, event.routing_key, run=run)


def _digest(body: bytes) -> bytes:
    return blake2b(body, digest_size=12).digest()
