"""Copies of all databases as of one moment, and a system made of them again."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import itertools
import json
import os
import shutil
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from uuid import uuid4

import aio_pika
import asyncpg
import pytest
import sqlalchemy as sa

from inventory_service.domain import AddStock
from notification_service.domain import NotificationStatus
from notification_service.store import NOTIFICATIONS, questions
from payment_service.domain import PaymentStatus
from payment_service.gateway import SandboxGateway
from payment_service.store import PAYMENTS
from saga.backup import BackupError, programs
from saga.backup import cut as cutting
from saga.backup import restore as restoring
from saga.backup.check import check
from saga.backup.cut import DatabaseSnapshot, SqliteView, cut, view_of
from saga.backup.manifest import MANIFEST, Manifest
from saga.backup.parts import parts
from saga.backup.restore import Target, restore
from saga.backup.take import Whole, take
from saga.deployment import Deployment, dead_letters_url_in
from saga.dlq.store import Store
from saga.history import HistoryError
from saga.local import SystemFault
from saga.local.postgres import PostgresCluster
from saga.local.system import System
from saga.notes import RESTORING, note_partitions, noted_partitions
from saga.runtime.kernel.opening import open_database, read_database
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import HISTORY_STREAM
from saga.runtime.urls import sqlite_url
from tests.books import Books, Rows, rows_of
from tests.command import saga
from tests.integration.kernels import until_somebody_waits
from tests.order_play import PRICE_CENTS, Play
from tests.polling import DEADLINE_SECONDS, until
from tests.stores import TABLES

CUTS = 15

# --- the cut --------------------------------------------------------------------------------------
# Two databases; whatever the second one has taken, the first one has said before.


class OnSqlite:
    """A cause in one file, and then its effect in the other, again and again."""

    def __init__(self, folder: Path) -> None:
        self.files = [folder / "cause.db", folder / "effect.db"]
        self.urls = [f"sqlite:///{file}" for file in self.files]
        for file in self.files:
            with contextlib.closing(sqlite3.connect(file)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                connection.execute("CREATE TABLE taken (n INTEGER PRIMARY KEY, body TEXT)")

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        stop = threading.Event()

        def write() -> None:
            with contextlib.ExitStack() as stack:
                both = [
                    stack.enter_context(
                        contextlib.closing(sqlite3.connect(file, timeout=30, isolation_level=None))
                    )
                    for file in self.files
                ]
                for n in itertools.count(1):
                    if stop.is_set():
                        return
                    for connection in both:
                        connection.execute("INSERT INTO taken VALUES (?, 'x')", [n])

        writer = asyncio.create_task(asyncio.to_thread(write))
        try:
            yield
        finally:
            stop.set()
            await writer


class OnPostgresql:
    """The same on a server."""

    def __init__(self, urls: list[str]) -> None:
        self.urls = urls

    async def prepare(self) -> None:
        for url in self.urls:
            connection = await asyncpg.connect(url)
            await connection.execute("CREATE TABLE taken (n BIGINT PRIMARY KEY, body TEXT)")
            await connection.close()

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[None]:
        async def write() -> None:
            both = [await asyncpg.connect(url) for url in self.urls]
            try:
                for n in itertools.count(1):
                    for connection in both:
                        await connection.execute("INSERT INTO taken VALUES ($1, 'x')", n)
            finally:
                for connection in both:
                    connection.terminate()

        writer = asyncio.create_task(write())
        try:
            yield
        finally:
            writer.cancel()
            await asyncio.wait({writer})


Pair = OnSqlite | OnPostgresql


@pytest.fixture(params=["sqlite", "postgresql"])
async def pair(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Pair]:
    if request.param == "sqlite":
        yield OnSqlite(tmp_path)
        return
    cluster: PostgresCluster = request.getfixturevalue("postgres_cluster")
    names = [f"pair_{uuid4().hex[:12]}" for _ in range(2)]
    on_server = OnPostgresql(
        [await asyncio.to_thread(cluster.create_database, name) for name in names]
    )
    await on_server.prepare()
    yield on_server
    for name in names:
        await asyncio.to_thread(cluster.drop_database, name)


def counted(connection: sa.Connection) -> int:
    return int(connection.scalar(sa.text("SELECT count(*) FROM taken")) or 0)


async def counts_of(
    pair: Pair, views: Callable[[], Mapping[str, DatabaseSnapshot]]
) -> tuple[int, int]:
    """What one cut has of causes and effects."""
    found = views()
    async with AsyncExitStack() as stack:
        for view in found.values():
            await stack.enter_async_context(view.opened())
        await cut(found)
        causes, effects = [await view.read(counted) for view in found.values()]
    return causes, effects


async def test_a_cut_has_no_effect_without_its_cause(pair: Pair) -> None:
    seen: set[tuple[int, int]] = set()
    async with pair.writing():
        for _ in range(CUTS):
            seen.add(
                await counts_of(pair, lambda: {url: view_of(url, "taken") for url in pair.urls})
            )

    assert len(seen) > 1, "nothing was written meanwhile"
    assert all(effects <= causes <= effects + 1 for causes, effects in seen), seen


async def test_without_the_locks_a_cut_would_have_effects_without_causes(tmp_path: Path) -> None:
    pair = OnSqlite(tmp_path)

    class Slow(SqliteView):
        """Looks at what it is about only when the other one has gone on."""

        async def look(self) -> None:
            if "effect" in self._url:
                await asyncio.sleep(0.01)
            await super().look()

    def views() -> Mapping[str, DatabaseSnapshot]:
        return {url: Slow(url, locked=False) for url in pair.urls}

    async def torn() -> bool:
        causes, effects = await counts_of(pair, views)
        return effects > causes

    async with pair.writing():
        await until(torn)


async def test_a_copy_is_as_of_the_cut_however_much_is_written_before_it_is_made(
    pair: Pair, tmp_path: Path, postgres_cluster: PostgresCluster
) -> None:
    file = tmp_path / "copy"
    view = view_of(pair.urls[0], "taken")
    async with pair.writing(), view.opened():
        await cut({"cause": view})
        there = await view.read(counted)

        async def grown() -> bool:
            now = await asyncio.to_thread(read_database, pair.urls[0], counted)
            return now > there + 20

        await until(grown)
        await view.copy(file, lambda _: None)

    assert file.stat().st_mode & 0o777 == 0o600
    if view.kind == "sqlite":
        assert read_database(sqlite_url(file), counted) == there
        return
    name = f"copy_{uuid4().hex[:12]}"
    url = await asyncio.to_thread(postgres_cluster.create_database, name)
    await programs.restore(file, url)
    assert await asyncio.to_thread(read_database, url, counted) == there
    await asyncio.to_thread(postgres_cluster.drop_database, name)


async def test_a_backup_that_is_stopped_in_the_middle_of_a_copy_leaves_nothing(
    folder: Path, tmp_path: Path
) -> None:
    copying = asyncio.Event()
    loop = asyncio.get_running_loop()

    def tell(_: int) -> None:
        loop.call_soon_threadsafe(copying.set)

    taking = asyncio.create_task(take(whole(folder), tmp_path / "backup", tell))
    await copying.wait()
    taking.cancel()
    await asyncio.wait({taking})

    assert taking.cancelled()
    assert not (tmp_path / "backup").exists()


async def test_a_database_that_is_being_written_into_all_the_time_is_named_and_nobody_waits_on(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cutting, "LOCK_SECONDS", 0.05)
    monkeypatch.setattr(cutting, "BETWEEN_SECONDS", 0.01)
    first, second = pair.urls
    async with holding(pair, second):
        views = {url: view_of(url, "taken") for url in pair.urls}
        async with AsyncExitStack() as stack:
            for view in views.values():
                await stack.enter_async_context(view.opened())
            with pytest.raises(BackupError, match=r"was being written into all the time") as error:
                await cut(views)
            await write_once(pair, first)

    assert "effect" in str(error.value) or "pair_" in str(error.value)


@asynccontextmanager
async def holding(pair: Pair, url: str) -> AsyncIterator[None]:
    """A transaction is in the middle of writing."""
    if isinstance(pair, OnSqlite):
        with contextlib.closing(sqlite3.connect(pair.files[1], isolation_level=None)) as connection:
            connection.execute("BEGIN IMMEDIATE")
            yield
        return
    server = await asyncpg.connect(url)
    try:
        await server.execute("BEGIN; INSERT INTO taken VALUES (-1, '')")
        yield
    finally:
        await server.close()


async def write_once(pair: Pair, url: str) -> None:
    """Raises what a writer that does not wait meets."""
    if isinstance(pair, OnSqlite):
        with contextlib.closing(sqlite3.connect(pair.files[0], timeout=0)) as connection:
            connection.execute("INSERT INTO taken VALUES (-1, '')")
            connection.commit()
        return
    server = await asyncpg.connect(url, server_settings={"lock_timeout": "1"})
    await server.execute("INSERT INTO taken VALUES (-1, '')")
    await server.close()


async def test_a_writer_waits_for_the_cut_and_then_goes_on(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("CREATE TABLE taken (n BIGINT PRIMARY KEY, body TEXT)")
    view = view_of(postgres_url, "taken")
    async with view.opened():
        await view.hold(asyncio.get_running_loop().time() + DEADLINE_SECONDS)
        writing = asyncio.create_task(connection.execute("INSERT INTO taken VALUES (1, '')"))
        await until_somebody_waits(postgres_url)
        await view.look()
        await view.let_go()
        await writing
        assert await view.read(counted) == 0
    await connection.close()


# --- a backup -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def played(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as a system leaves it that has ended: one order is confirmed and mailed, another one
    waits for the payment service."""
    folder = tmp_path_factory.mktemp("played")
    asyncio.run(_play(folder))
    Store(dead_letters_url_in(folder)).close()
    return folder


async def _play(folder: Path) -> None:
    play = Play()
    play.give(
        "inventory",
        AddStock(delivery_id=uuid4(), sku="tea", quantity=99, unit_price_cents=250, currency="EUR"),
    )
    mailed = play.place()
    play.deliver()
    play.down = {"payment"}
    asked = play.place()
    play.deliver()
    await Books(folder, play).write()
    (folder / "orders.json").write_text(json.dumps([mailed, asked]))


@pytest.fixture
def folder(played: Path, tmp_path: Path) -> Path:
    """The same, the test's alone."""
    return Path(shutil.copytree(played, tmp_path / "data"))


def whole(folder: Path) -> Whole:
    return Whole.of(folder)


def kept(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


async def test_a_backup_has_every_database_and_says_last_that_it_is_whole(
    folder: Path, tmp_path: Path
) -> None:
    manifest = await take(whole(folder), tmp_path / "backup")

    services = {f"{name}.db" for name in (*TABLES, "history")}
    assert kept(tmp_path / "backup") == {
        *services,
        "dead_letters.db",
        "outside",
        "outside/provider.db",
        MANIFEST,
    }
    assert Manifest.load(tmp_path / "backup") == manifest == await check(tmp_path / "backup")
    assert {path.stat().st_mode & 0o077 for path in (tmp_path / "backup").rglob("*")} == {0}
    assert manifest.databases["history"].events == sum(
        manifest.databases[name].events or 0 for name in TABLES
    )
    assert all(copied.revision for copied in manifest.databases.values())


async def test_a_backup_brings_back_how_the_queues_were_divided(
    folder: Path, tmp_path: Path
) -> None:
    note_partitions(folder, 4)

    manifest = await take(whole(folder), tmp_path / "backup")
    await restore(tmp_path / "backup", Target(tmp_path / "new"))

    assert manifest.partitions == noted_partitions(tmp_path / "new") == 4


async def test_a_backup_of_what_nobody_has_divided_says_nothing_of_partitions(
    folder: Path, tmp_path: Path
) -> None:
    manifest = await take(whole(folder), tmp_path / "backup")
    await restore(tmp_path / "backup", Target(tmp_path / "new"))

    assert manifest.partitions is None
    assert noted_partitions(tmp_path / "new") is None


async def test_a_folder_that_is_not_empty_is_refused_and_left_as_it_is(
    folder: Path, tmp_path: Path
) -> None:
    await take(whole(folder), tmp_path / "backup")
    before = kept(tmp_path / "backup")
    with pytest.raises(BackupError, match="has a backup already: name a new one"):
        await take(whole(folder), tmp_path / "backup")
    (tmp_path / "backup" / MANIFEST).unlink()
    with pytest.raises(BackupError, match=r"no whole backup without a backup\.json"):
        await take(whole(folder), tmp_path / "backup")

    assert kept(tmp_path / "backup") == before - {MANIFEST}


@pytest.mark.parametrize("empty", [True, False], ids=["an empty folder", "a new folder"])
async def test_nothing_is_left_of_a_backup_that_the_disk_had_no_room_for(
    empty: bool, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if empty:
        (tmp_path / "backup").mkdir()

    def full(path: Path) -> None:
        if path.name == "payment.db":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cutting, "sync", full)
    with pytest.raises(BackupError, match=r"cannot write in .*: No space left on device"):
        await take(whole(folder), tmp_path / "backup")

    assert (tmp_path / "backup").exists() == empty
    assert not empty or kept(tmp_path / "backup") == set()


def test_a_database_that_is_missing_is_named(folder: Path, tmp_path: Path) -> None:
    (folder / "payment.db").unlink()

    done = saga("backup", str(tmp_path / "backup"), "--data-dir", str(folder))

    assert done.returncode == 1
    assert f"there is no database {folder / 'payment.db'}" in done.stderr
    assert not (tmp_path / "backup").exists()


@pytest.fixture
def backup(folder: Path, tmp_path: Path) -> Path:
    asyncio.run(take(whole(folder), tmp_path / "backup"))
    return tmp_path / "backup"


def _cut_off(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def _flip(file: Path) -> None:
    found = bytearray(file.read_bytes())
    found[-1] ^= 1
    file.write_bytes(found)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (Path.unlink, "payment.db is missing"),
        (_cut_off, "payment.db has .* bytes, not"),
        (_flip, "payment.db has another checksum"),
    ],
)
def test_what_is_damaged_is_named(harm: Callable[[Path], None], said: str, backup: Path) -> None:
    harm(backup / "payment.db")
    with pytest.raises(BackupError, match=said):
        asyncio.run(check(backup))
    with pytest.raises(BackupError, match=said):
        asyncio.run(restore(backup, Target(backup.parent / "again")))
    assert not (backup.parent / "again").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"version": 2}, "is of version 2; this program reads 1"),
        ({"backup": "other"}, "is of no backup of this program"),
        ({"databases": {}}, "is damaged: databases"),
        ({"place": 3}, "is damaged: place"),
    ],
)
def test_a_manifest_that_cannot_be_read_is_named(
    change: dict[str, object], said: str, backup: Path
) -> None:
    found = json.loads((backup / MANIFEST).read_text())
    (backup / MANIFEST).write_text(json.dumps(found | change))
    with pytest.raises(BackupError, match=said):
        asyncio.run(check(backup))


def test_a_file_outside_the_backup_is_no_part_of_it(backup: Path) -> None:
    found = json.loads((backup / MANIFEST).read_text())
    found["databases"]["order"]["file"] = "../data/order.db"
    (backup / MANIFEST).write_text(json.dumps(found))
    with pytest.raises(BackupError, match=r"is damaged: databases\.order\.file"):
        asyncio.run(check(backup))


# --- a restore ------------------------------------------------------------------------------------


def all_rows(folder: Path) -> dict[str, Rows]:
    return {name: asyncio.run(rows_of(name, sqlite_url(folder / f"{name}.db"))) for name in TABLES}


def test_what_is_restored_is_what_was_there(folder: Path, backup: Path) -> None:
    before = all_rows(folder)
    target = backup.parent / "again"
    done = saga("restore", str(backup), "--into", str(target))

    assert done.returncode == 0, done.stderr
    assert all_rows(target) == before
    assert (target / "dead_letters.db").is_file()
    assert not (target / RESTORING).exists()
    assert not (target / "provider.db").exists(), "the outside's books are not ours to bring back"
    assert "the outsides' books are not here" in done.stderr


def test_the_ledger_is_put_back_where_it_is_asked_for_and_there_is_none(
    folder: Path, backup: Path
) -> None:
    target = backup.parent / "again"
    done = saga("restore", str(backup), "--into", str(target), "--with-ledger")
    assert done.returncode == 0, done.stderr
    assert (target / "provider.db").is_file()
    assert (
        "or only the backup's copies: what they were asked since the backup is found" in done.stderr
    )

    other = backup.parent / "other"
    other.mkdir()
    newer = b"kept as it is"
    (other / "provider.db").write_bytes(newer)
    with pytest.raises(HistoryError, match="cannot read the payment provider's ledger"):
        asyncio.run(restore(backup, Target(other), ledger=True))
    assert (other / "provider.db").read_bytes() == newer


def test_a_folder_with_data_is_refused_and_left_as_it_is(folder: Path, backup: Path) -> None:
    (folder / "payment.db").unlink()
    before = kept(folder)
    done = saga("restore", str(backup), "--into", str(folder))

    assert done.returncode == 1
    assert "has data already" in done.stderr
    assert "saga history rebuild" in done.stderr
    assert kept(folder) == before


def test_a_folder_with_a_broker_that_is_ahead_is_refused(backup: Path) -> None:
    target = backup.parent / "again"
    (target / "rabbitmq").mkdir(parents=True)
    with pytest.raises(BackupError, match="a broker that is ahead of the backup"):
        asyncio.run(restore(backup, Target(target)))


async def with_stream(url: str, messages: int) -> None:
    connection = await connect(url, name="test")
    async with connection:
        channel = await connection.channel()
        await channel.declare_queue(
            HISTORY_STREAM, durable=True, arguments={"x-queue-type": "stream"}
        )
        for _ in range(messages):
            await channel.default_exchange.publish(aio_pika.Message(b"{}"), HISTORY_STREAM)


def on_broker(target: Path, url: str) -> Target:
    """A folder whose `saga.json` names the broker that services will use."""
    target.mkdir()
    names = (*TABLES, "history")
    Deployment(
        amqp_url=url,
        http_urls={},
        database_urls={name: sqlite_url(target / f"{name}.db") for name in names},
        outside_urls={"provider": sqlite_url(target / "provider.db")},
    ).save(target)
    return Target(target)


def read_up_to(backup: Path, offset: int) -> None:
    found = json.loads((backup / MANIFEST).read_text())
    found["place"] = {"stream_number": 1, "offset": offset, "key": "key"}
    (backup / MANIFEST).write_text(json.dumps(found))


def test_a_broker_of_one_s_own_that_is_ahead_is_refused(
    backup: Path, tmp_path: Path, amqp_url: str
) -> None:
    asyncio.run(with_stream(amqp_url, messages=3))
    target = on_broker(tmp_path / "again", amqp_url)
    read_up_to(backup, offset=1)

    with pytest.raises(BackupError, match=r"goes on to offset 2, and the backup ends at 1; let"):
        asyncio.run(restore(backup, target))
    assert kept(target.folder) == {"saga.json"}

    read_up_to(backup, offset=2)
    asyncio.run(restore(backup, target))
    assert (target.folder / "order.db").is_file()


def test_an_empty_broker_of_one_s_own_may_be_restored_for(
    backup: Path, tmp_path: Path, amqp_url: str
) -> None:
    asyncio.run(with_stream(amqp_url, messages=0))
    reported: list[str] = []

    asyncio.run(restore(backup, on_broker(tmp_path / "again", amqp_url), report=reported.append))

    assert all(line.startswith("restoring ") for line in reported)


def test_a_broker_of_one_s_own_that_cannot_be_asked_is_named(
    backup: Path, tmp_path: Path, closed_port: int
) -> None:
    url = f"amqp://guest:guest@127.0.0.1:{closed_port}/"
    reported: list[str] = []

    asyncio.run(restore(backup, on_broker(tmp_path / "again", url), report=reported.append))

    assert reported[0].startswith("it is not known whether the broker is ahead of the backup (cann")
    assert "it must have nothing that was published after 20" in reported[0]


def test_what_a_service_has_open_is_refused_even_if_its_file_is_gone(backup: Path) -> None:
    target = backup.parent / "again"
    target.mkdir()
    with (target / "order.db.lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(BackupError, match=r"a service has .*order\.db open: stop the system"):
            asyncio.run(restore(backup, Target(target)))


def test_a_backup_of_a_newer_version_is_refused(folder: Path, tmp_path: Path) -> None:
    with contextlib.closing(sqlite3.connect(folder / "payment.db")) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
        connection.commit()
    asyncio.run(take(whole(folder), tmp_path / "backup"))
    with pytest.raises(BackupError, match="the tables of payment are of revision 9999"):
        asyncio.run(restore(tmp_path / "backup", Target(tmp_path / "again")))


def test_a_database_that_no_service_of_this_version_has_is_named(backup: Path) -> None:
    found = json.loads((backup / MANIFEST).read_text())
    found["databases"]["shipping"] = found["databases"]["order"]
    (backup / MANIFEST).write_text(json.dumps(found))
    with pytest.raises(BackupError, match="a database of shipping, which is no service"):
        asyncio.run(restore(backup, Target(backup.parent / "again")))


class Killed(BaseException):
    """The process ends here."""


@contextmanager
def killed_at(name: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    put = restoring._copy

    def put_until(file: Path, to: Path) -> None:
        if to.name == name:
            raise Killed
        put(file, to)

    with monkeypatch.context() as patch:
        patch.setattr(restoring, "_copy", put_until)
        with pytest.raises(Killed):
            yield


def test_a_restore_that_was_killed_is_run_again_and_meanwhile_nothing_starts_there(
    folder: Path, backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = all_rows(folder)
    target = tmp_path / "again"
    with killed_at("order.db", monkeypatch):
        asyncio.run(restore(backup, Target(target)))

    async def start() -> None:
        async with System(target):
            pass

    with pytest.raises(SystemFault, match="has not come to its end: run `saga restore` again"):
        asyncio.run(start())
    asyncio.run(take(whole(folder), tmp_path / "other"))
    with pytest.raises(BackupError, match="the restore of another backup"):
        asyncio.run(restore(tmp_path / "other", Target(target)))

    asyncio.run(restore(backup, Target(target)))
    assert all_rows(target) == before


def test_a_ledger_that_the_backup_has_put_there_tells_nothing_of_what_came_after_it(
    backup: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "again"

    def kill(_: Path) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(restoring, "end_restore", kill)
        with pytest.raises(Killed):
            asyncio.run(restore(backup, Target(target), ledger=True))
    assert (target / "provider.db").is_file()

    assert not asyncio.run(restore(backup, Target(target), ledger=True)).ledger_known


def test_a_ledger_that_was_there_is_known(folder: Path, backup: Path, tmp_path: Path) -> None:
    target = tmp_path / "again"
    target.mkdir()
    shutil.copy(folder / "provider.db", target)

    assert asyncio.run(restore(backup, Target(target), ledger=True)).ledger_known


def test_databases_on_a_server_are_named_and_have_to_be_empty(
    backup: Path, postgres_url: str
) -> None:
    given = ["--database-url", f"payment={postgres_url}"]
    done = saga("restore", str(backup), "--into", str(backup.parent / "again"), *given)
    assert done.returncode == 1
    assert "no database is named for history, inventory, notification, order" in done.stderr

    done = saga("restore", str(backup), "--database-url", "payment")
    assert done.returncode == 2
    assert "write it as NAME=URL" in done.stderr

    target = Target(backup.parent / "again", dict.fromkeys((*TABLES, "history"), postgres_url))
    with pytest.raises(BackupError, match=r"is of sqlite, and .* is of postgresql"):
        asyncio.run(restore(backup, target))


@pytest.fixture
def servers(postgres_cluster: PostgresCluster) -> Iterator[Callable[[], dict[str, str]]]:
    """Makes an empty database on PostgreSQL for each service."""
    made: list[str] = []

    def make() -> dict[str, str]:
        urls = {}
        for name in (*TABLES, "history"):
            made.append(f"{name}_{uuid4().hex[:12]}")
            urls[name] = postgres_cluster.create_database(made[-1])
        return urls

    yield make
    for name in made:
        postgres_cluster.drop_database(name)


def test_databases_on_a_server_are_restored_into_empty_ones_on_a_server(
    folder: Path, tmp_path: Path, servers: Callable[[], dict[str, str]]
) -> None:
    """They are the same there; what has been filled is named."""
    urls = servers()

    async def fill() -> None:
        for name, part in parts().items():
            database = await open_database(urls[name], part.schema)
            await database.close()
        tables = TABLES["order"]
        insert = tables.inbox.insert().values(message_id="one", at=utc_now())
        database = await open_database(urls["order"], tables)
        await database.transaction(lambda connection: connection.execute(insert))
        await database.close()

    asyncio.run(fill())
    nowhere = sqlite_url(tmp_path / "none.db")
    asyncio.run(take(Whole(urls, nowhere, {"provider": nowhere}), tmp_path / "backup"))
    again = servers()
    given = [word for name, url in again.items() for word in ("--database-url", f"{name}={url}")]
    target = tmp_path / "again"
    checked = saga("backup", str(tmp_path / "backup"), "--check")
    done = saga("restore", str(tmp_path / "backup"), "--into", str(target), *given)
    assert (checked.returncode, done.returncode) == (0, 0), checked.stderr + done.stderr

    assert {
        name: asyncio.run(rows_of(name, url)) for name, url in again.items() if name in TABLES
    } == {name: asyncio.run(rows_of(name, url)) for name, url in urls.items() if name in TABLES}
    assert asyncio.run(rows_of("order", again["order"]))["inbox"] == {("one",)}
    refused = saga("restore", str(tmp_path / "backup"), "--into", str(target), *given)
    assert refused.returncode == 1
    assert " at postgresql://saga:***@" in refused.stderr
    assert "has tables (" in refused.stderr
    assert not (target / RESTORING).exists()


# --- what the outside may have done since ---------------------------------------------------------


async def test_what_the_provider_was_asked_since_is_settled_and_no_mail_is_sent_by_itself(
    folder: Path, tmp_path: Path
) -> None:
    mailed, asked = json.loads((folder / "orders.json").read_text())
    await take(whole(folder), tmp_path / "backup")
    # Between the backup and the loss: the waiting order's charge, and an order unknown to it.
    unknown, refunded = str(uuid4()), str(uuid4())
    target = tmp_path / "again"
    target.mkdir()
    shutil.copy(folder / "provider.db", target)
    gateway = SandboxGateway(sqlite_url(target / "provider.db"))
    for order in (asked, unknown, refunded):
        await gateway.charge(order, customer="ada", currency="EUR", amount_cents=2 * PRICE_CENTS)
    await gateway.refund(refunded, currency="EUR", amount_cents=2 * PRICE_CENTS)
    await gateway.close()
    (target / "mail").mkdir()
    cancelled = str(uuid4())
    (target / "mail" / f"order.cancelled.{cancelled}.eml").write_text("")

    restored = await restore(tmp_path / "backup", Target(target))

    assert set(restored.asked.subjects) == {asked, unknown, refunded}
    payments = await asyncio.to_thread(
        read_database,
        sqlite_url(target / "payment.db"),
        lambda connection: PAYMENTS.load(connection, [mailed, asked, unknown, refunded]),
    )
    assert {key: state.status for key, (state, _) in payments.items()} == {
        mailed: PaymentStatus.CHARGED,
        asked: PaymentStatus.CHARGING,
        unknown: PaymentStatus.CHARGING,
        refunded: PaymentStatus.SETTLING,
    }
    url = sqlite_url(target / "notification.db")
    unsure = await asyncio.to_thread(read_database, url, questions)
    assert unsure.keys() == {asked, unknown, refunded, cancelled}
    assert restored.in_doubt == {"mail server": len(unsure)}
    found = await asyncio.to_thread(
        read_database, url, lambda connection: NOTIFICATIONS.find(connection, mailed)
    )
    assert found is not None
    assert found.status is NotificationStatus.SENT
