"""What several machines would do, from what one order costs: a calculation, and a simulation of it.

    .venv/bin/python -m bench.scale
    .venv/bin/python -m bench.scale --nodes 30 --cores 8 --order 0.6

The calculation finds what is short first, by the utilisation law: at a rate, a resource is busy for
rate times its time per order. The simulation sends orders through the same replicas, which commit
in groups as ours do, and tells how long an order takes while they are so busy. Neither knows of
networks between the machines beyond `HOP_MS`; see docs/scale.md for what they leave out.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Final

BUSY: Final = 0.7
"""The share of a core's time that is planned with; the rest is for peaks and for a lost machine."""
GROUP_MAX: Final = 128
HOP_MS: Final = 1.0
"""From a commit through confirm and delivery to the next service, on idle machines."""
COMMIT_MS: Final = 1.5
"""A transaction's round trips and its flush to the disk, which need no processor of the service."""
SEED: Final = 1

STEPS: Final = ("order", "inventory", "payment", "payment", "order")
"""Who commits, one after the other; payment commits twice: its intent, and the answer."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Milliseconds of CPU per order, as `make bench` measures them on one machine."""

    order: float = 0.56
    inventory: float = 0.35
    payment: float = 0.36
    broker: float = 0.36
    database: float = 0.38
    replication: float = 2.0
    """How much more a broker of three nodes takes than one node: each message is written thrice."""

    @property
    def of_all(self) -> float:
        services = self.order + self.inventory + self.payment
        return services + self.broker * self.replication + self.database


@dataclass(frozen=True, slots=True)
class ScalePlan:
    """How many orders a second so many machines can take, and what to run on them."""

    per_second: float
    replicas: dict[str, int]
    shards: int


def plan(costs: Costs, nodes: int, cores: int, queue_per_second: float) -> ScalePlan:
    """The rate at which all cores are `BUSY`, and replicas so that none is busier.

    One queue is one process of the broker's, and takes `queue_per_second` messages at most: beyond
    that the orders are spread over several queues, by their ids.
    """
    rate = nodes * cores * BUSY * 1_000 / costs.of_all
    replicas = {
        name: math.ceil(rate * getattr(costs, name) / 1_000 / BUSY)
        for name in ("order", "inventory", "payment")
    }
    return ScalePlan(rate, replicas, math.ceil(rate / (queue_per_second * BUSY)))


@dataclass(slots=True)
class _Replica:
    """Commits what waits, all of it at once."""

    per_message_ms: float
    waiting: deque[int] = field(default_factory=deque)
    group: Sequence[int] = ()

    def begin(self) -> float | None:
        """Take a group; how long it will take. None if there is nothing to do."""
        size = min(len(self.waiting), GROUP_MAX)
        self.group = [self.waiting.popleft() for _ in range(size)]
        return COMMIT_MS + size * self.per_message_ms if size else None


def simulate(costs: Costs, replicas: dict[str, int], rate: float, orders: int) -> list[float]:
    """Each order's milliseconds from placed to ended, sorted; orders come at random."""
    chance = random.Random(SEED)
    steps_of = {name: STEPS.count(name) for name in STEPS}
    stations = {
        name: [_Replica(getattr(costs, name) / steps_of[name]) for _ in range(number)]
        for name, number in replicas.items()
    }
    placed: list[float] = []
    done: dict[int, float] = {}
    step = [0] * orders
    numbers = count()
    events: list[tuple[float, int, int, _Replica | None]] = []

    def arrivals() -> Iterator[float]:
        at = 0.0
        while True:
            at += chance.expovariate(rate / 1_000)
            yield at

    for order, at in zip(range(orders), arrivals(), strict=False):
        placed.append(at)
        heapq.heappush(events, (at, next(numbers), order, None))
    while events:
        now, _, order, replica = heapq.heappop(events)
        if replica is None:
            replica = chance.choice(stations[STEPS[step[order]]])
            replica.waiting.append(order)
            if replica.group:
                continue
        else:
            for finished in replica.group:
                step[finished] += 1
                if step[finished] == len(STEPS):
                    done[finished] = now
                else:
                    heapq.heappush(events, (now + HOP_MS, next(numbers), finished, None))
        if (busy_ms := replica.begin()) is not None:
            heapq.heappush(events, (now + busy_ms, next(numbers), -1, replica))
    return sorted(done[order] - placed[order] for order in range(orders))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    defaults = Costs()
    for name in Costs.__slots__:
        parser.add_argument(f"--{name}", type=float, default=getattr(defaults, name), metavar="MS")
    parser.add_argument("--nodes", type=int, action="append", help="machines; several times")
    parser.add_argument("--cores", type=int, default=4, help="of each machine")
    parser.add_argument("--queue", type=float, default=15_000, help="messages/s of one queue")
    parser.add_argument("--orders", type=int, default=50_000, help="to simulate")
    given = parser.parse_args()
    costs = Costs(**{name: getattr(given, name) for name in Costs.__slots__})
    print(f"one order: {costs.of_all:.2f} ms of CPU in all; cores planned to be {BUSY:.0%} busy")
    for nodes in given.nodes or (3, 30):
        made = plan(costs, nodes, given.cores, given.queue)
        run = ", ".join(f"{name} x {number}" for name, number in made.replicas.items())
        print(f"{nodes} machines of {given.cores} cores: {made.per_second:.0f} orders/s; {run}")
        print(f"  queues of each kind, by order id: {made.shards}")
        for share in (0.5, 1.0, 1.3):
            rate = made.per_second * share
            times = simulate(costs, made.replicas, rate, given.orders)
            p50, p99 = times[len(times) // 2], times[len(times) * 99 // 100]
            print(f"  at {rate:.0f} orders/s: p50 {p50:.0f} ms, p99 {p99:.0f} ms")


if __name__ == "__main__":
    main()
