"""A cluster of three RabbitMQ nodes: each killed in turn under load, and each restarted in turn;
with queues in four partitions, each service killed as well.

How long no order ended meanwhile is printed.
"""

from __future__ import annotations

import asyncio
import itertools
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import pytest
import yarl

from order_saga.demo import demo
from order_saga.orders import Shares, plan
from saga.broker.claim import CLAIM_QUEUE
from saga.broker.setup import apply_topology
from saga.discovery import choreography
from saga.local.node import RabbitNode
from saga.local.system import Database, System
from tests.e2e.test_saga import as_predicted
from tests.ordering import overtaken
from tests.polling import until
from tests.secured import secured_if_wanted

SEED = 303
NODES = 3
ORDERS = 1_000
ORDERS_PER_SECOND = 40
"""Slow enough that the load goes on while a node is away, and for a while after it is back."""
ORDERS_OF_EACH = 240
PARTITIONS = 4
STRIKES_AT = 100
"""Orders that have ended when the node goes."""
NO_MALFORMED = Shares(malformed=0)
"""Those are sent over a connection of the load's own, which is not opened again."""

pytestmark = pytest.mark.long


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Sequence[RabbitNode]]:
    nodes: list[RabbitNode] = []
    try:
        for number in range(NODES):
            peer = nodes[0] if nodes else None
            name = f"node{number}"
            nodes.append(RabbitNode(tmp_path / name, name=name, peer=peer))
            nodes[-1].start()
        yield nodes
    finally:
        for node in nodes:
            node.kill()
        for node in reversed(nodes):  # the first one has the name server
            node.stop()


def url_of(nodes: Sequence[RabbitNode]) -> str:
    first, *others = (yarl.URL(node.amqp_url) for node in nodes)
    return str(first.update_query(also=",".join(f"{url.host}:{url.port}" for url in others)))


@asynccontextmanager
async def system_on(
    nodes: Sequence[RabbitNode], folder: Path, *, database: Database = "sqlite", replicas: int = 1
) -> AsyncIterator[System]:
    """A system on the cluster; with `SECURED=1` in the environment, its callers have to be known,
    and names are sealed."""
    with secured_if_wanted(folder) as environment:
        async with System(
            folder,
            amqp_url=url_of(nodes),
            database=database,
            replicas=replicas,
            disposable=True,
            environment=environment,
        ) as system:
            yield system


def in_sync(nodes: Sequence[RabbitNode]) -> bool:
    """Whether every queue, the history too, has a replica that is up on every node. (The queue that
    says whose the broker is belongs to a connection, and has none.)"""
    listed = nodes[0].ctl("list_queues", "--no-table-headers", "name", "online").splitlines()
    queues = [line for line in listed if not line.startswith(CLAIM_QUEUE)]
    return bool(queues) and all(line.count("@localhost") == NODES for line in queues)


async def load_during(
    system: System, strike: Callable[[], None], *, seed: int, orders: int = ORDERS
) -> float:
    """Run a load and strike in the middle of it; every order ends as predicted, and the books are
    right. Returns the seconds between the two ends of orders that are farthest apart."""
    ends: list[float] = []
    load = asyncio.create_task(
        demo(
            system.deployment,
            choreography(),
            plan(orders, seed, NO_MALFORMED),
            seed=seed,
            rate=ORDERS_PER_SECOND,
            ended=lambda orders: ends.extend([time.monotonic()] * orders),
        )
    )
    await until(lambda: len(ends) >= STRIKES_AT or load.done(), seconds=60)
    await asyncio.to_thread(strike)
    as_predicted(await load)
    return max(after - before for before, after in itertools.pairwise(ends))


def tell(capsys: pytest.CaptureFixture[str], what: str, pause_seconds: float) -> None:
    with capsys.disabled():
        sys.stdout.write(f"\n{what}: at most {pause_seconds:.1f} s without an order that ended\n")


async def test_each_node_killed_in_turn_under_load_loses_nothing(
    cluster: Sequence[RabbitNode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with system_on(cluster, tmp_path / "system") as system:
        for number, node in enumerate(cluster):
            await until(lambda: asyncio.to_thread(in_sync, cluster), seconds=60)

            def strike(node: RabbitNode = node) -> None:
                node.kill()
                node.start()

            pause_seconds = await load_during(system, strike, seed=SEED + number)
            tell(capsys, f"node {number} killed", pause_seconds)


async def test_a_rolling_restart_under_load_loses_nothing(
    cluster: Sequence[RabbitNode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def restart_all() -> None:
        for node in cluster:
            node.shut_down()
            node.start()
            while not in_sync(cluster):
                time.sleep(0.1)

    async with system_on(cluster, tmp_path / "system") as system:
        await until(lambda: asyncio.to_thread(in_sync, cluster), seconds=60)
        pause_seconds = await load_during(system, restart_all, seed=SEED, orders=NODES * ORDERS)
    tell(capsys, "rolling restart", pause_seconds)


async def test_each_node_and_service_killed_loses_nothing_of_four_partitions(
    cluster: Sequence[RabbitNode], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = choreography()
    async with system_on(cluster, tmp_path / "system", database="postgresql", replicas=2) as system:
        url = system.deployment.amqp_url
        await apply_topology(url, graph, partitions=PARTITIONS)
        loop = asyncio.get_running_loop()

        def node_goes(node: RabbitNode) -> None:
            node.kill()
            node.start()

        def service_goes(name: str) -> None:
            loop.call_soon_threadsafe(system.kill, name)
            asyncio.run_coroutine_threadsafe(system.start(name), loop).result()

        def leaders_move() -> None:
            rebalance = 'rabbit_amqqueue:rebalance(quorum, ".*", ".*")'
            cluster[0].ctl("eval", f"spawn(fun() -> {rebalance} end).")

        strikes: dict[str, Callable[[], None]] = {
            **{f"node {n} killed": partial(node_goes, node) for n, node in enumerate(cluster)},
            "leaders moved": leaders_move,  # Those that the kills have brought together.
            **{f"{p.name} killed": partial(service_goes, p.name) for p in graph.participants},
        }
        for seed, (what, strike) in enumerate(strikes.items(), start=SEED):
            await until(lambda: asyncio.to_thread(in_sync, cluster), seconds=60)
            pause_seconds = await load_during(system, strike, seed=seed, orders=ORDERS_OF_EACH)
            tell(capsys, f"four partitions, {what}", pause_seconds)
        found, pairs = await overtaken(url, graph)
        with capsys.disabled():
            sys.stdout.write(f"\n{pairs} pairs of messages compared, {len(found)} overtaken\n")
        assert pairs > 0
        assert found == []
