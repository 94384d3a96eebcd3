"""What it costs to keep what was published: the product with it and without, in turns."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

from sqlalchemy.engine import Connection

from bench.compare import PRODUCT, Comparison, Spread, all_started
from bench.rig import Bench, Measured, Report, Variant
from saga.discovery import tables_of
from saga.local.node import RabbitNode
from saga.runtime.kernel.kept import kept_events
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.tables import Tables

COST_MAX: Final = 0.03
"""Of the orders a second."""


@dataclass(frozen=True, slots=True)
class Cost:
    """What keeping costs one variant: ratios to the same without it, slice by slice."""

    variant: str
    orders_per_second: Spread
    cpu: Spread
    kept_bytes_per_order: float

    @property
    def met(self) -> bool:
        return self.orders_per_second.median >= 1 - COST_MAX


def without(variant: Variant) -> Variant:
    """The same, with nothing kept."""
    return replace(
        variant,
        name=f"{variant.name}, nothing kept",
        environment={**variant.environment, "OUTBOX_KEEP_MINUTES": "0"},
    )


async def keeping(
    node: RabbitNode, folder: Path, *, rounds: int, orders: int, report: Report
) -> list[Cost]:
    """Measure each twice in every round, there and back."""
    found = Comparison()
    variants = [one for variant in PRODUCT for one in (variant, without(variant))]
    async with all_started(variants, node, folder, report) as benches:
        for number in range(1, rounds + 1):
            report(f"round {number} of {rounds}")
            for variant in variants + variants[::-1]:
                measured = await benches[variant.name].load(orders)
                found.saturated.setdefault(variant.name, []).append(measured)
        placed = 2 * rounds * orders
        return [
            Cost(
                variant.name,
                found.ratio(variant, without(variant), _rate),
                found.ratio(variant, without(variant), _cpu),
                await asyncio.to_thread(_kept_bytes, benches[variant.name]) / placed,
            )
            for variant in PRODUCT
        ]


def _rate(measured: Measured) -> float:
    return measured.orders_per_second


def _cpu(measured: Measured) -> float:
    return measured.services_cpu_ms


def _kept_bytes(bench: Bench) -> int:
    """Of all services together."""
    total = 0
    for name, url in bench.system.deployment.database_urls.items():
        total += read_database(url, partial(_bytes_in, tables_of(name)))
    return total


def _bytes_in(tables: Tables, connection: Connection) -> int:
    return sum(len(body) for page in kept_events(connection, tables) for body in page)
