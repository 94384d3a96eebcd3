"""A service's database on a PostgreSQL server, which several replicas of it may share."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit

import asyncpg
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, Pool

from common.kernel.database import DatabaseError
from common.kernel.migrations import MigrationError, prepare
from common.kernel.tables import Schema

log = logging.getLogger(__name__)

READS_AT_ONCE: Final = 4
"""Connections for reading, of each replica; it has one more for its transactions."""
CONNECT_SECONDS: Final = 5.0
STATEMENT_SECONDS: Final = 10.0
"""The longest that one statement may take, or wait for a lock, at the server."""
ANSWER_SECONDS: Final = STATEMENT_SECONDS + 5.0
"""The longest that the server's answer is waited for: then the network is broken."""
IDLE_IN_TRANSACTION_SECONDS: Final = 10.0
"""How long a replica that is stopped in the middle of a transaction keeps its locks."""
RETRY_SECONDS: Final = 0.2
"""Between two attempts to reach a server, when opening."""

# What PostgreSQL calls by these classes or codes (its manual, appendix A) is no matter of the data.
_AWAY_CLASSES: Final = (
    "08",  # connection exception
    "53",  # insufficient resources: connections, disk, memory
    "58",  # system error: input or output
)
_AWAY_CODES: Final = frozenset(
    {
        "25006",  # read_only_sql_transaction: connected to what is no longer the primary
        "25P03",  # idle_in_transaction_session_timeout
        "40001",  # serialization_failure
        "40003",  # statement_completion_unknown
        "40P01",  # deadlock_detected
        "55P03",  # lock_not_available
        "57014",  # query_canceled: a statement's time ran out
        "57P01",  # admin_shutdown
        "57P02",  # crash_shutdown
        "57P03",  # cannot_connect_now: starting up, shutting down, or recovering
        "57P05",  # idle_session_timeout
    }
)
_MIGRATING: Final = 4_919_017
"""The advisory lock that one process holds while it changes the tables."""

T = TypeVar("T")


class PostgresDatabase:
    """One database on a server. Each replica of its service opens it.

    Transactions run one after the other, reads on connections of their own. Everything runs on the
    event loop: work is called in a greenlet, and what it executes does not block the loop.
    """

    shared = True

    def __init__(self, engine: AsyncEngine) -> None:
        """Use `open`."""
        self._engine = engine
        self._reads = engine.execution_options(
            isolation_level="REPEATABLE READ", postgresql_readonly=True
        )
        self._writing = asyncio.Lock()
        self._reading = asyncio.Semaphore(READS_AT_ONCE)

    @classmethod
    async def open(
        cls, url: str, schema: Schema, *, name: str = "saga", patience_seconds: float = 0.0
    ) -> Self:
        """Connect, and bring the tables up to date. Several replicas may do so at once.

        A server that is out of reach is waited for up to `patience_seconds`. Raises
        `DatabaseError`.
        """
        target = _Target(url, name)
        await _prepare(target, schema, patience_seconds)
        return cls(
            target.engine(
                AsyncAdaptedQueuePool,
                answer_seconds=ANSWER_SECONDS,
                pool_size=READS_AT_ONCE + 1,
                max_overflow=0,
            )
        )

    async def transaction(self, work: Callable[[Connection], T]) -> T:
        async with self._writing, self._engine.begin() as connection:
            return await connection.run_sync(work)

    async def read(self, query: Callable[[Connection], T]) -> T:
        async with self._reading:
            try:
                return await self._read(query)
            except Exception as error:
                # A connection that the server has closed meanwhile is found out only by using it.
                if not is_away(error):
                    raise
                return await self._read(query)

    async def _read(self, query: Callable[[Connection], T]) -> T:
        async with self._reads.connect() as connection:
            return await connection.run_sync(query)

    def is_away(self, error: BaseException) -> bool:
        return is_away(error)

    async def close(self) -> None:
        await self._engine.dispose()


def is_away(error: BaseException) -> bool:
    """Whether `error` says that the server is out of reach or too busy, or that transactions got
    in each other's way."""
    for found in _chain(error):
        if isinstance(found, OSError | TimeoutError | sa.exc.TimeoutError):
            return True
        if isinstance(found, sa.exc.DBAPIError) and found.connection_invalidated:
            return True
        if isinstance(found, asyncpg.InvalidCachedStatementError):
            return True  # The tables have changed since; the next attempt asks anew.
        if isinstance(found, asyncpg.InterfaceError) and not isinstance(found, ValueError):
            return True  # Of the client: this connection cannot be used any more.
        state = getattr(found, "sqlstate", None)
        if isinstance(state, str) and (state in _AWAY_CODES or state.startswith(_AWAY_CLASSES)):
            return True
    return False


async def read_once(url: str, query: Callable[[Connection], T]) -> T:
    """Connect, run `query` as of one moment, and close. Raises `DatabaseError`."""
    target = _Target(url, "saga")
    engine = target.engine(NullPool).execution_options(
        isolation_level="REPEATABLE READ", postgresql_readonly=True
    )
    try:
        async with engine.connect() as connection:
            return await connection.run_sync(query)
    except Exception as error:
        explanation = target.explain(error)
        if explanation is None:
            raise
        raise DatabaseError(explanation) from error
    finally:
        await engine.dispose()


async def _prepare(target: _Target, schema: Schema, patience_seconds: float) -> None:
    deadline = time.monotonic() + patience_seconds
    waiting = False

    def work(connection: Connection) -> None:
        # Changing large tables takes its time, and so does waiting for whoever does it.
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATING)))
        prepare(connection, schema)

    engine = target.engine(NullPool)
    try:
        while True:
            try:
                async with engine.begin() as connection:
                    await connection.run_sync(work)
            except MigrationError as error:
                raise DatabaseError(f"cannot open {target}: {error}") from error
            except Exception as error:
                explanation = target.explain(error)
                if explanation is None:
                    raise
                if not is_away(error) or time.monotonic() > deadline:
                    raise DatabaseError(explanation) from error
                if not waiting:
                    log.warning("waiting for the database: %s", explanation)
                    waiting = True
            else:
                return
            await asyncio.sleep(RETRY_SECONDS)
    finally:
        await engine.dispose()


class _Target:
    """Where to connect; shown without the password."""

    def __init__(self, url: str, name: str) -> None:
        # asyncpg reads the rest of the URL: options for TLS and several hosts, say.
        self._dsn = re.sub(r"^[^:/]+://", "postgresql://", url)
        self._name = name
        parts = urlsplit(self._dsn)
        if "@" in self._dsn and "@" not in parts.netloc:
            raise DatabaseError(
                "DATABASE_URL cannot be read: write reserved characters of its password as "
                "%2F for /, %3F for ?, %23 for #, %40 for @"
            )
        user, _, self._address = parts.netloc.rpartition("@")
        self._user = user.partition(":")[0]
        self._path = parts.path

    def __str__(self) -> str:
        return f"PostgreSQL at {self._address or 'the default host'}{self._path}"

    def engine(
        self, pool: type[Pool], *, answer_seconds: float | None = None, **options: Any
    ) -> AsyncEngine:
        """Connects when it is used. Without `answer_seconds` an answer may take any time."""

        async def connect() -> asyncpg.Connection:
            return await asyncpg.connect(
                self._dsn,
                timeout=CONNECT_SECONDS,
                command_timeout=answer_seconds,
                server_settings={
                    "application_name": self._name,
                    "statement_timeout": _milliseconds(STATEMENT_SECONDS),
                    "idle_in_transaction_session_timeout": _milliseconds(
                        IDLE_IN_TRANSACTION_SECONDS
                    ),
                },
            )

        return create_async_engine(
            "postgresql+asyncpg://", async_creator=connect, poolclass=pool, **options
        )

    def explain(self, error: Exception) -> str | None:
        """One line for an error of the server or of the way there, and the way out; None for what
        is an error of ours."""
        for found in _chain(error):
            if isinstance(found, asyncpg.InvalidAuthorizationSpecificationError):
                who = f"the user {self._user!r}" if self._user else "the user"
                return f"{self} refused {who}: correct user or password in DATABASE_URL"
            if isinstance(found, asyncpg.InvalidCatalogNameError):
                return (
                    f"{self}: there is no such database; create it (createdb), or correct "
                    f"DATABASE_URL"
                )
            if isinstance(found, asyncpg.ClientConfigurationError):
                return f"DATABASE_URL cannot be used for {self}: see PostgreSQL's connection URIs"
            if isinstance(found, asyncpg.PostgresError):
                return f"{self} refused: {found.args[0]}"
        if is_away(error):
            reason = str(error) or type(error).__name__
            return f"cannot reach {self}: {reason}; does it run, is DATABASE_URL right?"
        return None


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1_000))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = getattr(found, "orig", None) or found.__cause__
