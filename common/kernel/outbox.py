"""Publishing what was committed: from memory at once, from the table after a crash."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from common import telemetry
from common.envelope import Envelope
from common.kernel.database import Database
from common.kernel.lanes import Lanes
from common.kernel.tables import Tables
from common.message import Priority

log = logging.getLogger(__name__)

BATCH_MAX = 128
"""Events whose confirms are awaited together."""
HELD_MAX = 10_000
"""Events kept in memory; those beyond wait in the table for the sweeper."""
BACKLOG_BUSY = 512
SWEEP_SECONDS = 30.0
"""How often the table is looked through although nothing says that it must be."""
BACKOFF_MIN_SECONDS, BACKOFF_MAX_SECONDS = 0.1, 1.0


@dataclass(frozen=True, slots=True)
class Outgoing:
    """One committed event on its way to the broker."""

    event_id: str
    routing_key: str
    body: bytes

    @classmethod
    def of(cls, envelope: Envelope[Any]) -> Outgoing:
        return cls(envelope.id, envelope.routing_key, envelope.to_bytes())


class Publisher(Protocol):
    """What the outbox needs of the broker."""

    async def publish_events(self, events: Sequence[Outgoing]) -> list[Exception | None]:
        """Publish persistently, in order; for each None once the broker confirmed it, or why it
        did not (being unroutable is such a reason). Never raises."""
        ...


class Outbox:
    """The events a service has committed and the broker has not yet confirmed.

    The kernel writes the rows in its own transaction (`store`) and hands the events over after the
    commit (`publish`). Confirmed rows are removed in the kernel's next transaction (`remove`).
    """

    def __init__(
        self, participant: str, database: Database, tables: Tables, publisher: Publisher
    ) -> None:
        self._metrics = telemetry.OutboxMetrics(participant)
        self._database = database
        self._table = tables.outbox
        self._publisher = publisher
        self._queue: Lanes[Outgoing] = Lanes()
        self._held: set[str] = set()
        self._confirmed: list[str] = []
        self._swept = False
        self._position = 0
        self._wake = asyncio.Event()
        self.on_confirmed: Callable[[], None] = lambda: None
        """Called whenever the backlog has become less."""
        self._backoff_seconds = BACKOFF_MIN_SECONDS
        self.backlog = 0
        """Events committed and not yet confirmed."""

    @property
    def idle(self) -> bool:
        """Whether everything is confirmed and its rows are removed."""
        return not (self.backlog or self._held)

    @property
    def busy(self) -> bool:
        """Whether the broker does not keep up: what is taken from it must not pile up here."""
        return self.backlog > BACKLOG_BUSY

    async def open(self) -> None:
        """Count what an earlier process left behind; `run` will publish it."""
        count = sa.select(sa.func.count(), sa.func.max(self._table.c.position)).select_from(
            self._table
        )
        self.backlog, last = await self._database.read(lambda c: c.execute(count).one())
        self._position = last or 0
        self._swept = self.backlog == 0
        self._metrics.backlog.set(self.backlog)

    def store(self, connection: Connection, rows: Sequence[Outgoing], at_microseconds: int) -> None:
        """Insert rows in the caller's transaction, in their order."""
        position = max(self._position, at_microseconds)
        self._position = position + len(rows)
        connection.execute(
            self._table.insert(),
            [
                {
                    "event_id": row.event_id,
                    "position": position + offset,
                    "routing_key": row.routing_key,
                    "body": row.body,
                }
                for offset, row in enumerate(rows, start=1)
            ],
        )

    def publish(self, rows: Sequence[Outgoing]) -> None:
        """Take over rows whose transaction has just committed."""
        self.backlog += len(rows)
        if len(self._held) + len(rows) > HELD_MAX:
            self._swept = False
        else:
            self._held.update(row.event_id for row in rows)
            self._enqueue(rows)
        self._metrics.backlog.set(self.backlog)
        self._wake.set()

    def _enqueue(self, rows: Sequence[Outgoing]) -> None:
        for row in rows:
            self._queue.append(row, Priority(row.routing_key.rpartition(".")[2]))

    def take_confirmed(self) -> list[str]:
        """Ids the caller must now remove in its transaction, then `forgotten` or `give_back`."""
        confirmed, self._confirmed = self._confirmed, []
        return confirmed

    def remove(self, connection: Connection, event_ids: Sequence[str]) -> None:
        """Delete rows in the caller's transaction."""
        connection.execute(self._table.delete().where(self._table.c.event_id.in_(event_ids)))

    def forgotten(self, event_ids: Sequence[str]) -> None:
        """The removal has committed."""
        self._held.difference_update(event_ids)

    def give_back(self, event_ids: Sequence[str]) -> None:
        """The removal has not committed; another transaction must do it."""
        self._confirmed.extend(event_ids)

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            if not self._queue and not self._swept:
                await self._sweep()
            if self._queue:
                await self._publish_batch()
                continue
            self._wake.clear()
            try:
                async with asyncio.timeout(SWEEP_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                self._swept = False

    async def _publish_batch(self) -> None:
        batch = self._queue.take(BATCH_MAX)
        with self._metrics.publish_seconds.time():
            errors = await self._publisher.publish_events(batch)
        failed = [(row, error) for row, error in zip(batch, errors, strict=True) if error]
        self._confirmed += [
            row.event_id for row, error in zip(batch, errors, strict=True) if error is None
        ]
        self.backlog -= len(batch) - len(failed)
        self.on_confirmed()
        self._metrics.published(batch, errors)
        self._metrics.backlog.set(self.backlog)
        if not failed:
            self._backoff_seconds = BACKOFF_MIN_SECONDS
            return
        row, error = failed[0]
        log.warning(
            "%d of %d events not published, trying again in %.1f s; the first, %s: %s",
            len(failed),
            len(batch),
            self._backoff_seconds,
            row.routing_key,
            error,
        )
        # They are in the table: let the sweeper find them, behind what can be published now.
        self._held.difference_update(row.event_id for row, _ in failed)
        self._swept = False
        await asyncio.sleep(self._backoff_seconds)
        self._backoff_seconds = min(self._backoff_seconds * 2, BACKOFF_MAX_SECONDS)

    async def _sweep(self) -> None:
        """Fetch rows nobody holds, oldest first."""
        query = (
            sa.select(self._table.c.event_id, self._table.c.routing_key, self._table.c.body)
            .order_by(self._table.c.position)
            .limit(len(self._held) + BATCH_MAX)
        )
        try:
            rows = await self._database.read(lambda c: c.execute(query).all())
        except Exception as error:
            if not self._database.is_away(error):
                raise
            log.warning("cannot read the outbox, trying again: %s", error)
            await asyncio.sleep(self._backoff_seconds)
            return
        found = [Outgoing(*row) for row in rows if row.event_id not in self._held]
        self._held.update(row.event_id for row in found)
        self._enqueue(found)
        self._swept = not found
        if found:
            self._metrics.swept.inc(len(found))
