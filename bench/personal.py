"""What it costs to seal personal data: the product with `PERSONAL=sealed` and without, each under
the same load at the same time, so that what else the machine does falls on both alike.

Orders arrive in clear, over HTTP or over the broker. Either each is of a customer who is new, so
every one needs a key of its own, which the order service makes and the payment service reads; or
customers come again, and their keys are known.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.compare import WARM_UP_ORDERS, Spread, all_started
from bench.rig import SQLITE, Measured, Report, Variant
from saga.local.node import RabbitNode

COST_MAX: Final = 0.05
"""Of the orders a second, and of the services' CPU."""
CLEAR: Final = replace(
    SQLITE, name="clear", environment={**SQLITE.environment, "HTTP_REQUESTS_PER_SECOND": "0"}
)
SEALED: Final = replace(
    CLEAR, name="sealed", environment={**CLEAR.environment, "PERSONAL": "sealed"}
)
COMING_AGAIN: Final = 200
"""Customers, each of whom has come before in every load but the first."""
CUSTOMERS: Final = {"new": 0, "coming again": COMING_AGAIN}
DOORS: Final = ("HTTP", "broker")


@dataclass(frozen=True, slots=True)
class SealingCost:
    """Ratios of the product with sealing to the same without it, pair by pair."""

    door: str
    customers: str
    orders_per_second: Spread
    cpu: Spread

    @property
    def met(self) -> bool:
        rate, cpu = self.orders_per_second.median, self.cpu.median
        return rate >= 1 - COST_MAX and cpu <= 1 + COST_MAX


async def sealing(
    node: RabbitNode, folder: Path, *, rounds: int, orders: int, report: Report
) -> list[SealingCost]:
    """Measure each pair twice in every round."""
    variants: list[Variant] = [CLEAR, SEALED]
    cases = [(door, customers) for door in DOORS for customers in CUSTOMERS]
    found: dict[tuple[str, str, str], list[Measured]] = {}
    async with all_started(variants, node, folder, report) as benches:

        async def both(door: str, customers: str, orders: int) -> list[Measured]:
            count, over_http = CUSTOMERS[customers], door == "HTTP"
            return await asyncio.gather(
                *(
                    benches[each.name].load(orders, customers=count, over_http=over_http)
                    for each in variants
                )
            )

        for case in cases:
            await both(*case, WARM_UP_ORDERS)
        for number in range(1, rounds + 1):
            report(f"round {number} of {rounds}")
            for case in [*cases, *reversed(cases)]:
                for variant, measured in zip(variants, await both(*case, orders), strict=True):
                    found.setdefault((variant.name, *case), []).append(measured)

    def ratio(case: tuple[str, str], figure: Callable[[Measured], float]) -> Spread:
        pairs = zip(found[SEALED.name, *case], found[CLEAR.name, *case], strict=True)
        return Spread.of_many([figure(sealed) / figure(clear) for sealed, clear in pairs])

    return [SealingCost(*case, ratio(case, _rate), ratio(case, _cpu)) for case in cases]


def _rate(measured: Measured) -> float:
    return measured.orders_per_second


def _cpu(measured: Measured) -> float:
    return measured.services_cpu_ms
