"""The same load on every variant in turn, round after round; what counts are ratios within a round.

A machine that is busy with something else slows a whole round, or one variant of it; medians over
rounds even out both.
"""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from bench.export import Export
from bench.machine import Pace
from bench.rig import (
    BARE,
    LIMIT,
    PER_MESSAGE,
    POSTGRESQL,
    SQLITE,
    Bench,
    Measured,
    Report,
    Variant,
    before,
    started,
)
from saga.local.node import RabbitNode

VARIANTS: Final = (BARE, PER_MESSAGE, SQLITE, POSTGRESQL, LIMIT)
PRODUCT: Final = (SQLITE, POSTGRESQL)
WITH_LATENCY: Final = (BARE, *PRODUCT)
WARM_UP_ORDERS: Final = 300
LONE_ORDERS: Final = 40
LONE_PER_SECOND: Final = 5.0
"""So slow that each order finds the system idle."""
HALF_RATE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over all slices."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))


@dataclass(slots=True)
class Comparison:
    """Keyed by variant's name: what its slices measured, two a round; of the opponent and of us
    also at half of the rate that both can keep, and, once a round, with one order at a time."""

    saturated: dict[str, list[Measured]] = field(default_factory=dict)
    half: dict[str, list[Measured]] = field(default_factory=dict)
    lone: dict[str, list[Measured]] = field(default_factory=dict)

    def spread(self, variant: str, figure: Callable[[Measured], float]) -> Spread:
        """A figure of the variant of this name under the full load."""
        return Spread.of([figure(measured) for measured in self.saturated[variant]])

    def pace(self, figure: Callable[[Pace], float]) -> Spread:
        """A figure of the machine's pace, before and after every slice."""
        runs = (self.saturated, self.half, self.lone)
        slices = [m for run in runs for measured in run.values() for m in measured]
        return Spread.of([figure(p) for m in slices for p in (m.pace_before, m.pace_after)])

    def ratio(
        self,
        variant: Variant,
        to: Variant,
        figure: Callable[[Measured], float],
        kind: str = "saturated",
    ) -> Spread:
        """A figure of one variant to that of another, slice by slice."""
        runs: Mapping[str, list[Measured]] = getattr(self, kind)
        pairs = zip(runs[variant.name], runs[to.name], strict=True)
        return Spread.of([figure(one) / figure(other) for one, other in pairs])

    def to_json(self) -> dict[str, Any]:
        """All that was measured."""
        return asdict(self)


@contextlib.asynccontextmanager
async def all_started(
    variants: Iterable[Variant], node: RabbitNode, folder: Path, report: Report
) -> AsyncIterator[dict[str, Bench]]:
    """The variants by their names, all of them up and warm."""
    async with contextlib.AsyncExitStack() as running:
        benches: dict[str, Bench] = {}
        for variant in variants:
            report(f"starting {variant.name}")
            bench = await running.enter_async_context(started(variant, node, folder, seed=1))
            await bench.load(WARM_UP_ORDERS)
            benches[variant.name] = bench
        yield benches


def with_before(variants: Iterable[Variant], against: Export | None) -> tuple[Variant, ...]:
    """The variants, each of the product followed by the same as of the other commit, if any."""
    return tuple(
        one
        for variant in variants
        for one in (
            (variant, before(variant, against))
            if variant in PRODUCT and against is not None
            else (variant,)
        )
    )


async def compare(
    node: RabbitNode,
    folder: Path,
    *,
    rounds: int,
    orders: int,
    report: Report,
    against: Export | None = None,
) -> Comparison:
    """Measure every variant twice in every round, the product as of another commit too.

    All run all the time, those that are not measured with nothing to do; so what is compared was
    measured within seconds of each other.
    """
    found = Comparison()
    variants = with_before(VARIANTS, against)
    with_latency = with_before(WITH_LATENCY, against)
    async with all_started(variants, node, folder, report) as benches:
        for number in range(1, rounds + 1):
            report(f"round {number} of {rounds}")
            # There and back, so that who comes first has no advantage.
            for variant in variants + variants[::-1]:
                # What does one thing after the other is given less of it.
                count = orders // 3 if variant is PER_MESSAGE else orders
                await _measure(benches, variant, count, 0.0, found.saturated)
            there, back = found.saturated[BARE.name][-2:]
            rate = (there.orders_per_second + back.orders_per_second) / 4
            for variant in with_latency + with_latency[::-1]:
                await _measure(benches, variant, int(rate * HALF_RATE_SECONDS), rate, found.half)
            for variant in with_latency:
                await _measure(benches, variant, LONE_ORDERS, LONE_PER_SECOND, found.lone)
    return found


async def _measure(
    benches: Mapping[str, Bench],
    variant: Variant,
    orders: int,
    rate: float,
    into: dict[str, list[Measured]],
) -> None:
    into.setdefault(variant.name, []).append(await benches[variant.name].load(orders, rate))


@dataclass(frozen=True, slots=True)
class PromisedFigure:
    """A promise, and what was measured."""

    name: str
    limit: float
    at_least: bool
    measured: Spread
    stretch: float | None = None
    unit: str = ""

    @property
    def met(self) -> bool:
        value = self.measured.median
        return value >= self.limit if self.at_least else value <= self.limit


def targets(found: Comparison) -> list[PromisedFigure]:
    """What we promise, beside what came out."""

    def half(variant: Variant, limit: float) -> list[PromisedFigure]:
        ratio = found.ratio(variant, BARE, _p50, "half")
        p99 = Spread.of([measured.p99_ms for measured in found.half[variant.name]])
        return [
            PromisedFigure(f"{variant.name}: p50 at half rate / bare", limit, False, ratio),
            PromisedFigure(f"{variant.name}: p99 at half rate", 250.0, False, p99, unit="ms"),
        ]

    lone = found.ratio(SQLITE, BARE, _p50, "lone")
    return [
        PromisedFigure("sqlite: orders/s / bare", 2.1, True, found.ratio(SQLITE, BARE, _rate), 2.6),
        PromisedFigure(
            "postgresql: orders/s / bare", 1.7, True, found.ratio(POSTGRESQL, BARE, _rate)
        ),
        PromisedFigure(
            "sqlite: orders/s / per-message", 3.0, True, found.ratio(SQLITE, PER_MESSAGE, _rate)
        ),
        PromisedFigure(
            "sqlite: CPU of services / bare", 0.5, False, found.ratio(SQLITE, BARE, _cpu)
        ),
        *half(SQLITE, 1.6),
        *half(POSTGRESQL, 2.8),
        PromisedFigure("sqlite: p50 of a lone order / bare", 1.4, False, lone),
    ]


@dataclass(frozen=True, slots=True)
class Ratio:
    """How two variants compare, where nothing is promised."""

    name: str
    measured: Spread


def ratios(found: Comparison, against: Export | None = None) -> list[Ratio]:
    """How far each is from the limit and, with another commit, each from what it was there."""
    rows = [
        Ratio(f"{variant.name}: orders/s / limit", found.ratio(variant, LIMIT, _rate))
        for variant in (BARE, SQLITE, POSTGRESQL)
    ]
    if against is not None:
        for variant in PRODUCT:
            was = before(variant, against)
            rows += [
                Ratio(f"{variant.name}: {figure} / before", found.ratio(variant, was, of, kind))
                for figure, of, kind in (
                    ("orders/s", _rate, "saturated"),
                    ("CPU of services", _cpu, "saturated"),
                    ("switches", _switches, "saturated"),
                    ("p50 at half rate", _p50, "half"),
                    ("CPU of services at half rate", _cpu, "half"),
                    ("p50 of a lone order", _p50, "lone"),
                )
            ]
    return rows


def _rate(measured: Measured) -> float:
    return measured.orders_per_second


def _cpu(measured: Measured) -> float:
    return measured.services_cpu_ms


def _switches(measured: Measured) -> float:
    return measured.services_switches


def _p50(measured: Measured) -> float:
    return measured.p50_ms
