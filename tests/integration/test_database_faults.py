"""What is wrong with the database makes no message poison; what is wrong with the data is one
message's.

The faults are the databases' own: each is made to happen, and the test sees that it did.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Self, TypeVar
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

import saga.runtime.kernel.postgresql
import saga.runtime.kernel.sqlite
from saga.choreography import Participant, State
from saga.message import Decided
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.tables import StateTable, Tables
from saga.runtime.kernel.work import Done, Failed
from tests.integration.kernels import Replica, Through
from tests.integration.kernels import replica as running
from tests.integration.toy import PARTICIPANT, Tally, cancelled, make_tables
from tests.polling import until
from tests.words import Cancelled, Part, Released

T = TypeVar("T")


class Watched(Through):
    """Remembers the errors of transactions."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.errors: list[Exception] = []

    async def transaction(self, work: Callable[[Connection], T], *, brief: bool = False) -> T:
        try:
            return await super().transaction(work, brief=brief)
        except Exception as error:
            self.errors.append(error)
            raise


# --- telling them apart ---------------------------------------------------------------------------


def _statement(text: str) -> Callable[[Connection], None]:
    return lambda connection: connection.exec_driver_sql(text).close()


CODES = {
    "08006": True,  # connection failure
    "25006": True,  # read-only: no longer the primary
    "28P01": True,  # another password
    "3D000": True,  # no such database
    "40001": True,  # serialization failure
    "40P01": True,  # deadlock
    "42501": True,  # rights taken away
    "42P01": True,  # a table taken away
    "53100": True,  # disk full
    "53300": True,  # too many connections
    "55P03": True,  # lock not available
    "57014": True,  # statement timeout
    "57P01": True,  # shutting down
    "58030": True,  # I/O error
    "XX001": True,  # damaged
    "22003": False,  # a number out of range
    "22021": False,  # a character that cannot be stored
    "23502": False,  # not null
    "23505": False,  # unique
    "23514": False,  # check
    "44000": False,  # with check option
    "54000": False,  # too long for its index
    "P0001": False,  # a trigger's objection
}
"""SQLSTATEs, and whether they are of the database rather than of the data."""


async def test_what_postgresql_says_is_told_apart_by_its_code(postgres_url: str) -> None:
    database = await open_database(postgres_url, make_tables())
    told: dict[str, bool] = {}
    for code in CODES:
        raising = _statement(f"DO $$ BEGIN RAISE EXCEPTION USING ERRCODE = '{code}'; END $$")
        with pytest.raises(sa.exc.DBAPIError) as raised:
            await database.transaction(raising)
        told[code] = database.is_away(raised.value)
    await database.close()

    assert told == CODES


async def test_a_machine_without_memory_is_no_fault_of_the_data(database_url: str) -> None:
    database = await open_database(database_url, make_tables())
    assert database.is_away(MemoryError())
    assert not database.is_away(ValueError())
    await database.close()


def _fill(connection: Connection) -> None:
    connection.exec_driver_sql("PRAGMA max_page_count = 1")
    connection.exec_driver_sql("CREATE TABLE more (x)")


def _damage(connection: Connection) -> None:
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    connection.exec_driver_sql("UPDATE sqlite_schema SET rootpage = 4242 WHERE name = 'tallies'")
    connection.exec_driver_sql("PRAGMA writable_schema = RESET")
    connection.exec_driver_sql("SELECT * FROM tallies")


@pytest.mark.parametrize(
    ("work", "said", "away"),
    [
        (_fill, "database or disk is full", True),
        (_damage, "malformed", True),
        (_statement("SELECT * FROM gone"), "no such table", True),
        (_statement("INSERT INTO tallies VALUES ('k', 1, 1, 99)"), "CHECK constraint", False),
        (_statement("INSERT INTO tallies VALUES ('k', NULL, 1, 1)"), "NOT NULL", False),
    ],
)
async def test_what_sqlite_says_is_told_apart_by_its_class(
    work: Callable[[Connection], None], said: str, away: bool, tmp_path: Path
) -> None:
    database = await open_database(f"sqlite:///{tmp_path / 'toy.db'}", make_tables())

    with pytest.raises(sa.exc.DBAPIError, match=said) as raised:
        await database.transaction(work)

    assert database.is_away(raised.value) is away
    await database.close()


# --- the database's faults ------------------------------------------------------------------------

THINGS = range(1, 6)


@dataclass
class Scene:
    """The toy's kernel at work on a database that exists outside of it too."""

    toy: Replica
    url: str

    def saw(self, words: str) -> bool:
        """Whether a transaction has ended with an error that says so."""
        database = self.toy.database
        assert isinstance(database, Watched)
        return any(words in repr(error) for error in database.errors)

    @asynccontextmanager
    async def administrator(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(self.url)
        try:
            yield connection
        finally:
            await connection.close()


Fault = Callable[[Scene], AbstractAsyncContextManager[str]]
"""Breaks something as long as the context lasts, and gives what the database says of that."""


async def blames_nobody(
    url: str, fault: Fault, *, through: Callable[[Database], Watched] = Watched
) -> None:
    async with running(url, PARTICIPANT, make_tables(), through=through) as toy:
        await asyncio.gather(*(toy.kernel.handle(cancelled(number)) for number in THINGS))
        scene = Scene(toy, url)
        async with fault(scene) as said:
            handling = [
                asyncio.create_task(toy.kernel.handle(cancelled(number, id=f"again-{number}")))
                for number in THINGS
            ]
            await until(lambda: scene.saw(said))
        outcomes = await asyncio.gather(*handling)

        assert [type(outcome) for outcome in outcomes] == [Done] * len(THINGS)
        tallies = [await toy.find(Tally, UUID(int=number)) for number in THINGS]
        assert [tally and tally.count for tally in tallies] == [2] * len(THINGS)


async def test_a_sqlite_file_that_somebody_has_locked_blames_no_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saga.runtime.kernel.sqlite, "BUSY_TIMEOUT_SECONDS", 0.05)
    path = tmp_path / "toy.db"

    @asynccontextmanager
    async def locked(_: Scene) -> AsyncIterator[str]:
        with closing(sqlite3.connect(path)) as other:
            other.execute("BEGIN IMMEDIATE")
            yield "database is locked"

    await blames_nobody(f"sqlite:///{path}", locked)


LOCK = "SELECT * FROM tallies WHERE key = $1 FOR UPDATE"
FIRST, LAST = (cancelled(number).subject for number in (THINGS[0], THINGS[-1]))
IN_DATABASE = "FROM pg_stat_activity WHERE datname = current_database()"
CUT_OFF = f"SELECT pg_terminate_backend(pid) {IN_DATABASE} AND pid <> pg_backend_pid()"
WAITING = f"SELECT count(*) {IN_DATABASE} AND wait_event_type = 'Lock'"


async def waits_for_a_lock(administrator: asyncpg.Connection) -> bool:
    return bool(await administrator.fetchval(WAITING))


@asynccontextmanager
async def cut_off(scene: Scene) -> AsyncIterator[str]:
    async with scene.administrator() as administrator:
        await administrator.execute(CUT_OFF)
        yield ""  # it depends on when the client notices


@asynccontextmanager
async def cut_off_in_a_transaction(scene: Scene) -> AsyncIterator[str]:
    async with scene.administrator() as other, scene.administrator() as administrator:
        transaction = other.transaction()
        await transaction.start()
        await other.execute(LOCK, LAST)

        async def cut() -> None:
            await until(lambda: waits_for_a_lock(administrator))
            await administrator.execute(CUT_OFF)

        cutting = asyncio.create_task(cut())
        yield "terminating connection due to administrator command"
        await cutting


@asynccontextmanager
async def deadlocked(scene: Scene) -> AsyncIterator[str]:
    """The kernel has the first row and waits for the last, which another has, who then waits for
    the first. It is the kernel that looks for a deadlock first."""
    async with scene.administrator() as other, scene.administrator() as administrator:
        await other.execute("SET deadlock_timeout = '1min'")
        transaction = other.transaction()
        await transaction.start()
        await other.execute(LOCK, LAST)

        async def want_the_first() -> None:
            await until(lambda: waits_for_a_lock(administrator))
            await other.execute(LOCK, FIRST)

        wanting = asyncio.create_task(want_the_first())
        yield "deadlock detected"
        await wanting
        await transaction.rollback()


@asynccontextmanager
async def overtaken(scene: Scene) -> AsyncIterator[str]:
    """What the kernel is about to read has changed since its transaction began."""
    async with scene.administrator() as other, scene.administrator() as administrator:
        transaction = other.transaction()
        await transaction.start()
        await other.execute("UPDATE tallies SET key = key WHERE key = $1", LAST)

        async def commit() -> None:
            await until(lambda: waits_for_a_lock(administrator))
            await transaction.commit()

        committing = asyncio.create_task(commit())
        yield "could not serialize access due to concurrent update"
        await committing


@asynccontextmanager
async def held_up(scene: Scene) -> AsyncIterator[str]:
    async with scene.administrator() as other, other.transaction():
        await other.execute(LOCK, LAST)
        yield "canceling statement due to statement timeout"


@asynccontextmanager
async def without_its_table(scene: Scene) -> AsyncIterator[str]:
    async with scene.administrator() as administrator:
        await administrator.execute("ALTER TABLE tallies RENAME TO elsewhere")
        yield "does not exist"
        await administrator.execute("ALTER TABLE elsewhere RENAME TO tallies")


@asynccontextmanager
async def read_only(scene: Scene) -> AsyncIterator[str]:
    name = urlsplit(scene.url).path.removeprefix("/")
    async with scene.administrator() as administrator:
        await administrator.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        await administrator.execute(CUT_OFF)
        yield "in a read-only transaction"
        await administrator.execute("SET default_transaction_read_only = off")
        await administrator.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        await administrator.execute(CUT_OFF)


class Repeatable(Watched):
    """Transactions see what there was when they began, and nothing of what came since."""

    async def transaction(self, work: Callable[[Connection], T], *, brief: bool = False) -> T:
        def repeatable(connection: Connection) -> T:
            connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            return work(connection)

        return await super().transaction(repeatable)


@pytest.mark.parametrize(
    ("fault", "through"),
    [
        (cut_off, Watched),
        (cut_off_in_a_transaction, Watched),
        (deadlocked, Watched),
        (overtaken, Repeatable),
        (held_up, Watched),
        (without_its_table, Watched),
        (read_only, Watched),
    ],
)
async def test_a_fault_of_postgresql_blames_no_message(
    fault: Fault,
    through: Callable[[Database], Watched],
    postgres_url: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if fault is held_up:
        monkeypatch.setattr(saga.runtime.kernel.postgresql, "STATEMENT_SECONDS", 0.2)

    await blames_nobody(postgres_url, fault, through=through)


async def test_a_password_that_was_changed_blames_no_message(postgres_url: str) -> None:
    parts = urlsplit(postgres_url)
    name = parts.path.removeprefix("/")
    of_role = urlunsplit(parts._replace(netloc=f"{name}:old@{parts.hostname}:{parts.port}"))

    @asynccontextmanager
    async def changed(_: Scene) -> AsyncIterator[str]:
        await administrator.execute(f"ALTER ROLE {name} PASSWORD 'new'")
        await administrator.execute(CUT_OFF)
        yield "password authentication failed"
        await administrator.execute(f"ALTER ROLE {name} PASSWORD 'old'")

    administrator = await asyncpg.connect(postgres_url)
    try:
        await administrator.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'old'")
        await administrator.execute(f"ALTER DATABASE {name} OWNER TO {name}")
        await blames_nobody(of_role, changed)
    finally:
        await administrator.execute(f"ALTER DATABASE {name} OWNER TO saga")
        await administrator.execute(f"REASSIGN OWNED BY {name} TO saga; DROP OWNED BY {name}")
        await administrator.execute(f"DROP ROLE {name}")
        await administrator.close()


# --- what is wrong with the data ------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Sum(State):
    """Whatever `who` asks for; the column takes 32 bits on PostgreSQL."""

    total: int = 0
    name: str = ""

    def evolve(self, message: Decided, at: datetime) -> Self:
        assert isinstance(message, Released)
        for part in message.parts:
            match part.name:
                case "more-than-32-bits":
                    return replace(self, total=2**40)
                case "more-than-64-bits":
                    return replace(self, total=2**70)
                case "nul":
                    return replace(self, name="a\0b")
                case _:
                    pass
        return replace(self, total=1)


def add(event: Cancelled, sum_: Sum) -> Released:
    return Released(thing=event.thing, parts=(Part(name=event.who, count=1),))


def sums() -> Tables:
    metadata = sa.MetaData()
    table = sa.Table(
        "sums",
        metadata,
        sa.Column("key", sa.String(36), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("total", sa.Integer, nullable=False),
        sa.Column("name", sa.Text, nullable=False),
    )
    return Tables(metadata, StateTable(Sum, table))


@pytest.mark.parametrize(
    ("database_url", "bad"),
    [
        ("sqlite", "more-than-64-bits"),
        ("postgresql", "more-than-64-bits"),
        ("postgresql", "more-than-32-bits"),
        ("postgresql", "nul"),
    ],
    indirect=["database_url"],
)
async def test_data_that_cannot_be_stored_is_one_message_s_poison(
    database_url: str, bad: str
) -> None:
    group = [cancelled(number, who=bad if number == 7 else "c") for number in range(1, 33)]
    async with running(database_url, Participant("adder", add), sums()) as adder:
        outcomes = await asyncio.gather(*(adder.kernel.handle(envelope) for envelope in group))

        assert [o for o, outcome in enumerate(outcomes, 1) if isinstance(outcome, Failed)] == [7]
        assert sum(isinstance(outcome, Done) for outcome in outcomes) == 31
        assert await adder.inbox() == {envelope.id for envelope in group} - {group[6].id}
        assert await adder.find(Sum, UUID(int=7)) is None
