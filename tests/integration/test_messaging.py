"""Consuming, acknowledging, publishing and dead-lettering on a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import pytest
import yarl
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage
from prometheus_client import REGISTRY

from saga.choreography import Choreography
from saga.envelope import Envelope
from saga.limits import BODY_MAX_BYTES
from saga.local.node import RabbitNode
from saga.message import Priority
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.outbox import Outbox
from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.messaging.consumer import Consumer
from saga.runtime.messaging.dead_letters import (
    ATTEMPTS,
    ERROR,
    ERROR_TYPE,
    FINGERPRINT,
    FIRST_FAILED_AT,
    LAST_FAILED_AT,
    ORIGIN_EXCHANGE,
    ORIGIN_QUEUE,
    ORIGIN_ROUTING_KEY,
    REASON,
)
from saga.runtime.messaging.publisher import BrokerPublisher
from saga.runtime.messaging.topology import (
    EVENTS_EXCHANGE,
    HISTORY_STREAM,
    Queue,
    Topology,
    TopologyError,
    apply,
    topology_of,
)
from saga.runtime.messaging.wire import Unroutable
from saga.runtime.tasks import cancel_all
from tests.faults.proxy import Proxy
from tests.integration import toy as toy_module
from tests.integration.toy import (
    PARTICIPANT,
    Tally,
    cancelled,
    id_in_inbox,
    make_tables,
    open_toy,
    rows,
)
from tests.messages import message_of
from tests.polling import until


class Broker:
    """The test's own way to the broker."""

    def __init__(self, channel: AbstractChannel) -> None:
        self.channel = channel

    async def publish(self, body: bytes, key: str, **properties: Any) -> None:
        exchange = await self.channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
        await exchange.publish(aio_pika.Message(body, **properties), key)

    async def publish_all(self, envelopes: list[Envelope[Any]]) -> None:
        exchange = await self.channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
        await asyncio.gather(
            *(exchange.publish(message_of(e.to_bytes()), e.routing_key) for e in envelopes)
        )

    async def depth(self, queue: str) -> int:
        declared = await self.channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def dead_letter(self) -> AbstractIncomingMessage:
        await until(lambda: self._has_dead_letter())
        queue = await self.channel.get_queue("toy.dlq", ensure=False)
        return await queue.get(no_ack=True)

    async def _has_dead_letter(self) -> bool:
        return await self.depth("toy.dlq") > 0


@pytest.fixture
async def broker(amqp_url: str) -> AsyncIterator[Broker]:
    async with await connect(amqp_url, name="test") as connection:
        channel = await connection.channel(on_return_raises=True)
        await apply(topology_of(Choreography([PARTICIPANT])), channel)
        yield Broker(channel)


class Toy:
    """The toy participant as a service would run it, in this process."""

    def __init__(self, url: str, folder: Path, kernel: type[Kernel]) -> None:
        self.tables = make_tables()
        self.database = open_toy(folder, self.tables)
        self.publisher = BrokerPublisher(url, "toy publisher")
        self.outbox = Outbox("toy", self.database, self.tables, self.publisher)
        self.kernel = kernel(PARTICIPANT, self.database, self.tables, self.outbox)
        self.consumer = Consumer(PARTICIPANT, self.kernel, self.publisher, url, drain_seconds=5)

    async def inbox(self) -> set[str]:
        found = await self.database.read(lambda c: rows(c, self.tables.inbox))
        return {id_in_inbox(row[0]) for row in found}

    async def done(self, count: int) -> bool:
        return len(await self.inbox()) == count


@asynccontextmanager
async def running(url: str, folder: Path, kernel: type[Kernel] = Kernel) -> AsyncIterator[Toy]:
    toy = Toy(url, folder, kernel)
    await toy.outbox.open()
    await toy.publisher.open(patience_seconds=5)
    tasks = [asyncio.create_task(toy.kernel.run()), asyncio.create_task(toy.outbox.run())]
    await toy.consumer.start()
    try:
        yield toy
    finally:
        await toy.consumer.stop()
        await cancel_all(*tasks)
        await toy.publisher.close()
        await toy.database.close()


async def test_messages_are_done_acknowledged_and_answered(
    broker: Broker, amqp_url: str, tmp_path: Path
) -> None:
    async with running(amqp_url, tmp_path) as toy:
        await broker.publish_all([cancelled(number) for number in range(1, 501)])
        await until(lambda: toy.done(500))
        await until(lambda: toy.outbox.idle)
    # Nothing is left, and nothing comes back now that the consumer is gone.
    assert await broker.depth("toy.normal") == 0
    assert await broker.depth("toy.dlq") == 0
    await until(lambda: _holds(broker, HISTORY_STREAM, 1000))


MALFORMED = {
    "not JSON": (b"{", "malformed"),
    "not an object": (b"[1, 2]", "malformed"),
    "no CloudEvent": (b'{"type": "thing.cancelled"}', "malformed"),
    "a wrong type": (cancelled(1).to_bytes().replace(b'"wish"', b"7"), "invalid"),
    "an unknown version": (cancelled(1).to_bytes().replace(b"cancelled:1", b"cancelled:9"), ""),
    "too large a body": (b" " * (BODY_MAX_BYTES + 1), "too_large"),
    "a 10 MB body": (b" " * 10_000_000, "too_large"),
}


@pytest.mark.parametrize("body", [body for body, _ in MALFORMED.values()], ids=MALFORMED.keys())
async def test_a_malformed_message_is_dead_and_the_others_are_done(
    body: bytes, broker: Broker, amqp_url: str, tmp_path: Path
) -> None:
    async with running(amqp_url, tmp_path) as toy:
        await broker.publish(body, "thing.cancelled.normal", message_id="bad", type="x")
        await broker.publish_all([cancelled(number) for number in range(1, 33)])
        await until(lambda: toy.done(32))
        letter = await broker.dead_letter()

    assert letter.body == body
    assert letter.message_id == "bad"
    assert letter.headers[REASON] == "undecodable"
    assert letter.headers[ERROR_TYPE] == "Undecodable"
    assert letter.headers[ERROR]
    assert letter.headers[ORIGIN_QUEUE] == "toy.normal"
    assert letter.headers[ORIGIN_EXCHANGE] == EVENTS_EXCHANGE
    assert letter.headers[ORIGIN_ROUTING_KEY] == "thing.cancelled.normal"
    assert await broker.depth("toy.normal") == 0


async def test_an_event_that_says_another_source_is_dead_and_the_real_one_is_done(
    broker: Broker, amqp_url: str, tmp_path: Path
) -> None:
    """A user that may publish anything at all cannot use up the id of another's coming event."""
    real = cancelled(1)
    forged = real.model_copy(update={"source": "/services/asker"})
    async with running(amqp_url, tmp_path) as toy:
        await broker.publish_all([forged])
        letter = await broker.dead_letter()
        await broker.publish_all([real])
        await until(lambda: toy.done(1))

    assert letter.body == forged.to_bytes()
    assert letter.headers[REASON] == "undecodable"
    assert "'/services/asker'" in str(letter.headers[ERROR])


async def test_another_event_under_the_id_of_one_that_was_done_is_dead(
    broker: Broker, amqp_url: str, tmp_path: Path
) -> None:
    labels = {"participant": "toy", "type": "thing.cancelled", "reason": "conflicting"}
    before = REGISTRY.get_sample_value("saga_messages_dead_lettered_total", labels) or 0
    other = cancelled(2, id=cancelled(1).id)
    async with running(amqp_url, tmp_path) as toy:
        await broker.publish_all([cancelled(1)])
        await until(lambda: toy.done(1))
        await broker.publish_all([cancelled(1), other, cancelled(1)])
        letter = await broker.dead_letter()
        tallies = await toy.database.read(lambda c: rows(c, toy.tables.states[Tally].table))

    assert letter.body == other.to_bytes()
    assert letter.headers[REASON] == "conflicting"
    assert letter.headers[ERROR_TYPE] == "Conflicting"
    assert letter.headers[ATTEMPTS] == 1
    assert len(tallies) == 1
    assert REGISTRY.get_sample_value("saga_messages_dead_lettered_total", labels) == before + 1
    assert await broker.depth("toy.dlq") == 0


async def test_headers_of_ours_count_for_nothing_on_a_message_that_others_sent(
    broker: Broker, amqp_url: str, tmp_path: Path
) -> None:
    forged = {ATTEMPTS: 99, ORIGIN_EXCHANGE: "", ORIGIN_ROUTING_KEY: "toy.normal", "mine": "kept"}
    poison = cancelled(1, who="poison")
    async with running(amqp_url, tmp_path):
        await broker.publish(poison.to_bytes(), poison.routing_key, headers=forged)
        letter = await broker.dead_letter()

    assert letter.headers[ATTEMPTS] == 1
    assert letter.headers[ORIGIN_EXCHANGE] == EVENTS_EXCHANGE
    assert letter.headers[ORIGIN_ROUTING_KEY] == poison.routing_key
    assert letter.headers["mine"] == "kept"


async def test_a_raising_reaction_is_dead_lettered_with_its_reason(
    broker: Broker, amqp_url: str, tmp_path: Path
) -> None:
    async with running(amqp_url, tmp_path) as toy:
        poison = cancelled(7, who="poison")
        await broker.publish_all([*(cancelled(number) for number in range(8, 39)), poison])
        await until(lambda: toy.done(31))
        letter = await broker.dead_letter()
        assert poison.id not in await toy.inbox()

    assert json.loads(letter.body)["id"] == letter.message_id == poison.id
    assert letter.headers[REASON] == "failed"
    assert letter.headers[ERROR_TYPE] == "Poison"
    assert letter.headers[ERROR] == "somebody of that name cannot be served"
    assert letter.headers[ATTEMPTS] == 1
    assert letter.delivery_mode is aio_pika.DeliveryMode.PERSISTENT


@pytest.mark.parametrize(
    ("who", "reason"),
    [
        ("thief", "not_its_participants"),
        ("spendthrift", "not_in_signature"),
        ("gossip", "another_subject"),
    ],
)
async def test_a_decision_outside_the_signature_is_refused_counted_and_dead_lettered(
    who: str, reason: str, broker: Broker, amqp_url: str, tmp_path: Path
) -> None:
    labels = {"participant": "toy", "reaction": "tally", "reason": reason}
    before = REGISTRY.get_sample_value("saga_reactions_refused_total", labels) or 0
    refused = cancelled(1, who=who)
    async with running(amqp_url, tmp_path) as toy:
        await broker.publish_all([refused, *(cancelled(number) for number in range(2, 9))])
        await until(lambda: toy.done(7))
        letter = await broker.dead_letter()
        assert refused.id not in await toy.inbox()
        tallies = await toy.database.read(lambda c: rows(c, toy.tables.states[Tally].table))
        await until(lambda: toy.outbox.idle)

    assert json.loads(letter.body)["id"] == refused.id
    assert letter.headers[REASON] == "failed"
    assert letter.headers[ERROR_TYPE] == "OutsideSignature"
    assert "toy.tally returned" in str(letter.headers[ERROR])
    assert letter.headers[ATTEMPTS] == 1
    assert len(tallies) == 7
    assert REGISTRY.get_sample_value("saga_reactions_refused_total", labels) == before + 1


async def test_a_transient_error_is_tried_again_through_ten_waits(
    broker: Broker, amqp_url: str, tmp_path: Path
) -> None:
    """Nine waits and a tenth call that succeeds, urgent as before, in its own queue only."""
    flaky = cancelled(50, who="flaky", priority=Priority.HIGH)
    toy_module.flaky_calls.clear()
    async with running(amqp_url, tmp_path) as toy:
        await broker.publish_all([flaky])
        await until(lambda: toy.done(1))
        await until(lambda: toy.outbox.idle)
    assert toy_module.flaky_calls == [flaky.subject] * 10
    assert await broker.depth("toy.dlq") == 0
    assert await broker.depth("toy.high") == 0


async def test_a_message_that_always_fails_is_dead_after_max_calls(
    broker: Broker, amqp_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_module, "flaky_until_call", 1_000)
    toy_module.flaky_calls.clear()
    flaky = [cancelled(number, who="flaky") for number in (60, 61)]
    # Two replicas, as far as the broker knows: attempts travel with the message.
    async with running(amqp_url, tmp_path / "a"), running(amqp_url, tmp_path / "b"):
        await broker.publish_all(flaky)
        letters = [await broker.dead_letter(), await broker.dead_letter()]
    assert len(toy_module.flaky_calls) == 20
    for letter in letters:
        assert letter.headers[ATTEMPTS] == 10
        assert letter.headers[ERROR_TYPE] == "Unavailable"
        assert letter.headers[ORIGIN_QUEUE] == "toy.normal"
        assert letter.headers[ORIGIN_EXCHANGE] == EVENTS_EXCHANGE
        assert letter.headers[ORIGIN_ROUTING_KEY] == "thing.cancelled.normal"
        assert str(letter.headers[FIRST_FAILED_AT]) < str(letter.headers[LAST_FAILED_AT])
        assert not any(name.startswith("x-death") for name in letter.headers)
    first, second = letters
    assert first.headers[ERROR] != second.headers[ERROR]
    assert first.headers[FINGERPRINT] == second.headers[FINGERPRINT]


async def test_a_held_delivery_comes_back_after_a_kill_though_later_ones_were_acknowledged(
    broker: Broker, amqp_url: str, tmp_path: Path
) -> None:
    held = cancelled(1)
    await broker.publish_all([held, *(cancelled(number) for number in range(2, 101))])
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.integration.holding", amqp_url, str(tmp_path)
    )
    try:
        await until(lambda: _rows_in(tmp_path) == 99)
        await until(lambda: _holds(broker, "toy.normal", 0))
    finally:
        process.kill()
        await process.wait()

    async with running(amqp_url, tmp_path) as toy:
        await until(lambda: toy.done(100))


def _rows_in(folder: Path) -> int:
    """Inbox rows in another process's database."""
    if not (folder / "toy.db").exists():
        return 0
    with contextlib.closing(sqlite3.connect(folder / "toy.db")) as connection:
        try:
            return int(connection.execute("SELECT count(*) FROM inbox").fetchone()[0])
        except sqlite3.OperationalError:  # The table is being made.
            return 0


async def _holds(broker: Broker, queue: str, count: int) -> bool:
    return await broker.depth(queue) == count


async def test_a_service_whose_node_is_lost_goes_on_with_another_one(
    broker: Broker, amqp_url: str, tmp_path: Path
) -> None:
    port = yarl.URL(amqp_url).port
    assert port is not None
    async with AsyncExitStack() as nodes:
        one, other = [Proxy(lambda: port) for _ in range(2)]
        for node in (one, other):
            await nodes.enter_async_context(node)
        cluster = f"127.0.0.1:{one.port},127.0.0.1:{other.port}"
        # No broker is at the first address.
        url = yarl.URL(amqp_url).with_port(1).update_query(also=cluster)
        async with running(str(url), tmp_path) as toy:
            lost, left = sorted((one, other), key=lambda node: -node.connections)
            assert lost.connections
            await lost.close()

            await broker.publish_all([cancelled(1)])
            await until(lambda: toy.done(1))
            await until(lambda: toy.outbox.idle)
            assert left.connections == 2  # to read, and to publish


async def test_an_unroutable_event_is_an_error(broker: Broker, amqp_url: str) -> None:
    publisher = BrokerPublisher(amqp_url, "test publisher")
    await publisher.open(patience_seconds=0)
    first, second = cancelled(1), cancelled(2)
    nowhere = await broker.channel.get_queue(HISTORY_STREAM, ensure=False)
    await nowhere.unbind(EVENTS_EXCHANGE, "#")

    routed, unroutable = await publisher.publish_events(
        [
            Outgoing(first.id, "thing.cancelled.high", first.to_bytes()),
            Outgoing(second.id, "nobody.listens.high", second.to_bytes()),
        ]
    )

    assert routed is None
    assert isinstance(unroutable, Unroutable)
    await publisher.close()


@pytest.mark.parametrize(
    ("key", "body"),
    [
        ("thing.cancelled.high", b"{}"),
        ("thing.cancelled.high", b"\xff"),
        ("thing.cancelled.high", b'{"id": 1, "type": 2, "source": 3, "time": 4}'),
        ("thing.cancelled.high", cancelled(3).to_bytes().decode()),
        ("x" * 300, cancelled(3).to_bytes()),
    ],
    ids=["nothing in it", "not JSON", "of other types", "text", "a routing key that is too long"],
)
async def test_a_row_of_the_outbox_that_holds_no_event_holds_up_no_other(
    broker: Broker, amqp_url: str, key: str, body: bytes
) -> None:
    publisher = BrokerPublisher(amqp_url, "test publisher")
    events = [
        Outgoing(event.id, "thing.cancelled.high", event.to_bytes())
        for event in (cancelled(1), cancelled(2))
    ]

    first, ruined, last = await publisher.publish_events(
        [events[0], Outgoing("ruined", key, body), events[1]]
    )

    assert (first, last) == (None, None)
    assert isinstance(ruined, ValueError)
    assert "'ruined'" in str(ruined) or "255 is the most" in str(ruined)
    await publisher.close()


async def test_an_event_is_not_published_while_the_broker_has_no_history(
    broker: Broker, amqp_url: str
) -> None:
    publisher = BrokerPublisher(amqp_url, "test publisher")
    envelope = cancelled(1)
    event = Outgoing(envelope.id, "thing.cancelled.normal", envelope.to_bytes())
    await broker.channel.queue_delete(HISTORY_STREAM)

    (error,) = await publisher.publish_events([event])
    assert isinstance(error, BrokerError)
    assert HISTORY_STREAM in str(error)
    assert await broker.depth("toy.normal") == 0

    await apply(topology_of(Choreography([PARTICIPANT])), broker.channel)
    assert await publisher.publish_events([event]) == [None]
    await publisher.close()


async def test_publishing_without_a_broker_says_so() -> None:
    publisher = BrokerPublisher("amqp://127.0.0.1:1/", "test publisher")
    (error,) = await publisher.publish_events([Outgoing("1", "a.b", b"{}")])
    assert isinstance(error, BrokerError)


async def test_a_consumer_without_its_queues_says_what_to_do(amqp_url: str, tmp_path: Path) -> None:
    with pytest.raises(BrokerError, match="saga topology apply"):
        async with running(amqp_url, tmp_path):
            pass


async def test_a_name_taken_by_something_else_is_named(broker: Broker) -> None:
    other = Topology(queues=[Queue("toy.normal", {"x-queue-type": "classic"})])
    with pytest.raises(TopologyError, match=r"toy\.normal"):
        await apply(other, broker.channel)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"password": "wrong"}, "refused the user or the password"),
        ({"path": "/nowhere"}, "refused the connection"),
        ({"port": 1}, "cannot reach RabbitMQ"),
    ],
)
async def test_a_broker_that_cannot_be_used_is_named(
    change: dict[str, Any], said: str, rabbit_node: RabbitNode
) -> None:
    import yarl

    url = yarl.URL(rabbit_node.amqp_url)
    for part, value in change.items():
        url = getattr(url, f"with_{part}")(value)
    with pytest.raises(BrokerError, match=said) as caught:
        await connect(str(url), name="test")
    assert "wrong" not in str(caught.value)


# In `make test`, a whole system goes through an outage of the broker instead.
@pytest.mark.long
async def test_a_killed_broker_is_waited_for_and_nothing_is_lost(tmp_path: Path) -> None:
    node = RabbitNode(tmp_path / "node")
    await asyncio.to_thread(node.start)
    try:
        async with await connect(node.amqp_url, name="test") as connection:
            channel = await connection.channel()
            await apply(topology_of(Choreography([PARTICIPANT])), channel)
            await Broker(channel).publish_all([cancelled(number) for number in range(1, 2001)])
        async with running(node.amqp_url, tmp_path) as toy:
            await until(lambda: _some_done(toy))
            await asyncio.to_thread(node.settle)
            await asyncio.to_thread(node.kill)
            await asyncio.to_thread(node.start)
            await until(lambda: toy.done(2000))
            await until(lambda: toy.outbox.idle)
        async with await connect(node.amqp_url, name="test") as connection:
            channel = await connection.channel()
            assert await Broker(channel).depth("toy.dlq") == 0
            assert await Broker(channel).depth("toy.normal") == 0
    finally:
        await asyncio.to_thread(node.stop)


async def _some_done(toy: Toy) -> bool:
    return len(await toy.inbox()) > 0
