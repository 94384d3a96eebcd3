"""The search that proves that a person is forgotten: every place where a system keeps bytes.

Files are read as the bytes they are, so that free pages, logs and what was deleted count as well,
and archives are opened; databases are read row by row besides, since a long value is in several
pages. What cannot be looked at is named: then nothing is known of it, and all is not well.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import aiormq
import sqlalchemy as sa
import yarl
from sqlalchemy.engine import Connection

from saga.choreography import Choreography
from saga.deployment import FILE_NAME, Deployment, DeploymentError, outside_urls_in
from saga.dlq import DlqError
from saga.dlq.lookup import LetterWith, letters_with
from saga.local.folder import CLUSTER_FOLDER, has_own_broker, is_used
from saga.outside import Outside
from saga.personal.needle import Found, Needle
from saga.personal.opening import KEY_FILE
from saga.personal.unpacking import chunks_of, parts_of_file
from saga.runtime.kernel.database import DatabaseError, is_postgresql
from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.messaging.partitions import partitions_on
from saga.runtime.messaging.stream import FIRST, PREFETCH, StreamError, last_offset, reading
from saga.runtime.messaging.topology import HISTORY_STREAM, topology_of
from saga.runtime.settings import Sealing
from saga.runtime.urls import printable, sqlite_path
from saga.wording import counted

ROUNDS_MAX: Final = 5
"""How often a folder is listed again for files that came while it was looked through."""
ROWS_AT_ONCE: Final = 200
"""Of a table on a server."""
BUSY_SECONDS: Final = 10.0
_LETTERS: Final = "dead letters"
"""What their store is called among the databases."""
_SQLITE: Final = b"SQLite format 3\0"
_BETWEEN: Final = bytes(16)
"""Between two values: no form of a text goes on over so many zeros."""
_DATABASE: Final = "rows of"

Progress = Callable[[int], None]
"""Is told how many bytes more were looked through."""


@dataclass(frozen=True, slots=True)
class SearchedPlace:
    """Something that was looked through."""

    group: str
    """What it is counted with: a folder, a database, a stream."""
    name: str
    bytes: int
    found: Found


@dataclass(frozen=True, slots=True)
class Unseen:
    """Something that could not be looked at."""

    name: str
    why: str


@dataclass
class SearchReport:
    """What a search has come to."""

    places: list[SearchedPlace] = field(default_factory=list)
    unseen: list[Unseen] = field(default_factory=list)
    letters: list[LetterWith] = field(default_factory=list)
    """The dead letters in which it is."""

    @property
    def count(self) -> int:
        """How often the text was found: what is in a database, in its rows and in its file."""
        return sum(place.found.count for place in self.places)

    @property
    def clean(self) -> bool:
        """Whether everything was looked at, and the text is nowhere."""
        return not self.unseen and not self.count

    @property
    def with_it(self) -> Iterator[SearchedPlace]:
        """The places where the text is."""
        return (place for place in self.places if place.found.count)

    def by_group(self) -> dict[str, tuple[int, int, int]]:
        """Keyed by group, in their order: how many places, bytes and findings."""
        groups: dict[str, tuple[int, int, int]] = {}
        for place in self.places:
            places, size, count = groups.get(place.group, (0, 0, 0))
            groups[place.group] = places + 1, size + place.bytes, count + place.found.count
        return groups


@dataclass(frozen=True)
class SearchedPlaces:
    """Where a system keeps bytes."""

    folders: Mapping[str, Path]
    """Keyed by what they are called: the data folder, and whatever else is to be looked through."""
    databases: Mapping[str, str]
    """URLs, keyed by what they are called."""
    own_server_port: int | None = None
    """Where the PostgreSQL server listens whose files are in the data folder."""
    amqp_url: str | None = None
    """Of a broker whose files are not in the data folder."""
    unseen: tuple[Unseen, ...] = ()
    """What there is no way to."""

    @classmethod
    def of(
        cls,
        folder: Path,
        outsides: Collection[Outside[Any]],
        *,
        also: Sequence[Path] = (),
        persons_url: str | None = None,
    ) -> Self:
        """Those of the system in a data folder, which may run. Raises `DeploymentError` for a
        folder in which no system ever was."""
        unseen: list[Unseen] = []
        amqp_url: str | None = None
        urls: dict[str, str] = {}
        papers = {o.name: tuple(o.papers(folder)) for o in outsides if o.papers is not None}
        has_keys = _may_be_there(folder / KEY_FILE)
        try:
            deployment = Deployment.load(folder)
        except DeploymentError as error:
            if not folder.is_dir() or not (is_used(folder) or any(folder.glob("*.db"))):
                raise
            if _may_be_there(folder / FILE_NAME):  # Whatever else it names is not known.
                unseen.append(Unseen("what the system consists of", str(error)))
            urls = {
                o: url for o, url in outside_urls_in(folder, outsides).items() if _is_there(url)
            }
            unseen += (
                Unseen(
                    f"the papers of {name}",
                    f"there are none in {', '.join(map(str, paths))}, and the system does not run, "
                    f"which knows better: start it, then look again",
                )
                for name, paths in papers.items()
                if not any(map(_may_be_there, paths))
            )
            if (folder / CLUSTER_FOLDER).is_dir():
                unseen.append(
                    Unseen("the databases", "the system does not run: start it, then look again")
                )
            if is_used(folder) and not has_own_broker(folder):
                unseen.append(
                    Unseen("the broker", "the system does not run: start it, then look again")
                )
        else:
            urls = {**deployment.database_urls, **deployment.outside_urls}
            has_keys |= deployment.personal is Sealing.SEALED
            unseen += (
                Unseen(
                    f"the papers of {name}",
                    "the deployment does not say where they are (outside_papers): look through "
                    "them by --also",
                )
                for name in papers
                if name not in deployment.outside_papers
            )
            papers |= deployment.outside_papers
            if deployment.dead_letters_url and _is_there(deployment.dead_letters_url):
                urls[_LETTERS] = deployment.dead_letters_url
            if not has_own_broker(folder):
                amqp_url = deployment.amqp_url
        if persons_url is not None and _is_there(persons_url):
            urls["persons"] = persons_url
        elif has_keys:
            where = "by default" if persons_url is None else printable(persons_url)
            unseen.append(
                Unseen(
                    "the key store",
                    f"there is none at {where}: name it in PERSONS_DATABASE_URL, or start the "
                    f"system, which knows it",
                )
            )
        folders = {str(path): path for path in (folder, *also)}
        for name, paths in papers.items():
            for path in paths:
                if _may_be_there(path):
                    folders[str(path)] = path
                elif not _may_be_there(path.parent):  # It may be on a volume that is not mounted.
                    unseen.append(
                        Unseen(
                            f"the papers of {name}",
                            f"{path} is not to be seen from here, and neither is the folder above: "
                            f"mount it, or look through them by --also",
                        )
                    )
        return cls(folders, urls, _own_port(folder), amqp_url, tuple(unseen))


def _is_there(url: str) -> bool:
    """Whether it is a server's, or there may be such a file."""
    if is_postgresql(url):
        return True
    path = sqlite_path(url)
    return path is not None and _may_be_there(path)


def _may_be_there(path: Path) -> bool:
    """Whether there is something, or that cannot be told: then looking there says so."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _own_port(folder: Path) -> int | None:
    """The port in the lock file of a server with its files in the data folder."""
    try:
        lines = (
            (folder / CLUSTER_FOLDER / "data" / "postmaster.pid")
            .read_text(encoding="utf-8")
            .splitlines()
        )
        return int(lines[3])
    except (OSError, ValueError, IndexError):
        return None


class ByteSearch:
    """Looks for one text. Blocks, but for what is asked of servers."""

    def __init__(self, needle: Needle, progress: Progress = lambda _: None) -> None:
        self._needle = needle
        self._progress = progress
        self.look = SearchReport()
        self._seen: set[tuple[int, int]] = set()
        """Files that were looked at, which several names may lead to."""

    async def everywhere(self, places: SearchedPlaces, graph: Choreography) -> SearchReport:
        """Look through everything. Raises nothing of what is in the way: that is `unseen`."""
        self.look.unseen += places.unseen
        for name, folder in places.folders.items():
            with self._missing(name):
                await asyncio.to_thread(self.folder, name, folder)
        for name, url in places.databases.items():
            if is_postgresql(url):
                await self.server(name, url, own_port=places.own_server_port)
            elif (path := sqlite_path(url)) is not None:
                with self._missing(f"the database of {name}"):
                    await asyncio.to_thread(self.sqlite, name, path)
            else:
                self._miss(f"the database of {name}", f"{printable(url)} is in no file")
        if places.amqp_url is not None:
            await self.broker(places.amqp_url, graph)
        if self.look.count:
            with self._missing("the dead letters"):
                await asyncio.to_thread(self._letters, places.databases.get(_LETTERS))
        return self.look

    def _letters(self, url: str | None) -> None:
        """Name the dead letters in which the text is: its rows and its file say no more than that
        it is in one."""
        try:
            self.look.letters = letters_with(url, lambda said: self._needle.find_in(said).count > 0)
        except DlqError as error:
            self._miss("the dead letters", str(error))

    @contextlib.contextmanager
    def _missing(self, name: str) -> Iterator[None]:
        """Name a place that even its file system tells nothing of."""
        try:
            yield
        except OSError as error:
            self._miss(name, f"{error.filename or name}: {error.strerror or error}")

    # --- files -------------------------------------------------------------------------------

    def folder(self, name: str, folder: Path) -> None:
        """Every file in a folder, or a single one; what comes meanwhile as well."""
        if not folder.exists():
            self._miss(name, "there is no such file or folder")
            return
        if not (folder.is_dir() or folder.is_file()):
            self._miss(name, "it is neither a file nor a folder: mount or copy what is in it")
            return
        self._names_below(name, folder)
        for _ in range(ROUNDS_MAX):
            new = {
                identity: path
                for path, status in sorted_files(folder, self._miss)
                if (identity := (status.st_dev, status.st_ino)) not in self._seen
            }
            if not new:
                return
            self._seen |= new.keys()
            for path in new.values():
                self.file(_group(name, folder, path), path)
        else:
            self._miss(name, f"new files came all the time, {ROUNDS_MAX} times: look again")

    def _names_below(self, name: str, folder: Path) -> None:
        """What the folders in a folder are called. Those that cannot be listed are named with the
        files."""
        for where, below, _ in os.walk(folder):
            for each in below:
                found = self._needle.find_in([os.fsencode(each)])
                if found.count:
                    path = Path(where) / each
                    place = SearchedPlace(name, f"the name of the folder {path}", 0, found)
                    self.look.places.append(place)

    def file(self, group: str, path: Path) -> None:
        """The bytes of one file, what is in it if it is an archive, its rows if it is a SQLite
        database, and its name."""
        size = 0

        def told(chunks: Iterable[bytes]) -> Iterator[bytes]:
            nonlocal size
            for chunk in chunks:
                size += len(chunk)
                self._progress(len(chunk))
                yield chunk

        try:
            with path.open("rb") as file:
                head = file.read(len(_SQLITE))
                file.seek(0)
                found = self._needle.find_in(told(chunks_of(file)))
            named = self._needle.find_in([os.fsencode(path.name)])
            self.look.places.append(SearchedPlace(group, str(path), size, found + named))
            for name, chunks in parts_of_file(path, self._miss):
                size = 0
                inner = self._needle.find_in(told(chunks))
                self.look.places.append(SearchedPlace(group, name, size, inner))
        except FileNotFoundError:
            return  # Removed since; what took its place is listed in the next round.
        except OSError as error:
            self._miss(str(path), error.strerror or str(error))
            return
        if head == _SQLITE:
            self._rows(group, path)

    # --- databases ---------------------------------------------------------------------------

    def sqlite(self, name: str, path: Path) -> None:
        """A SQLite database and the files beside it, if they were not in a folder."""
        if not path.is_file():
            self._miss(f"the database of {name}", f"there is no file {path}")
            return
        for file in (_beside(path, "-wal"), path, _beside(path, "-journal")):
            if not file.is_file():
                continue
            status = file.stat()
            if (identity := (status.st_dev, status.st_ino)) not in self._seen:
                self._seen.add(identity)
                self.file(str(path), file)

    def _rows(self, group: str, path: Path) -> None:
        name = f"{_DATABASE} {path}"
        try:
            uri = f"{path.resolve().as_uri()}?mode=ro"
            with contextlib.closing(
                sqlite3.connect(uri, uri=True, timeout=BUSY_SECONDS)
            ) as connection:
                connection.text_factory = bytes
                size, found = 0, Found()
                for table in _tables_of(connection):
                    # Names of tables are no parameters; it is quoted.
                    query = f'SELECT * FROM "{table}"'  # noqa: S608
                    rows = connection.execute(query)
                    counted = _Counted(map(_row_bytes, rows))
                    found += self._needle.find_in(counted)
                    size += counted.bytes
        except sqlite3.Error as error:
            self._miss(name, str(error))
            return
        self.look.places.append(SearchedPlace(group, name, size, found))

    async def server(self, name: str, url: str, *, own_port: int | None) -> None:
        """A database on a PostgreSQL server: every value of every table, and what its statistics
        have kept of them."""
        from saga.runtime.kernel.postgresql import read_once

        where = f"the database of {name} ({printable(url)})"
        try:
            await read_once(url, lambda connection: self._tables(where, connection))
        except (DatabaseError, sa.exc.DBAPIError, OSError) as error:
            self._miss(where, str(getattr(error, "orig", error)))
        if yarl.URL(url).port != own_port:
            self._miss(
                f"the files of the server of {name}",
                "they are not in the data folder: on the server, look through its folder by --also",
            )

    def _tables(self, where: str, connection: Connection) -> None:
        tables = connection.execute(sa.text(_TABLES)).all()
        for schema, table, readable, hidden in (*tables, ("pg_catalog", "pg_stats", True, False)):
            name = f"{_DATABASE} {schema}.{table} in {where}"
            if not readable:
                self._miss(name, "its user may not read them")
                continue
            if hidden:
                self._miss(name, "policies hide rows from its user (row level security)")
            quoted = ".".join(f'"{part}"'.replace(":", r"\:") for part in (schema, table))
            # Names of tables are no parameters; they are quoted.
            query = sa.text(f"SELECT CAST(t AS text) FROM {quoted} AS t")  # noqa: S608
            rows = connection.execution_options(yield_per=ROWS_AT_ONCE).execute(query)
            counted = _Counted(str(value).encode() + _BETWEEN for (value,) in rows)
            found = self._needle.find_in(counted)
            self._progress(counted.bytes)
            self.look.places.append(SearchedPlace(where, name, counted.bytes, found))

    # --- the broker --------------------------------------------------------------------------

    async def broker(self, url: str, graph: Choreography) -> None:
        """A broker whose files are elsewhere: the history stream from its beginning, and whether
        anything waits in its queues, which are not taken from."""
        where = f"the broker {printable(url)}"
        try:
            connection = await connect(url, name="saga forget")
            async with connection:
                await self._stream(where, connection)
                channel = await connection.open_channel()
                topology = topology_of(graph, await partitions_on(connection, graph))
                for queue in topology.queues:
                    if queue.name == HISTORY_STREAM:
                        continue
                    waiting = (await channel.look_at(queue.name)).message_count
                    if waiting:
                        self._miss(
                            f"the queue {queue.name}",
                            f"it holds {counted(waiting, 'message')}, and reading them would "
                            f"deliver them: "
                            f"look again once they are done",
                        )
                    else:
                        self.look.places.append(
                            SearchedPlace(where, f"the queue {queue.name}", 0, Found())
                        )
        except (BrokerError, StreamError, aiormq.AMQPError, OSError) as error:
            self._miss(where, str(error))
        self._miss(
            f"the files of {where}",
            "they are not in the data folder: on its nodes, look through their folders by --also",
        )

    async def _stream(self, where: str, connection: Any) -> None:
        last = await last_offset(connection)
        found, size = Found(), 0
        if last is not None:
            async with reading(connection, FIRST) as reader:
                offset = -1
                while offset < last:
                    records = await reader.take(PREFETCH)
                    data = [
                        _BETWEEN.join(
                            (
                                record.body,
                                record.routing_key.encode(),
                                (record.message_id or "").encode(),
                            )
                        )
                        for record in records
                    ]
                    found += await asyncio.to_thread(self._needle.find_in, [_BETWEEN.join(data)])
                    size += sum(map(len, data))
                    self._progress(sum(map(len, data)))
                    offset = records[-1].offset
        self.look.places.append(SearchedPlace(where, f"the stream {HISTORY_STREAM}", size, found))

    def _miss(self, name: str, why: str) -> None:
        self.look.unseen.append(Unseen(name, why))


class _Counted:
    """Pieces of bytes, and how many there were."""

    def __init__(self, pieces: Iterable[bytes]) -> None:
        self._pieces = pieces
        self.bytes = 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.bytes += len(piece)
            yield piece


_TABLES: Final = """
    SELECT n.nspname, c.relname, has_table_privilege(c.oid, 'SELECT'), row_security_active(c.oid)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'm', 'f')
      AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'pg_toast')
    ORDER BY 1, 2
"""


def _tables_of(connection: sqlite3.Connection) -> list[str]:
    rows = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")
    names = [name.decode().replace('"', '""') for (name,) in rows]
    return ["sqlite_master", *names]


def _row_bytes(row: tuple[Any, ...]) -> bytes:
    values = (value if isinstance(value, bytes) else str(value).encode() for value in row)
    return _BETWEEN.join(values) + _BETWEEN


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(path.name + suffix)


def _group(name: str, folder: Path, path: Path) -> str:
    """A file of a data folder is counted with the folder in it that it is in, a log of a database
    with the database."""
    if path == folder:
        return name
    first = path.relative_to(folder).parts[0]
    for suffix in ("-wal", "-shm", "-journal"):
        first = first.removesuffix(suffix)
    return f"{name}/{first}"


def sorted_files(
    folder: Path, unread: Callable[[str, str], None]
) -> list[tuple[Path, os.stat_result]]:
    """The files in a folder, links to files included, those first from which bytes are moved into
    others: write-ahead logs."""
    found: list[tuple[Path, os.stat_result]] = []
    paths: Iterable[Path] = (
        (
            Path(where) / name
            for where, below, names in os.walk(
                folder,
                onerror=lambda error: unread(str(error.filename), error.strerror or str(error)),
                followlinks=False,
            )
            for name in (
                *names,
                *(one for one in below if os.path.islink(os.path.join(where, one))),
            )
        )
        if _is_folder(folder, unread)
        else (folder,)
    )
    for path in paths:
        try:
            status = path.stat()
        except FileNotFoundError:
            if path.is_symlink():
                unread(str(path), f"a link that leads nowhere by now: {os.readlink(path)}")
            continue  # Or removed since.
        except OSError as error:
            unread(str(path), error.strerror or str(error))
            continue
        if stat.S_ISREG(status.st_mode):
            found.append((path, status))
        elif stat.S_ISDIR(status.st_mode):
            unread(str(path), f"a link to the folder {path.resolve()}: look there by --also")
        elif stat.S_ISBLK(status.st_mode):
            unread(str(path), "a whole disk: mount it, and look there by --also")
    return sorted(found, key=lambda each: (not each[0].name.endswith("wal"), each[0]))


def _is_folder(path: Path, unread: Callable[[str, str], None]) -> bool:
    try:
        return path.is_dir()
    except OSError as error:
        unread(str(path), error.strerror or str(error))
        return False


def size_of(folders: Iterable[Path]) -> int:
    """Bytes of all files, for a progress bar."""
    return sum(
        status.st_size
        for folder in folders
        if _may_be_there(folder)
        for _, status in sorted_files(folder, lambda *_: None)
    )
