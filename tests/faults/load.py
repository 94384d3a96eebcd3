"""A seeded load on a system of its own whose services reach their servers through proxies."""

from __future__ import annotations

import asyncio
import itertools
import math
import os
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Final

import httpx
import yarl
from prometheus_client.parser import text_string_to_metric_families

from order_saga.demo import DemoResult, demo
from order_saga.orders import Shares, plan
from saga.discovery import choreography, observers, participants, services
from saga.http import client
from saga.local.node import RabbitNode
from saga.local.postgres import PostgresCluster
from saga.local.processes import Spawn, start_python
from saga.local.system import Database, System
from saga.runtime.settings import Sealing
from tests.e2e.test_saga import as_predicted
from tests.faults.proxy import Proxy
from tests.polling import until
from tests.secured import secured_if_wanted

DATABASES: Final[tuple[Database, ...]] = ("sqlite", "postgresql")
DUPLICATE: Final = "duplicate"
REPLICAS: Final[Mapping[Database, int]] = {"sqlite": 1, "postgresql": 2}
AT_ONCE: Final = 16
"""Requests on their way at once."""
REACHED_SECONDS: Final = 240.0
"""How long orders may take to end until a fault strikes; a busy machine ends a few a second."""
METRICS_SECONDS: Final = 5.0

COUNTED: Final = {
    "saga_messages_consumed_total": "messages skipped as done already",
    "saga_messages_retried_total": "calls tried again",
    "saga_outbox_swept_total": "events published by the sweeper",
    "saga_commit_conflicts_total": "conflicts between replicas",
}
"""What the services count that says what a fault led to."""


def package_of(service: str) -> str:
    """Where a service's `app` is."""
    return {each.name: package for package, each in services().items()}[service]


@dataclass
class Stage:
    """A system, and the network it runs on: a proxy on each way. It bears one load at a time."""

    system: System
    brokers: dict[str, Proxy] = field(default_factory=dict)
    """Keyed by service: its way to the broker."""
    databases: dict[str, Proxy] = field(default_factory=dict)
    """Keyed by service: its way to the database, where that is on a server."""
    gates: list[Proxy] = field(default_factory=list)
    """The customers' ways to the order service, which are silent while orders are held back."""
    _counted: dict[tuple[int, str], float] = field(default_factory=dict)
    """Keyed by process and metric."""

    @property
    def node(self) -> RabbitNode:
        assert self.system.node is not None
        return self.system.node

    @property
    def cluster(self) -> PostgresCluster:
        assert self.system.cluster is not None
        return self.system.cluster

    def replicas_of(self, participant: str) -> list[str]:
        return [name for name in self.system.services if name.split("-")[0] == participant]

    def program(self, service: str, *module: str) -> tuple[str, ...]:
        """What Python runs for a service: this module or its own, behind the service's proxies."""
        ports = [f"AMQP_URL={self.brokers[service].port}"]
        if service in self.databases:
            ports.append(f"DATABASE_URL={self.databases[service].port}")
        own = f"{package_of(service.split('-')[0])}.app"
        return ("-m", "tests.faults.via", *ports, *(module or (own,)))

    def heal(self) -> None:
        """Make an end of whatever ails the network."""
        for way in (*self.brokers.values(), *self.databases.values()):
            way.heal()

    async def count(self) -> None:
        """Read what the services have counted; what one that is killed counted afterwards is
        never known."""
        urls = itertools.chain(*self.system.deployment.http_urls.values())
        for service, url in zip(self.system.services, urls, strict=True):
            try:
                async with client(url, METRICS_SECONDS) as http:
                    text = (await http.get("/metrics")).text
            except httpx.TransportError:
                continue
            pid = self.system.pid(service)
            for family in text_string_to_metric_families(text):
                for sample in family.samples:
                    outcome = sample.labels.get("outcome", DUPLICATE)
                    if sample.name in COUNTED and outcome == DUPLICATE:
                        metric = f"{sample.name}{sorted(sample.labels.items())}"
                        self._counted[pid, metric] = sample.value

    @property
    def counts(self) -> Counter[str]:
        """What the services have counted, all together, in the words of the report."""
        found: Counter[str] = Counter()
        for (_, metric), value in self._counted.items():
            found[COUNTED[metric.partition("[")[0]]] += int(value)
        return found


@asynccontextmanager
async def on_stage(
    folder: Path,
    database: Database,
    spawn: Spawn = start_python,
    *,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[Stage]:
    """A new system, with as many replicas as `REPLICAS` says; with `SECURED=1` in the environment,
    its callers have to be known, and names are sealed. `environment` is added to its services'."""
    async with AsyncExitStack() as stack:
        system = System(
            folder,
            database=database,
            replicas=REPLICAS[database],
            disposable=True,
            spawn=spawn,
            environment=stack.enter_context(secured_if_wanted(folder)) | dict(environment or {}),
        )
        stage = Stage(system)

        async def way_to(port: Callable[[], int]) -> Proxy:
            return await stack.enter_async_context(Proxy(port))

        for service in _services(REPLICAS[database]):
            stage.brokers[service] = await way_to(lambda: stage.node.port("amqp"))
            if system.cluster is not None:
                stage.databases[service] = await way_to(lambda: stage.cluster.port)
            system.programs[service] = stage.program(service)
        await stack.enter_async_context(system)
        await asyncio.to_thread(stage.node.settle)
        for url in system.deployment.http_urls.get("order", ()):
            stage.gates.append(await way_to(partial(int, yarl.URL(url).port or 0)))
        yield stage


@dataclass
class Load:
    """A load on its way."""

    stage: Stage
    sent: int = 0
    """Orders placed, and malformed messages sent."""
    ended: int = 0
    """Orders that have ended."""
    result: DemoResult | None = None
    """What came of it, once it is over."""
    _allowed: float = math.inf
    _task: asyncio.Task[DemoResult] | None = None

    @property
    def over(self) -> bool:
        return self._task is not None and self._task.done()

    def allow(self, orders: float) -> None:
        """Hold further orders back once so many are sent, and a few more that are being sent."""
        self._allowed = orders
        self._open_or_shut()

    def _count_sent(self, messages: int) -> None:
        self.sent += messages
        self._open_or_shut()

    def _count_ended(self, orders: int) -> None:
        self.ended += orders

    def _open_or_shut(self) -> None:
        for gate in self.stage.gates:
            if self.sent < self._allowed:
                gate.heal()
            else:
                gate.silence()

    async def reached(self, orders: int) -> None:
        """Return once so many orders have ended, or the load is over."""
        await until(lambda: self.ended >= orders or self.over, seconds=REACHED_SECONDS)


@asynccontextmanager
async def under_load(
    stage: Stage,
    orders: int,
    seed: int,
    *,
    shares: Shares | None = None,
    rate: float | None = None,
    direct: bool = False,
) -> AsyncIterator[Load]:
    """Run a load, let the body do what it will to it, and see it through: in the end every order
    has to have ended as its seed says, and the books have to be right. With `direct`, orders go
    over the broker, with names in clear; `Load.allow` holds back only their cancellations then.

    A body that interrupts connections of ours, the test's, or takes long, keeps orders back with
    `Load.allow`: once all have ended, they are used to judge the outcome.
    """
    load = Load(stage)
    deployment = stage.system.deployment
    gates = tuple(f"http://127.0.0.1:{gate.port}" for gate in stage.gates)
    ways: dict[str, object] = {"http_urls": {**deployment.http_urls, "order": gates}}
    if direct:
        ways["personal"] = Sealing.OFF
    load._task = asyncio.create_task(
        demo(
            deployment.model_copy(update=ways),
            choreography(),
            plan(orders, seed, shares),
            seed=seed,
            direct=direct,
            rate=rate,
            concurrency=AT_ONCE,
            sent=load._count_sent,
            ended=load._count_ended,
        )
    )
    try:
        yield load
        load.allow(math.inf)
        load.result = await load._task
        await stage.count()
    finally:
        load._task.cancel()
        await asyncio.wait({load._task})
    as_predicted(load.result)


def _services(replicas: int) -> list[str]:
    """The names that a system gives its services."""
    numbers = range(2, replicas + 1)
    taking_part = [participant.name for participant in participants().values()]
    watching = [observer.name for observer in observers().values()]
    return [*taking_part, *watching, *(f"{name}-{n}" for name in taking_part for n in numbers)]


def chosen_databases() -> tuple[Database, ...]:
    """What `DATABASE` in the environment names, or all."""
    given = os.environ.get("DATABASE")
    chosen = tuple(name for name in DATABASES if given in (None, "", name))
    if not chosen:
        raise ValueError(f"DATABASE is {given!r}: it takes {' or '.join(DATABASES)}")
    return chosen
