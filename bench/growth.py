"""How throughput and memory hold up: with many orders stored, a long backlog, a slow provider, one
SKU that every order wants, and a broker that was killed."""

from __future__ import annotations

import asyncio
import bisect
import sqlite3
import statistics
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeAlias
from uuid import uuid4

import sqlalchemy as sa

from bench.compare import Spread
from bench.load import SHARES
from bench.rig import SERVICES, SQLITE, Bench, Measured, Report, started
from order_saga.orders import OrderLoad, plan
from order_saga.publish import publish
from order_service.store import orders as orders_table
from saga.deployment import Deployment
from saga.local.node import RabbitNode
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.tables import utc_now
from saga.runtime.urls import sqlite_path

WARM_UP_ORDERS: Final = 1_000
BACKLOG_ORDERS: Final = 200_000
RECOVERY_RUN_SECONDS: Final = 40.0
RECOVERY_KILL_AT_SECONDS: Final = 8.0
RECOVERY_SEED: Final = 77
FEW_ORDERS: Final = 10_000
MANY_ORDERS: Final = 1_000_000
STORED_ROUNDS: Final = 5
COPYING_CACHE_KB: Final = 1_000_000
"""At most: enough for a file of a million orders."""


@dataclass(frozen=True, slots=True)
class GrowthFinding:
    """A figure beside what is promised of it."""

    name: str
    measured: float
    limit: float
    at_least: bool
    detail: str

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


async def stored(
    node: RabbitNode, folder: Path, orders: int, report: Report
) -> list[GrowthFinding]:
    """Throughput with a million orders in the databases, to that with ten thousand.

    Both systems are there at once and loaded in turn, each first in every other round: the machine
    changes by more in the minutes that filling takes than the product does by what is stored. The
    one with few begins again in every round, or it would not have few for long.
    """
    with_few: list[Measured] = []
    with_many: list[Measured] = []
    async with started(SQLITE, node, folder, seed=1) as many:
        report(f"storing {MANY_ORDERS:,} orders")
        await _store(many, MANY_ORDERS)
        for number in range(STORED_ROUNDS):
            report(f"round {number + 1} of {STORED_ROUNDS}")
            async with started(SQLITE, node, folder, seed=1) as few:
                await _store(few, FEW_ORDERS)
                turns = [(few, with_few), (many, with_many)]
                for bench, found in turns if number % 2 == 0 else reversed(turns):
                    found.append(await bench.load(orders))
    pairs = [*zip(with_many, with_few, strict=True)]
    rate = Spread.of([one.orders_per_second / other.orders_per_second for one, other in pairs])
    cpu = Spread.of([one.services_cpu_ms / other.services_cpu_ms for one, other in pairs])
    many_rate, few_rate = (
        statistics.median(measured.orders_per_second for measured in found)
        for found in (with_many, with_few)
    )
    return [
        GrowthFinding(
            f"{MANY_ORDERS:,} orders stored / {FEW_ORDERS:,}", rate.median, 0.9, True,
            f"{rate.least:.2f} to {rate.most:.2f} in {STORED_ROUNDS} rounds; {many_rate:.0f} "
            f"orders/s and {few_rate:.0f}; CPU of the services {cpu.median:.2f} of that with few",
        )
    ]  # fmt: skip


async def _store(bench: Bench, orders: int) -> None:
    """Leave a warm system with so many orders."""
    await bench.load(WARM_UP_ORDERS)
    await _multiply(bench, orders // WARM_UP_ORDERS)
    await bench.load(WARM_UP_ORDERS)


async def _multiply(bench: Bench, times: int) -> None:
    """Make what the services have kept of their orders so many times as much."""
    urls = bench.system.deployment.database_urls
    for service in SERVICES:
        bench.system.kill(service)
    for service in SERVICES:
        await asyncio.to_thread(_copy_rows, sqlite_path(urls[service]), times)
    await bench.system.start(*SERVICES)


def _copy_rows(path: Path | None, times: int) -> None:
    """Copy the rows of a file under keys that are random, as those of a service are: then a page
    is as full, and the pages that a group touches lie as far apart, as in a file that has grown."""
    keys = dict.fromkeys(("orders", "reservations", "payments"), "order_id")
    assert path is not None
    with sqlite3.connect(path) as connection:
        connection.create_function("new_key", 0, lambda: str(uuid4()))
        # All of the file: pages that are written at random would be read and written many times.
        connection.execute(f"PRAGMA cache_size = -{COPYING_CACHE_KB}")
        for table, key in {**keys, "inbox": "message_id"}.items():
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            if not columns:
                continue
            (last,) = connection.execute(f"SELECT max(rowid) FROM {table}").fetchone()  # noqa: S608
            others = ", ".join(column for column in columns if column != key)
            for _ in range(times - 1):
                connection.execute(
                    f"INSERT INTO {table} ({key}, {others}) "  # noqa: S608 - names of ours
                    # After an id in the inbox comes its source.
                    f"SELECT new_key() || substr({key}, 37), {others} "
                    f"FROM {table} WHERE rowid <= ?",
                    (last,),
                )
        connection.commit()
    connection.close()


async def backlog(
    node: RabbitNode, folder: Path, orders: int, report: Report
) -> list[GrowthFinding]:
    """Memory and pace while a backlog drains, to those of a system that keeps up."""
    async with started(SQLITE, node, folder, seed=1) as bench:
        await bench.load(WARM_UP_ORDERS)
        usual = await bench.load(orders)
        load = await bench.prepare(BACKLOG_ORDERS)
        for service in SERVICES:
            bench.system.kill(service)
        report(f"placing {BACKLOG_ORDERS:,} orders that no service takes")
        sending = asyncio.ensure_future(bench.send(load))
        await _until_waiting(bench, BACKLOG_ORDERS)
        began = asyncio.get_running_loop().time()
        await bench.system.start(*SERVICES)
        await sending
        seconds = asyncio.get_running_loop().time() - began
        rate, memory = BACKLOG_ORDERS / seconds, bench.peak_mb()
    return [
        GrowthFinding(
            "memory with a backlog / usual", memory / usual.peak_mb, 1.2, False,
            f"{memory:.0f} MB at most, usually {usual.peak_mb:.0f}",
        ),
        GrowthFinding(
            "rate of a draining backlog / usual", rate / usual.orders_per_second, 0.9, True,
            f"{rate:.0f} orders/s over {BACKLOG_ORDERS:,}, usually {usual.orders_per_second:.0f}",
        ),
    ]  # fmt: skip


async def _until_waiting(bench: Bench, messages: int) -> None:
    queues = ("order.intake.high", "order.intake.normal")
    while await bench.waiting(*queues) < messages:  # noqa: ASYNC110 - the broker sends no event
        await asyncio.sleep(0.2)


async def slow_gateway(
    node: RabbitNode, folder: Path, orders: int, report: Report
) -> list[GrowthFinding]:
    """Throughput with a provider that takes 50 ms, to that with one that answers at once."""
    rates = []
    for milliseconds in ("0", "50"):
        async with started(SQLITE, node, folder, seed=1, BENCH_GATEWAY_MS=milliseconds) as bench:
            await bench.load(WARM_UP_ORDERS)
            rates.append((await bench.load(orders)).orders_per_second)
    at_once, slow = rates
    detail = f"{slow:.0f} orders/s with 50 ms, {at_once:.0f} with none"
    return [GrowthFinding("a gateway of 50 ms / none", slow / at_once, 0.8, True, detail)]


async def one_sku(
    node: RabbitNode, folder: Path, orders: int, report: Report
) -> list[GrowthFinding]:
    """Throughput when all want one SKU, to that of orders for many."""
    async with started(SQLITE, node, folder, seed=1) as bench:
        await bench.load(WARM_UP_ORDERS)
        many = (await bench.load(orders)).orders_per_second
        one = (await bench.load(orders, one_sku=True)).orders_per_second
    detail = f"{one:.0f} orders/s for one SKU, {many:.0f} for many"
    return [GrowthFinding("orders for one SKU / many", one / many, 0.7, True, detail)]


async def broker_killed(
    node: RabbitNode, folder: Path, orders: int, report: Report
) -> list[GrowthFinding]:
    """Seconds from the broker's kill -9 until orders end at the rate they are placed again."""
    async with started(SQLITE, node, folder, seed=1) as bench:
        await bench.load(WARM_UP_ORDERS)
        rate = (await bench.load(orders)).orders_per_second / 2
        deployment = bench.system.deployment
        await asyncio.to_thread(node.settle)
        load = plan(int(rate * RECOVERY_RUN_SECONDS), RECOVERY_SEED, SHARES)
        sending = asyncio.ensure_future(publish(deployment, load, rate=rate))
        await asyncio.sleep(RECOVERY_KILL_AT_SECONDS)
        report("killing the broker")
        killed_at = utc_now()
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(node.start)
        up_seconds = (utc_now() - killed_at).total_seconds()
        await sending
        ends: list[float] = []
        while len(ends) < len(load.orders):
            ends = await asyncio.to_thread(_ends_since, killed_at, load, deployment)
            await asyncio.sleep(0.2)
    # The first second, after the kill, in which as many end as are placed.
    recovered = next(end for end in ends if end > 0 and _within(ends, end, 1.0) >= rate * 0.9)
    detail = f"{up_seconds:.1f} s of them the node's start; {rate:.0f} orders/s all the while"
    return [
        GrowthFinding("seconds from a broker kill to full rate", recovered, 10.0, False, detail)
    ]


def _ends_since(moment: datetime, load: OrderLoad, deployment: Deployment) -> list[float]:
    """When the load's orders ended, in seconds after the moment (or before)."""
    ids = {str(order.order_id) for order in load.orders}
    query = sa.select(orders_table.c.order_id, orders_table.c.ended_at).where(
        orders_table.c.ended_at.is_not(None)
    )
    rows = read_database(deployment.database_urls["order"], lambda c: c.execute(query).all())
    return sorted((row[1] - moment).total_seconds() for row in rows if row[0] in ids)


def _within(ends: list[float], start: float, seconds: float) -> int:
    return bisect.bisect_left(ends, start + seconds) - bisect.bisect_left(ends, start)


Scenario: TypeAlias = Callable[
    [RabbitNode, Path, int, Report], Coroutine[Any, Any, list[GrowthFinding]]
]
SCENARIOS: Final[dict[str, Scenario]] = {
    "stored": stored,
    "backlog": backlog,
    "gateway": slow_gateway,
    "one-sku": one_sku,
    "broker-killed": broker_killed,
}
