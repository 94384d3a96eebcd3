"""Queues that are divided while the system is at work, and replicas that read their parts."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
from pathlib import Path
from typing import Any

from order_saga.demo import DemoResult, demo
from order_saga.orders import Shares, plan
from saga.broker.setup import apply_topology, drift, partitions_at
from saga.discovery import choreography
from saga.local.system import System
from saga.runtime.messaging.topology import is_partition
from saga.status import READY, status
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
        services = (await status(system.deployment, graph)).services
        assert services["inventory"] == READY
        assert services["payment"].startswith("no answer from")
        found, pairs = await overtaken(url, graph)
        assert pairs > 0
        assert found == []
        assert (await drift(graph, None, None, tmp_path)).differences == []


async def said(folder: Path, *arguments: str) -> dict[str, Any]:
    """The JSON of a command about the system in the folder."""
    command = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "saga.cli", *arguments, "--data-dir", str(folder), "--json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await command.communicate()
    assert command.returncode == 0, err.decode()
    document: dict[str, Any] = json.loads(out)
    return document


async def test_a_broker_that_is_lost_gets_its_partitions_back(tmp_path: Path) -> None:
    graph = choreography()
    async with System(tmp_path, spawn=spawn) as system:
        url, node = system.deployment.amqp_url, system.node
        assert node is not None
        applied = await said(tmp_path, "topology", "apply", "--partitions", "2")
        assert applied["partitions"] == 2

        await asyncio.to_thread(node.kill)
        shutil.rmtree(node.folder / "data")
        await asyncio.to_thread(node.start)
        recovered = await said(tmp_path, "recover", "broker")

        assert recovered["partitions"] == await partitions_at(url, graph) == 2
        plan_of_few = plan(10, SEED, Shares(malformed=0))
        as_predicted(await demo(system.deployment, graph, plan_of_few, seed=SEED))
    shutil.rmtree(node.folder / "data")
    async with System(tmp_path, disposable=True, spawn=spawn) as system:
        assert await partitions_at(system.deployment.amqp_url, graph) == 2
