"""What it costs to seal personal data: the product with `PERSONAL=sealed` and without. Orders per
second are taken in turns, as each has the machine to itself, and CPU while both are under the same
load, so that what else the machine does falls on both alike.

Orders arrive in clear, over HTTP or over the broker. Either each is of a customer who is new, so
every one needs a key of its own, which the order service makes and the payment service reads; or
customers come again, and their keys are known.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.compare import WARM_UP_ORDERS, Spread, all_started
from bench.rig import SQLITE, Measured, Report, Variant
from saga.local.node import RabbitNode

COST_MAX: Final = 0.05
"""Of the orders a second."""
CLEAR: Final = replace(
    SQLITE, name="clear", environment={**SQLITE.environment, "HTTP_REQUESTS_PER_SECOND": "0"}
)
SEALED: Final = replace(
    CLEAR, name="sealed", environment={**CLEAR.environment, "PERSONAL": "sealed"}
)
COMING_AGAIN: Final = 200
"""Customers, each of whom has come before in every load but the first."""
CUSTOMERS: Final = {"new": 0, "coming again": COMING_AGAIN}
HTTP: Final = "HTTP"
DOORS: Final = (HTTP, "broker")


@dataclass(frozen=True, slots=True)
class SealingCost:
    """Ratios of the product with sealing to the same without it, pair by pair."""

    door: str
    customers: str
    orders_per_second: Spread
    cpu: Spread

    @property
    def met(self) -> bool:
        return self.orders_per_second.median >= 1 - COST_MAX


async def sealing(
    node: RabbitNode, folder: Path, *, rounds: int, orders: int, report: Report
) -> list[SealingCost]:
    """Measure each pair twice in every round."""
    variants: list[Variant] = [CLEAR, SEALED]
    cases = [(door, customers) for door in DOORS for customers in CUSTOMERS]
    rates: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    spent: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    async with all_started(variants, node, folder, report) as benches:

        async def placed(variant: Variant, door: str, customers: str, orders: int) -> Measured:
            bench, count = benches[variant.name], CUSTOMERS[customers]
            return await bench.load(orders, customers=count, over_http=door == HTTP)

        for case in cases:
            for variant in variants:
                await placed(variant, *case, WARM_UP_ORDERS)
        for number in range(1, rounds + 1):
            report(f"round {number} of {rounds}")
            for case in [*cases, *reversed(cases)]:
                first, second = variants if number % 2 else variants[::-1]
                alone = {each.name: await placed(each, *case, orders) for each in (first, second)}
                rates[case].append(
                    alone[SEALED.name].orders_per_second / alone[CLEAR.name].orders_per_second
                )
                clear, sealed = await asyncio.gather(
                    *(placed(variant, *case, orders) for variant in variants)
                )
                spent[case].append(sealed.services_cpu_ms / clear.services_cpu_ms)
    return [
        SealingCost(*case, Spread.of_many(rates[case]), Spread.of_many(spent[case]))
        for case in cases
    ]
