"""Making the broker of a run again after it was lost, as `saga recover broker` does.

The history had read a part of the stream, perhaps all of it. What it had not, only its publishers
know.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from sqlalchemy.engine import Connection

from saga.archive.store import Fact, Stray, judge
from saga.choreography import Choreography
from saga.envelope import Attributes, MessageKey, source_of
from saga.reconcile.databases import sequences_in
from saga.recovery.owed import Publications, Surveyor, properties_of
from saga.runtime.kernel.kept import kept_events
from saga.runtime.kernel.tables import Tables
from saga.runtime.messaging.dead_letters import key_of
from saga.runtime.messaging.frames import Posting
from saga.runtime.messaging.publisher import posting_of
from saga.runtime.messaging.stream import Record
from saga.runtime.messaging.topology import EVENTS_EXCHANGE, HISTORY_STREAM
from saga.simulation.broker import EPOCH, PublishedMessage

if TYPE_CHECKING:
    from saga.simulation.world import World

SPREAD_SECONDS: Final = 2.0
"""How long a recovery may take."""


class SimulatedEvidence:
    """See `saga.recovery.owed.Evidence`; `recorded` is what the history had read."""

    def __init__(self, world: World, recorded: Sequence[Fact | Stray]) -> None:
        self._world = world
        self._recorded = recorded
        self._facts = {item.attributes.key: item for item in recorded if isinstance(item, Fact)}
        self._tables: dict[str, Tables] = {
            server.service.participant.name: server.service.tables for server in world.servers
        }

    def kept(self, participant: str) -> Publications:
        tables = self._tables[participant]

        def read(connection: Connection) -> Publications:
            kept = Publications(source_of(participant), sequences_in(connection, tables))
            for bodies in kept_events(connection, tables):
                kept.take(bodies, self._facts.keys().__and__)
            return kept

        return self._world.stores[participant].read(read)

    def done(self, participant: str, keys: Collection[MessageKey]) -> Collection[MessageKey]:
        tables = self._tables[participant]
        return self._world.stores[participant].read(partial(_done, tables, keys))

    def recorded(self, since: datetime) -> Iterator[Sequence[Fact | Stray]]:
        yield self._recorded

    def began(self) -> datetime | None:
        return EPOCH

    def last_recorded(self, participant: str) -> Mapping[str, int]:
        last: dict[str, int] = {}
        for fact in self._facts.values():
            event = fact.attributes
            if event.source == source_of(participant):
                last[event.subject] = max(last.get(event.subject, 0), event.sequence or 0)
        return last

    def bodies(self, keys: Collection[MessageKey]) -> Mapping[MessageKey, bytes]:
        return {key: self._facts[key].body for key in keys if key in self._facts}


def _done(
    tables: Tables, keys: Collection[MessageKey], connection: Connection
) -> Collection[MessageKey]:
    return tables.already_done(connection, keys).keys()


def as_read(messages: Sequence[PublishedMessage], choreography: Choreography) -> list[Fact | Stray]:
    """What a history makes of messages of the stream."""
    found: list[Fact | Stray] = []
    keys: set[str] = set()
    for offset, message in enumerate(messages):
        id = message.properties.message_id
        record = Record(offset, message.exchange, message.routing_key, id, EPOCH, message.body)
        item = replace(judge(record, 1, choreography), recorded_at=EPOCH)
        if isinstance(item, Stray) and item.key in keys:
            item = replace(item, key=key_of(None, item.body))
        if isinstance(item, Stray):
            keys.add(item.key)
        found.append(item)
    return found


def recover(world: World, recorded: Sequence[Fact | Stray], share: float = 1.0) -> None:
    """Put back into the queues what is owed, over some time, and all events into the stream; or be
    killed, with a share of it put back into the queues."""
    now = EPOCH + timedelta(seconds=world.loop.time())
    evidence = SimulatedEvidence(world, recorded)
    surveyor = Surveyor(evidence, world.choreography, EPOCH - timedelta(days=1), now)
    survey = surveyor.run()
    for one in survey.unknown:
        world.trouble(
            "event_in_no_book",
            f"events {one.first} to {one.last} of {one.participant} about {one.subject}",
        )
    postings = surveyor.postings(survey.owed)
    for posting in postings[: int(len(postings) * share)]:
        world.loop.call_later(
            world.weather.seconds(SPREAD_SECONDS),
            partial(_publish, world, posting),
            context=world.process.context,
        )
    if share < 1:
        return
    for item in recorded:
        if isinstance(item, Fact):
            _fill(world, posting_of(item.body, item.attributes.routing_key))
        else:
            _fill(world, Posting(item.routing_key, properties_of(item), item.body))
    for body in survey.unrecorded.values():
        _fill(world, posting_of(body, Attributes.of(body).routing_key))


def _fill(world: World, posting: Posting) -> None:
    key, raw, body = posting.routing_key, posting.properties, posting.body
    world.broker.put(HISTORY_STREAM, PublishedMessage(EVENTS_EXCHANGE, key, raw, body))


def _publish(world: World, posting: Posting) -> None:
    world.trace.note("operator", f"puts a message back into {posting.routing_key}")
    world.broker.publish("", posting.routing_key, posting.body, posting.properties)
