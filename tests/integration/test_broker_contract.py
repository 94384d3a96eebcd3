"""What the saga relies on of RabbitMQ, said once and tried on it and on the simulated broker."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Protocol

import aiormq
import pytest
from aiormq.abc import AbstractChannel, AbstractConnection, DeliveredMessage
from pamqp.commands import Basic

from saga.runtime.messaging import frames
from saga.runtime.messaging.topology import (
    DELIVERY_LIMIT,
    HASH_ARGUMENTS,
    HASH_TYPE,
    HASH_WEIGHT,
    ONE_AT_A_TIME,
    Arguments,
    Binding,
    Queue,
    Topology,
)
from saga.simulation.broker import (
    NOT_FOUND,
    PRECONDITION_FAILED,
    Broker,
    BrokerChannel,
    BrokerDelivery,
    ChannelClosed,
)
from tests.polling import until

QUORUM: Arguments = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
QUIET_SECONDS = 0.1
"""How long is waited for what must not come."""


@dataclass(frozen=True)
class Got:
    """A delivery as the tests see it."""

    tag: int
    body: bytes
    exchange: str
    key: str
    count: int
    redelivered: bool
    headers: dict[str, Any]


class NoExchange(Exception):
    """The broker closed the channel of a message to an exchange that it has not."""


@dataclass
class Consumer:
    """What a consumer has got so far."""

    tag: Any
    got: list[Got] = field(default_factory=list)

    async def bodies(self, *expected: bytes) -> None:
        """Wait until exactly this has come, in this order, and nothing after it."""
        await until(lambda: len(self.got) >= len(expected))
        await asyncio.sleep(QUIET_SECONDS)
        assert [got.body for got in self.got] == list(expected)


class Client(Protocol):
    """A channel of its own connection."""

    async def consume(self, queue: str, prefetch: int = 0) -> Consumer: ...
    async def cancel(self, consumer: Consumer) -> None: ...
    async def get(self, queue: str) -> Got | None: ...
    async def ack(self, tag: int, *, multiple: bool = False) -> None: ...
    async def nack(self, tag: int, *, multiple: bool = False, requeue: bool = True) -> None: ...
    async def reject(self, tag: int, *, requeue: bool) -> None: ...
    async def close(self) -> None: ...
    async def refused(self) -> None:
        """Wait until the broker has closed the channel for a failed precondition."""
        ...


class Subject(Protocol):
    """A broker, real or simulated."""

    async def apply(self, topology: Topology) -> None: ...
    async def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        *,
        expiration_ms: int | None = None,
        saga: str | None = None,
    ) -> bool:
        """Publish with a confirm; whether any queue took it. Raises `NoExchange`."""
        ...

    async def client(self) -> Client: ...
    async def ready(self, queue: str) -> int: ...


# --- simulated ---------------------------------------------------------------------------------


class SimulatedClient:
    def __init__(self, channel: BrokerChannel) -> None:
        self._channel = channel
        self._refused: int | None = None

    async def consume(self, queue: str, prefetch: int = 0) -> Consumer:
        consumer = Consumer(None)
        consumer.tag = self._channel.consume(
            queue, lambda delivery: consumer.got.append(_of(delivery)), prefetch=prefetch
        )
        return consumer

    async def cancel(self, consumer: Consumer) -> None:
        self._channel.cancel(consumer.tag)

    async def get(self, queue: str) -> Got | None:
        delivery = self._channel.get(queue)
        return None if delivery is None else _of(delivery)

    async def ack(self, tag: int, *, multiple: bool = False) -> None:
        try:
            self._channel.ack(tag, multiple=multiple)
        except ChannelClosed as error:
            self._refused = error.code

    async def nack(self, tag: int, *, multiple: bool = False, requeue: bool = True) -> None:
        self._channel.nack(tag, multiple=multiple, requeue=requeue)

    async def reject(self, tag: int, *, requeue: bool) -> None:
        self._channel.reject(tag, requeue=requeue)

    async def close(self) -> None:
        self._channel.close()

    async def refused(self) -> None:
        assert self._refused == PRECONDITION_FAILED
        assert self._channel.is_closed


def _of(delivery: BrokerDelivery) -> Got:
    message = delivery.message
    return Got(
        delivery.tag,
        message.body,
        message.exchange,
        message.routing_key,
        delivery.count,
        delivery.redelivered,
        dict(message.properties.headers or {}),
    )


class Simulated:
    def __init__(self) -> None:
        self._broker = Broker(asyncio.get_running_loop())

    async def apply(self, topology: Topology) -> None:
        self._broker.apply(topology)

    async def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        *,
        expiration_ms: int | None = None,
        saga: str | None = None,
    ) -> bool:
        expiration = None if expiration_ms is None else str(expiration_ms)
        try:
            return self._broker.publish(
                exchange,
                key,
                body,
                frames.join(
                    {
                        name: frames.short(value)
                        for name, value in (("expiration", expiration), ("correlation_id", saga))
                        if value is not None
                    }
                ),
            )
        except ChannelClosed as error:
            raise (NoExchange if error.code == NOT_FOUND else error) from error

    async def client(self) -> Client:
        return SimulatedClient(self._broker.channel())

    async def ready(self, queue: str) -> int:
        return len(self._broker.messages_in(queue))


# --- real --------------------------------------------------------------------------------------


class RealClient:
    def __init__(self, connection: AbstractConnection, channel: AbstractChannel) -> None:
        self._connection = connection
        self._channel = channel

    async def consume(self, queue: str, prefetch: int = 0) -> Consumer:
        consumer = Consumer(None)

        async def take(message: DeliveredMessage) -> None:
            consumer.got.append(_of_real(message))

        await self._channel.basic_qos(prefetch_count=prefetch)
        consumer.tag = (await self._channel.basic_consume(queue, take)).consumer_tag
        return consumer

    async def cancel(self, consumer: Consumer) -> None:
        await self._channel.basic_cancel(consumer.tag)

    async def get(self, queue: str) -> Got | None:
        message = await self._channel.basic_get(queue)
        return None if isinstance(message.delivery, Basic.GetEmpty) else _of_real(message)

    async def ack(self, tag: int, *, multiple: bool = False) -> None:
        await self._channel.basic_ack(tag, multiple=multiple)

    async def nack(self, tag: int, *, multiple: bool = False, requeue: bool = True) -> None:
        await self._channel.basic_nack(tag, multiple=multiple, requeue=requeue)

    async def reject(self, tag: int, *, requeue: bool) -> None:
        await self._channel.basic_reject(tag, requeue=requeue)

    async def close(self) -> None:
        await self._channel.close()

    async def refused(self) -> None:
        with pytest.raises(aiormq.exceptions.ChannelPreconditionFailed):
            async with asyncio.timeout(10):
                await self._channel.closing


def _of_real(message: DeliveredMessage) -> Got:
    headers: dict[str, Any] = dict(message.header.properties.headers or {})
    return Got(
        message.delivery_tag or 0,
        message.body,
        message.exchange or "",
        message.routing_key or "",
        headers.pop("x-delivery-count", 0),
        bool(message.redelivered),
        headers,
    )


class Real:
    def __init__(self, url: str) -> None:
        self._url = url
        self._connections: list[AbstractConnection] = []

    async def apply(self, topology: Topology) -> None:
        channel = await self._channel()
        for exchange in topology.exchanges:
            await channel.exchange_declare(exchange, exchange_type="topic", durable=True)
        for exchange in topology.hashes:
            await channel.exchange_declare(
                exchange, exchange_type=HASH_TYPE, durable=True, arguments=dict(HASH_ARGUMENTS)
            )
        for queue in topology.queues:
            await channel.queue_declare(queue.name, durable=True, arguments=dict(queue.arguments))
        for binding in topology.bindings:
            bind = channel.exchange_bind if binding.hashed else channel.queue_bind
            await bind(binding.queue, binding.exchange, binding.key)

    async def publish(
        self,
        exchange: str,
        key: str,
        body: bytes,
        *,
        expiration_ms: int | None = None,
        saga: str | None = None,
    ) -> bool:
        channel = await self._channel(on_return_raises=True)
        expiration = None if expiration_ms is None else str(expiration_ms)
        try:
            await channel.basic_publish(
                body,
                exchange=exchange,
                routing_key=key,
                mandatory=True,
                properties=Basic.Properties(
                    delivery_mode=2, expiration=expiration, correlation_id=saga
                ),
            )
        except aiormq.exceptions.PublishError:
            return False
        except aiormq.exceptions.ChannelNotFoundEntity as error:
            raise NoExchange from error
        return True

    async def client(self) -> Client:
        channel = await self._channel()
        return RealClient(self._connections[-1], channel)

    async def ready(self, queue: str) -> int:
        channel = await self._channel()
        return (await channel.queue_declare(queue, passive=True)).message_count or 0

    async def close(self) -> None:
        for connection in self._connections:
            await connection.close()

    async def _channel(self, *, on_return_raises: bool = False) -> AbstractChannel:
        self._connections.append(await aiormq.connect(self._url))
        return await self._connections[-1].channel(on_return_raises=on_return_raises)


# --- the contract ------------------------------------------------------------------------------


@pytest.fixture(params=["simulated", "real"])
async def broker(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    if request.param == "simulated":
        yield Simulated()
        return
    real = Real(request.getfixturevalue("amqp_url"))
    yield real
    await real.close()


async def queue(broker: Subject, arguments: Arguments = MappingProxyType({})) -> None:
    """A queue `q`."""
    await broker.apply(Topology(queues=[Queue("q", {**QUORUM, **arguments})]))


async def fill(broker: Subject, *bodies: bytes) -> None:
    for body in bodies:
        assert await broker.publish("", "q", body)


async def mortal_queue(broker: Subject, arguments: Arguments = MappingProxyType({})) -> None:
    """A queue `q` whose dead letters come to the queue `dead` by the exchange `x`."""
    dead = {"x-dead-letter-exchange": "x", "x-dead-letter-routing-key": "gone"}
    await queue(broker, {**dead, **arguments})
    await broker.apply(Topology(["x"], [Queue("dead", QUORUM)], [Binding("x", "dead", "gone")]))


ROUTED = {
    "order.placed.high": {"order.placed.high"},
    "order.*.high": {"order.placed.high"},
    "order.*": {"order.high"},
    "*": {"order", "orders"},
    "#": {"order.placed.high", "order.high", "order", "orders", ""},
    "order.#": {"order.placed.high", "order.high", "order"},
    "#.high": {"order.placed.high", "order.high"},
    "order.#.high": {"order.placed.high", "order.high"},
    "order.#.*": {"order.placed.high", "order.high"},
}
"""Keyed by a binding's pattern: the routing keys that it matches."""


async def test_a_topic_exchange_routes_by_words(broker: Subject) -> None:
    patterns = {f"q{number}": pattern for number, pattern in enumerate(ROUTED)}
    bindings = [Binding("x", name, pattern) for name, pattern in patterns.items()]
    await broker.apply(Topology(["x"], [Queue(name, QUORUM) for name in patterns], bindings))
    for key in set().union(*ROUTED.values()):
        assert await broker.publish("x", key, key.encode())
    client = await broker.client()
    for name, pattern in patterns.items():
        keys = set()
        while (got := await client.get(name)) is not None:
            keys.add(got.body.decode())
        assert keys == ROUTED[pattern], pattern


async def test_a_message_is_once_in_each_queue_bound_to_its_key(broker: Subject) -> None:
    await broker.apply(
        Topology(
            ["x"],
            [Queue("q", QUORUM), Queue("r", QUORUM), Queue("s", QUORUM)],
            [
                Binding("x", "q", "a.b"),
                Binding("x", "q", "a.*"),
                Binding("x", "r", "#"),
                Binding("x", "s", "a.c"),
            ],
        )
    )
    assert await broker.publish("x", "a.b", b"1")
    await until(lambda: _all_ready(broker, q=1, r=1, s=0))


async def _all_ready(broker: Subject, **expected: int) -> bool:
    return {name: await broker.ready(name) for name in expected} == expected


async def test_a_stream_takes_what_is_bound_to_it(broker: Subject) -> None:
    stream = Queue("s", {"x-queue-type": "stream"})
    await broker.apply(Topology(["x"], [stream], [Binding("x", "s", "#")]))
    assert await broker.publish("x", "order.confirmed.normal", b"1")


async def partitions(broker: Subject, number: int) -> None:
    """What events `e` bring to a queue `q`, in so many partitions."""
    parts = [Queue(f"q.{n}", {**QUORUM, ONE_AT_A_TIME: True}) for n in range(number)]
    bindings = [Binding("q", part.name, HASH_WEIGHT) for part in parts]
    bindings.append(Binding("x", "q", "e", hashed=True))
    await broker.apply(Topology(["x"], [Queue("q", QUORUM), *parts], bindings, ["q"]))


async def places(broker: Subject, number: int) -> dict[str, str]:
    """Keyed by message: the partition that it was in."""
    found: dict[str, str] = {}
    for name in [f"q.{n}" for n in range(number)]:
        client = await broker.client()
        ready = await broker.ready(name)
        consumer = await client.consume(name)
        await until(lambda c=consumer, r=ready: len(c.got) >= r)  # type: ignore[misc]
        found |= {got.body.decode(): name for got in consumer.got}
        for got in consumer.got:
            await client.ack(got.tag)
        await client.close()
    return found


async def test_all_messages_of_one_saga_are_in_one_partition(broker: Subject) -> None:
    await partitions(broker, 4)
    for saga in map(str, range(30)):
        for number in "ab":
            assert await broker.publish("x", "e", f"{saga}{number}".encode(), saga=saga)
    await until_ready(broker, 4, 60)
    found = await places(broker, 4)
    assert all(found[f"{saga}a"] == found[f"{saga}b"] for saga in range(30))
    assert len({*found.values()}) == 4
    assert await broker.ready("q") == 0


async def test_more_partitions_take_sagas_over_and_move_no_others(broker: Subject) -> None:
    await partitions(broker, 2)
    for saga in map(str, range(40)):
        assert await broker.publish("x", "e", saga.encode(), saga=saga)
    await until_ready(broker, 2, 40)
    before = await places(broker, 2)
    await partitions(broker, 3)
    for saga in map(str, range(40)):
        assert await broker.publish("x", "e", saga.encode(), saga=saga)
    await until_ready(broker, 3, 40)
    after = await places(broker, 3)
    moved = {saga for saga in before if before[saga] != after[saga]}
    assert {after[saga] for saga in moved} == {"q.2"}
    assert 0 < len(moved) < 30


async def until_ready(broker: Subject, number: int, messages: int) -> None:
    async def all_there() -> bool:
        return sum([await broker.ready(f"q.{n}") for n in range(number)]) == messages

    await until(all_there)


async def test_a_partition_has_one_consumer_at_a_time_and_the_next_goes_on_in_order(
    broker: Subject,
) -> None:
    await partitions(broker, 1)
    first, second = await broker.client(), await broker.client()
    one = await first.consume("q.0")
    two = await second.consume("q.0")
    bodies = [f"{number:03}".encode() for number in range(60)]
    for body in bodies:
        assert await broker.publish("x", "e", body, saga="s")
    await one.bodies(*bodies)
    assert two.got == []
    await first.ack(one.got[9].tag, multiple=True)
    await first.close()
    await two.bodies(*bodies[10:])


async def test_nothing_is_fetched_from_a_partition(broker: Subject) -> None:
    await partitions(broker, 1)
    client = await broker.client()
    with pytest.raises((ChannelClosed, aiormq.exceptions.ChannelLockedResource)):
        await client.get("q.0")


async def test_the_default_exchange_routes_to_the_queue_of_that_name(broker: Subject) -> None:
    await queue(broker)
    assert await broker.publish("", "q", b"1")
    assert not await broker.publish("", "p", b"1")


async def test_what_no_queue_takes_is_returned(broker: Subject) -> None:
    await broker.apply(Topology(["x"]))
    assert not await broker.publish("x", "nobody", b"1")


async def test_publishing_to_no_exchange_closes_the_channel(broker: Subject) -> None:
    with pytest.raises(NoExchange):
        await broker.publish("nowhere", "k", b"1")


async def test_messages_come_in_the_order_they_were_published(broker: Subject) -> None:
    await queue(broker)
    await fill(broker, b"1", b"2", b"3")
    client = await broker.client()
    consumer = await client.consume("q")
    await consumer.bodies(b"1", b"2", b"3")
    assert [(got.tag, got.exchange, got.key) for got in consumer.got] == [
        (1, "", "q"),
        (2, "", "q"),
        (3, "", "q"),
    ]
    assert not any(got.redelivered or got.count for got in consumer.got)


async def test_no_more_than_the_prefetch_is_unsettled(broker: Subject) -> None:
    await queue(broker)
    await fill(broker, b"1", b"2", b"3", b"4")
    client = await broker.client()
    consumer = await client.consume("q", prefetch=2)
    await consumer.bodies(b"1", b"2")
    await client.ack(1)
    await consumer.bodies(b"1", b"2", b"3")
    await client.reject(2, requeue=False)
    await consumer.bodies(b"1", b"2", b"3", b"4")


async def test_what_is_acknowledged_never_comes_back(broker: Subject) -> None:
    await queue(broker)
    await fill(broker, b"1", b"2", b"3")
    client = await broker.client()
    await (await client.consume("q")).bodies(b"1", b"2", b"3")
    await client.ack(2)
    await client.close()
    again = await broker.client()
    await (await again.consume("q")).bodies(b"1", b"3")


async def test_acknowledging_several_settles_all_up_to_the_tag(broker: Subject) -> None:
    await queue(broker)
    await fill(broker, b"1", b"2", b"3", b"4")
    client = await broker.client()
    await (await client.consume("q")).bodies(b"1", b"2", b"3", b"4")
    await client.ack(2)
    await client.ack(3, multiple=True)
    await client.close()
    again = await broker.client()
    await (await again.consume("q")).bodies(b"4")


async def test_tag_0_acknowledges_all(broker: Subject) -> None:
    await queue(broker)
    await fill(broker, b"1", b"2")
    client = await broker.client()
    await (await client.consume("q")).bodies(b"1", b"2")
    await client.ack(0, multiple=True)
    await client.close()
    again = await broker.client()
    await (await again.consume("q")).bodies()


@pytest.mark.parametrize("multiple", [False, True])
@pytest.mark.parametrize("tag", [2, 9], ids=["settled before", "never delivered"])
async def test_acknowledging_what_is_not_unsettled_closes_the_channel(
    broker: Subject, tag: int, multiple: bool
) -> None:
    await queue(broker)
    await fill(broker, b"1", b"2", b"3")
    client = await broker.client()
    await (await client.consume("q")).bodies(b"1", b"2", b"3")
    await client.ack(2)
    await client.ack(tag, multiple=multiple)
    await client.refused()
    again = await broker.client()
    await (await again.consume("q")).bodies(b"1", b"3")


async def test_what_is_requeued_comes_back_to_its_old_place(broker: Subject) -> None:
    await queue(broker)
    await fill(broker, b"1", b"2", b"3")
    client = await broker.client()
    consumer = await client.consume("q", prefetch=1)
    await consumer.bodies(b"1")
    await client.nack(1)
    await consumer.bodies(b"1", b"1")
    assert [(got.tag, got.redelivered, got.count) for got in consumer.got] == [
        (1, False, 0),
        (2, True, 1),
    ]


async def test_giving_several_back_keeps_their_order(broker: Subject) -> None:
    await queue(broker)
    await fill(broker, b"1", b"2", b"3", b"4")
    client = await broker.client()
    consumer = await client.consume("q", prefetch=3)
    await consumer.bodies(b"1", b"2", b"3")
    await client.cancel(consumer)
    await client.nack(3, multiple=True)
    again = await broker.client()
    await (await again.consume("q")).bodies(b"1", b"2", b"3", b"4")


async def test_closing_a_channel_gives_back_what_is_unsettled(broker: Subject) -> None:
    await queue(broker)
    await fill(broker, b"1", b"2", b"3")
    client = await broker.client()
    await (await client.consume("q", prefetch=2)).bodies(b"1", b"2")
    await client.close()
    again = await broker.client()
    consumer = await again.consume("q")
    await consumer.bodies(b"1", b"2", b"3")
    assert [(got.redelivered, got.count) for got in consumer.got] == [
        (True, 1),
        (True, 1),
        (False, 0),
    ]


async def test_a_cancelled_consumer_keeps_what_it_has(broker: Subject) -> None:
    await queue(broker)
    await fill(broker, b"1", b"2")
    client = await broker.client()
    consumer = await client.consume("q", prefetch=1)
    await consumer.bodies(b"1")
    await client.cancel(consumer)
    other = await broker.client()
    await (await other.consume("q")).bodies(b"2")
    await client.ack(1)
    assert await broker.ready("q") == 0


async def test_consumers_take_turns(broker: Subject) -> None:
    await queue(broker)
    first, second = await broker.client(), await broker.client()
    one, two = await first.consume("q", prefetch=1), await second.consume("q", prefetch=1)
    await fill(broker, b"1", b"2", b"3")
    await until(lambda: bool(one.got and two.got))
    assert {one.got[0].body, two.got[0].body} == {b"1", b"2"}
    await second.ack(1)
    await two.bodies(two.got[0].body, b"3")


async def test_one_message_can_be_fetched(broker: Subject) -> None:
    await queue(broker)
    await fill(broker, b"1")
    client = await broker.client()
    got = await client.get("q")
    assert got is not None
    assert got.body == b"1"
    assert await client.get("q") is None
    await client.nack(got.tag)
    again = await client.get("q")
    assert again is not None
    assert (again.tag, again.redelivered) == (2, True)


async def test_what_is_rejected_is_dead_under_the_queues_key(broker: Subject) -> None:
    await mortal_queue(broker)
    await fill(broker, b"1")
    client = await broker.client()
    await (await client.consume("q")).bodies(b"1")
    await client.reject(1, requeue=False)
    consumer = await client.consume("dead")
    await consumer.bodies(b"1")
    (got,) = consumer.got
    # Whether it counts as redelivered in its new queue depends on RabbitMQ's version.
    assert (got.exchange, got.key) == ("x", "gone")
    (death,) = got.headers["x-death"]
    assert {name: death[name] for name in ("queue", "reason", "count", "exchange")} == {
        "queue": "q",
        "reason": "rejected",
        "count": 1,
        "exchange": "",
    }
    assert death["routing-keys"] == ["q"]
    assert got.headers["x-first-death-reason"] == "rejected"


async def test_what_is_rejected_without_a_dead_letter_exchange_is_gone(broker: Subject) -> None:
    await queue(broker)
    await fill(broker, b"1")
    client = await broker.client()
    await (await client.consume("q")).bodies(b"1")
    await client.nack(1, requeue=False)
    await client.close()
    again = await broker.client()
    await (await again.consume("q")).bodies()


async def test_what_came_back_too_often_is_dead(broker: Subject) -> None:
    await mortal_queue(broker, {"x-delivery-limit": 2})
    await fill(broker, b"1")
    client = await broker.client()
    consumer = await client.consume("q")
    await consumer.bodies(b"1")
    for tag in (1, 2, 3):
        await until(lambda tag=tag: len(consumer.got) == tag)  # type: ignore[misc]  # bound now
        await client.reject(tag, requeue=True)
    dead = await client.consume("dead")
    await dead.bodies(b"1")
    assert dead.got[0].headers["x-death"][0]["reason"] == "delivery_limit"
    assert len(consumer.got) == 3


async def test_what_has_waited_its_time_goes_where_its_key_says(broker: Subject) -> None:
    await queue(broker)
    waiting = Queue("w", {**QUORUM, "x-message-ttl": 200, "x-dead-letter-exchange": ""})
    await broker.apply(Topology(["w"], [waiting], [Binding("w", "w", "#")]))
    assert await broker.publish("w", "q", b"1")
    client = await broker.client()
    consumer = await client.consume("q")
    await consumer.bodies(b"1")
    (got,) = consumer.got
    assert (got.exchange, got.key) == ("", "q")
    assert got.headers["x-death"][0]["reason"] == "expired"


async def test_only_the_head_of_a_queue_expires(broker: Subject) -> None:
    await mortal_queue(broker)
    assert await broker.publish("", "q", b"lasting")
    assert await broker.publish("", "q", b"short", expiration_ms=1)
    await asyncio.sleep(QUIET_SECONDS)
    assert await broker.publish("", "q", b"last")  # Makes the queue be looked at once more.
    assert await broker.ready("dead") == 0
    client = await broker.client()
    head = await client.get("q")
    assert head is not None
    assert head.body == b"lasting"
    await client.ack(head.tag)
    await (await client.consume("dead")).bodies(b"short")


async def test_what_a_consumer_has_does_not_expire(broker: Subject) -> None:
    await mortal_queue(broker, {"x-message-ttl": 1})
    client = await broker.client()
    consumer = await client.consume("q")
    await fill(broker, b"1")
    await consumer.bodies(b"1")
    assert await broker.ready("dead") == 0
    await client.close()
    await until(lambda: _all_ready(broker, dead=1))
