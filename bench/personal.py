"""What it costs to seal personal data: the product with `PERSONAL=sealed` and without, in turns.

Orders arrive in clear, each of a customer who is new: every one needs a key of its own. Customers
who come back cost less, as their keys are known.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from bench.compare import WARM_UP_ORDERS, Comparison, Spread, all_started
from bench.rig import SQLITE, Measured, Report, Variant
from saga.local.node import RabbitNode

COST_MAX: Final = 0.05
"""Of the orders a second."""
SEALED: Final = replace(
    SQLITE, name="sealed", environment={**SQLITE.environment, "PERSONAL": "sealed"}
)


@dataclass(frozen=True, slots=True)
class SealingCost:
    """Ratios of the product with sealing to the same without it, slice by slice."""

    orders_per_second: Spread
    cpu: Spread

    @property
    def met(self) -> bool:
        return self.orders_per_second.median >= 1 - COST_MAX


async def sealing(
    node: RabbitNode, folder: Path, *, rounds: int, orders: int, report: Report
) -> SealingCost:
    """Measure each twice in every round, there and back."""
    found = Comparison()
    variants: list[Variant] = [SQLITE, SEALED]
    async with all_started(variants, node, folder, report) as benches:
        for variant in variants:
            await benches[variant.name].load(WARM_UP_ORDERS)
        for number in range(1, rounds + 1):
            report(f"round {number} of {rounds}")
            for variant in variants + variants[::-1]:
                measured = await benches[variant.name].load(orders)
                found.saturated.setdefault(variant.name, []).append(measured)
    return SealingCost(found.ratio(SEALED, SQLITE, _rate), found.ratio(SEALED, SQLITE, _cpu))


def _rate(measured: Measured) -> float:
    return measured.orders_per_second


def _cpu(measured: Measured) -> float:
    return measured.services_cpu_ms
