"""A message whose consumer dies of it, or with it, again and again."""

from __future__ import annotations

import asyncio
import multiprocessing
from pathlib import Path

import pytest

from saga.choreography import Choreography
from saga.local.node import RabbitNode
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import apply, topology_of
from tests.faults.load import REACHED_SECONDS
from tests.integration import holding
from tests.integration.test_messaging import Broker, running
from tests.integration.toy import PARTICIPANT, cancelled
from tests.polling import until

KILLS = 30
"""More than the 20 deliveries that RabbitMQ 4 allows a message where nothing else is said."""


def hold(url: str, folder: Path) -> None:
    asyncio.run(holding.main(url, folder))


@pytest.mark.long
@pytest.mark.parametrize("turn", [0, 1], ids=["on the system's RabbitMQ", "on RabbitMQ 4"])
async def test_a_consumer_killed_thirty_times_on_one_message_loses_nothing(
    turn: int, rabbitmq: str, rabbitmqs: list[tuple[str, Path]], tmp_path: Path
) -> None:
    if turn >= len(rabbitmqs):
        pytest.skip("make rabbitmq4 unpacks it")
    # Each process of it is a copy of one that has imported everything: that takes no second.
    processes = multiprocessing.get_context("forkserver")
    processes.set_forkserver_preload(["tests.integration.holding"])  # unless one runs already
    node = RabbitNode(tmp_path / "node")
    await asyncio.to_thread(node.start)
    try:
        async with await connect(node.amqp_url, name="test") as connection:
            broker = Broker(await connection.channel(on_return_raises=True))
            await apply(topology_of(Choreography([PARTICIPANT])), broker.channel)
            await broker.publish_all([cancelled(number) for number in range(1, 21)])

            async def delivered() -> bool:
                return await broker.depth("toy.normal") == 0

            async def back() -> bool:
                return await broker.depth("toy.normal") > 0

            for _ in range(KILLS):
                process = processes.Process(target=hold, args=(node.amqp_url, tmp_path))
                process.start()
                await until(delivered, seconds=REACHED_SECONDS)
                process.kill()
                process.join()
                await until(back)
            async with running(node.amqp_url, tmp_path) as toy:
                await until(lambda: toy.done(20))
                await until(delivered)
            assert await broker.depth("toy.dlq") == 0
    finally:
        await asyncio.to_thread(node.stop)
