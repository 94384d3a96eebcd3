"""One replica of one service: put together as `saga.runtime.service` does, on simulated ground."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from saga.runtime.kernel.kept import Kept
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.outbox import Outbox
from saga.runtime.kernel.timer import Timekeeper
from saga.runtime.messaging.consumer import Deliveries
from saga.runtime.messaging.publisher import BrokerPublisher
from saga.runtime.messaging.topology import queues_of
from saga.runtime.service import Service
from saga.simulation.broker import EPOCH
from saga.simulation.database import SimulatedDatabase, SimulatedStore
from saga.simulation.loop import SimulatedProcess
from saga.simulation.network import Network, read

BROKER_PATIENCE_SECONDS = 5.0
"""How long a starting service waits for the broker, before it ends and is started again."""
KEEP_MINUTES, KEEP_BYTES = 60.0, 500_000_000
TIMER_POLL_SECONDS = 5.0
"""How often a service looks for what is due: seldom, which saves a tenth of a run."""


@dataclass(frozen=True, slots=True)
class PartsUnderTest:
    """The classes under test. Tests put broken ones in their place."""

    kernel: type[Kernel] = Kernel
    outbox: type[Outbox] = Outbox
    kept: type[Kept] = Kept
    timekeeper: type[Timekeeper] = Timekeeper
    deliveries: type[Deliveries] = Deliveries
    publisher: type[BrokerPublisher] = BrokerPublisher


class SimulatedReplica:
    """A replica, from its start to its end; then `start` starts it anew."""

    def __init__(
        self,
        name: str,
        service: Service,
        store: SimulatedStore,
        network: Network,
        *,
        parts: PartsUnderTest,
        shared: bool,
        prefetch: int,
        group_max: int,
        lease_seconds: float,
        skew_seconds: float,
        new_id: Callable[[], UUID],
        jitter: Callable[[float, float], float],
        on_end: Callable[[SimulatedReplica, Exception], None],
    ) -> None:
        self.name = name
        self.service = service
        self.kernel: Kernel | None = None
        """There once the service takes commands."""
        self.process = SimulatedProcess(name, alive=False)
        self._store = store
        self._network = network
        self._parts = parts
        self._shared = shared
        self._prefetch = min(prefetch, service.prefetch)
        self._group_max = group_max
        self._lease_seconds = lease_seconds
        self._skew = timedelta(seconds=skew_seconds)
        self._new_id = new_id
        self._jitter = jitter
        self._on_end = on_end

    def start(self) -> None:
        """Start a process."""
        self._network.trace.note(self.name, "starts")
        self.process = SimulatedProcess(self.name)
        self._supervise(self._serve)

    def kill(self) -> None:
        """End the process at once, as SIGKILL does."""
        self.kernel = None
        self._network.loop.kill(self.process)
        self._network.ended(self.process)

    def clock(self) -> datetime:
        return EPOCH + timedelta(seconds=self._network.loop.time()) + self._skew

    async def _serve(self) -> None:
        name, tables = self.service.participant.name, self.service.tables
        network = self._network
        database = SimulatedDatabase(
            self._store,
            self.name,
            network.loop,
            network.weather,
            network.trace,
            shared=self._shared,
        )
        publisher = self._parts.publisher("", "publisher", connect=network.connect)
        # Nothing is removed from it: a run is shorter than that.
        kept = self._parts.kept(
            database, tables, minutes=KEEP_MINUTES, bytes_max=KEEP_BYTES, clock=self.clock
        )
        outbox = self._parts.outbox(
            name,
            database,
            tables,
            publisher,
            kept=kept,
            lease_seconds=self._lease_seconds,
            clock=self.clock,
            new_id=self._new_id,
        )
        await outbox.open()
        kernel = self._parts.kernel(
            self.service.participant,
            database,
            tables,
            outbox,
            self.service.ask,
            clock=self.clock,
            new_id=self._new_id,
            jitter=self._jitter,
            group_max=self._group_max,
        )
        runs = [kernel.run, outbox.run]
        if tables.with_dues:
            timekeeper = self._parts.timekeeper(
                kernel, database, tables, clock=self.clock, poll_seconds=TIMER_POLL_SECONDS
            )
            runs.append(timekeeper.run)
        for run in runs:
            self._supervise(run)
        self.kernel = kernel
        await publisher.open(BROKER_PATIENCE_SECONDS)
        deliveries = self._parts.deliveries(self.service.participant, kernel, publisher, self.clock)
        takers = {queue: deliveries.taker(queue) for queue in queues_of(self.service.participant)}
        await read(network, "consumer", takers, self._prefetch)

    def _supervise(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run what must not end; if it does, the process ends with it."""

        async def supervised() -> None:
            await work()

        process = self.process
        task = self._network.loop.spawn(process, supervised())
        task.add_done_callback(
            lambda done: self._ended(process, done), context=self._network.world.context
        )

    def _ended(self, process: SimulatedProcess, task: asyncio.Task[Any]) -> None:
        if process.alive:
            if task.cancelled():
                error: BaseException | None = RuntimeError("a task that nobody cancelled")
            else:
                error = task.exception()
            self._on_end(self, error if isinstance(error, Exception) else RuntimeError("no error"))
