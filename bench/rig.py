"""Running one variant of the services on a broker, and reading what a load costs it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
import time
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Final
from uuid import uuid4

import yarl

from bench.export import Export
from bench.load import Load
from bench.machine import Pace
from order_saga.orders import OrderLoad
from order_saga.publish import deliver
from saga.deployment import Deployment
from saga.discovery import VARIABLE
from saga.local.node import RabbitNode
from saga.local.processes import start_python
from saga.local.system import Database, System
from saga.runtime.messaging.connection import connect

Report = Callable[[str], None]
"""Is told, a line at a time, what is being measured."""
SERVICES: Final = ("order", "inventory", "payment")
_BROKER, _DATABASE = "broker", "database"
_TICKS_PER_SECOND: Final = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES: Final = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to do the same work."""

    name: str
    database: Database = "sqlite"
    programs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)
    source: Export | None = None
    """The code of its services, if not today's."""
    saga: str | None = None
    """Its saga, as `module:NAME`, if not the order system's."""
    services: Sequence[str] = SERVICES
    """The first of them takes the orders."""
    deliver: Callable[[Deployment, OrderLoad], Awaitable[None]] = deliver
    """Puts a load's stock on its shelf."""

    @property
    def ours(self) -> bool:
        """Whether it is the product, which needs stock on its shelf."""
        return self.programs.keys() == {"payment"}

    @contextlib.contextmanager
    def named(self) -> Iterator[None]:
        """Make a system that is started or stopped meanwhile find this variant's saga."""
        if self.saga is None:
            yield
            return
        os.environ[VARIABLE] = self.saga
        try:
            yield
        finally:
            del os.environ[VARIABLE]


def _all(module: str) -> dict[str, Sequence[str]]:
    return {name: ("-m", module, name) for name in SERVICES}


_OURS: Final = {"payment": ("-m", "bench.payment")}
BARE: Final = Variant("bare", programs=_all("bench.bare"))
LIMIT: Final = Variant("limit", programs=_all("bench.limit"))
SQLITE: Final = Variant("sqlite", programs=_OURS)
POSTGRESQL: Final = Variant("postgresql", database="postgresql", programs=_OURS)
PER_MESSAGE: Final = Variant("per-message", programs=_OURS, environment={"GROUP_MAX": "1"})


def before(variant: Variant, source: Export) -> Variant:
    """The same variant of the product as of another commit."""
    return replace(variant, name=f"before, {variant.name}", source=source)


@dataclass(frozen=True, slots=True)
class Measured:
    """What one load on one variant did. CPU times and switches are per order."""

    orders_per_second: float
    p50_ms: float
    p99_ms: float
    cpu_ms: Mapping[str, float]
    """Of each service."""
    broker_cpu_ms: float
    database_cpu_ms: float
    switches: Mapping[str, float]
    """Keyed by service: how often one of its threads went to sleep, waiting for something."""
    peak_mb: float
    """The most memory that one of the services ever had."""
    pace_before: Pace
    pace_after: Pace
    """The machine's, just before and just after."""

    @property
    def services_cpu_ms(self) -> float:
        return sum(self.cpu_ms.values())

    @property
    def services_switches(self) -> float:
        return sum(self.switches.values())


class Bench:
    """One variant's services, on a virtual host and in a folder of their own."""

    def __init__(self, system: System, node: RabbitNode, variant: Variant, seed: int) -> None:
        self.system = system
        self._node = node
        self._variant = variant
        self._seed = seed

    async def load(
        self,
        orders: int,
        rate: float = 0.0,
        *,
        one_sku: bool = False,
        customers: int = 0,
        over_http: bool = False,
        credentials: str = "",
    ) -> Measured:
        """Place so many orders, `rate` a second or all at once, and wait for their ends. Over HTTP,
        the client may be known by a token or a key."""
        load = await self.prepare(orders, rate, one_sku=one_sku, customers=customers)
        if over_http:
            url = self.system.deployment.http_urls[load.taker][0]
            load = replace(load, port=yarl.URL(url).port or 0, credentials=credentials)
        pace_before = Pace.now()
        cpu, slept = self._cpu_seconds(), self._switches()
        found = await self.send(load)
        cpu_after, slept_after = self._cpu_seconds(), self._switches()
        ends, latencies = found["ends"], found["latencies"]
        spent = {name: (cpu_after[name] - cpu[name]) * 1_000 / orders for name in cpu}
        return Measured(
            orders_per_second=orders / ends[-1],
            p50_ms=_percentile(latencies, 50) * 1_000,
            p99_ms=_percentile(latencies, 99) * 1_000,
            broker_cpu_ms=spent.pop(_BROKER),
            database_cpu_ms=spent.pop(_DATABASE),
            cpu_ms=spent,
            switches={name: (slept_after[name] - slept[name]) / orders for name in slept},
            peak_mb=self.peak_mb(),
            pace_before=pace_before,
            pace_after=Pace.now(),
        )

    async def prepare(
        self, orders: int, rate: float = 0.0, *, one_sku: bool = False, customers: int = 0
    ) -> Load:
        """A load that is new here, and its stock on the shelf."""
        self._seed += 1
        load = Load(orders, self._seed, rate, one_sku, self._variant.services[0], customers)
        if self._variant.ours:
            await self._variant.deliver(self.system.deployment, load.plan())
        return load

    async def send(self, load: Load) -> dict[str, list[float]]:
        """Send it, and wait until every order has ended: what `bench.load` tells."""
        result = self.system.folder / "load.json"
        url, arguments = self.system.deployment.amqp_url, json.dumps(asdict(load))
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "bench.load", url, str(result), arguments
        )
        if await process.wait():
            raise RuntimeError(f"{self._variant.name}: the load ended with {process.returncode}")
        found: dict[str, list[float]] = json.loads(result.read_text())
        return found

    async def waiting(self, *queues: str) -> int:
        """The messages that wait in these queues."""
        connection = await connect(self.system.deployment.amqp_url, name="bench")
        async with connection:
            channel = await connection.channel()
            found = [await channel.declare_queue(name, passive=True) for name in queues]
        return sum(queue.declaration_result.message_count or 0 for queue in found)

    def peak_mb(self) -> float:
        """The most memory that one of the services has had since its start."""
        return max(_peak_bytes(self.system.pid(name)) for name in self.system.services) / 1e6

    def _cpu_seconds(self) -> dict[str, float]:
        """Of each service, of the broker and of the database."""
        cluster = self.system.cluster
        servers = {
            _BROKER: cpu_seconds(self._node.pid),
            _DATABASE: sum(map(cpu_seconds, _tree(cluster.pid))) if cluster is not None else 0.0,
        }
        services = {name: exact_cpu_seconds(self.system.pid(name)) for name in self.system.services}
        return services | servers

    def _switches(self) -> dict[str, int]:
        return {name: _voluntary_switches(self.system.pid(name)) for name in self.system.services}


@contextlib.asynccontextmanager
async def started(
    variant: Variant, node: RabbitNode, folder: Path, *, seed: int, **environment: str
) -> AsyncIterator[Bench]:
    """The variant's services, ready; gone afterwards, with what they left on the broker."""
    vhost = f"bench-{uuid4().hex[:8]}"
    await asyncio.to_thread(node.ctl, "add_vhost", vhost)
    await asyncio.to_thread(node.ctl, "set_permissions", "-p", vhost, "guest", ".*", ".*", ".*")
    source = variant.source
    system = System(
        folder / vhost,
        amqp_url=node.amqp_url + vhost,
        database=variant.database,
        only=variant.services,
        disposable=True,
        declared=source is not None,
        environment={**variant.environment, **environment, "LOG_LEVEL": "WARNING"},
        spawn=start_python if source is None else source.spawn,
    )
    system.programs.update(variant.programs)
    try:
        if source is not None:
            await asyncio.to_thread(source.apply_topology, node.amqp_url + vhost)
        try:
            with variant.named():
                await system.start()
            yield Bench(system, node, variant, seed)
        finally:
            with variant.named():
                await system.stop()
    finally:
        await asyncio.to_thread(node.ctl, "delete_vhost", vhost)


def cpu_seconds(pid: int) -> float:
    """User and system time that the process has used, and its ended children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / _TICKS_PER_SECOND


def exact_cpu_seconds(pid: int) -> float:
    """User and system time of the process itself, not in ticks but in nanoseconds (Linux)."""
    return time.clock_gettime((~pid << 3) | 2)  # MAKE_PROCESS_CPUCLOCK, CPUCLOCK_SCHED


def _peak_bytes(pid: int) -> int:
    return _status(Path(f"/proc/{pid}/status"), "VmHWM") * 1_024


def _voluntary_switches(pid: int) -> int:
    """How often one of its threads gave the core away to wait for something."""
    switches = 0
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            switches += _status(thread / "status", "voluntary_ctxt_switches")
    return switches


def _status(file: Path, name: str) -> int:
    """A figure in a `status` file of `/proc`; 0 where it is missing."""
    for line in file.read_text().splitlines():
        field_name, _, value = line.partition(":")
        if field_name == name:
            return int(value.split()[0])
    return 0


def _tree(pid: int) -> Iterable[int]:
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [pid, *map(int, children)]


def _percentile(values: Sequence[float], percent: int) -> float:
    return values[max(-(-len(values) * percent // 100), 1) - 1]
