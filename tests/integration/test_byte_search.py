"""What is planted in a place where a system keeps bytes is found there, and what cannot be looked
at is said."""

from __future__ import annotations

import errno
import gzip
import io
import lzma
import os
import shutil
import sqlite3
import subprocess
import tarfile
import zipfile
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast
from urllib.parse import unquote
from uuid import uuid4

import aio_pika
import asyncpg
import pytest
import yarl
from aio_pika.abc import AbstractChannel

from saga.backup import programs
from saga.choreography import Choreography
from saga.deployment import FILE_NAME, Deployment, DeploymentError
from saga.errors import Explained
from saga.local.folder import CLUSTER_FOLDER, note_broker
from saga.local.node import RabbitNode
from saga.local.postgres import PostgresCluster
from saga.outside import Outside
from saga.personal.byte_search import ByteSearch, SearchedPlaces, SearchReport, Unseen, size_of
from saga.personal.needle import Needle
from saga.personal.opening import made_key
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import HISTORY_STREAM, apply, topology_of
from saga.runtime.settings import Sealing
from saga.runtime.urls import sqlite_path, sqlite_url
from tests.integration.toy import PARTICIPANT
from tests.spellings import ENCODINGS, spellings

NAME: Final = "Zoë O'Neil-Ünsal"
GRAPH: Final = Choreography([PARTICIPANT])


def looked(path: Path) -> SearchReport:
    search = ByteSearch(Needle(NAME))
    search.folder("here", path)
    return search.look


def in_a_log(path: Path, written: bytes) -> None:
    (path / "service.log").write_bytes(b"one\n" * 50 + written + b"\nanother\n")


def in_a_folder_below(path: Path, written: bytes) -> None:
    (path / "a" / "b").mkdir(parents=True)
    (path / "a" / "b" / "books.json").write_bytes(written)


def in_gzip(path: Path, written: bytes) -> None:
    (path / "export.jsonl.gz").write_bytes(gzip.compress(b"before " + written))


def in_xz(path: Path, written: bytes) -> None:
    (path / "misnamed.txt").write_bytes(lzma.compress(written))


def in_a_zip(path: Path, written: bytes) -> None:
    with zipfile.ZipFile(path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.txt", written)


def in_a_compressed_tar(path: Path, written: bytes) -> None:
    with tarfile.open(path / "backup.tar.gz", "w:gz") as archive:
        info = tarfile.TarInfo("inner/file")
        info.size = len(written)
        archive.addfile(info, io.BytesIO(written))


def in_zstandard(path: Path, written: bytes) -> None:
    program = shutil.which("zstd")
    if program is None:
        pytest.skip("there is no program zstd")
    done = subprocess.run([program, "-c"], input=written, capture_output=True, check=True)
    (path / "export.jsonl.zst").write_bytes(done.stdout)


def in_gzip_in_a_zip_in_a_zip(path: Path, written: bytes) -> None:
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("inner.gz", gzip.compress(written))
    with zipfile.ZipFile(path / "outer.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("inner.zip", inner.getvalue())


def in_a_row(path: Path, written: bytes) -> None:
    with closing(sqlite3.connect(path / "service.db")) as database, database:
        database.execute("CREATE TABLE states (id INTEGER PRIMARY KEY, state BLOB)")
        database.execute("INSERT INTO states (state) VALUES (?)", [written])


def in_a_row_of_several_pages(path: Path, written: bytes) -> None:
    """Where the text goes over the border of a page, the file's bytes do not have it in a piece."""
    with closing(sqlite3.connect(path / "service.db")) as database, database:
        database.execute("PRAGMA page_size = 512")
        database.execute("CREATE TABLE states (id INTEGER PRIMARY KEY, state BLOB)")
        for length in range(480, 1_000, 20):
            database.execute("INSERT INTO states (state) VALUES (?)", [b"x" * length + written])


def in_a_free_page(path: Path, written: bytes) -> None:
    with closing(sqlite3.connect(path / "service.db", isolation_level=None)) as database:
        database.execute("PRAGMA secure_delete = OFF")
        database.execute("CREATE TABLE states (id INTEGER PRIMARY KEY, state BLOB)")
        database.execute("INSERT INTO states (state) VALUES (?)", [written])
        database.execute("DELETE FROM states")


def in_a_write_ahead_log(path: Path, written: bytes) -> None:
    with closing(sqlite3.connect(path / "at_work.db", isolation_level=None)) as database:
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("CREATE TABLE states (id INTEGER PRIMARY KEY, state BLOB)")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute("INSERT INTO states (state) VALUES (?)", [written])
        # As a service leaves it that was killed.
        shutil.copy(path / "at_work.db", path / "service.db")
        shutil.copy(path / "at_work.db-wal", path / "service.db-wal")
    (path / "at_work.db").unlink()


PLACES: Final[list[Callable[[Path, bytes], None]]] = [
    in_a_log,
    in_a_folder_below,
    in_gzip,
    in_xz,
    in_a_zip,
    in_a_compressed_tar,
    in_zstandard,
    in_gzip_in_a_zip_in_a_zip,
    in_a_row,
    in_a_row_of_several_pages,
    in_a_free_page,
    in_a_write_ahead_log,
]


@pytest.mark.parametrize("plant", PLACES)
def test_a_text_is_found_in_a_file_in_every_encoding(
    plant: Callable[[Path, bytes], None], tmp_path: Path
) -> None:
    whole = b"\x00\n".join(written for _, written in spellings(NAME))
    plant(tmp_path, b"somebody else")
    assert looked(tmp_path).clean
    shutil.rmtree(tmp_path)
    tmp_path.mkdir()

    plant(tmp_path, b"before " + whole + b" after")

    found = looked(tmp_path)
    assert found.count >= len([*spellings(NAME)])
    assert not found.unseen


@pytest.mark.long
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("plant", PLACES)
def test_each_encoding_is_found_by_itself_in_each_kind_of_file(
    plant: Callable[[Path, bytes], None], encoding: str, tmp_path: Path
) -> None:
    plant(tmp_path, b"before " + ENCODINGS[encoding](NAME) + b" after")

    assert looked(tmp_path).count


def test_a_name_of_a_file_and_of_what_is_in_an_archive_is_found(tmp_path: Path) -> None:
    (tmp_path / f"{NAME}.txt").write_text("nothing")
    with zipfile.ZipFile(tmp_path / "all.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{NAME}.txt", "nothing")

    names = [place.name for place in looked(tmp_path).with_it]

    assert str(tmp_path / f"{NAME}.txt") in names
    assert any(name.endswith("(its entry)") for name in names)


def test_a_link_to_a_file_is_followed_and_a_file_is_looked_at_once(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "folder"
    folder.mkdir()
    elsewhere.write_text(NAME)
    (folder / "link").symlink_to(elsewhere)
    os.link(elsewhere, folder / "again")

    assert looked(folder).count == 1


def test_what_cannot_be_opened_is_said_and_all_is_not_well(tmp_path: Path) -> None:
    whole = gzip.compress(os.urandom(10_000))
    (tmp_path / "half.gz").write_bytes(whole[:5_000])
    (tmp_path / "no.zip").write_bytes(b"PK\x03\x04 and so on")
    (tmp_path / "broken.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 4_000)

    found = looked(tmp_path)

    assert not found.clean
    assert not found.count
    said = " ".join(unseen.name for unseen in found.unseen)
    assert "half.gz" in said
    assert "no.zip" in said
    assert "broken.db" in said


def test_what_is_opened_by_nobody_here_is_said(tmp_path: Path) -> None:
    elsewhere, folder = tmp_path / "elsewhere", tmp_path / "folder"
    elsewhere.mkdir()
    (elsewhere / "mail.eml").write_text(NAME)
    folder.mkdir()
    (folder / "mails").symlink_to(elsewhere)
    (folder / "old.7z").write_bytes(b"7z\xbc\xaf\x27\x1c and so on")
    with closing(sqlite3.connect(tmp_path / "books.db")) as connection:
        connection.execute("CREATE TABLE names (name TEXT)")
    (folder / "books.db.gz").write_bytes(gzip.compress((tmp_path / "books.db").read_bytes()))

    said = {Path(unseen.name).name: unseen.why for unseen in looked(folder).unseen}

    assert "--also" in said["mails"]
    assert "7-Zip" in said["old.7z"]
    assert "rows" in said["books.db.gz!"]


def test_a_folder_that_is_not_there_was_not_looked_at(tmp_path: Path) -> None:
    assert [unseen.why for unseen in looked(tmp_path / "none").unseen] == [
        "there is no such file or folder"
    ]


# --- every place there is, and none of it readable ------------------------------------------------

KEEPER: Final = Outside(
    "keeper",
    asked_by="toy",
    blank=None,
    decisions=(None,),
    ask=lambda _: {},
    read=lambda _: None,
    file="keeper.db",
    papers=lambda folder: (folder.parent / "papers",),
)


@dataclass
class Ground:
    """A system all of whose places are elsewhere, each of its own."""

    folder: Path
    also: Path
    persons: Path
    deployment: Deployment

    @classmethod
    def made(cls, root: Path) -> Ground:
        folder, also, persons = root / "data", root / "also", root / "keys" / "persons.db"
        for each in (folder / "logs", also / "below", root / "papers"):
            each.mkdir(parents=True)
            (each / "one.txt").write_bytes(b"nothing of interest")
        note_broker(folder, "private")
        urls = {n: cls._database(root / n / f"{n}.db") for n in ("history", "toy", "keeper")}
        deployment = Deployment(
            amqp_url="amqp://nobody@127.0.0.1:1/",
            http_urls={},
            database_urls={n: urls[n] for n in ("history", "toy")},
            outside_urls={"keeper": urls["keeper"]},
            outside_papers={"keeper": (root / "papers",)},
            dead_letters_url=cls._database(root / "letters" / "letters.db"),
        )
        deployment.save(folder)
        cls._database(persons)
        return cls(folder, also, persons, deployment)

    @staticmethod
    def _database(path: Path) -> str:
        path.parent.mkdir(parents=True)
        with closing(sqlite3.connect(path)) as database, database:
            database.execute("CREATE TABLE states (state TEXT)")
            database.execute("INSERT INTO states VALUES ('nothing of interest')")
        return sqlite_url(path)

    @property
    def places(self) -> dict[str, Path]:
        """Keyed by what they are called: where a name might be, by what the search is to look at.
        What is added to a deployment without a place here fails the test."""
        root = self.folder.parent
        said = self.deployment
        urls = {
            **said.database_urls,
            **said.outside_urls,
            "dead letters": str(said.dead_letters_url),
            "persons": sqlite_url(self.persons),
        }
        files = {name: sqlite_path(url) for name, url in urls.items()}
        return {
            **{name: file for name, file in files.items() if file is not None},
            "the data folder": self.folder,
            "a folder in it": self.folder / "logs",
            "a file in it": self.folder / "logs" / "one.txt",
            "what else is looked through": self.also,
            "a folder in that": self.also / "below",
            "a file in that": self.also / "below" / "one.txt",
            "the papers of an outside": root / "papers",
            "one of these": root / "papers" / "one.txt",
        }

    async def look(self) -> SearchReport:
        places = SearchedPlaces.of(
            self.folder, [KEEPER], also=[self.also], persons_url=sqlite_url(self.persons)
        )
        size_of(places.folders.values())
        return await ByteSearch(Needle(NAME)).everywhere(places, GRAPH)


def closed(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may not be read, though its folder may: as by its mode, which an administrator's tests
    would not be held up by."""
    opens, lists, connects = Path.open, os.scandir, sqlite3.connect

    def refuse(asked: object) -> None:
        if str(path) == os.fspath(cast(Path, asked)):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))

    def opened(self: Path, *args: Any, **kwargs: Any) -> Any:
        refuse(self)
        return opens(self, *args, **kwargs)

    def listed(where: Any = ".") -> Any:
        refuse(where)
        return lists(where)

    def connected(database: Any, **kwargs: Any) -> Any:
        if str(path) in unquote(str(database)):
            raise sqlite3.OperationalError("unable to open database file")
        return connects(database, **kwargs)

    monkeypatch.setattr(Path, "open", opened)
    monkeypatch.setattr(os, "scandir", listed)
    monkeypatch.setattr(sqlite3, "connect", connected)


def hidden(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not even what it is may be asked: its folder may not be entered."""
    stats, os_stats = Path.stat, os.stat

    def refuse(asked: Any) -> None:
        if path == asked or path in Path(asked).parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(asked))

    def status(self: Path, **kwargs: Any) -> os.stat_result:
        refuse(self)
        return stats(self, **kwargs)

    def os_status(asked: Any, **kwargs: Any) -> os.stat_result:
        if isinstance(asked, str | Path):
            refuse(asked)
        return os_stats(asked, **kwargs)

    monkeypatch.setattr(Path, "stat", status)
    monkeypatch.setattr(os, "stat", os_status)
    closed(path, monkeypatch)


def damaged(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A database is none by what is in it, a folder is gone though it was asked for, and of a file
    a part is missing."""
    if path.is_dir():
        shutil.rmtree(path)
        path.symlink_to("/nowhere/at/all")
    elif path.suffix == ".db":
        path.write_bytes(b"SQLite format 3\0" + b"\xff" * 4_000)
    else:
        path.write_bytes(gzip.compress(os.urandom(2_000))[:-900])


PLACES_OF_ALL: Final = (
    "history",
    "toy",
    "keeper",
    "dead letters",
    "persons",
    "the data folder",
    "a folder in it",
    "a file in it",
    "what else is looked through",
    "a folder in that",
    "a file in that",
    "the papers of an outside",
    "one of these",
)


async def test_where_everything_can_be_read_and_nothing_is_found_all_is_well(
    tmp_path: Path,
) -> None:
    ground = Ground.made(tmp_path)
    assert tuple(ground.places) == PLACES_OF_ALL

    look = await ground.look()

    assert look.clean, (look.unseen, [*look.with_it])
    looked_at = {place.name for place in look.places}
    for path in ground.places.values():
        assert path.is_dir() or str(path) in looked_at


@pytest.mark.parametrize("make", [closed, hidden, damaged])
@pytest.mark.parametrize("name", PLACES_OF_ALL)
async def test_each_place_that_cannot_be_read_is_named_and_all_is_not_well(
    name: str,
    make: Callable[[Path, pytest.MonkeyPatch], None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ground = Ground.made(tmp_path)
    path = ground.places[name]
    if (name, make) == ("the data folder", damaged):
        pytest.skip("there is no system without it: the command says so")
    with monkeypatch.context() as changed:
        make(path, changed)
        try:
            look = await ground.look()
        except Explained as error:  # It is told in a line, and the command ends with 1.
            look = SearchReport(unseen=[Unseen("", str(error))])

    assert not look.clean
    assert not look.count
    said = [f"{one.name} {one.why}" for one in look.unseen]
    assert [line for line in said if str(path) in line], said


async def test_a_description_of_a_system_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    ground = Ground.made(tmp_path)
    (ground.folder / FILE_NAME).write_text("{")

    look = await ground.look()

    assert [one.why for one in look.unseen if FILE_NAME in one.why]


async def test_papers_that_a_deployment_says_nothing_of_are_named(tmp_path: Path) -> None:
    ground = Ground.made(tmp_path)
    ground.deployment.model_copy(update={"outside_papers": {}}).save(ground.folder)

    assert [one.name for one in (await ground.look()).unseen] == ["the papers of keeper"]


async def test_a_key_store_that_is_not_where_it_should_be_was_not_looked_at(
    tmp_path: Path,
) -> None:
    ground = Ground.made(tmp_path)
    ground.persons.unlink()
    assert (await ground.look()).clean  # Nothing says that there is one.
    ground.deployment.model_copy(update={"personal": Sealing.SEALED}).save(ground.folder)

    assert [one.name for one in (await ground.look()).unseen] == ["the key store"]


async def test_of_a_system_that_does_not_run_what_is_nowhere_here_was_not_looked_at(
    tmp_path: Path,
) -> None:
    ground = Ground.made(tmp_path)
    (ground.folder / FILE_NAME).unlink()
    assert (await ground.look()).clean
    shutil.rmtree(tmp_path / "papers")
    made_key(ground.folder)
    ground.persons.unlink()

    unseen = [one.name for one in (await ground.look()).unseen]

    assert unseen == ["the papers of keeper", "the key store"]


async def test_a_broker_elsewhere_that_is_away_was_not_looked_at(
    tmp_path: Path, closed_port: int
) -> None:
    ground = Ground.made(tmp_path)
    note_broker(ground.folder, "broker.example:5672/")
    url = f"amqp://nobody@127.0.0.1:{closed_port}/"
    ground.deployment.model_copy(update={"amqp_url": url}).save(ground.folder)

    unseen = [one.name for one in (await ground.look()).unseen]

    assert [name for name in unseen if name.startswith("the broker")]
    assert [name for name in unseen if name.startswith("the files of the broker")]


def test_what_a_link_would_lead_to_and_what_is_no_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "archive").symlink_to(tmp_path.parent / "not mounted")
    os.mkfifo(tmp_path.parent / "pipe")

    (link,) = looked(tmp_path).unseen
    assert "leads nowhere" in link.why
    (pipe,) = looked(tmp_path.parent / "pipe").unseen
    assert "neither a file nor a folder" in pipe.why


def test_the_name_of_an_empty_folder_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / f"for {NAME}").mkdir()

    assert looked(tmp_path).count == 1


def test_a_tar_that_goes_on_after_its_end_or_a_damaged_part_is_named(tmp_path: Path) -> None:
    def tar(name: str, size: int = 30_000) -> bytes:
        whole = io.BytesIO()
        with tarfile.open(fileobj=whole, mode="w") as archive:
            info = tarfile.TarInfo(name)
            info.size = size
            archive.addfile(info, io.BytesIO(os.urandom(size)))
        return whole.getvalue()

    one = tar("one")
    (tmp_path / "well.tar.gz").write_bytes(gzip.compress(one))
    assert looked(tmp_path).clean
    (tmp_path / "two.tar.gz").write_bytes(gzip.compress(one + tar("two")))
    both = bytearray(one[:30_720] + tar("two", 100_000))
    both[30_720:30_900] = bytes(180)
    both[30_720] = 7
    (tmp_path / "damaged.tar.gz").write_bytes(gzip.compress(bytes(both)))

    unseen = looked(tmp_path).unseen

    assert sorted(Path(one.name).name for one in unseen) == ["damaged.tar.gz!", "two.tar.gz!"]
    assert all("it goes on after" in one.why for one in unseen)


def test_a_long_file_is_looked_through_in_bounded_memory(tmp_path: Path) -> None:
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(300_000_000)
        file.seek(299_999_000)
        file.write(NAME.encode())

    assert looked(tmp_path).count == 1
    assert size_of([tmp_path]) == 300_000_000


def test_a_folder_without_a_system_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeploymentError, match="no running system"):
        SearchedPlaces.of(tmp_path, ())


@pytest.mark.parametrize(
    ("broker", "cluster", "unseen"),
    [
        ("private", False, []),
        ("private", True, ["the databases"]),
        ("broker.example:5672/", False, ["the broker"]),
    ],
)
def test_of_a_system_that_does_not_run_what_is_elsewhere_is_not_seen(
    broker: str, cluster: bool, unseen: list[str], tmp_path: Path
) -> None:
    note_broker(tmp_path, broker)
    if cluster:
        (tmp_path / CLUSTER_FOLDER).mkdir()

    places = SearchedPlaces.of(tmp_path, ())

    assert [one.name for one in places.unseen] == unseen
    assert places.amqp_url is None


async def test_a_text_is_found_in_a_database_on_a_server(postgres_url: str, tmp_path: Path) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(
        'CREATE TABLE texts (t text); CREATE TABLE "js:on" (j json, b jsonb);'
        "CREATE TABLE bytes (b bytea); CREATE TABLE lists (l text[]); CREATE TABLE others (t text)"
    )
    # Long ones are compressed, and kept apart.
    await connection.execute("INSERT INTO texts VALUES ($1)", f"{'long ' * 1_000}{NAME}")
    await connection.execute(
        'INSERT INTO "js:on" VALUES ($1::text::json, $1::text::jsonb)',
        ENCODINGS["JSON"](NAME).decode(),
    )
    await connection.execute("INSERT INTO bytes VALUES ($1)", NAME.encode("utf-16-le"))
    await connection.execute("INSERT INTO lists VALUES ($1)", ["somebody", NAME])
    await connection.execute("INSERT INTO others VALUES ('somebody')")
    search = ByteSearch(Needle(NAME))

    await search.server("texts", postgres_url, own_port=None)

    by_table = {
        place.name.split()[2]: place.found.count
        for place in search.look.places
        if "public." in place.name
    }
    assert by_table == {
        "public.texts": 1,
        "public.js:on": 2,
        "public.bytes": 1,
        "public.lists": 1,
        "public.others": 0,
    }
    assert [unseen.name for unseen in search.look.unseen] == ["the files of the server of texts"]

    async with connection.transaction(isolation="repeatable_read"):
        snapshot = await connection.fetchval("SELECT pg_export_snapshot()")
        await programs.dump(postgres_url, snapshot, tmp_path / "texts.pgdump")
    await connection.close()

    assert looked(tmp_path).count == 5


async def test_rows_that_a_server_hides_from_its_user_were_not_looked_at(
    postgres_url: str,
) -> None:
    user = f"reader_{uuid4().hex}"
    connection = await asyncpg.connect(postgres_url)
    await connection.execute(
        f"CREATE TABLE texts (t text); CREATE TABLE secrets (t text);"
        f"ALTER TABLE texts ENABLE ROW LEVEL SECURITY;"
        f"CREATE ROLE {user} LOGIN PASSWORD 'hush'; GRANT SELECT ON texts TO {user}"
    )
    await connection.execute("INSERT INTO texts VALUES ($1)", NAME)
    search = ByteSearch(Needle(NAME))
    try:
        url = str(yarl.URL(postgres_url).with_user(user).with_password("hush"))
        await search.server("texts", url, own_port=yarl.URL(postgres_url).port)
    finally:
        await connection.execute(f"DROP OWNED BY {user}; DROP ROLE {user}")
        await connection.close()

    assert not search.look.clean
    why = {one.name.split()[2]: one.why for one in search.look.unseen}
    assert "row level security" in why["public.texts"]
    assert "may not read" in why["public.secrets"]


async def test_what_statistics_have_kept_of_a_text_is_found(postgres_url: str) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("CREATE TABLE texts (t text)")
    await connection.execute("INSERT INTO texts SELECT $1 FROM generate_series(1, 50)", NAME)
    await connection.execute("ANALYZE texts")
    await connection.execute("DELETE FROM texts")
    search = ByteSearch(Needle(NAME))

    await search.server("texts", postgres_url, own_port=None)

    assert [place.name.split()[2] for place in search.look.with_it] == ["pg_catalog.pg_stats"]
    await connection.close()


async def test_a_server_that_is_away_was_not_looked_at(closed_port: int) -> None:
    search = ByteSearch(Needle(NAME))

    await search.server("texts", f"postgresql://x:y@127.0.0.1:{closed_port}/texts", own_port=None)

    assert not search.look.clean
    assert any("texts" in unseen.name for unseen in search.look.unseen)


async def post(channel: AbstractChannel, queue: str, text: str) -> None:
    await channel.default_exchange.publish(aio_pika.Message(text.encode()), queue)


async def test_a_text_is_found_in_the_stream_of_a_broker_elsewhere(amqp_url: str) -> None:
    async with await connect(amqp_url, name="test") as connection:
        channel = await connection.channel()
        await apply(topology_of(GRAPH), channel)
        waiting = next(queue for queue in topology_of(GRAPH).queues if "dlq" in queue.name).name
        for number in range(100):
            await post(channel, HISTORY_STREAM, f"{number} {NAME}")
        await post(channel, waiting, NAME)

    search = ByteSearch(Needle(NAME))
    await search.broker(amqp_url, GRAPH)

    counts = {place.name: place.found.count for place in search.look.places}
    assert counts[f"the stream {HISTORY_STREAM}"] == 100
    said = " ".join(f"{unseen.name}: {unseen.why}" for unseen in search.look.unseen)
    assert f"the queue {waiting}: it holds 1 message," in said
    assert "the files of the broker" in said


@pytest.mark.parametrize("kind", ["classic", "quorum", "stream"])
async def test_a_text_is_found_in_the_files_of_a_broker_of_our_own(
    kind: str, amqp_url: str, rabbit_node: RabbitNode
) -> None:
    name = f"{NAME} {uuid4()}"  # Other tests use the same node.
    async with await connect(amqp_url, name="test") as connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(
            f"a {kind}", durable=True, arguments={"x-queue-type": kind}
        )
        for encoding in ("UTF-8", "JSON, all escaped", "base64, one byte later"):
            message = aio_pika.Message(
                ENCODINGS[encoding](name), delivery_mode=aio_pika.DeliveryMode.PERSISTENT
            )
            await channel.default_exchange.publish(message, queue.name)

    search = ByteSearch(Needle(name))
    search.folder("node", rabbit_node.folder)

    kinds = {encoding for place in search.look.with_it for encoding in place.found.encodings}
    assert kinds == {"text", "base64 of text"}
    assert sum(place.found.encodings["text"] for place in search.look.with_it) >= 2


@pytest.mark.long
async def test_a_text_is_found_in_the_files_of_a_server_of_our_own(
    postgres_url: str, postgres_cluster: PostgresCluster
) -> None:
    connection = await asyncpg.connect(postgres_url)
    await connection.execute("CREATE TABLE texts (t text)")
    await connection.execute("INSERT INTO texts VALUES ($1)", NAME)
    await connection.execute("DELETE FROM texts")
    await connection.execute("CHECKPOINT")
    await connection.close()
    search = ByteSearch(Needle(NAME))

    search.folder("server", postgres_cluster.folder)

    names = [place.name for place in search.look.with_it]
    assert [name for name in names if "/pg_wal/" in name]
    assert [name for name in names if "/base/" in name]
