"""One service's database: SQLite in memory, for the kernel's own statements.

A transaction runs at one moment, while nothing else does, and is durable or gone when it ends. It
takes time until then, and until its caller knows, and may fail in every way there is. (Replicas
therefore never meet within a transaction; that they do is told to them, as a conflict.)
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.leases import Lease
from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.kernel.tables import Tables, VersionConflict
from saga.runtime.kernel.work import Work
from saga.simulation.faults import fault
from saga.simulation.loop import SimulatedLoop, settle
from saga.simulation.statements import QuickConnection
from saga.simulation.trace import SimulationTrace
from saga.simulation.weather import FaultSchedule

SLOW_SECONDS = 8.0
"""What a slow transaction may take."""
_COMMITTED = "committed_events"

T = TypeVar("T")


class SimulatedStore:
    """What a service has committed; outlives its processes.

    It is made once and emptied for each run, as making its tables takes longer than a run.
    """

    def __init__(self, tables: Tables) -> None:
        self._engine = sa.create_engine("sqlite://", isolation_level="AUTOCOMMIT")
        # One connection for all, whose transactions we begin and end: a fifth faster.
        self._connection = self._engine.connect()
        raw: Any = self._connection.connection.driver_connection
        self._raw = raw
        self._quick = cast("Connection", QuickConnection(self._connection))
        tables.metadata.create_all(self._connection)
        # What was ever committed to be published, by a witness that no code of ours can miss.
        raw.execute(f"CREATE TABLE {_COMMITTED} (event_id PRIMARY KEY, body)")
        raw.execute(
            f"CREATE TRIGGER witness AFTER INSERT ON {tables.outbox.name} BEGIN INSERT OR "  # noqa: S608 - names of our own
            f"REPLACE INTO {_COMMITTED} VALUES (new.event_id, new.body); END"
        )
        self._outbox = tables.outbox.name
        self._count_outbox = f"SELECT count(*) FROM {tables.outbox.name}"  # noqa: S608 - ours
        self._names = [*(table.name for table in tables.metadata.sorted_tables), _COMMITTED]

    def empty(self) -> None:
        """Forget everything."""
        for name in self._names:
            self._raw.execute(f"DELETE FROM {name}")  # noqa: S608 - names of our own tables

    def has_committed(self, event_id: str, body: bytes) -> bool:
        """Whether an event has ever been committed to be published, with this body."""
        found = self._raw.execute(
            f"SELECT body FROM {_COMMITTED} WHERE event_id = ?",  # noqa: S608 - ours
            (event_id,),
        ).fetchone()
        return found is not None and found[0] == body

    def committed(self) -> list[bytes]:
        """The bodies of all events that were ever committed to be published."""
        return [row[0] for row in self._raw.execute(f"SELECT body FROM {_COMMITTED}")]  # noqa: S608 - ours

    def rows(self) -> Iterator[tuple[str, list[tuple[Any, ...]]]]:
        """All that there is, by table."""
        for name in self._names:
            yield name, self._raw.execute(f"SELECT * FROM {name}").fetchall()  # noqa: S608 - ours

    def waiting(self) -> list[bytes]:
        """The bodies in the outbox."""
        return [row[0] for row in self._raw.execute(f"SELECT body FROM {self._outbox}")]  # noqa: S608 - ours

    def unpublished(self) -> int:
        """How many rows are in the outbox."""
        count: int = self._raw.execute(self._count_outbox).fetchone()[0]
        return count

    def waiting_of(self, owner: str) -> set[str]:
        """The ids of the events in the outbox that are a replica's to publish."""
        rows = self._raw.execute(f"SELECT event_id FROM {self._outbox} WHERE owner = ?", (owner,))  # noqa: S608 - ours
        return {row[0] for row in rows}

    def read(self, query: Callable[[Connection], T]) -> T:
        """Run what only reads, at once: nothing else can happen meanwhile."""
        return query(self._quick)

    def run(self, work: Callable[[Connection], T], *, keep: bool = True) -> T:
        """Run a transaction at once; without `keep`, roll it back at its end."""
        self._raw.execute("BEGIN")
        try:
            result = work(self._quick)
        except BaseException:
            self._raw.execute("ROLLBACK")
            raise
        self._raw.execute("COMMIT" if keep else "ROLLBACK")
        return result

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()


class SimulatedDatabase:
    """A process's way to its service's store. See `saga.runtime.kernel.database.Database`."""

    def __init__(
        self,
        store: SimulatedStore,
        name: str,
        loop: SimulatedLoop,
        weather: FaultSchedule,
        trace: SimulationTrace,
        *,
        shared: bool,
        on_group: Callable[[Sequence[Work]], None] = lambda _: None,
        on_commit: Callable[[Sequence[Outgoing]], None] = lambda _: None,
        on_doubt: Callable[[], None] = lambda: None,
    ) -> None:
        """`on_group` is called with what a kernel begins to decide on, `on_commit` with the events
        that it gets to know are committed, `on_doubt` where it does not know, or may not try again.
        """
        self._on_doubt = on_doubt
        self.shared = shared
        self._on_group = on_group
        self._on_commit = on_commit
        self._store = store
        self._name = name
        self._loop = loop
        self._weather = weather
        self._trace = trace
        self._waiting: deque[tuple[Callable[[Connection], Any], asyncio.Future[Any]]] = deque()

    async def transaction(self, work: Callable[[Connection], T], *, brief: bool = False) -> T:
        """Run `work` once those before it have ended; it does, even if the caller is cancelled."""
        group = group_of(work)
        if group is not None:
            self._on_group(group)
        done: asyncio.Future[T] = self._loop.create_future()
        self._waiting.append((work, done))
        self._loop.call_later(self._duration(), self._next_transaction)
        result = await done
        if group:
            _, outgoing = cast(Any, result)
            self._on_commit(outgoing)
        return result

    async def read(self, query: Callable[[Connection], T]) -> T:
        await asyncio.sleep(self._weather.latency())
        if self._weather.hits("database_away"):
            raise _away("simulated: cannot be read")
        result = self._store.read(query)
        await asyncio.sleep(self._weather.latency())
        return result

    def is_away(self, error: BaseException) -> bool:
        return isinstance(error, sa.exc.OperationalError)

    async def close(self) -> None:
        """Nothing to close: the store goes on."""

    def _duration(self) -> float:
        if self._weather.hits("slow_database"):
            return self._weather.seconds(SLOW_SECONDS)
        return self._weather.latency()

    def _next_transaction(self) -> None:
        work, done = self._waiting.popleft()
        try:
            result = self._commit(work)
        except Exception as error:
            result = error
        self._loop.call_later(self._weather.latency(), settle, done, result)

    def _commit(self, work: Callable[[Connection], T]) -> T:
        weather = self._weather
        group = group_of(work)
        sort = " ".join(sorted({type(each.message).__name__ for each in group or ()}))
        if weather.strikes("database_away", self._name, sort):
            if weather.happens(0.5):
                self._store.run(work, keep=False)
            self._trace.note(self._name, "transaction failed")
            raise _away("simulated: rolled back")
        # What the outbox writes by itself, its lease, has no versions, and no domain's data.
        decides = isinstance(work, partial) and not _is_of_a_lease(work)
        if decides and weather.strikes("conflict", self._name, sort):
            self._trace.note(self._name, "transaction met another replica's")
            raise VersionConflict("simulated")
        # And what only forgets confirmed events has none that could be refused.
        if decides and group != [] and weather.strikes("data_refused", self._name, sort):
            self._trace.note(self._name, "transaction's data refused")
            self._on_doubt()
            raise sa.exc.IntegrityError("simulated", None, Exception("refused"))
        result = self._store.run(work)
        if weather.strikes("commit_unknown", self._name, sort):
            self._trace.note(self._name, "committed, which is not known")
            self._on_doubt()
            raise _away("simulated: committed or not")
        return result


def group_of(work: Callable[..., Any]) -> Sequence[Work] | None:
    """The messages that a kernel decides on in a transaction; None of any other transaction."""
    if isinstance(work, partial) and isinstance(getattr(work.func, "__self__", None), Kernel):
        group: Sequence[Work] = work.args[0]
        return group
    return None


def _is_of_a_lease(work: partial[Any]) -> bool:
    return isinstance(getattr(work.func, "__self__", None), Lease)


def _away(text: str) -> sa.exc.OperationalError:
    return fault(sa.exc.OperationalError(text, None, Exception("simulated")))
