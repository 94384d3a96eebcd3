"""Publishing what was committed: from memory at once, from the table after a crash.

Replicas share the table; each publishes the rows that its lease says are its own
(`saga.runtime.kernel.leases`).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import lru_cache, partial
from typing import Any, TypeVar
from uuid import UUID, uuid4

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.message import Priority
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.kept import Kept
from saga.runtime.kernel.lanes import Lanes
from saga.runtime.kernel.leases import LEASE_SECONDS, Lease
from saga.runtime.kernel.outgoing import Outgoing, Publisher
from saga.runtime.kernel.rows import WriteSet
from saga.runtime.kernel.tables import Clock, Tables, utc_now
from saga.runtime.metrics import OutboxMetrics
from saga.runtime.retry_loop import RetryLoop
from saga.runtime.tasks import cancel_all

log = logging.getLogger(__name__)

BATCH_MAX = 128
"""Events that are published together."""
BATCHES_MAX = 4
"""Batches whose confirms are awaited at once, so that what is committed meanwhile need not wait."""
HELD_MAX = 10_000
"""Events kept in memory; those beyond wait in the table for the sweeper."""
BACKLOG_BUSY = 512
"""Unconfirmed events beyond which no more messages are taken from the broker."""
SWEEP_SECONDS = 30.0
"""How often the table is looked through although nothing says that it must be."""
BACKOFF_MIN_SECONDS, BACKOFF_MAX_SECONDS = 0.1, 1.0

_URGENT = f".{Priority.HIGH}"
"""How an urgent event's routing key ends. A row with another end than there is waits with the
normal ones: the broker will say what is wrong with it."""

T = TypeVar("T")


class EventExists(Exception):
    """A decision gave an event an id that another event waiting in the outbox has."""


class Outbox:
    """The events a service has committed and the broker has not yet confirmed.

    The kernel writes the rows in its own transaction (`store`) and hands the events over after the
    commit (`publish`). Confirmed rows are removed in the kernel's next transaction (`remove`).
    Belongs to one event loop; `run` may be called by one task.
    """

    def __init__(
        self,
        participant: str,
        database: Database,
        tables: Tables,
        publisher: Publisher,
        *,
        kept: Kept | None = None,
        lease_seconds: float = LEASE_SECONDS,
        clock: Clock = utc_now,
        new_id: Callable[[], UUID] = uuid4,
        batch_max: int = BATCH_MAX,
        batches_max: int = BATCHES_MAX,
        held_max: int = HELD_MAX,
        backlog_busy: int = BACKLOG_BUSY,
    ) -> None:
        """The limits are explained with their defaults."""
        self._batch_max = batch_max
        self._batches_max = batches_max
        self._held_max = held_max
        self._backlog_busy = backlog_busy
        self.owner = new_id().hex
        """This replica, until its process ends."""
        self._metrics = OutboxMetrics(participant)
        self._metrics.watch(self, lambda outbox: outbox.backlog)
        self._publish_loop = RetryLoop("outbox", "publish events")
        self._ruined_loop = RetryLoop("outbox_rows", "publish single rows", vital=False)
        self._sweep_loop = RetryLoop("sweep", "read the outbox")
        self._lease_loop = RetryLoop("lease", "keep the lease on the outbox")
        self._database = database
        self._table = tables.outbox
        self._rows = tables.outbox_rows
        self._publisher = publisher
        self._kept = kept
        self._lease = Lease(
            tables, self.owner, shared=database.shared, seconds=lease_seconds, clock=clock
        )
        self._queue: Lanes[Outgoing] = Lanes()
        self._held: set[str] = set()
        """Ids of rows in the queue, being published, or confirmed and not yet removed."""
        self._sending: set[str] = set()
        self._batches: set[asyncio.Task[None]] = set()
        self._may_publish = False
        """False before `run`, and for a while after the broker has refused an event."""
        self._failure: BaseException | None = None
        self._confirmed: list[str] = []
        self._swept = False
        self._position = 0
        self._wake = asyncio.Event()
        self.on_confirmed: Callable[[], None] = lambda: None
        """Called whenever the backlog has become less, and rows may be removed."""
        self._backoff_seconds = BACKOFF_MIN_SECONDS
        self._only_in_table = 0
        self._ruined: set[str] = set()
        """Ids of rows that hold no event. They hold up nothing, and are tried again at times."""
        self._ruined_until = 0.0

    @property
    def retry_loops(self) -> tuple[RetryLoop, ...]:
        """What tries again and again here."""
        return self._publish_loop, self._ruined_loop, self._sweep_loop, self._lease_loop

    @property
    def backlog(self) -> int:
        """Events of this replica that are committed and not yet confirmed, as far as it knows."""
        return len(self._queue) + len(self._sending) + self._only_in_table

    @property
    def removable(self) -> int:
        """Rows whose events are confirmed."""
        return len(self._confirmed)

    @property
    def idle(self) -> bool:
        """Whether everything is confirmed and its rows are removed."""
        return not (self.backlog or self._held)

    @property
    def busy(self) -> bool:
        """Whether the broker does not keep up: what is taken from it must not pile up here."""
        return self.backlog > self._backlog_busy

    async def open(self) -> None:
        """Take a lease, and take over the rows whose owner has none; `run` will publish them."""
        self._position = await self._database.read(self._last_position)
        self._only_in_table = await self._database.transaction(self._lease.enter)
        self._swept = self.backlog == 0

    async def close(self) -> None:
        """Give the lease up, so that others need not wait for its end. `run` must have ended."""
        try:
            await self._database.transaction(self._lease.release)
        except Exception as error:
            if not self._database.is_away(error):
                raise
            log.warning("cannot give the lease up, it will run out: %s", error)

    async def members(self) -> list[str]:
        """The replicas that hold a lease, this one among them, in the same order for all. Raises
        what reading the database raises."""
        return await self._database.read(self._lease.members)

    def store(self, writes: WriteSet, rows: Sequence[Outgoing], at_microseconds: int) -> None:
        """Queue rows for insertion; they will be published in their order. `EventExists` is what
        `writes` raises if one of them is there already."""
        position = max(self._position, at_microseconds)
        self._position = position + len(rows)
        writes.insert(
            self._rows,
            [
                {
                    "event_id": row.event_id,
                    "owner": self.owner,
                    "position": position + offset,
                    "routing_key": row.routing_key,
                    "body": row.body,
                }
                for offset, row in enumerate(rows, start=1)
            ],
            EventExists(f"one of {', '.join(row.event_id for row in rows)}"),
        )
        if self._kept is not None:
            self._kept.store(writes, [row.body for row in rows], position, self.owner)

    def publish(self, rows: Sequence[Outgoing]) -> None:
        """Take over rows whose transaction has just committed."""
        if self._kept is not None:
            self._kept.stored(row.body for row in rows)
        if len(self._held) + len(rows) > self._held_max:
            self._only_in_table += len(rows)
            self._swept = False
            self._wake.set()
        else:
            self._held.update(row.event_id for row in rows)
            self._enqueue(rows)
            self._publish_waiting()

    def look_again(self) -> None:
        """A transaction has ended with an error that leaves open whether it was committed."""
        self._swept = False
        self._wake.set()

    def _enqueue(self, rows: Sequence[Outgoing]) -> None:
        for row in rows:
            urgent = row.routing_key.endswith(_URGENT)
            self._queue.append(row, Priority.HIGH if urgent else Priority.NORMAL)

    def take_confirmed(self, least: int = 1) -> list[str]:
        """Ids the caller must now `remove`, then `forgotten` or `give_back`; none if there are
        fewer than `least`."""
        if len(self._confirmed) < least:
            return []
        confirmed, self._confirmed = self._confirmed, []
        return confirmed

    def remove(self, writes: WriteSet, event_ids: Sequence[str]) -> None:
        """Queue rows for deletion."""
        writes.remove(self._rows, event_ids)

    def forgotten(self, event_ids: Sequence[str]) -> None:
        """The removal has committed."""
        self._held.difference_update(event_ids)

    def give_back(self, event_ids: Sequence[str]) -> None:
        """The removal has not committed; another transaction must do it."""
        self._confirmed.extend(event_ids)

    async def run(self) -> None:
        """Publish, and keep the lease, until cancelled."""
        tasks = [asyncio.ensure_future(self._publish_all())]
        if self._database.shared:
            tasks.append(asyncio.ensure_future(self._keep_lease()))
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:  # Neither ends but with an error.
                task.result()
        finally:
            await cancel_all(*tasks)

    async def _publish_all(self) -> None:
        self._may_publish = True
        try:
            while True:
                self._wake.clear()
                if self._failure is not None:
                    raise self._failure
                if not self._queue and not self._swept:
                    await self._sweep()
                self._publish_waiting()
                try:
                    async with asyncio.timeout(SWEEP_SECONDS):
                        await self._wake.wait()
                except TimeoutError:
                    self._swept = False
        finally:
            self._may_publish = False
            await cancel_all(*self._batches)

    def _publish_waiting(self) -> None:
        """Begin to publish what waits, as far as it may."""
        while self._queue and self._may_publish and len(self._batches) < self._batches_max:
            batch = self._queue.take(self._batch_max)
            self._sending.update(row.event_id for row in batch)
            publishing = asyncio.create_task(self._publish_batch(batch))
            self._batches.add(publishing)
            publishing.add_done_callback(self._ended)

    def _ended(self, publishing: asyncio.Task[None]) -> None:
        self._batches.discard(publishing)
        # Only the end of `run` may cancel it; otherwise its events would be lost.
        lost = RuntimeError("publishing was cancelled") if publishing.cancelled() else None
        self._failure = self._failure or lost or publishing.exception()
        if self._failure is not None or not (self._queue or self._swept):
            self._wake.set()
        self._publish_waiting()

    async def _publish_batch(self, batch: Sequence[Outgoing]) -> None:
        with self._metrics.publish_seconds.time():
            errors = await self._publisher.publish_events(batch)
        self._sending.difference_update(row.event_id for row in batch)
        failed = [(row, error) for row, error in zip(batch, errors, strict=True) if error]
        self._confirmed += [
            row.event_id for row, error in zip(batch, errors, strict=True) if error is None
        ]
        ruined = [(row, error) for row, error in failed if isinstance(error, ValueError)]
        self._set_apart(ruined)
        self._only_in_table += len(failed) - len(ruined)
        # They are in the table: let the sweeper find them, behind what can be published now.
        self._held.difference_update(row.event_id for row, _ in failed)
        self.on_confirmed()
        self._metrics.published(batch, errors)
        self._watch(batch, errors)
        if len(failed) > len(ruined):
            self._swept = False
            await self._pause()
        else:
            self._backoff_seconds = BACKOFF_MIN_SECONDS

    def _set_apart(self, ruined: Sequence[tuple[Outgoing, Exception]]) -> None:
        """Rows that hold no event, whatever the broker says."""
        for row, error in ruined:
            self._ruined.add(row.event_id)
            self._ruined_loop.failed(error, row.event_id, {"event": row.event_id})
        if ruined:
            self._ruined_until = asyncio.get_running_loop().time() + SWEEP_SECONDS

    def _watch(self, batch: Sequence[Outgoing], errors: Sequence[Exception | None]) -> None:
        """Count what fails, event by event: one may be refused while all others go through."""
        errors = [None if isinstance(error, ValueError) else error for error in errors]
        first = next(filter(None, errors), None)
        if first is None and not self._publish_loop.failing:
            self._publish_loop.succeeded()
            return
        for row, error in zip(batch, errors, strict=True):
            if error is None:
                self._publish_loop.succeeded(row.event_id)
            else:
                self._publish_loop.failed(error, row.event_id, {"event": row.event_id})
        # Where the backlog is long, it takes long until the same event is tried again.
        if first is not None and None not in errors:
            self._publish_loop.failed(first)
        else:
            self._publish_loop.succeeded()

    async def _pause(self) -> None:
        """Publish nothing for a while."""
        if not self._may_publish:
            return
        self._metrics.paused_seconds.inc(self._backoff_seconds)
        self._may_publish = False
        await asyncio.sleep(self._backoff_seconds)
        self._may_publish = True
        self._backoff_seconds = min(self._backoff_seconds * 2, BACKOFF_MAX_SECONDS)

    async def _sweep(self) -> None:
        """Fetch our rows that are not in memory, oldest first."""
        if self._ruined and asyncio.get_running_loop().time() >= self._ruined_until:
            self._ruined.clear()
        # Beyond those that are refused again and again, too, or nothing else would be found.
        beside = len(self._held) + len(self._publish_loop.failing) + len(self._ruined)
        limit = beside + self._batch_max
        expected = self._only_in_table
        held = set(self._held)  # What is forgotten while we read was held before.
        self._swept = True  # Before reading: what is committed meanwhile may be missed.
        rows = await self._patiently(
            lambda: self._database.read(
                lambda c: c.execute(
                    _rows_of(self._table), {"replica": self.owner, "most": limit}
                ).all()
            ),
            self._sweep_loop,
        )
        if len(rows) < limit:
            # Rows that another replica has taken over, or an operator has removed.
            here = {row.event_id for row in rows} | ({None} if rows else set())
            self._publish_loop.forget(*(self._publish_loop.failing - here))
            self._ruined_loop.forget(*(self._ruined_loop.failing - here))
        held |= self._held | self._ruined
        found = [Outgoing(*row) for row in rows if row.event_id not in held]
        self._held.update(row.event_id for row in found)
        self._enqueue(found)
        self._only_in_table -= min(len(found), expected) if found else expected
        if found:
            self._swept = False
            self._metrics.swept.inc(len(found))

    # --- leases ------------------------------------------------------------------------------

    async def _keep_lease(self) -> None:
        """Renew the lease and take over from replicas that have not renewed theirs."""
        monotonic = asyncio.get_running_loop().time
        steadily_since = monotonic()
        while True:
            await asyncio.sleep(self._lease.renewal_seconds)
            began = monotonic()
            kept = await self._patiently(
                lambda: self._database.transaction(self._lease.renew), self._lease_loop
            )
            if not kept:
                await self._recover_from_lapse()
            if not kept or monotonic() - began > self._lease.renewal_seconds:
                # The database was away or we were stopped, and so may have been the others: they
                # get the time to renew theirs.
                steadily_since = monotonic()
            if monotonic() - steadily_since < self._lease.seconds:
                continue
            taken = await self._patiently(
                lambda: self._database.transaction(partial(self._lease.take_over, lapsed=True)),
                self._lease_loop,
            )
            if taken:
                log.warning("publishing %d events that an ended replica has left", taken)
                self._only_in_table += taken
                self._swept = False
                self._wake.set()

    async def _recover_from_lapse(self) -> None:
        """Others may have taken our rows over: what we still have in the queue is theirs then."""
        ours = await self._patiently(
            lambda: self._database.transaction(self._lease.take_again), self._lease_loop
        )
        queued = self._queue.take(len(self._queue))
        kept = [row for row in queued if row.event_id in ours]
        self._enqueue(kept)
        self._only_in_table = len(ours - self._held)
        self._held.difference_update(row.event_id for row in queued if row.event_id not in ours)
        self._swept = False
        self._wake.set()
        log.warning(
            "the lease on the outbox had run out; %d of %d events are another replica's now",
            len(queued) - len(kept),
            len(queued),
        )

    def _last_position(self, connection: Connection) -> int:
        return connection.scalar(_last_of(self._table)) or 0

    async def _patiently(self, attempt: Callable[[], Awaitable[T]], loop: RetryLoop) -> T:
        """Try until the database is there."""
        backoff_seconds = BACKOFF_MIN_SECONDS
        while True:
            try:
                result = await attempt()
            except Exception as error:
                if not self._database.is_away(error):
                    raise
                loop.failed(error)
            else:
                loop.succeeded()
                return result
            await asyncio.sleep(backoff_seconds)
            backoff_seconds = min(backoff_seconds * 2, BACKOFF_MAX_SECONDS)


@lru_cache(maxsize=64)
def _rows_of(outbox: sa.Table) -> sa.Select[Any]:
    """The first `most` rows that a `replica` publishes. Built once: that takes longer than to
    execute it."""
    return (
        sa.select(outbox.c.event_id, outbox.c.routing_key, outbox.c.body)
        .where(outbox.c.owner == sa.bindparam("replica"))
        .order_by(outbox.c.position)
        .limit(sa.bindparam("most"))
    )


@lru_cache(maxsize=64)
def _last_of(outbox: sa.Table) -> sa.Select[Any]:
    """The highest position."""
    return sa.select(sa.func.max(outbox.c.position))
