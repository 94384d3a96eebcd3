"""A consistent cut over databases: what one says it has taken, the others have committed.

For some milliseconds no database takes in messages: each one's writers wait for a lock. With all
locks held at once, a snapshot of each is opened; then the locks are let go, and the copies are made
from the snapshots while the services are at work. Whatever a message had led to anywhere before the
locks is in the snapshots, its cause as well: a cause is committed before it is published, and
published before a participant takes it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol, Self, TypeVar, cast

import asyncpg
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.backup import BackupError, programs
from saga.backup.manifest import Kind, Progress, sync
from saga.runtime.kernel.database import DatabaseError, is_postgresql
from saga.runtime.kernel.postgresql import Session, open_session
from saga.runtime.kernel.sqlite import sqlite_engine, sqlite_file
from saga.runtime.kernel.tables import utc_now
from saga.runtime.urls import printable

LOCK_SECONDS: Final = 1.5
"""How long all locks together are waited for: shorter than any service waits before it counts its
database as away, or the history its turn as lost."""
ATTEMPTS: Final = 4
"""How often that is tried."""
BETWEEN_SECONDS: Final = 1.0
"""Between two attempts, for the services to catch up."""
CONNECT_SECONDS: Final = 30.0
"""How long a server may take to let us in: no transaction waits for us yet."""
PAGES_AT_ONCE: Final = 1_024
"""Of a SQLite file that are copied before the progress is told."""
_POLL_SECONDS: Final = 0.001
_NAME: Final = "saga backup"
_KEEPING: Final = """
    BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY;
    SET LOCAL idle_in_transaction_session_timeout = 0;
    SET LOCAL statement_timeout = 0
"""
"""Begins the transaction that keeps a snapshot for as long as its copy takes. Within it, so that a
pooler gives the timeouts to no other."""

T = TypeVar("T")


class Busy(Exception):
    """A lock that was not to be had in time."""


class _Stopped(Exception):
    """No task waits for the copy any more."""


class DatabaseSnapshot(Protocol):
    """One database, as of the cut. Its methods are called in the order they have here."""

    kind: Kind

    def opened(self) -> AbstractAsyncContextManager[Any]:
        """Connect, for as long as this lasts. Raises `DatabaseError`, also for what the server says
        in the body."""
        ...

    async def hold(self, deadline: float) -> None:
        """Make every transaction that takes in messages wait. Raises `Busy` if that is not to be
        had by then, a time of `time.monotonic`."""
        ...

    async def look(self) -> None:
        """Open a snapshot."""
        ...

    async def let_go(self) -> None:
        """Let writers go on; may be called without `hold`."""
        ...

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run a query on the snapshot."""
        ...

    async def copy(self, file: Path, progress: Progress) -> None:
        """Copy the snapshot into a new file, and have it on the disk."""
        ...


class SqliteView:
    """A SQLite file. One that is not `locked` is only looked at."""

    kind: Kind = "sqlite"

    def __init__(self, url: str, *, locked: bool = True) -> None:
        self._path = sqlite_file(url)
        self._url = url
        self._locked = locked
        self._reader: Connection
        self._holder: sqlite3.Connection

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        if not self._path.is_file():  # SQLite would make an empty one.
            raise DatabaseError(
                f"there is no database {self._path}; start its service, or correct its URL"
            )
        engine = sqlite_engine(self._url)
        try:
            self._reader = engine.connect().execution_options(reads=True)
            self._holder = sqlite3.connect(self._path, timeout=0, isolation_level=None)
        except (sa.exc.DBAPIError, sqlite3.Error) as error:
            engine.dispose()
            reason = error.orig if isinstance(error, sa.exc.DBAPIError) else error
            raise DatabaseError(f"cannot read the database {self._path}: {reason}") from error
        try:
            yield self
        finally:
            self._holder.close()
            self._reader.close()
            engine.dispose()

    async def hold(self, deadline: float) -> None:
        while self._locked:
            try:
                self._holder.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise BackupError(f"cannot lock the database {self._path}: {error}") from error
                if time.monotonic() > deadline:
                    raise Busy(f"the database {self._path}") from error
            else:
                return
            await asyncio.sleep(_POLL_SECONDS)

    async def look(self) -> None:
        try:
            self._reader.begin()
            self._reader.exec_driver_sql(
                "SELECT count(*) FROM sqlite_master"
            )  # Only now it is one.
        except sa.exc.DBAPIError as error:
            raise BackupError(f"cannot read the database {self._path}: {error.orig}") from error

    async def let_go(self) -> None:
        if self._holder.in_transaction:
            self._holder.rollback()

    async def read(self, query: Callable[[Connection], T]) -> T:
        try:
            return await _to_end(partial(query, self._reader))
        except sa.exc.DBAPIError as error:
            raise BackupError(f"cannot read the database {self._path}: {error.orig}") from error

    async def copy(self, file: Path, progress: Progress) -> None:
        make_private(file)
        stopped = threading.Event()
        await _to_end(partial(self._copy, file, progress, stopped), stopped)

    def _copy(self, file: Path, progress: Progress, stopped: threading.Event) -> None:
        source = cast(sqlite3.Connection, self._reader.connection.dbapi_connection)
        (page_bytes,) = source.execute("PRAGMA page_size").fetchone()
        done = 0

        def tell(_: int, remaining: int, total: int) -> None:
            nonlocal done
            if stopped.is_set():
                raise _Stopped
            progress((total - remaining - done) * page_bytes)
            done = total - remaining

        try:
            with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as target:
                # Within the reader's transaction, so of the snapshot.
                source.backup(target, pages=PAGES_AT_ONCE, progress=tell)
                # One file, without a log beside it; its service makes it WAL again.
                target.execute("PRAGMA journal_mode = DELETE")
        except sqlite3.Error as error:
            raise BackupError(f"cannot copy {self._path} to {file}: {error}") from error
        sync(file)


class PostgresView:
    """A database on a server. `table` is what every transaction writes that takes in messages: its
    lock alone is needed, so that no transaction that waits for us holds what we wait for."""

    kind: Kind = "postgresql"

    def __init__(self, url: str, table: str) -> None:
        self._url = url
        self._table = table
        self._holder: Session
        self._keeper: Session
        self._held = False
        self._snapshot = ""

    @asynccontextmanager
    async def opened(self) -> AsyncIterator[Self]:
        async with AsyncExitStack() as stack:
            self._holder, self._keeper = [
                await stack.enter_async_context(
                    open_session(self._url, name=_NAME, connect_seconds=CONNECT_SECONDS)
                )
                for _ in range(2)
            ]
            yield self

    async def hold(self, deadline: float) -> None:
        left_ms = max(1, int((deadline - time.monotonic()) * 1_000))
        self._held = True
        await self._holder.execute("BEGIN")
        await self._holder.execute(f"SET LOCAL lock_timeout = {left_ms}")
        try:
            await self._holder.execute(f'LOCK TABLE "{self._table}" IN SHARE ROW EXCLUSIVE MODE')
        except asyncpg.LockNotAvailableError as error:
            raise Busy(f"the table {self._table} of {printable(self._url)}") from error

    async def look(self) -> None:
        await self._keeper.execute(_KEEPING)
        self._snapshot = await self._keeper.fetch("SELECT pg_export_snapshot()")

    async def let_go(self) -> None:
        if self._held:
            self._held = False
            await self._holder.execute("ROLLBACK")

    async def read(self, query: Callable[[Connection], T]) -> T:
        return await self._keeper.run(query)

    async def copy(self, file: Path, progress: Progress) -> None:
        make_private(file)
        await programs.dump(self._url, self._snapshot, file)
        progress(await asyncio.to_thread(_synced_bytes, file))


@dataclass(frozen=True, slots=True)
class Cut:
    """The databases as of one moment."""

    taken_at: datetime
    pause_seconds: float
    """How long writers had to wait at the most."""


def view_of(url: str, table: str) -> SqliteView | PostgresView:
    """How the database at `url` is looked at; `table` is the one that tells what was taken in.
    Raises `DatabaseError`."""
    return PostgresView(url, table) if is_postgresql(url) else SqliteView(url)


async def cut(views: Mapping[str, DatabaseSnapshot]) -> Cut:
    """Open a snapshot of each database, all as of one moment. Raises `BackupError` where a
    database is being written into for too long."""
    busy = ""
    for attempt in range(ATTEMPTS):
        if attempt:
            await asyncio.sleep(BETWEEN_SECONDS)
        began = time.monotonic()
        try:
            await _hold_all(views, began + LOCK_SECONDS)
            taken_at = utc_now()
            await _each(view.look() for view in views.values())
        except Busy as error:
            busy = str(error)
            continue
        finally:
            # Also when we are cancelled: no transaction must wait for us.
            await asyncio.shield(_each(view.let_go() for view in views.values()))
        return Cut(taken_at, time.monotonic() - began)
    raise BackupError(
        f"{busy} was being written into all the time, in each of {ATTEMPTS} attempts of "
        f"{LOCK_SECONDS:g} s: try again once what writes there (an import?) has ended"
    )


async def _hold_all(views: Mapping[str, DatabaseSnapshot], deadline: float) -> None:
    await _each(view.hold(deadline) for view in views.values())


async def _each(calls: Iterable[Awaitable[None]]) -> None:
    """Await all of them, to their ends; then raise the first error."""
    for outcome in await asyncio.gather(*calls, return_exceptions=True):
        if isinstance(outcome, BaseException):
            raise outcome


async def _to_end(function: Callable[[], T], stopped: threading.Event | None = None) -> T:
    """Call a function in a thread. It has ended when this does, since what it works on is closed
    then; when this is cancelled, it is told so by `stopped`."""
    call = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        if stopped is not None:
            stopped.set()
        await asyncio.wait({call})
        call.exception()  # Seen, whatever it is.
        raise


def _synced_bytes(file: Path) -> int:
    sync(file)
    return file.stat().st_size


def make_private(file: Path) -> None:
    """Make an empty file that no other user may read. Raises `OSError`, also if it is there."""
    os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
