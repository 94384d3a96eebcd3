"""What becomes of messages in partitions: tried again, dead, and kept in order."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from saga.broker.setup import (
    apply_topology,
    drift,
    mend_topology,
    missing_queues,
    partitions_at,
    virtual_host_of,
)
from saga.choreography import Choreography
from saga.envelope import Envelope
from saga.local.node import RabbitNode
from saga.reconcile import broker as looked
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.work import Outcome, Work
from saga.runtime.messaging import partitions as reader
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.dead_letters import ORIGIN_QUEUE
from saga.runtime.messaging.partitions import with_partitions
from saga.runtime.messaging.topology import (
    HASH_PLUGIN,
    NoPlugin,
    TopologyError,
    is_partition,
    queues_of,
    topology_of,
)
from saga.runtime.tasks import cancel_all
from tests.integration import toy as toy_module
from tests.integration.test_messaging import Broker, Toy, running
from tests.integration.toy import PARTICIPANT, TALLY_MAX, cancelled
from tests.messages import message_of
from tests.polling import until

GRAPH = Choreography([PARTICIPANT])
THINGS = range(100, 160)
NORMAL = {f"toy.normal.{number}" for number in range(3)}
THREE = {queue.name for queue in topology_of(GRAPH, 3).queues if is_partition(queue.name)}


@pytest.fixture
async def divided(amqp_url: str) -> AsyncIterator[Broker]:
    await apply_topology(amqp_url, GRAPH, partitions=3)
    async with await connect(amqp_url, name="test") as connection:
        yield Broker(await connection.channel(on_return_raises=True))


@asynccontextmanager
async def reading(url: str, folder: Path, kernel: type[Kernel] = Kernel) -> AsyncIterator[Toy]:
    async with running(url, folder, kernel) as toy:
        task = asyncio.create_task(toy.consumer.partitions.run())
        try:
            yield toy
        finally:
            await cancel_all(task)


async def where(url: str) -> Counter[str]:
    async with await connect(url, name="test") as connection:
        queues = await with_partitions(connection, queues_of(PARTICIPANT))
        channel = await connection.open_channel()
        return Counter({q: (await channel.look_at(q)).message_count or 0 for q in queues})


async def test_events_wait_in_partitions_and_can_be_looked_at_there(
    divided: Broker, amqp_url: str, tmp_path: Path
) -> None:
    events = [cancelled(number) for number in THINGS]
    await divided.publish_all(events)

    async def all_there() -> bool:
        return sum((await where(amqp_url)).values()) == len(THINGS)

    await until(all_there)
    found = await where(amqp_url)
    assert {queue for queue, count in found.items() if count} == NORMAL
    async with await connect(amqp_url, name="test") as connection:
        queues = await with_partitions(connection, queues_of(PARTICIPANT))
        backlog = await looked.backlog(connection, queues)
    assert {event.id for event in events} <= backlog.waiting
    assert not backlog.read

    async with reading(amqp_url, tmp_path) as toy:
        await until(lambda: toy.done(len(THINGS)))
    assert not +(await where(amqp_url))


async def test_what_fails_waits_returns_to_its_partition_and_is_done(
    divided: Broker, amqp_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(toy_module, "flaky_until_call", 3)
    async with reading(amqp_url, tmp_path) as toy:
        await divided.publish_all([cancelled(number, who="flaky") for number in range(200, 206)])
        await until(lambda: toy.done(6))
    assert await divided.depth("toy.dlq") == 0


async def test_a_dead_letter_says_its_partition_and_is_done_when_it_is_put_back_there(
    divided: Broker, amqp_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reading(amqp_url, tmp_path) as toy:
        await divided.publish_all([cancelled(300, who="poison")])
        dead = await divided.dead_letter()
        origin = str(dead.headers[ORIGIN_QUEUE])
        assert is_partition(origin)
        fine = cancelled(300, id="event-300")
        await divided.channel.default_exchange.publish(message_of(fine.to_bytes()), origin)
        await until(lambda: toy.done(1))


async def test_a_divided_queue_keeps_its_number_and_gets_no_fewer(
    divided: Broker, amqp_url: str
) -> None:
    await apply_topology(amqp_url, GRAPH)
    assert await partitions_at(amqp_url, GRAPH) == 3
    with pytest.raises(TopologyError, match=r"have 3 partitions.*say 3 or more"):
        await apply_topology(amqp_url, GRAPH, partitions=2)


async def test_a_partition_that_the_broker_has_lost_is_read_no_more(
    divided: Broker, amqp_url: str, tmp_path: Path
) -> None:
    async with reading(amqp_url, tmp_path) as toy:
        partitions = toy.consumer.partitions
        await until(lambda: len(partitions.read) == len(THREE))
        async with await connect(amqp_url, name="test") as connection:
            channel = await connection.channel()
            for queue in [queue for queue in THREE if queue.endswith(".2")]:
                await channel.queue_delete(queue)
        left = {queue for queue in THREE if not queue.endswith(".2")}

        await until(lambda: partitions.read == left and partitions.unread == [])


async def channels_of(node: RabbitNode, url: str) -> Counter[int]:
    """How many channels of the toy's connection for partitions have so many consumers."""
    columns = ("vhost", "connection", "consumer_count")
    listed = await asyncio.to_thread(node.ctl, "list_channels", *columns, "--formatter", "json")
    named = await asyncio.to_thread(
        node.ctl, "list_connections", "pid", "client_properties", "--formatter", "json"
    )
    of_toy = {each["pid"] for each in json.loads(named) if "toy partitions" in json.dumps(each)}
    return Counter(
        channel["consumer_count"]
        for channel in json.loads(listed)
        if channel["vhost"] == virtual_host_of(url) and channel["connection"] in of_toy
    )


async def test_what_was_taken_before_a_queue_was_made_again_is_done_before_what_comes_after(
    divided: Broker,
    amqp_url: str,
    rabbit_node: RabbitNode,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("POLL_SECONDS", "LOOK_SECONDS"):
        monkeypatch.setattr(reader, name, 0.05)
    before = [cancelled(7, id=f"before-{number}") for number in range(TALLY_MAX - 1)]
    after = cancelled(7, id="after")
    happened: list[tuple[str, str]] = []

    class Recording(Kernel):
        def take(
            self, envelope: Envelope[Any], then: Callable[[Outcome], None], **more: Any
        ) -> Work:
            def settle(outcome: Outcome) -> None:
                happened.append(("done", envelope.id))
                then(outcome)

            happened.append(("taken", envelope.id))
            return super().take(envelope, settle, **more)

    async with reading(amqp_url, tmp_path, Recording) as toy:
        partitions = toy.consumer.partitions
        await until(lambda: len(partitions.read) == len(THREE))
        toy.kernel.hold_back(True)
        await divided.publish_all(before)
        await until(lambda: len(happened) == len(before))

        for queue in NORMAL:
            await divided.channel.queue_delete(queue)
        await until(lambda: not partitions.read & NORMAL)
        await apply_topology(amqp_url, GRAPH, partitions=3)
        await divided.publish_all([after])
        with contextlib.suppress(AssertionError):
            # It does not come to that: waiting only shows where it would.
            await until(lambda: ("taken", after.id) in happened, seconds=1)
        toy.kernel.hold_back(False)
        await until(lambda: toy.done(len(before) + 1))

        assert happened == [
            *(("taken", event.id) for event in before),
            *(("done", event.id) for event in before),
            ("taken", after.id),
            ("done", after.id),
        ]
        await until(lambda: partitions.read == THREE)

        async def each_channel_has_a_consumer() -> bool:
            return await channels_of(rabbit_node, amqp_url) == {1: len(THREE)}

        await until(each_channel_has_a_consumer, seconds=30)


async def test_partitions_that_a_broker_has_lost_are_made_again_where_they_are_known_of(
    amqp_url: str,
) -> None:
    lost = await missing_queues(amqp_url, GRAPH, partitions_min=3)
    assert set(lost) > THREE
    told: list[str] = []

    topology = await mend_topology(amqp_url, GRAPH, None, partitions_min=3, before=told.append)

    assert told == [f"the broker had lost {len(lost)} queues"]
    assert topology.partitions == await partitions_at(amqp_url, GRAPH) == 3
    assert await missing_queues(amqp_url, GRAPH, partitions_min=3) == []
    assert (await mend_topology(amqp_url, GRAPH, None)).partitions == 3


async def test_partitions_that_a_broker_has_lost_are_told_apart_from_what_it_should_have(
    amqp_url: str, tmp_path: Path
) -> None:
    await apply_topology(amqp_url, GRAPH)

    alike = await drift(GRAPH, amqp_url, None, tmp_path)
    found = await drift(GRAPH, amqp_url, None, tmp_path, partitions_min=3)

    assert alike.differences == []
    missing = {each.name for each in found.differences if each.kind == "queue"}
    assert missing == THREE


async def test_a_broker_without_the_plugin_is_told_apart(tmp_path: Path) -> None:
    node = RabbitNode(tmp_path / "node")
    node.plugins = ()
    try:
        await asyncio.to_thread(node.start)
        with pytest.raises(NoPlugin, match=f"rabbitmq-plugins enable {HASH_PLUGIN}"):
            await apply_topology(node.amqp_url, GRAPH, partitions=2)
        await apply_topology(node.amqp_url, GRAPH)
    finally:
        await asyncio.to_thread(node.stop)
