"""What the broker confirms is in the history, too, whatever happens to the broker."""

from __future__ import annotations

import asyncio
import itertools
from pathlib import Path

import pytest

from saga.choreography import Choreography
from saga.envelope import Envelope
from saga.local.node import RabbitNode
from saga.reconcile.broker import read_history
from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.publisher import BrokerPublisher
from saga.runtime.messaging.topology import apply, topology_of
from saga.runtime.tasks import cancel_all
from tests.integration.toy import PARTICIPANT, cancelled
from tests.ordering import Recorder
from tests.polling import until

PUBLISHERS = 4
"""Each has a connection of its own, which comes back when it will."""
BATCH = 20
EVENTS = 1_000
"""Confirmed before the kill, and as many again after it."""


@pytest.mark.long
@pytest.mark.parametrize("turn", [0, 1], ids=["the system's RabbitMQ", "RabbitMQ 4"])
async def test_a_broker_killed_under_its_publishers_has_in_its_history_what_it_confirmed(
    turn: int, rabbitmq: str, rabbitmqs: list[tuple[str, Path]], tmp_path: Path
) -> None:
    if turn >= len(rabbitmqs):
        pytest.skip("make rabbitmq4 unpacks it")
    graph = Choreography([PARTICIPANT])
    things = itertools.count(1)
    confirmed: set[str] = set()

    async def publish(publisher: BrokerPublisher) -> None:
        while True:
            batch = [Outgoing.of(cancelled(next(things))) for _ in range(BATCH)]
            answers = await publisher.publish_events(batch)
            confirmed.update(
                event.event_id for event, error in zip(batch, answers, strict=True) if not error
            )
            await asyncio.sleep(0.01)

    node = RabbitNode(tmp_path / "node")
    await asyncio.to_thread(node.start)
    try:
        async with await connect(node.amqp_url, name="test") as connection:
            await apply(topology_of(graph), await connection.channel())
        await asyncio.to_thread(node.settle)
        publishers = [BrokerPublisher(node.amqp_url, f"test {n}") for n in range(PUBLISHERS)]
        tasks = [asyncio.create_task(publish(publisher)) for publisher in publishers]
        await until(lambda: len(confirmed) >= EVENTS)
        await asyncio.to_thread(node.kill)
        before = len(confirmed)
        await asyncio.to_thread(node.start)
        await until(lambda: len(confirmed) >= before + EVENTS)
        await cancel_all(*tasks)
        for publisher in publishers:
            await publisher.close()

        recorder = Recorder(graph)
        async with await connect(node.amqp_url, name="test") as connection:
            await read_history(connection, recorder)
        found = {Envelope.model_validate_json(body).id for _, body in recorder.published}
        assert confirmed - found == set()
    finally:
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(node.stop)
