"""A service's database on a PostgreSQL server, which several replicas of it may share."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, Final, Self, TypeVar
from urllib.parse import urlsplit
from uuid import uuid4

import asyncpg
import sqlalchemy as sa
from sqlalchemy.engine import Connection
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool, Pool

from saga.runtime.kernel.database import OLDER_TABLES, DatabaseError, MigrationError
from saga.runtime.kernel.tables import Schema
from saga.runtime.urls import unambiguous

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

# Keyed by their SQLSTATE (appendix A of PostgreSQL's manual), or the beginning of it.
_OF_THE_DATA: Final = (
    "22",  # data exception
    "23",  # integrity constraint violation
    "44",  # violation of a view's check option
    "54",  # program limit exceeded: a key too long for its index, say
    "P0",  # raised by a trigger
)
_TO_BE_MENDED: Final = (
    "08P01",  # the server, or a pooler before it, does not take what we ask for
    "26",  # a prepared statement is on another server connection of a pooler
    "28",  # invalid authorization
    "3D",  # no such database
    "42",  # missing tables, missing rights
)
_LACKING: Final = (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError)
_TIMEOUTS: Final = ("statement_timeout", "idle_in_transaction_session_timeout")
_POOLER: Final = (
    "set, in pgbouncer.ini, ignore_startup_parameters = statement_timeout, "
    "idle_in_transaction_session_timeout and max_prepared_statements = 200 (PgBouncer 1.21 or "
    "later), and for the role ALTER ROLE {role} SET statement_timeout = '10s' and the same of "
    "idle_in_transaction_session_timeout; or name PostgreSQL itself in DATABASE_URL"
)
"""What a pooler that gives each transaction any of its connections has to do."""
_OF_A_POOLER: Final = (
    asyncpg.ProtocolViolationError,
    asyncpg.DuplicatePreparedStatementError,
    asyncpg.InvalidSQLStatementNameError,
)
_MIGRATING: Final = 4_919_017
"""The advisory lock that one process holds while it changes the tables."""

_OURS: Final = "AUTOCOMMIT"
"""SQLAlchemy begins no transactions and ends none, as we do."""
_READING: Final = "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY"

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
        self._writing = asyncio.Lock()
        self._kept: AsyncConnection | None = None
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
                isolation_level=_OURS,
            )
        )

    async def transaction(self, work: Callable[[Connection], T], *, brief: bool = False) -> T:
        async with self._writing:
            if brief:
                return await self._brief(work)
            await self._let_go()
            async with _begun(self._engine, "BEGIN") as connection:
                return await connection.run_sync(work)

    async def _brief(self, work: Callable[[Connection], T]) -> T:
        """Each statement is a transaction of its own. The connection is kept, as to get one takes
        longer than a statement does."""
        if self._kept is None:
            self._kept = await self._engine.connect()
        kept = self._kept
        try:
            return await kept.run_sync(work)
        except BaseException as error:
            self._kept = None
            if not isinstance(error, Exception) or is_away(error):  # cancelled in mid-answer
                await kept.invalidate()
            await kept.close()
            raise

    async def _let_go(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            await kept.close()

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
        async with _begun(self._engine, _READING) as connection:
            return await connection.run_sync(query)

    def is_away(self, error: BaseException) -> bool:
        return is_away(error)

    async def close(self) -> None:
        await self._let_go()
        await self._engine.dispose()


@asynccontextmanager
async def _begun(engine: AsyncEngine, begin: str) -> AsyncIterator[AsyncConnection]:
    """A connection in a transaction, begun by that statement; committed at the end, or rolled back.

    Not SQLAlchemy's: what we execute on the driver's connection would not be in that.
    """
    async with engine.connect() as connection:
        raw: Any = (await connection.get_raw_connection()).driver_connection
        try:
            await raw.execute(begin)
            yield connection
            if (ended := await raw.execute("COMMIT")) != "COMMIT":
                raise RuntimeError(f"where a transaction was to be committed, it ended: {ended}")
        except Exception:
            try:
                await raw.execute("ROLLBACK")
            except Exception:
                await connection.invalidate()
            raise
        except BaseException:  # Cancelled in the middle of an answer.
            await connection.invalidate()
            raise


def is_away(error: BaseException) -> bool:
    """Whether `error` is of the server, the way there, or of transactions that got in each other's
    way: all that is not of the data. (A password that was changed is no message's fault either.)"""
    for found in _chain(error):
        if isinstance(found, OSError | TimeoutError | MemoryError | sa.exc.TimeoutError):
            return True
        if isinstance(found, sa.exc.DBAPIError) and found.connection_invalidated:
            return True
        if isinstance(found, asyncpg.InternalClientError):
            return True
        if isinstance(found, asyncpg.InterfaceError) and not isinstance(found, ValueError):
            return True  # Of the client: this connection cannot be used any more.
        if state := _sqlstate(found):
            return not state.startswith(_OF_THE_DATA)
    return False


def _waits_for_a_person(error: BaseException) -> bool:
    """Whether it will not go by itself."""
    return any(_sqlstate(found).startswith(_TO_BE_MENDED) for found in _chain(error))


def _sqlstate(error: BaseException) -> str:
    state = getattr(error, "sqlstate", None)
    return state if isinstance(state, str) else ""


async def read_once(url: str, query: Callable[[Connection], T]) -> T:
    """Connect, run `query` as of one moment, and close. Raises `DatabaseError`."""
    target = _Target(url, "saga")
    engine = target.engine(NullPool, isolation_level=_OURS)
    try:
        async with _begun(engine, _READING) as connection:
            return await connection.run_sync(query)
    except Exception as error:
        explanation = target.explain(error)
        if explanation is None:
            raise
        if any(isinstance(found, _LACKING) for found in _chain(error)):
            explanation = f"{explanation}: {OLDER_TABLES}"
        raise DatabaseError(explanation) from error
    finally:
        await engine.dispose()


class Session:
    """One connection, whose transactions its user begins and ends."""

    def __init__(self, connection: AsyncConnection, raw: Any) -> None:
        """Use `open_session`."""
        self._connection = connection
        self._raw = raw

    async def execute(self, statement: str) -> None:
        """Execute a statement. Raises asyncpg's errors."""
        await self._raw.execute(statement)

    async def fetch(self, query: str) -> Any:
        """The first value of a query's first row. Raises asyncpg's errors."""
        return await self._raw.fetchval(query)

    async def run(self, query: Callable[[Connection], T]) -> T:
        """Run `query` in the transaction that has begun."""
        return await self._connection.run_sync(query)


@asynccontextmanager
async def open_session(
    url: str, *, name: str, connect_seconds: float = CONNECT_SECONDS
) -> AsyncIterator[Session]:
    """Connect, under a `name` that the server shows. Raises `DatabaseError`, also for what the body
    raises of the server or the way there."""
    target = _Target(url, name, connect_seconds)
    engine = target.engine(NullPool, isolation_level=_OURS)
    try:
        async with engine.connect() as connection:
            raw: Any = (await connection.get_raw_connection()).driver_connection
            yield Session(connection, raw)
    except DatabaseError:  # Of another one, in the body.
        raise
    except Exception as error:
        explanation = target.explain(error)
        if explanation is None:
            raise
        raise DatabaseError(explanation) from error
    finally:
        await engine.dispose()


async def _prepare(target: _Target, schema: Schema, patience_seconds: float) -> None:
    from saga.runtime.kernel.migrations import prepare  # Who only reads needs no Alembic.

    deadline = time.monotonic() + patience_seconds
    waiting = False
    pooled: list[bool] = []

    def work(connection: Connection) -> None:
        # Changing large tables takes its time, and so does waiting for the replica that does it.
        if not _as_asked_for(connection, target):
            pooled.append(True)
        connection.exec_driver_sql("SET LOCAL statement_timeout = 0")
        connection.execute(sa.select(sa.func.pg_advisory_xact_lock(_MIGRATING)))
        prepare(connection, schema)

    engine = target.engine(NullPool)
    try:
        while True:
            try:
                async with engine.begin() as connection:
                    await connection.run_sync(work)
                if pooled:
                    await target.check_prepared_statements()
            except MigrationError as error:
                raise DatabaseError(f"cannot open {target}: {error}") from error
            except Exception as error:
                explanation = target.explain(error)
                if explanation is None:
                    raise
                patient = is_away(error) and not _waits_for_a_person(error)
                if not patient or time.monotonic() > deadline:
                    raise DatabaseError(explanation) from error
                if not waiting:
                    log.warning("waiting for the database: %s", explanation)
                    waiting = True
            else:
                return
            await asyncio.sleep(RETRY_SECONDS)
    finally:
        await engine.dispose()


def _as_asked_for(connection: Connection, target: _Target) -> bool:
    """Whether the timeouts that we ask for at the start of a connection have come to the server; a
    pooler may have left them out. Raises `DatabaseError` if there are none then."""
    found = connection.execute(
        sa.text("SELECT name, setting, source FROM pg_settings WHERE name = ANY(:names)"),
        {"names": list(_TIMEOUTS)},
    ).all()
    for row in found:
        if row.source != "client" and row.setting == "0":
            raise DatabaseError(
                f"{target} is behind a pooler and has no {row.name}: {target.pooler_settings}"
            )
    return all(row.source == "client" for row in found)


class _Target:
    """Where to connect; shown without the password."""

    def __init__(self, url: str, name: str, connect_seconds: float = CONNECT_SECONDS) -> None:
        # asyncpg reads the rest of the URL: options for TLS and several hosts, say.
        self._dsn = re.sub(r"^[^:/]+://", "postgresql://", url)
        self._name = name
        self._connect_seconds = connect_seconds
        try:
            parts = urlsplit(unambiguous(self._dsn))
        except ValueError as error:
            raise DatabaseError(f"DATABASE_URL cannot be read: {error}") from None
        user, _, self._address = parts.netloc.rpartition("@")
        self._user = user.partition(":")[0]
        self._path = parts.path

    def __str__(self) -> str:
        return f"PostgreSQL at {self._address or 'the default host'}{self._path}"

    def engine(
        self, pool: type[Pool], *, answer_seconds: float | None = None, **options: Any
    ) -> AsyncEngine:
        """Connects when it is used. Without `answer_seconds` an answer may take any time."""

        return create_async_engine(
            "postgresql+asyncpg://",
            async_creator=lambda: self._connect(answer_seconds),
            poolclass=pool,
            hide_parameters=True,  # They hold what messages say.
            **options,
        )

    async def _connect(self, answer_seconds: float | None) -> asyncpg.Connection:
        return await asyncpg.connect(
            self._dsn,
            timeout=self._connect_seconds,
            command_timeout=answer_seconds,
            server_settings={
                "application_name": self._name,
                "statement_timeout": _milliseconds(STATEMENT_SECONDS),
                "idle_in_transaction_session_timeout": _milliseconds(IDLE_IN_TRANSACTION_SECONDS),
            },
        )

    async def check_prepared_statements(self) -> None:
        """See whether a pooler keeps apart what two connections prepare under one name.

        Raises asyncpg's error if it does not.
        """
        name = f"saga_probe_{uuid4().hex}"
        async with AsyncExitStack() as stack:
            for _ in range(2):
                connection = await self._connect(ANSWER_SECONDS)
                stack.push_async_callback(connection.close)
                statement = await connection.prepare("SELECT 1", name=name)
                await statement.fetch()

    @property
    def pooler_settings(self) -> str:
        """What makes a pooler fit for us, on one line."""
        return _POOLER.format(role=self._user or "...")

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
            if isinstance(found, _OF_A_POOLER):
                return f"{self} is behind a pooler ({found.args[0]}): {self.pooler_settings}"
            if isinstance(found, asyncpg.PostgresError):
                return f"{self} refused: {found.args[0]}"
        if is_away(error):
            reason = str(error) or type(error).__name__
            return f"cannot reach {self}: {reason}; start it, or correct its URL"
        return None


def _milliseconds(seconds: float) -> str:
    return str(int(seconds * 1_000))


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it wraps."""
    found: BaseException | None = error
    while found is not None:
        yield found
        found = getattr(found, "orig", None) or found.__cause__
