"""A service's database in a SQLite file: short transactions, run one after the other."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import sqlite3
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from saga.runtime.kernel.database import OLDER_TABLES, DatabaseError, MigrationError
from saga.runtime.kernel.rows import as_sqlalchemy
from saga.runtime.kernel.tables import Schema
from saga.runtime.urls import printable, sqlite_path

T = TypeVar("T")

BUSY_TIMEOUT_SECONDS = 10
QUICK_SECONDS = 0.002
"""What the event loop waits for, a commit for instance, may take no longer."""
ROW_SECONDS = 0.0001
"""What each row may take besides, of the processor."""
STALL_SECONDS = 0.1
"""What takes longer is left to a thread the next time: heartbeats and health checks wait as
well."""
SLOW_MAX = 8
"""So many more slow ones than quick ones tell a slow disk from a busy processor."""
ASIDE_MIN, ASIDE_MAX = 16, 512
"""How many are left to a thread then, before the disk is tried again: twice as many each time,
until it is quick. A processor that was busy for a moment does not leave more of them there, where
they take more of it."""
_AT_THE_SAME_TIME = ("locked", "already exists", "duplicate column")
"""How the errors of those who make one file together read."""
LACKING = ("no such table", "no such column")
"""How SQLite's errors begin then; it has no code for them."""


class DatabaseGone(Exception):
    """The file of a database is no longer where it was opened. One line that says the way out."""


def sqlite_engine(url: str) -> Engine:
    """A SQLAlchemy engine for a SQLite file: WAL, synchronous=FULL, transactions that take the
    write lock at once, and wait for it if need be. Several processes may open the same file; a
    connection may go from thread to thread."""
    options = {"timeout": BUSY_TIMEOUT_SECONDS, "check_same_thread": False}
    # Parameters hold what messages say, so errors do not quote them.
    engine = sa.create_engine(url, connect_args=options, hide_parameters=True)

    @sa.event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # We begin; the driver must not do it later.
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        if sys.platform == "darwin":  # Where fsync leaves it in the disk's own memory.
            connection.execute("PRAGMA fullfsync=ON")
            connection.execute("PRAGMA checkpoint_fullfsync=ON")

    @sa.event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql(
            "BEGIN" if connection.get_execution_options().get("reads") else "BEGIN IMMEDIATE"
        )

    return engine


class QuickDisk:
    """Whether the disk is quick enough for an event loop to wait for it. Keep one for commits and
    another for what reads: where commits are slow, what is read may be in memory."""

    def __init__(self) -> None:
        self._slow = 0
        """How many more were slow than were quick."""
        self._aside = 0
        """How many more are left to a thread."""
        self._next_aside = ASIDE_MIN

    def go_aside(self) -> bool:
        """Whether what comes now is to be left to a thread."""
        if self._aside:
            self._aside -= 1
            return True
        return False

    @contextlib.contextmanager
    def timed(self, rows: int = 0) -> Iterator[None]:
        """What happens within keeps the event loop, which waits for so many rows. What fails slowly
        counts as well; what fails at once tells nothing about the disk."""
        began = time.monotonic()
        failed = True
        try:
            yield
            failed = False
        finally:
            seconds = time.monotonic() - began - rows * ROW_SECONDS
            if seconds > QUICK_SECONDS or not failed:
                self._took(seconds)

    def _took(self, seconds: float) -> None:
        if seconds <= QUICK_SECONDS:
            self._slow = max(0, self._slow - 1)
            if not self._slow:
                self._next_aside = ASIDE_MIN
            return
        self._slow += 1
        if seconds > STALL_SECONDS or self._slow >= SLOW_MAX:
            self._slow = SLOW_MAX // 2  # So a disk that stays slow is known sooner.
            self._aside = self._next_aside
            self._next_aside = min(2 * self._next_aside, ASIDE_MAX)


class SqliteDatabase:
    """One SQLite file, owned by one process, which a lock beside the file makes sure of.

    Transactions run in a thread of their own, reads in another. A brief transaction runs on the
    event loop, as it would take turns with the loop at every statement, which took twice as long.
    So does its commit where the disk is quick: to wait for the thread takes longer than an fsync.

    A file that is moved, removed or replaced while it is open stays open, and what is written into
    it then is lost. So each transaction, before and after, and each read, before, check that the
    path still leads to it; else they raise `DatabaseGone`.
    """

    shared = False

    def __init__(self, url: str, schema: Schema) -> None:
        """Open the file, or create it, and bring its tables up to date. Blocks.

        Raises `DatabaseError`.
        """
        from saga.runtime.kernel.migrations import prepare  # Who only reads needs no Alembic.

        self._path = sqlite_file(url)
        self._lock = _lock(self._path)
        self._engine = sqlite_engine(url)
        self._writing = asyncio.Lock()
        self._commits = QuickDisk()
        try:
            with self._engine.begin() as connection:
                prepare(connection, schema)
            self._brief = self._engine.connect()
            self._driver = cast(sqlite3.Connection, self._brief.connection.dbapi_connection)
            self._driver.execute("PRAGMA busy_timeout = 0")  # The event loop does not wait.
            self._identity = file_identity(self._path)
        except BaseException as error:
            os.close(self._lock)
            if not isinstance(error, sa.exc.DBAPIError | MigrationError):
                raise
            reason = error.orig if isinstance(error, sa.exc.DBAPIError) else error
            raise DatabaseError(f"cannot open the database {self._path}: {reason}") from error
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="database-writer")
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="database-reader")

    async def transaction(self, work: Callable[[Connection], T], *, brief: bool = False) -> T:
        async with self._writing:
            self._check_file()
            result = await self._write(work, brief=brief)
            self._check_file()
            return result

    async def _write(self, work: Callable[[Connection], T], *, brief: bool) -> T:
        if not (brief and self._begin()):
            return await self._in_writer(partial(self._transact, work))
        try:
            return await self._finish(work)
        except sqlite3.Error as error:
            raise as_sqlalchemy(error, "COMMIT or ROLLBACK", self._brief) from error

    def _check_file(self) -> None:
        """Raise `DatabaseGone` unless the path still leads to the file that is open."""
        if file_identity(self._path) != self._identity:
            raise DatabaseGone(
                f"{self._path} is no longer the file that this service has opened: put that one "
                f"back, or restart the service"
            )

    def _begin(self) -> bool:
        """Whether a transaction could begin on the event loop: not if another process is writing.
        Anything else that is wrong, the thread meets as well."""
        try:
            self._driver.execute("BEGIN IMMEDIATE")
        except sqlite3.Error:
            return False
        return True

    async def _finish(self, work: Callable[[Connection], T]) -> T:
        """The transaction that has begun on the driver's connection."""
        try:
            result = work(self._brief)
            await self._commit()
        except BaseException:
            self._driver.rollback()
            raise
        return result

    async def _commit(self) -> None:
        if self._commits.go_aside():
            await self._in_writer(self._driver.commit)
            return
        with self._commits.timed():
            self._driver.commit()

    def _transact(self, work: Callable[[Connection], T]) -> T:
        with self._engine.begin() as connection:
            return work(connection)

    async def _in_writer(self, function: Callable[[], T]) -> T:
        """Call a function in the thread for writing. It has ended when this does."""
        call = asyncio.get_running_loop().run_in_executor(self._writer, function)
        try:
            return await asyncio.shield(call)
        except asyncio.CancelledError:
            while not call.done():
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({call})
            raise

    async def read(self, query: Callable[[Connection], T]) -> T:
        def run() -> T:
            self._check_file()
            connection = self._engine.connect().execution_options(reads=True)
            with connection, connection.begin():
                return query(connection)

        return await asyncio.get_running_loop().run_in_executor(self._reader, run)

    def is_away(self, error: BaseException) -> bool:
        # Locked, disk full, I/O error, file gone; and, of no class of its own, a file that is
        # damaged. What is wrong with the data has other classes.
        out_of_order = (
            sa.exc.OperationalError,
            sa.exc.InternalError,
            DatabaseGone,
            MemoryError,
        )
        return isinstance(error, out_of_order) or type(error) is sa.exc.DatabaseError

    async def close(self) -> None:
        self._writer.shutdown()
        self._reader.shutdown()
        self._brief.close()
        self._engine.dispose()
        os.close(self._lock)


def scrub(path: Path) -> None:
    """Have no byte of what was deleted in a file and its log. Others may use it meanwhile: blocks
    while they write, or read what was. Raises `sqlite3.Error`, also where that does not end within
    `BUSY_TIMEOUT_SECONDS`."""
    with contextlib.closing(
        sqlite3.connect(path, timeout=BUSY_TIMEOUT_SECONDS, isolation_level=None)
    ) as connection:
        connection.execute("PRAGMA secure_delete = ON")
        connection.execute("PRAGMA temp_store = MEMORY")  # Its copy is in no other file.
        connection.execute("VACUUM")
        if not empty_log(connection, BUSY_TIMEOUT_SECONDS):
            raise sqlite3.OperationalError(
                f"{path}-wal is being read all the time, so what was deleted is still in it"
            )


def empty_log(connection: Any, seconds: float) -> bool:
    """Empty a file's log into it, over a connection of sqlite3's; False where others were reading
    it for so long. Blocks."""
    deadline = time.monotonic() + seconds
    while connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def read_file(url: str, query: Callable[[Connection], T]) -> T:
    """Run `query` on a file that others use, as of one moment. Blocks. Raises `DatabaseError`."""
    path = sqlite_file(url)
    if not path.is_file():  # SQLite would make an empty one
        raise DatabaseError(f"there is no database {path}; start its service, or correct its URL")
    engine = sqlite_engine(url)
    try:
        connection = engine.connect().execution_options(reads=True)
        with connection, connection.begin():
            connection.exec_driver_sql("PRAGMA query_only = ON")
            return query(connection)
    except sa.exc.DBAPIError as error:
        reason = str(error.orig)
        if reason.startswith(LACKING):
            reason = f"{reason}: {OLDER_TABLES}"
        raise DatabaseError(f"cannot read the database {path}: {reason}") from error
    finally:
        engine.dispose()


def sqlite_file(url: str) -> Path:
    """The file that a SQLite URL names. Raises `DatabaseError`."""
    try:
        path = sqlite_path(url)
    except ValueError as error:
        raise DatabaseError(f"DATABASE_URL {printable(url)!r} cannot be used: {error}") from None
    if path is None:
        raise DatabaseError(
            f"DATABASE_URL {printable(url)!r} names no file; use sqlite:///path/to/file.db"
        )
    return path


def made_by_one(make: Callable[[], None]) -> None:
    """Make tables in a file that others may be making at the same time: they get in each other's
    way while they switch it to WAL, where SQLite does not heed the busy timeout."""
    deadline = time.monotonic() + BUSY_TIMEOUT_SECONDS
    while True:
        try:
            return make()
        except sa.exc.OperationalError as error:
            if not any(word in str(error.orig) for word in _AT_THE_SAME_TIME):
                raise
            if time.monotonic() > deadline:
                raise
            time.sleep(0.01)


def file_identity(path: Path) -> tuple[int, int] | None:
    """The device and the inode that a path leads to; None if it leads nowhere."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _lock(path: Path) -> int:
    """Take the lock that says whose file it is; held until closed, or until the process ends."""
    lock_path = path.with_name(path.name + ".lock")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise DatabaseError(
            f"cannot write in the data folder {path.parent}: {error.strerror}; "
            f"make it writable, or name another in DATA_DIR or DATABASE_URL"
        ) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise DatabaseError(
            f"the database {path} is in use by another process; stop that one first, "
            f"or name another file in DATABASE_URL"
        ) from error
    return descriptor
