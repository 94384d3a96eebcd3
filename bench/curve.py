"""Throughput and latency against the load that is offered: where each variant begins to lag."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from matplotlib.figure import Figure

from bench.compare import WITH_LATENCY, all_started
from bench.rig import Report
from saga.local.node import RabbitNode

RATES: Final = (100, 200, 300, 400, 500, 600, 800, 1_000)
SECONDS: Final = 5.0
"""How long each rate is offered."""


@dataclass(frozen=True, slots=True)
class Point:
    """What a variant made of a rate, in the median over the rounds."""

    variant: str
    offered_per_second: float
    kept_per_second: float
    p50_ms: float
    p99_ms: float


async def curve(
    node: RabbitNode, folder: Path, *, rounds: int, rates: Sequence[int], report: Report
) -> list[Point]:
    """Offer every rate to every variant in every round, to one after the other."""
    runs: dict[tuple[str, int], list[Point]] = {}
    async with all_started(WITH_LATENCY, node, folder, report) as benches:
        for number, rate in itertools.product(range(1, rounds + 1), rates):
            report(f"round {number} of {rounds}: {rate} a second")
            # Each is the first in every other round.
            for variant in WITH_LATENCY if number % 2 else WITH_LATENCY[::-1]:
                found = await benches[variant.name].load(int(rate * SECONDS), rate)
                point = Point(
                    variant.name, rate, found.orders_per_second, found.p50_ms, found.p99_ms
                )
                runs.setdefault((variant.name, rate), []).append(point)
    return [_median(points) for points in runs.values()]


def _median(points: Sequence[Point]) -> Point:
    def of(figure: Callable[[Point], float]) -> float:
        return statistics.median(map(figure, points))

    return Point(
        points[0].variant,
        points[0].offered_per_second,
        of(lambda p: p.kept_per_second),
        of(lambda p: p.p50_ms),
        of(lambda p: p.p99_ms),
    )


def draw(points: Sequence[Point], path: Path) -> None:
    """A picture of them; the path's ending says of which kind."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    throughput, latency = figure.subplots(1, 2)
    for number, variant in enumerate(WITH_LATENCY):
        mine = [point for point in points if point.variant == variant.name]
        offered = [point.offered_per_second for point in mine]
        colour = f"C{number}"
        throughput.plot(
            offered, [p.kept_per_second for p in mine], "o-", color=colour, label=variant.name
        )
        latency.plot(
            offered, [p.p50_ms for p in mine], "o-", color=colour, label=f"{variant.name} p50"
        )
        latency.plot(
            offered, [p.p99_ms for p in mine], "o:", color=colour, label=f"{variant.name} p99"
        )
    most = max(point.offered_per_second for point in points)
    throughput.plot([0, most], [0, most], color="grey", linewidth=0.8, label="all that is offered")
    throughput.set(title="Throughput", xlabel="orders/s offered", ylabel="orders/s ended")
    latency.set(title="From placed to ended", xlabel="orders/s offered", ylabel="ms", yscale="log")
    for axes in (throughput, latency):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    figure.savefig(path)
