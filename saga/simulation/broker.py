"""A broker in memory: what the saga uses of RabbitMQ, and nothing else.

Topic exchanges and the default exchange, exchanges that divide a queue by a hash, quorum queues,
streams that only keep what they get. Each call is done when it returns; for latency and losses,
put a network in front of it. What the calls mean is pinned by a contract suite that runs
against the real broker too.
"""

from __future__ import annotations

import asyncio
import bisect
from collections import deque
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Any
from zlib import crc32

from pamqp import encode

from saga.choreography import Participant
from saga.runtime.messaging import frames
from saga.runtime.messaging.frames import Field, Properties
from saga.runtime.messaging.topology import ONE_AT_A_TIME, Topology, reads

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
"""The time of day at the loop's time 0."""
NOT_FOUND = 404
RESOURCE_LOCKED = 405
PRECONDITION_FAILED = 406

OnDelivery = Callable[["BrokerDelivery"], None]


class ChannelClosed(Exception):
    """The broker refused an operation and closed the channel it came on."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text


@dataclass(frozen=True, slots=True)
class PublishedMessage:
    """What was published: where to, and what. `raw` is the property list."""

    exchange: str
    routing_key: str
    raw: bytes
    body: bytes

    @property
    def properties(self) -> Properties:
        return _properties_in(self.raw)


_properties_in = lru_cache(maxsize=1_024)(frames.properties_in)
"""Each message is looked at some ten times."""


@dataclass(frozen=True, slots=True)
class BrokerDelivery:
    """A message on its way to a consumer. `tag` is the channel's; `count` says how often the
    message has come back to its queue before."""

    tag: int
    message: PublishedMessage
    count: int

    @property
    def redelivered(self) -> bool:
        return self.count > 0


@dataclass(slots=True)
class _Copy:
    """One message in one queue; the queue's order is that of the positions."""

    position: int
    message: PublishedMessage
    count: int = 0
    expires_at: float | None = None


@dataclass(slots=True, eq=False)
class _Consumer:
    channel: BrokerChannel
    queue: SimulatedQueue
    prefetch: int
    deliver: OnDelivery
    unacknowledged: int = 0


@dataclass(slots=True, eq=False)
class SimulatedQueue:
    """A queue: what is ready in it, and who reads it."""

    name: str
    arguments: Mapping[str, str | int]
    ready: list[_Copy] = field(default_factory=list)
    consumers: deque[_Consumer] = field(default_factory=deque)
    unsettled: int = 0
    published: int = 0
    """The position of the newest message."""
    awaits: _Copy | None = None
    """The message at whose end of life the queue is looked at again."""

    def put_back(self, copy: _Copy) -> None:
        bisect.insort(self.ready, copy, key=_position)


def _bucket(key: int, buckets: int) -> int:
    """Which of so many buckets a key falls into: when there are more of them, only keys that fall
    into the new ones move. https://arxiv.org/abs/1406.2294"""
    bucket, following = 0, 0
    while following < buckets:
        bucket = following
        key = (key * 2862933555777941757 + 1) & 0xFFFFFFFFFFFFFFFF
        following = int((bucket + 1) * (1 << 31) / ((key >> 33) + 1))
    return bucket


def _position(copy: _Copy) -> int:
    return copy.position


class Broker:
    """The exchanges, queues and bindings of one virtual host."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._bindings: dict[str, list[tuple[str, str]]] = {}
        self._hashed: dict[str, list[str]] = {}
        """Keyed by the name of an exchange that hashes: the queues it divides messages among."""
        self._queues: dict[str, SimulatedQueue] = {}
        self._read: dict[str, list[str]] = {}
        """Keyed by participant: the queues it reads."""
        self._routes: dict[tuple[str, str], list[SimulatedQueue]] = {}
        self.on_publish: Callable[[bytes], None] = lambda _: None
        """Called with the body of whatever is published."""

    def apply(self, topology: Topology) -> None:
        """Declare a topology."""
        for exchange in topology.exchanges:
            self._bindings.setdefault(exchange, [])
        for exchange in topology.hashes:
            self._hashed.setdefault(exchange, [])
        for queue in topology.queues:
            self._queues.setdefault(queue.name, SimulatedQueue(queue.name, queue.arguments))
        for binding in topology.bindings:
            if (parts := self._hashed.get(binding.exchange)) is not None:
                if binding.queue not in parts:
                    parts.append(binding.queue)
            elif (bound := (binding.key, binding.queue)) not in self._bindings[binding.exchange]:
                self._bindings[binding.exchange].append(bound)
        self._routes.clear()
        self._read.clear()

    def empty(self) -> None:
        """Forget all messages. Connections from before still refer to the queues of before."""
        self._queues = {n: SimulatedQueue(n, queue.arguments) for n, queue in self._queues.items()}
        self._routes.clear()

    @property
    def queues(self) -> Collection[str]:
        """The names of all queues."""
        return self._queues.keys()

    def queues_of(self, participant: Participant) -> list[str]:
        """The queues that a participant reads, partitions among them."""
        found = self._read.get(participant.name)
        if found is None:  # It is asked for thousands of times in a run.
            found = [queue for queue in self._queues if reads(participant, queue)]
            self._read[participant.name] = found
        return found

    def messages_in(self, queue: str) -> list[PublishedMessage]:
        """What is ready in a queue, in its order."""
        return [copy.message for copy in self._queues[queue].ready]

    def load_of(self, queue: str) -> int:
        """How many messages a queue has, those that a consumer has not settled among them."""
        found = self._queues[queue]
        return len(found.ready) + found.unsettled

    def consumers_of(self, queue: str) -> int:
        """How many consumers a queue has."""
        return len(self._queues[queue].consumers)

    def channel(self) -> BrokerChannel:
        """Open a channel."""
        return BrokerChannel(self)

    def publish(self, exchange: str, routing_key: str, body: bytes, raw: bytes) -> bool:
        """Put a message into every queue its key leads to; whether there is any.

        Raises `ChannelClosed` if there is no such exchange.
        """
        if exchange and exchange not in self._bindings:
            raise ChannelClosed(NOT_FOUND, f"no exchange '{exchange}'")
        self.on_publish(body)
        message = PublishedMessage(exchange, routing_key, raw, body)
        queues = [self._part_of(q, message) for q in self._queues_for(exchange, routing_key)]
        for queue in queues:
            self._put(queue, message)
        return bool(queues)

    def put(self, queue: str, message: PublishedMessage) -> None:
        """Put a message into one queue, as if it had been published to it."""
        self._put(self._queues[queue], message)

    def _part_of(self, queue: SimulatedQueue, message: PublishedMessage) -> SimulatedQueue:
        """The partition that a message to this queue goes to, where an exchange divides it."""
        parts = self._hashed.get(queue.name)
        if not parts or not message.exchange:
            return queue
        saga = (message.properties.correlation_id or "").encode()
        return self._queues[parts[_bucket(crc32(saga), len(parts))]]

    def _queues_for(self, exchange: str, routing_key: str) -> list[SimulatedQueue]:
        route = (exchange, routing_key)
        if route not in self._routes:
            if exchange:
                names = {
                    queue: None
                    for key, queue in self._bindings[exchange]
                    if _matches(key.split("."), routing_key.split(".") if routing_key else ())
                }
                self._routes[route] = [self._queues[name] for name in names]
            else:
                self._routes[route] = [q for q in self._queues.values() if q.name == routing_key]
        return self._routes[route]

    def _put(self, queue: SimulatedQueue, message: PublishedMessage) -> None:
        queue.published += 1
        copy = _Copy(queue.published, message)
        waits_ms = [
            int(limit)
            for limit in (queue.arguments.get("x-message-ttl"), message.properties.expiration)
            if limit is not None
        ]
        if waits_ms:
            copy.expires_at = self._loop.time() + min(waits_ms) / 1_000
        queue.put_back(copy)
        self._deliver(queue)

    def _deliver(self, queue: SimulatedQueue) -> None:
        """Give what is ready to consumers in turn, as far as their prefetch goes."""
        self._expire(queue)
        while queue.ready:
            consumer = self._next_consumer(queue)
            if consumer is None:
                return
            copy = queue.ready.pop(0)
            consumer.unacknowledged += 1
            consumer.deliver(consumer.channel._take(queue, copy, consumer))
            self._expire(queue)

    @staticmethod
    def _next_consumer(queue: SimulatedQueue) -> _Consumer | None:
        if queue.arguments.get(ONE_AT_A_TIME):
            # The one that came first; when it is gone, the next.
            first = queue.consumers[0] if queue.consumers else None
            full = first is not None and 0 < first.prefetch <= first.unacknowledged
            return None if full else first
        for _ in range(len(queue.consumers)):
            consumer = queue.consumers[0]
            queue.consumers.rotate(-1)
            if not consumer.prefetch or consumer.unacknowledged < consumer.prefetch:
                return consumer
        return None

    def _expire(self, queue: SimulatedQueue) -> None:
        """Dead-letter what has expired at the head; what expires behind it waits for its turn."""
        while queue.ready:
            head = queue.ready[0]
            if head.expires_at is None:
                return
            if head.expires_at > self._loop.time():
                if queue.awaits is not head:
                    queue.awaits = head
                    self._loop.call_at(head.expires_at, self._deliver, queue)
                return
            queue.ready.pop(0)
            self._dead_letter(queue, head.message, "expired")

    def _give_back(self, queue: SimulatedQueue, copy: _Copy) -> None:
        """Requeue: at its old place, unless it has come back too often."""
        copy.count += 1
        limit = queue.arguments.get("x-delivery-limit")
        if limit is not None and copy.count > int(limit):
            self._dead_letter(queue, copy.message, "delivery_limit")
        else:
            queue.put_back(copy)

    def _dead_letter(self, queue: SimulatedQueue, message: PublishedMessage, reason: str) -> None:
        exchange = queue.arguments.get("x-dead-letter-exchange")
        if exchange is None or (exchange and str(exchange) not in self._bindings):
            return
        key = str(queue.arguments.get("x-dead-letter-routing-key", message.routing_key))
        now = EPOCH + timedelta(seconds=int(self._loop.time()))
        raw = _with_death(message, queue.name, reason, now)
        self.publish(str(exchange), key, message.body, raw)


class BrokerChannel:
    """A channel: its consumers, and the deliveries they have not settled."""

    def __init__(self, broker: Broker) -> None:
        self.is_closed = False
        self._broker = broker
        self._tag = 0
        self._consumers: dict[int, _Consumer] = {}
        self._unsettled: dict[int, tuple[SimulatedQueue, _Copy, _Consumer | None]] = {}

    def consume(self, queue: str, deliver: OnDelivery, *, prefetch: int = 0) -> int:
        """Start delivery of messages, at most `prefetch` unsettled ones at a time; return what to
        `cancel` it by."""
        found = self._find(queue)
        consumer = _Consumer(self, found, prefetch, deliver)
        number = len(self._consumers) + 1
        self._consumers[number] = consumer
        found.consumers.append(consumer)
        self._broker._deliver(found)
        return number

    def cancel(self, consumer: int) -> None:
        """Stop delivery; what was delivered stays unsettled."""
        cancelled = self._consumers[consumer]
        cancelled.queue.consumers.remove(cancelled)

    def get(self, queue: str) -> BrokerDelivery | None:
        """The next message, if there is any."""
        found = self._find(queue)
        if found.arguments.get(ONE_AT_A_TIME):
            self.close()
            raise ChannelClosed(RESOURCE_LOCKED, f"'{queue}' has one consumer at a time")
        self._broker._expire(found)
        return self._take(found, found.ready.pop(0), None) if found.ready else None

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        """Settle a delivery, or all up to it: the broker forgets it."""
        for queue, _ in self._settle(tag, multiple):
            self._broker._deliver(queue)

    def nack(self, tag: int, *, multiple: bool = False, requeue: bool = True) -> None:
        """Settle a delivery, or all up to it: it goes back, or is dead."""
        settled = self._settle(tag, multiple)
        for queue, copy in settled:
            if requeue:
                self._broker._give_back(queue, copy)
            else:
                self._broker._dead_letter(queue, copy.message, "rejected")
        for queue, _ in settled:
            self._broker._deliver(queue)

    def reject(self, tag: int, *, requeue: bool) -> None:
        """Settle one delivery: it goes back, or is dead."""
        self.nack(tag, requeue=requeue)

    def close(self) -> None:
        """Give back what is unsettled."""
        if self.is_closed:
            return
        self.is_closed = True
        for consumer in self._consumers.values():
            if consumer in consumer.queue.consumers:
                consumer.queue.consumers.remove(consumer)
        unsettled, self._unsettled = self._unsettled, {}
        for queue, copy, _ in unsettled.values():
            queue.unsettled -= 1
            self._broker._give_back(queue, copy)
        for queue, _, _ in unsettled.values():
            self._broker._deliver(queue)

    def _find(self, queue: str) -> SimulatedQueue:
        found = self._broker._queues.get(queue)
        if found is None:
            self.close()
            raise ChannelClosed(NOT_FOUND, f"no queue '{queue}'")
        return found

    def _take(
        self, queue: SimulatedQueue, copy: _Copy, consumer: _Consumer | None
    ) -> BrokerDelivery:
        self._tag += 1
        self._unsettled[self._tag] = queue, copy, consumer
        queue.unsettled += 1
        return BrokerDelivery(self._tag, copy.message, copy.count)

    def _settle(self, tag: int, multiple: bool) -> list[tuple[SimulatedQueue, _Copy]]:
        """Take deliveries off the list. An unknown tag closes the channel."""
        tags = [known for known in self._unsettled if known <= tag] if multiple else [tag]
        if tag not in self._unsettled and (tag or not multiple):
            self.close()
            raise ChannelClosed(PRECONDITION_FAILED, f"unknown delivery tag {tag}")
        if multiple and not tag:
            tags = list(self._unsettled)
        settled = []
        for known in tags:
            queue, copy, consumer = self._unsettled.pop(known)
            if consumer is not None:
                consumer.unacknowledged -= 1
            queue.unsettled -= 1
            settled.append((queue, copy))
        return settled


def _matches(pattern: Sequence[str], words: Sequence[str]) -> bool:
    """Whether a binding's words match a routing key's: `*` is one word, `#` any number of them."""
    if not pattern:
        return not words
    head, rest = pattern[0], pattern[1:]
    if head == "#":
        return _matches(rest, words) or (bool(words) and _matches(pattern, words[1:]))
    return bool(words) and head in ("*", words[0]) and _matches(rest, words[1:])


def _with_death(message: PublishedMessage, queue: str, reason: str, now: datetime) -> bytes:
    """The property list with the broker's note on this dead-lettering ahead of earlier ones, and
    without a time to live."""
    values, _ = frames.split(message.raw)
    values.pop("expiration", None)
    fields, _ = frames.fields_in(values.get("headers", b""))
    headers = message.properties.headers or {}
    deaths = [dict(death) for death in headers.get("x-death", ())]
    same = [d for d in deaths if (d["queue"], d["reason"]) == (queue, reason)]
    death: dict[str, Any] = same[0] if same else {"count": 0, "reason": reason, "queue": queue}
    death |= {
        "count": death["count"] + 1,
        "time": now,
        "exchange": message.exchange,
        "routing-keys": [message.routing_key],
    }
    noted: list[Any] = [death, *(d for d in deaths if d is not death)]
    first = {"exchange": message.exchange, "queue": queue, "reason": reason}
    values["headers"] = frames.table_of(
        [
            Field(b"x-death", encode.encode_table_value(noted)),
            *(field for field in fields if field.name != b"x-death"),
            *(
                frames.field(f"x-first-death-{name}", value)
                for name, value in first.items()
                if f"x-first-death-{name}" not in headers
            ),
        ]
    )
    return frames.join(values)
