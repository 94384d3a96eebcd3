"""Queues that are divided while the system is at work, and replicas that read their parts."""

from __future__ import annotations

import asyncio
from pathlib import Path

from order_saga.demo import demo
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

ORDERS = 240
ORDERS_PER_SECOND = 8
SEED = 11


async def test_queues_that_are_divided_under_load_lose_nothing_and_keep_sagas_in_order(
    tmp_path: Path,
) -> None:
    graph = choreography()
    ended = 0

    def count(orders: int) -> None:
        nonlocal ended
        ended += orders

    async with System(
        tmp_path, database="postgresql", replicas=2, disposable=True, spawn=spawn
    ) as system:
        url = system.deployment.amqp_url
        load = asyncio.create_task(
            demo(
                system.deployment,
                graph,
                plan(ORDERS, SEED, Shares(malformed=0)),
                seed=SEED,
                rate=ORDERS_PER_SECOND,
                ended=count,
            )
        )
        for share, partitions in ((0.1, 3), (0.4, 5)):
            await until(lambda share=share: ended >= share * ORDERS or load.done(), seconds=60)  # type: ignore[misc]
            await apply_topology(url, graph, partitions=partitions)
            assert not load.done()
        system.kill("payment-2")  # and stays away: what it read is read by the other
        system.kill("inventory")
        await system.start("inventory")
        as_predicted(await load)

        async def all_read() -> bool:
            queues = (await status(system.deployment, graph)).queues
            parts = [queue for name, queue in queues.items() if is_partition(name)]
            return bool(parts) and all(queue.consumers == 1 for queue in parts)

        await until(all_read, seconds=60)
        found, pairs = await overtaken(url, graph)
        assert pairs > 0
        assert found == []
        assert (await drift(graph, None, None, tmp_path)).differences == []
