"""How throughput and memory hold up: with many orders stored, a long backlog, a slow provider, one
SKU that everybody wants, and a broker that was killed."""

from __future__ import annotations

import asyncio
import bisect
import sqlite3
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final, TypeAlias

import sqlalchemy as sa

from bench.load import SHARES
from bench.rig import SERVICES, SQLITE, Bench, Report, started
from common.kernel.database import read_database
from common.kernel.tables import utc_now
from order_service.store import orders as orders_table
from saga.deployment import Deployment
from saga.node import RabbitNode
from saga.orders import Plan, plan
from saga.publish import publish

WARM_UP_ORDERS: Final = 1_000
BACKLOG_ORDERS: Final = 200_000
RECOVERY_RUN_SECONDS: Final = 40.0
RECOVERY_KILL_AT_SECONDS: Final = 8.0
RECOVERY_SEED: Final = 77
ROW_KEY_DIGITS: Final = 12
"""So many characters at the end of a copied row's key say which copy it is."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A figure beside what is promised of it."""

    name: str
    measured: float
    limit: float
    at_least: bool
    detail: str

    @property
    def met(self) -> bool:
        return self.measured >= self.limit if self.at_least else self.measured <= self.limit


async def stored(node: RabbitNode, folder: Path, orders: int, report: Report) -> list[Finding]:
    """Throughput with a million orders in the databases, to that with ten thousand."""
    rates = []
    for rows in (10_000, 1_000_000):
        async with started(SQLITE, node, folder, seed=1) as bench:
            await bench.load(WARM_UP_ORDERS)
            report(f"storing {rows:,} orders")
            await _multiply(bench, rows)
            await bench.load(WARM_UP_ORDERS)
            rates.append((await bench.load(orders)).orders_per_second)
    few, many = rates
    detail = f"{many:.0f} orders/s with 1,000,000 stored, {few:.0f} with 10,000"
    return [Finding("1,000,000 orders stored / 10,000", many / few, 0.9, True, detail)]


async def _multiply(bench: Bench, rows: int) -> None:
    """Copy what the services have kept of their orders, under other keys."""
    urls = bench.system.deployment.database_urls
    for service in SERVICES:
        bench.system.kill(service)
    for service in SERVICES:
        await asyncio.to_thread(_copy_rows, urls[service].removeprefix("sqlite:///"), rows)
    await bench.system.start(*SERVICES)


def _copy_rows(path: str, rows: int) -> None:
    tables = {"orders": "order_id", "reservations": "order_id", "payments": "order_id"}
    with sqlite3.connect(path) as connection:
        for table, key in {**tables, "inbox": "message_id"}.items():
            columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
            if not columns:
                continue
            (there,) = connection.execute(f"SELECT count(*) FROM {table}").fetchone()  # noqa: S608
            others = ", ".join(column for column in columns if column != key)
            for copy in range(-(-rows // there)):
                prefix = 36 - ROW_KEY_DIGITS
                connection.execute(
                    f"INSERT INTO {table} ({key}, {others}) "  # noqa: S608 - names of ours
                    f"SELECT substr({key}, 1, {prefix}) || printf('%06x%06x', ?, rowid), {others} "
                    f"FROM {table} LIMIT ?",
                    (copy, there),
                )
        connection.commit()
    connection.close()


async def backlog(node: RabbitNode, folder: Path, orders: int, report: Report) -> list[Finding]:
    """Memory and pace while a backlog drains, to those of a system that keeps up."""
    async with started(SQLITE, node, folder, seed=1) as bench:
        await bench.load(WARM_UP_ORDERS)
        usual = await bench.load(orders)
        load = await bench.prepare(BACKLOG_ORDERS)
        for service in SERVICES:
            bench.system.kill(service)
        report(f"placing {BACKLOG_ORDERS:,} orders that nobody takes")
        sending = asyncio.ensure_future(bench.send(load))
        await _until_waiting(bench, BACKLOG_ORDERS)
        began = asyncio.get_running_loop().time()
        await bench.system.start(*SERVICES)
        await sending
        seconds = asyncio.get_running_loop().time() - began
        rate, memory = BACKLOG_ORDERS / seconds, bench.peak_mb()
    return [
        Finding(
            "memory with a backlog / usual", memory / usual.peak_mb, 1.2, False,
            f"{memory:.0f} MB at most, usually {usual.peak_mb:.0f}",
        ),
        Finding(
            "rate of a draining backlog / usual", rate / usual.orders_per_second, 0.9, True,
            f"{rate:.0f} orders/s over {BACKLOG_ORDERS:,}, usually {usual.orders_per_second:.0f}",
        ),
    ]  # fmt: skip


async def _until_waiting(bench: Bench, messages: int) -> None:
    queues = ("order.intake.high", "order.intake.normal")
    while await bench.waiting(*queues) < messages:  # noqa: ASYNC110 - the broker tells nobody
        await asyncio.sleep(0.2)


async def slow_gateway(
    node: RabbitNode, folder: Path, orders: int, report: Report
) -> list[Finding]:
    """Throughput with a provider that takes 50 ms, to that with one that answers at once."""
    rates = []
    for milliseconds in ("0", "50"):
        async with started(SQLITE, node, folder, seed=1, BENCH_GATEWAY_MS=milliseconds) as bench:
            await bench.load(WARM_UP_ORDERS)
            rates.append((await bench.load(orders)).orders_per_second)
    at_once, slow = rates
    detail = f"{slow:.0f} orders/s with 50 ms, {at_once:.0f} with none"
    return [Finding("a gateway of 50 ms / none", slow / at_once, 0.8, True, detail)]


async def one_sku(node: RabbitNode, folder: Path, orders: int, report: Report) -> list[Finding]:
    """Throughput when all want one SKU, to that of orders for many."""
    async with started(SQLITE, node, folder, seed=1) as bench:
        await bench.load(WARM_UP_ORDERS)
        many = (await bench.load(orders)).orders_per_second
        one = (await bench.load(orders, one_sku=True)).orders_per_second
    detail = f"{one:.0f} orders/s for one SKU, {many:.0f} for many"
    return [Finding("orders for one SKU / many", one / many, 0.7, True, detail)]


async def broker_killed(
    node: RabbitNode, folder: Path, orders: int, report: Report
) -> list[Finding]:
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
    return [Finding("seconds from a broker kill to full rate", recovered, 10.0, False, detail)]


def _ends_since(moment: datetime, load: Plan, deployment: Deployment) -> list[float]:
    """When the load's orders ended, in seconds after the moment (or before)."""
    ids = {str(order.order_id) for order in load.orders}
    query = sa.select(orders_table.c.order_id, orders_table.c.ended_at).where(
        orders_table.c.ended_at.is_not(None)
    )
    rows = read_database(deployment.database_urls["order"], lambda c: c.execute(query).all())
    return sorted((row[1] - moment).total_seconds() for row in rows if row[0] in ids)


def _within(ends: list[float], start: float, seconds: float) -> int:
    return bisect.bisect_left(ends, start + seconds) - bisect.bisect_left(ends, start)


Scenario: TypeAlias = Callable[[RabbitNode, Path, int, Report], Coroutine[Any, Any, list[Finding]]]
SCENARIOS: Final[dict[str, Scenario]] = {
    "stored": stored,
    "backlog": backlog,
    "gateway": slow_gateway,
    "one-sku": one_sku,
    "broker-killed": broker_killed,
}
