"""Keeping what was published for a while, so that a broker that is gone can be rebuilt.

A confirm says that the broker has an event, and the outbox forgets it then. What the broker loses
before all participants have taken it would be nowhere else. So each transaction also writes its
events into one row of another table, and such rows are removed when they are old enough: one write
and one removal for many events, in the order of their keys, which costs next to nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.sql.dml import ReturningDelete

from saga.runtime.kernel.database import Database
from saga.runtime.kernel.rows import WriteSet
from saga.runtime.kernel.statements import among, as_parameter, on_postgresql
from saga.runtime.kernel.tables import Clock, Tables, VersionConflict, utc_now
from saga.runtime.retry_loop import RetryLoop

PRUNED_MAX: Final = 50
"""Rows removed by one transaction: each may hold the events of a whole group."""
PAUSE_SECONDS: Final = 0.1
"""Between two such transactions."""
LOOK_SECONDS: Final = 10.0
COUNT_SECONDS: Final = 60.0
"""How often the bytes are counted again where other replicas add rows and remove them, too."""
READ_AT_ONCE: Final = 100


def key_of(position: int, owner: str) -> str:
    """The key of the events whose first has this position in the outbox of this replica.

    Keys sort by time, which is what rows are removed by.
    """
    return f"{position:020d}.{owner}"


def position_of(key: str) -> int:
    """The position in a key."""
    return int(key.partition(".")[0])


class Kept:
    """What one replica keeps of what it has published. Belongs to one event loop."""

    def __init__(
        self,
        database: Database,
        tables: Tables,
        *,
        minutes: float,
        bytes_max: int,
        clock: Clock = utc_now,
        pruned_max: int = PRUNED_MAX,
    ) -> None:
        """Nothing is kept for 0 `minutes`. Beyond `bytes_max`, the oldest goes earlier. One
        transaction removes up to `pruned_max` rows."""
        self._pruned_max = pruned_max
        self._database = database
        self._table = tables.kept
        self._rows = tables.kept_rows
        self._minutes = minutes
        self._bytes_max = bytes_max
        self._clock = clock
        self._size = 0
        """Bytes in all rows, as far as this replica knows."""
        self._loop = RetryLoop("kept", "remove what was kept of published events", vital=False)

    @property
    def retry_loops(self) -> tuple[RetryLoop, ...]:
        """What tries again and again here."""
        return (self._loop,)

    def store(self, writes: WriteSet, bodies: Sequence[bytes], position: int, owner: str) -> None:
        """Queue one row for insertion, beside those of the outbox."""
        if self._minutes:
            row = {"key": key_of(position, owner), "bodies": b"\n".join(bodies)}
            writes.insert(self._rows, [row], VersionConflict(self._table.name))

    def stored(self, bodies: Iterable[bytes]) -> None:
        """The transaction has committed."""
        if self._minutes:
            self._size += sum(map(len, bodies))

    async def run(self) -> None:
        """Remove what is too old or too much, until cancelled."""
        counted_at: float | None = None
        now = asyncio.get_running_loop().time
        while True:
            pruned = 0
            try:
                if counted_at is None or (
                    self._database.shared and now() - counted_at > COUNT_SECONDS
                ):
                    self._size = await self._database.read(self._count)
                    counted_at = now()
                pruned = await self._prune()
            except Exception as error:
                if not self._database.is_away(error):
                    raise
                self._loop.failed(error)
            else:
                self._loop.succeeded()
            await asyncio.sleep(PAUSE_SECONDS if pruned == self._pruned_max else LOOK_SECONDS)

    def _count(self, connection: Connection) -> int:
        return connection.scalar(_size_of(self._table)) or 0

    async def _prune(self) -> int:
        """Remove the oldest rows, up to `pruned_max`; return how many."""
        before = self._clock() - timedelta(minutes=self._minutes)
        oldest = key_of(int(before.timestamp() * 1_000_000), "")
        query, most = _oldest_of(self._table), {"most": self._pruned_max}
        found = await self._database.read(lambda connection: connection.execute(query, most).all())
        doomed: list[str] = []
        size = self._size
        for name, length in found:
            if name >= oldest and size <= self._bytes_max:
                break
            doomed.append(name)
            size -= length
        if doomed:
            # Another replica may have been faster.
            removed = await self._database.transaction(
                lambda connection: connection.scalars(
                    _removal(self._table, on_postgresql(connection)),
                    {"keys": as_parameter(connection, doomed)},
                ).all()
            )
            self._size = max(0, self._size - sum(removed))
        return len(doomed)


@lru_cache(maxsize=64)
def _removal(kept: sa.Table, postgresql: bool) -> ReturningDelete[Any]:
    """Removes the rows with these `keys`, and gives their lengths."""
    here = among(kept.c.key, "keys", postgresql=postgresql)
    return kept.delete().where(here).returning(sa.func.length(kept.c.bodies))


@lru_cache(maxsize=64)
def _size_of(kept: sa.Table) -> sa.Select[Any]:
    """The bytes of all rows."""
    return sa.select(sa.func.sum(sa.func.length(kept.c.bodies)))


@lru_cache(maxsize=64)
def _oldest_of(kept: sa.Table) -> sa.Select[Any]:
    """The keys and lengths of the `most` oldest rows. Built once: that takes longer than to execute
    it."""
    lengths = sa.func.length(kept.c.bodies)
    return sa.select(kept.c.key, lengths).order_by(kept.c.key).limit(sa.bindparam("most"))


def kept_events(connection: Connection, tables: Tables) -> Iterator[list[bytes]]:
    """The bodies of the events that are kept or wait in the outbox, some at a time; an event may be
    among them more than once. Bodies of the outbox that hold no event are among them, too."""
    after, more = "", True
    while more:
        rows = connection.execute(_kept_after(tables.kept), {"after": after}).all()
        if rows:
            after = rows[-1].key
            yield [body for row in rows for body in row.bodies.split(b"\n")]
        more = len(rows) == READ_AT_ONCE
    yield list(connection.scalars(_bodies_in(tables.outbox)))


@lru_cache(maxsize=64)
def _kept_after(kept: sa.Table) -> sa.Select[Any]:
    key = kept.c.key
    after = sa.bindparam("after", type_=key.type)
    return sa.select(key, kept.c.bodies).where(key > after).order_by(key).limit(READ_AT_ONCE)


@lru_cache(maxsize=64)
def _bodies_in(outbox: sa.Table) -> sa.Select[Any]:
    return sa.select(outbox.c.body)
