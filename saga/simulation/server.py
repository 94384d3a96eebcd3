"""One replica of one service: put together as `saga.runtime.service` does, on simulated ground."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

from saga.envelope import Decoder
from saga.personal.forgetting import Forgetter
from saga.personal.keystore import KeyStore
from saga.personal.persons import Persons
from saga.runtime.kernel.kept import PRUNED_MAX, Kept
from saga.runtime.kernel.kernel import ASKING_MAX, GROUP_MAX, Kernel
from saga.runtime.kernel.lanes import NORMAL_SHARE
from saga.runtime.kernel.outbox import BACKLOG_BUSY, BATCH_MAX, BATCHES_MAX, HELD_MAX, Outbox
from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.kernel.timer import Timekeeper
from saga.runtime.kernel.work import Work
from saga.runtime.messaging.consumer import PREFETCH, Deliveries
from saga.runtime.messaging.publisher import BrokerPublisher
from saga.runtime.service import Service
from saga.simulation.broker import EPOCH
from saga.simulation.database import SimulatedDatabase, SimulatedStore
from saga.simulation.doors import Doors
from saga.simulation.faults import is_fault
from saga.simulation.loop import SimulatedProcess
from saga.simulation.network import Network, read

BROKER_PATIENCE_SECONDS = 5.0
"""How long a starting service waits for the broker, before it ends and is started again."""
KEEP_MINUTES, KEEP_BYTES = 60.0, 500_000_000
TIMER_POLL_SECONDS = 5.0
"""How often a service looks for what is due: seldom, which saves a tenth of a run."""


@dataclass(frozen=True, slots=True)
class Capacities:
    """The limits of the parts; small ones are reached in a run."""

    group_max: int
    asking_max: int
    normal_share: int
    batch_max: int
    batches_max: int
    held_max: int
    backlog_busy: int
    prefetch: int
    keep_minutes: float
    keep_bytes: int
    pruned_max: int

    @classmethod
    def draw(cls, chance: random.Random, *, forgets: bool) -> Capacities:
        """Draw each by itself: as in production, or so small that it is reached. Where the broker
        may forget everything, all that was published is kept."""
        keep_minutes = chance.choice((0.1, KEEP_MINUTES))
        keep_bytes = chance.choice((2_000, KEEP_BYTES))
        return cls(
            group_max=chance.choice((1, 2, GROUP_MAX)),
            asking_max=chance.choice((1, ASKING_MAX)),
            normal_share=chance.choice((2, NORMAL_SHARE)),
            batch_max=chance.choice((1, 3, BATCH_MAX)),
            batches_max=chance.choice((1, BATCHES_MAX)),
            held_max=chance.choice((1, 4, HELD_MAX)),
            backlog_busy=chance.choice((0, 2, BACKLOG_BUSY)),
            prefetch=chance.choice((1, 3, PREFETCH)),
            keep_minutes=KEEP_MINUTES if forgets else keep_minutes,
            keep_bytes=KEEP_BYTES if forgets else keep_bytes,
            pruned_max=chance.choice((1, PRUNED_MAX)),
        )


@dataclass(frozen=True, slots=True)
class PartsUnderTest:
    """The classes under test. Tests put broken ones in their place."""

    kernel: type[Kernel] = Kernel
    outbox: type[Outbox] = Outbox
    kept: type[Kept] = Kept
    timekeeper: type[Timekeeper] = Timekeeper
    deliveries: type[Deliveries] = Deliveries
    publisher: type[BrokerPublisher] = BrokerPublisher
    persons: type[Persons] = Persons
    key_store: type[KeyStore] = KeyStore
    forgetter: type[Forgetter] = Forgetter


class SimulatedReplica:
    """A replica, from its start to its end; then `start` starts it again."""

    def __init__(
        self,
        name: str,
        service: Service,
        store: SimulatedStore,
        network: Network,
        *,
        parts: PartsUnderTest,
        shared: bool,
        limits: Capacities,
        on_group: Callable[[SimulatedProcess, Sequence[Work]], None],
        on_commit: Callable[[SimulatedProcess, Sequence[Outgoing]], None],
        on_doubt: Callable[[], None],
        lease_seconds: float,
        skew_seconds: float,
        new_id: Callable[[], UUID],
        jitter: Callable[[float, float], float],
        decoder: Decoder,
        on_end: Callable[[SimulatedReplica, Exception, bool], None],
        doors: Doors | None = None,
    ) -> None:
        self.name = name
        self.service = service
        self.kernel: Kernel | None = None
        """There once the service takes commands."""
        self._starting = False
        """Whether it does not take messages yet."""
        self.process = SimulatedProcess(name, alive=False)
        self._store = store
        self._network = network
        self._parts = parts
        self._shared = shared
        self.limits = limits
        self.outbox: Outbox | None = None
        self._on_group = on_group
        self._on_commit = on_commit
        self._on_doubt = on_doubt
        self._lease_seconds = lease_seconds
        self._skew = timedelta(seconds=skew_seconds)
        self._new_id = new_id
        self._jitter = jitter
        self._decoder = decoder
        self._on_end = on_end
        self._doors = doors
        self.persons: Persons | None = None
        """What it asks the key store by, in a run with doors."""

    def start(self) -> None:
        """Start a process."""
        self._network.trace.note(self.name, "starts")
        self.process = SimulatedProcess(self.name)
        self._starting = True
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
        network, limits, process = self._network, self.limits, self.process
        if self._doors is not None:
            self.persons = self._doors.open(process)
            await self.persons.check()
        database = SimulatedDatabase(
            self._store,
            self.name,
            network.loop,
            network.weather,
            network.trace,
            shared=self._shared,
            on_group=partial(self._on_group, process),
            on_commit=partial(self._on_commit, process),
            on_doubt=self._on_doubt,
        )
        publisher = self._parts.publisher("", "publisher", connect=network.connect)
        kept = self._parts.kept(
            database,
            tables,
            minutes=limits.keep_minutes,
            bytes_max=limits.keep_bytes,
            clock=self.clock,
            pruned_max=limits.pruned_max,
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
            batch_max=limits.batch_max,
            batches_max=limits.batches_max,
            held_max=limits.held_max,
            backlog_busy=limits.backlog_busy,
        )
        self.outbox = outbox
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
            group_max=limits.group_max,
            asking_max=limits.asking_max,
            normal_share=limits.normal_share,
        )
        runs = [kernel.run, outbox.run]
        if limits.keep_minutes < KEEP_MINUTES or limits.keep_bytes < KEEP_BYTES:
            runs.append(kept.run)  # In any other run there is nothing to remove.
        if tables.with_dues:
            timekeeper = self._parts.timekeeper(
                kernel, database, tables, clock=self.clock, poll_seconds=TIMER_POLL_SECONDS
            )
            runs.append(timekeeper.run)
        for run in runs:
            self._supervise(run)
        self.kernel = kernel
        await publisher.open(BROKER_PATIENCE_SECONDS)
        deliveries = self._parts.deliveries(
            self.service.participant,
            kernel,
            publisher,
            self.clock,
            self.persons,
            decoder=self._decoder,
        )
        queues = network.broker.queues_of(self.service.participant)
        takers = {queue: deliveries.taker(queue) for queue in queues}
        self._starting = False
        await read(network, "consumer", takers, min(limits.prefetch, self.service.prefetch))

    def _supervise(self, work: Callable[[], Awaitable[None]]) -> None:
        """Run what must not end; if it does, the process ends with it."""

        async def supervised() -> None:
            await work()

        process = self.process
        task = self._network.loop.spawn(process, supervised())
        task.add_done_callback(
            lambda done: self._ended(process, done, starting=work == self._serve),
            context=self._network.world.context,
        )

    def _ended(self, process: SimulatedProcess, task: asyncio.Task[Any], *, starting: bool) -> None:
        if process.alive:
            if task.cancelled():
                error: BaseException | None = RuntimeError("a task that was not cancelled")
            else:
                error = task.exception()
            # One that has started has to survive whatever comes.
            explained = starting and self._starting and is_fault(error)
            if not isinstance(error, Exception):
                error = RuntimeError(f"it ended with {error!r}")
            self._on_end(self, error, explained)
