"""Queues that are divided while the system is at work, and replicas that read their parts."""

from __future__ import annotations

import asyncio
from pathlib import Path

from order_saga.demo import DemoResult, demo
from order_saga.orders import Shares, plan
from saga.broker.setup import apply_topology, drift
from saga.discovery import choreography
from saga.local.system import System
from saga.runtime.messaging.topology import is_partition
from saga.status import status
from tests.e2e.test_saga import as_predicted
from tests.forked import spawn
from tests.ordering import overtaken
from tests.polling import until

ORDERS = 80
ORDERS_PER_SECOND = 8
SEED = 11


async def test_queues_that_are_divided_under_load_lose_nothing_and_keep_sagas_in_order(
    tmp_path: Path,
) -> None:
    graph = choreography()
    async with System(
        tmp_path, database="postgresql", replicas=2, disposable=True, spawn=spawn
    ) as system:
        url = system.deployment.amqp_url
        ended: list[int] = []

        def load(orders: int, seed: int) -> asyncio.Task[DemoResult]:
            orders_of = plan(orders, seed, Shares(malformed=0))
            return asyncio.create_task(
                demo(
                    system.deployment,
                    graph,
                    orders_of,
                    seed=seed,
                    rate=ORDERS_PER_SECOND,
                    ended=ended.append,
                )
            )

        growing = load(ORDERS, SEED)
        await until(lambda: bool(ended), seconds=60)
        assert not growing.done()
        for partitions in (3, 5):
            await apply_topology(url, graph, partitions=partitions)
        as_predicted(await growing)

        ended.clear()
        killing = load(ORDERS // 2, SEED + 1)
        await until(lambda: bool(ended), seconds=60)
        assert not killing.done()
        system.kill("payment-2")  # and stays away: what it read is read by the other
        system.kill("inventory")
        await system.start("inventory")
        as_predicted(await killing)

        async def all_read() -> bool:
            queues = (await status(system.deployment, graph)).queues
            parts = [queue for name, queue in queues.items() if is_partition(name)]
            return bool(parts) and all(queue.consumers == 1 for queue in parts)

        await until(all_read, seconds=60)
        found, pairs = await overtaken(url, graph)
        assert pairs > 0
        assert found == []
        assert (await drift(graph, None, None, tmp_path)).differences == []
