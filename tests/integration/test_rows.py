"""Rows below SQLAlchemy: what databases say of them, and what becomes of the connection."""

from __future__ import annotations

import asyncio
import resource
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.runtime.kernel import rows
from saga.runtime.kernel import sqlite as database_module
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.rows import OLD_VERSION, Rows, WriteSet, writing
from saga.runtime.kernel.sqlite import DatabaseGone, SqliteDatabase, sqlite_engine
from saga.runtime.kernel.tables import Schema, VersionConflict
from tests.integration.kernels import until_somebody_waits

CONFLICT = VersionConflict("order")

_metadata = sa.MetaData()
ODD = Rows(
    sa.Table(
        "order",
        _metadata,
        sa.Column("Key", sa.String(8), sa.CheckConstraint("\"Key\" <> 'banned'"), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("group", sa.String(20)),
        sa.Column("rows", sa.LargeBinary),
    )
)
"""A table whose names have to be quoted."""
SCHEMA = Schema(_metadata)
PATIENCE_SECONDS = 60.0
"""How long a thread waits for the test, at most."""


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = await open_database(database_url, SCHEMA)
    yield database
    await database.close()


def row(key: str, version: int = 1, group: str | None = None) -> dict[str, object]:
    return {"Key": key, "version": version, "group": group, "rows": None}


def inserting(*values: Mapping[str, object], into: Rows = ODD) -> Callable[[Connection], None]:
    """What inserts these rows in a transaction."""

    def insert(connection: Connection) -> None:
        with writing(connection) as writes:
            writes.insert(into, values, CONFLICT)

    return insert


async def test_rows_are_kept_as_they_were_given_and_changed_where_the_version_is_right(
    database: Database,
) -> None:
    def change(connection: Connection) -> None:
        with writing(connection) as writes:
            writes.update(ODD, [row("c", 2) | {OLD_VERSION: 1, "rows": b"\0"}], CONFLICT)
            writes.remove(ODD, ["b", "nobody"])

    await database.transaction(inserting(row("a"), row("b"), row("c", group="g")))
    await database.transaction(change)

    found = await database.read(lambda connection: ODD.find(connection, ["c", "b", "a"]))
    assert sorted(found) == [["a", 1, None, None], ["c", 2, None, b"\0"]]


@pytest.mark.parametrize("brief", [True, False])
async def test_of_a_write_set_with_a_conflict_nothing_is_kept(
    database: Database, brief: bool
) -> None:
    def change(connection: Connection) -> None:
        with writing(connection) as writes:
            writes.insert(ODD, [row("b")], CONFLICT)
            writes.update(ODD, [row("a", 9) | {OLD_VERSION: 8}], CONFLICT)

    await database.transaction(inserting(row("a")))
    with pytest.raises(VersionConflict):
        await database.transaction(change, brief=brief)

    found = await database.read(lambda connection: ODD.find(connection, ["a", "b"]))
    assert found == [["a", 1, None, None]]


async def test_what_somebody_else_has_changed_meanwhile_is_a_conflict_even_if_only_read(
    postgres_url: str,
) -> None:
    database = await open_database(postgres_url, SCHEMA)

    def write(connection: Connection) -> None:
        with writing(connection) as writes:
            writes.check(ODD, {"a": 1, "b": 1}, CONFLICT)
            writes.insert(ODD, [row("c")], VersionConflict("another"))

    await database.transaction(inserting(row("a"), row("b", 2)))
    with pytest.raises(VersionConflict, match="order"):
        await database.transaction(write, brief=True)

    assert await database.read(lambda connection: ODD.find(connection, ["c"])) == []
    await database.close()


async def test_what_is_checked_is_locked_in_the_order_of_keys_and_waited_for(
    postgres_url: str,
) -> None:
    database = await open_database(postgres_url, SCHEMA)
    other = await asyncpg.connect(postgres_url)

    def check(connection: Connection) -> None:
        with writing(connection) as writes:
            writes.check(ODD, {"b": 1, "a": 1}, CONFLICT)

    await database.transaction(inserting(row("a"), row("b")))
    async with other.transaction():
        await other.execute("""UPDATE "order" SET version = 2 WHERE "Key" = 'a'""")
        checking = asyncio.create_task(database.transaction(check, brief=True))
        await until_somebody_waits(postgres_url)
        await other.execute("""SELECT 1 FROM "order" WHERE "Key" = 'b' FOR UPDATE NOWAIT""")
    with pytest.raises(VersionConflict):
        await checking

    await other.close()
    await database.close()


async def test_data_that_looks_like_a_conflict_is_refused_as_data(database: Database) -> None:
    banned = row("banned", group='"conflict 0"')
    with pytest.raises(sa.exc.IntegrityError):
        await database.transaction(inserting(banned), brief=True)


def test_a_conflict_is_known_in_whatever_language_the_server_speaks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = asyncpg.InvalidTextRepresentationError(
        "ungültige Eingabesyntax für Typ integer: »conflict 1«"
    )

    def refuse(*_: object) -> None:
        raise sa.exc.StatementError("", "", None, said)

    monkeypatch.setattr(rows, "on_postgresql", lambda _: True)
    monkeypatch.setattr(rows, "_ask_postgresql", refuse)
    writes = WriteSet()
    writes.insert(ODD, [row("a")], VersionConflict("first"))
    writes.update(ODD, [row("b") | {OLD_VERSION: 1}], VersionConflict("second"))

    with pytest.raises(VersionConflict, match="second"):
        writes.execute(None)  # type: ignore[arg-type]  # nothing is asked of it


def test_several_writes_to_sqlite_need_a_transaction(tmp_path: Path) -> None:
    engine = sqlite_engine(f"sqlite:///{tmp_path / 'odd.db'}")
    _metadata.create_all(engine)
    writes = WriteSet()
    writes.insert(ODD, [row("a")], CONFLICT)
    with engine.connect() as connection, pytest.raises(RuntimeError, match="need a transaction"):
        writes.execute(connection)
    engine.dispose()


async def test_a_commit_that_sqlite_refuses_leaves_no_transaction_behind(tmp_path: Path) -> None:
    metadata = sa.MetaData()
    sa.Table("parents", metadata, sa.Column("key", sa.String, primary_key=True))
    parent = sa.ForeignKey("parents.key", deferrable=True, initially="DEFERRED")
    table = sa.Table(
        "children",
        metadata,
        sa.Column("key", sa.String, primary_key=True),
        sa.Column("parent", sa.String, parent),
    )
    url = f"sqlite:///{tmp_path / 'family.db'}"

    @sa.event.listens_for(sa.Engine, "connect")
    def check_keys(connection: object, _: object) -> None:
        connection.execute("PRAGMA foreign_keys = ON")  # type: ignore[attr-defined]  # a driver's

    try:
        database = SqliteDatabase(url, Schema(metadata))
    finally:
        sa.event.remove(sa.Engine, "connect", check_keys)
    orphan = inserting({"key": "a", "parent": "nobody"}, into=Rows(table))
    with pytest.raises(sa.exc.IntegrityError):
        await database.transaction(orphan, brief=True)

    other = sqlite_engine(url)
    with other.begin():  # No session has the lock.
        pass
    other.dispose()
    await database.close()


class Broken:
    """A driver's connection that fails at what is said here."""

    def __init__(self, driver: sqlite3.Connection, *, at: str) -> None:
        self._driver = driver
        self._at = at

    def execute(self, statement: str) -> object:
        self._fail_at("BEGIN")
        return self._driver.execute(statement)

    def commit(self) -> None:
        self._fail_at("COMMIT")
        self._driver.commit()

    def rollback(self) -> None:
        self._driver.rollback()
        self._fail_at("ROLLBACK")

    def _fail_at(self, what: str) -> None:
        if what == self._at:
            raise sqlite3.OperationalError(f"disk I/O error at {what}")


@pytest.mark.parametrize("at", ["COMMIT", "ROLLBACK"])
async def test_a_transaction_that_sqlite_cannot_end_is_tried_again(at: str, tmp_path: Path) -> None:
    opened = SqliteDatabase(f"sqlite:///{tmp_path / 'odd.db'}", SCHEMA)
    driver = opened._driver  # a disk cannot be made to fail here
    opened._driver = Broken(driver, at=at)  # type: ignore[assignment]

    def change(connection: Connection) -> None:
        if at == "ROLLBACK":
            raise CONFLICT

    with pytest.raises(sa.exc.DBAPIError, match=at) as failed:
        await opened.transaction(change, brief=True)

    assert opened.is_away(failed.value)
    opened._driver = driver
    await opened.transaction(inserting(row("a")), brief=True)
    await opened.close()


async def test_a_transaction_that_cannot_begin_on_the_event_loop_is_left_to_the_thread(
    tmp_path: Path,
) -> None:
    opened = SqliteDatabase(f"sqlite:///{tmp_path / 'odd.db'}", SCHEMA)
    opened._driver = Broken(opened._driver, at="BEGIN")  # type: ignore[assignment]
    await opened.transaction(inserting(row("a")), brief=True)
    assert await opened.read(lambda connection: len(ODD.find(connection, ["a"]))) == 1
    await opened.close()


async def test_where_another_process_writes_a_brief_transaction_waits_beside_the_loop(
    tmp_path: Path,
) -> None:
    url = f"sqlite:///{tmp_path / 'odd.db'}"
    database = SqliteDatabase(url, SCHEMA)
    other = sqlite_engine(url)

    connection = other.connect()
    writing_elsewhere = connection.begin()
    ours = asyncio.create_task(database.transaction(inserting(row("a")), brief=True))
    for _ in range(20):  # The loop goes on meanwhile.
        await asyncio.sleep(0.005)
    assert not ours.done()
    writing_elsewhere.rollback()
    await ours
    assert await database.read(lambda c: len(ODD.find(c, ["a"]))) == 1
    connection.close()
    other.dispose()
    await database.close()


async def test_where_the_disk_is_slow_commits_leave_the_event_loop_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "STALL_SECONDS", 60)  # However slow this machine is.
    monkeypatch.setattr(database_module, "SLOW_MAX", 2)
    monkeypatch.setattr(database_module, "ASIDE_MIN", 3)
    threads: list[int] = []

    def tell(statement: str) -> None:
        if statement == "COMMIT":
            threads.append(threading.get_ident())

    def watch(driver: sqlite3.Connection, _: object) -> None:
        driver.set_trace_callback(tell)

    async def commit(times: int) -> list[bool]:
        """Whether they were made on the event loop."""
        threads.clear()
        for _ in range(times):
            await opened.transaction(lambda _: None, brief=True)
        return [thread == threading.get_ident() for thread in threads]

    sa.event.listen(sa.Engine, "connect", watch)
    try:
        opened = SqliteDatabase(f"sqlite:///{tmp_path / 'odd.db'}", SCHEMA)
    finally:
        sa.event.remove(sa.Engine, "connect", watch)
    monkeypatch.setattr(database_module, "QUICK_SECONDS", 60)
    assert await commit(3) == [True, True, True]
    monkeypatch.setattr(database_module, "QUICK_SECONDS", 0)
    aside = [False] * 3
    # Slow, so it is known sooner, and left alone for longer; then quick.
    assert await commit(12) == [True, True, *aside, True, *aside, *aside]
    monkeypatch.setattr(database_module, "QUICK_SECONDS", 60)
    assert await commit(3) == [True, True, True]
    monkeypatch.setattr(database_module, "QUICK_SECONDS", 0)
    monkeypatch.setattr(database_module, "STALL_SECONDS", 0)
    assert await commit(5) == [True, *aside, True]
    await opened.close()


@pytest.mark.parametrize("brief", [True, False])
async def test_what_is_written_into_a_file_that_was_replaced_meanwhile_does_not_count(
    brief: bool, tmp_path: Path
) -> None:
    path = tmp_path / "odd.db"
    opened = SqliteDatabase(f"sqlite:///{path}", SCHEMA)

    def replace(_: Connection) -> None:
        path.rename(tmp_path / "odd.away")
        path.touch()

    with pytest.raises(DatabaseGone, match="put that one back, or restart") as gone:
        await opened.transaction(replace, brief=brief)
    assert opened.is_away(gone.value)
    await opened.close()


async def test_a_file_that_was_replaced_is_neither_written_nor_read_until_it_is_back(
    tmp_path: Path,
) -> None:
    path = tmp_path / "odd.db"
    opened = SqliteDatabase(f"sqlite:///{path}", SCHEMA)
    path.rename(tmp_path / "odd.away")
    path.touch()

    called: list[str] = []
    with pytest.raises(DatabaseGone):
        await opened.transaction(lambda _: called.append("written"), brief=True)
    with pytest.raises(DatabaseGone):
        await opened.read(lambda _: called.append("read"))
    assert called == []

    (tmp_path / "odd.away").rename(path)
    await opened.transaction(inserting(row("a")), brief=True)
    assert await opened.read(lambda connection: len(ODD.find(connection, ["a"]))) == 1
    await opened.close()


@pytest.mark.parametrize("brief", [True, False])
async def test_who_is_cancelled_during_a_transaction_beside_the_loop_lets_it_end(
    brief: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or the next one would begin within it."""
    opened = SqliteDatabase(f"sqlite:///{tmp_path / 'odd.db'}", SCHEMA)
    begun, may_end = threading.Event(), threading.Event()
    running = asyncio.get_running_loop()

    class Held:
        """A driver's connection whose commit waits."""

        def __getattr__(self, name: str) -> object:
            return getattr(driver, name)

        def commit(self) -> None:
            wait()
            driver.commit()

    def wait() -> None:
        begun.set()
        assert may_end.wait(PATIENCE_SECONDS)

    def write(connection: Connection) -> None:
        inserting(row("a"))(connection)
        if not brief:
            wait()

    driver = opened._driver
    opened._driver = Held()  # type: ignore[assignment]
    monkeypatch.setattr(opened._commits, "go_aside", lambda: True)
    writing_one = asyncio.create_task(opened.transaction(write, brief=brief))
    try:
        await running.run_in_executor(None, begun.wait, PATIENCE_SECONDS)
        writing_one.cancel()
        writing_next = asyncio.create_task(opened.transaction(inserting(row("b"))))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not writing_one.done(), "it is cancelled before it has ended"
        writing_one.cancel()  # Who is impatient changes nothing.
    finally:
        may_end.set()

    with pytest.raises(asyncio.CancelledError):
        await writing_one
    await writing_next
    found = await opened.read(lambda connection: len(ODD.find(connection, ["a", "b"])))
    assert found == 2
    await opened.close()


async def test_a_commit_that_the_disk_has_no_room_for_is_tried_again(tmp_path: Path) -> None:
    opened = SqliteDatabase(f"sqlite:///{tmp_path / 'odd.db'}", SCHEMA)

    insert = inserting(row("a") | {"rows": bytes(500_000)})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(Exception, match=r"disk|full") as refused:
            await opened.transaction(insert, brief=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert opened.is_away(refused.value)
    await opened.transaction(insert, brief=True)
    await opened.close()
