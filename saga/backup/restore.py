"""`saga restore`: the databases of a backup, put where there are none.

Only as a whole: databases that are older than others do not add up. What one database has lost, the
history has.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import itertools
import os
import shutil
from collections.abc import AsyncIterator, Callable, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import aiormq
import httpx
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.backup import BackupError, programs
from saga.backup.check import check
from saga.backup.manifest import MANIFEST, Copied, Manifest, Progress, digest_of, sync
from saga.backup.outside import AskedAgain, put_asked, subjects_in, subjects_traced, why_in_doubt
from saga.backup.parts import Part, parts
from saga.broker.setup import NODE_FOLDER
from saga.deployment import FILE_NAME, Deployment, dead_letters_url_in, outside_urls_in
from saga.discovery import saga, tables_of
from saga.history.outside import memory_of
from saga.http import client
from saga.local.folder import CLUSTER_FOLDER
from saga.local.postgres import PostgresCluster
from saga.notes import RESTORING, end_restore, note_partitions
from saga.outside import Doubt
from saga.runtime.files import write_whole
from saga.runtime.kernel.database import is_postgresql
from saga.runtime.kernel.opening import open_database, read_database
from saga.runtime.kernel.sqlite import sqlite_file
from saga.runtime.kernel.tables import Tables
from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.messaging.stream import StreamError, last_offset
from saga.runtime.messaging.topology import HISTORY_STREAM
from saga.runtime.urls import printable, sqlite_url

ALIVE_SECONDS: Final = 2.0
"""How long a service may take to say that it is alive."""
PATIENCE_SECONDS: Final = 30.0
"""How long a server may take to let us in."""
_LEDGER_COPIED: Final = "the ledger is the backup's copy"
_BESIDE: Final = ("", "-wal", "-shm", "-journal")
"""What a SQLite file may have beside it, which would be taken for that of a new one."""

T = TypeVar("T")
Report = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Target:
    """Where a system's databases are to be."""

    folder: Path
    """Of SQLite files, a private PostgreSQL server, and what is the operator's."""
    database_urls: Mapping[str, str] = field(default_factory=dict)
    """Keyed by service; in the folder, where there is none here."""
    dead_letters_url: str = ""
    """By default a file in the folder."""
    outside_urls: Mapping[str, str] = field(default_factory=dict)
    """Keyed by outside, where its books are; by default in files in the folder."""
    broker_url: str = ""
    """The broker that services will use, where it is known."""


@dataclass(frozen=True, slots=True)
class Restored:
    """What was restored, and what the outside may have been asked since."""

    manifest: Manifest
    asked: AskedAgain
    in_doubt: Mapping[str, int]
    """Keyed by outside: about how many subjects an operator decides before it is asked again."""
    ledger_known: bool
    """Whether the outsides' books were there: the backup's copies know no later answer."""
    unknown: tuple[str, ...] = ()
    """Outsides without books to read and idempotency keys: what they did since is not known."""


async def restore(
    backup: Path,
    target: Target,
    *,
    ledger: bool = False,
    report: Report = lambda _: None,
    progress: Progress = lambda _: None,
) -> Restored:
    """Put everything of a backup into the target, which has to have none of it. With `ledger`, the
    copy of the sandbox's ledger as well, where there is none.

    Killed on the way it may be called again; of databases on a server it then names those that have
    to be emptied first. Raises `BackupError`, `DatabaseError`, `PostgresError` and `HistoryError`.
    """
    manifest = await check(backup, progress)
    known = parts()
    for name, copied in manifest.databases.items():
        _check_revision(name, copied, known, manifest)
    target = await _resolved(target)
    _check_urls(target.database_urls, manifest)
    try:
        mark = digest_of(backup / MANIFEST)
        _check_folder(target, mark, manifest)
        for name, url in target.database_urls.items():
            if manifest.databases[name].kind == "postgresql":
                await asyncio.to_thread(_check_empty, name, url)
        if target.broker_url:
            await _check_broker(target, manifest, report)
        _begin(target.folder, mark)
        async with _places(target, manifest) as places:
            for name, copied in manifest.databases.items():
                report(f"restoring {name}")
                await _put(backup / copied.file, copied, places[name])
            if (store := manifest.dead_letters) is not None:
                await _put(backup / store.file, store, target.dead_letters_url)
            for name, books in manifest.outside.items() if ledger else ():
                place = target.outside_urls.get(name)
                if place is not None and not sqlite_file(place).exists():
                    _note(target.folder, mark, _LEDGER_COPIED)
                    await _put(backup / books.file, books, place)
            known_books = all(sqlite_file(url).is_file() for url in target.outside_urls.values())
            ledger_known = known_books and _LEDGER_COPIED not in _noted(target.folder)
            asked, in_doubt = await _look_outside(target, manifest, known, places)
        if manifest.partitions is not None:
            note_partitions(target.folder, manifest.partitions)
        end_restore(target.folder)
        sync(target.folder)
    except OSError as error:
        raise BackupError(
            f"cannot write in {target.folder}: {error.strerror or error}; run this again once that "
            f"is fixed"
        ) from error
    unknown = tuple(
        outside.name
        for outside in saga().outside
        if not outside.idempotent and outside.doubt is None
    )
    return Restored(manifest, asked, in_doubt, ledger_known, unknown)


# --- what is refused ---------------------------------------------------------------------------


def _check_revision(
    name: str, copied: Copied, known: Mapping[str, Part], manifest: Manifest
) -> None:
    if name not in known:
        raise BackupError(
            f"the backup has a database of {name}, which is no service of this version: restore "
            f"with version {manifest.program}, which took it"
        )
    if copied.revision is not None and copied.revision not in known[name].revisions:
        raise BackupError(
            f"the backup is of a newer version: the tables of {name} are of revision "
            f"{copied.revision}; restore with version {manifest.program}, which took it"
        )


async def _resolved(target: Target) -> Target:
    """The target with all that is known of it: a system that has the folder, which must not run,
    says where its databases are."""
    folder = target.folder.resolve()
    found = Target(
        folder,
        target.database_urls,
        target.dead_letters_url or dead_letters_url_in(folder),
        {**outside_urls_in(folder, saga().outside), **target.outside_urls},
    )
    if not (folder / FILE_NAME).exists():
        return found
    deployment = Deployment.load(folder)
    for url in itertools.chain(*deployment.http_urls.values()):
        if await _is_alive(url):
            raise BackupError(
                f"a system runs in {folder} (a service answers at {url}): stop it first"
            )
    return replace(
        found,
        database_urls={**deployment.database_urls, **target.database_urls},
        dead_letters_url=deployment.dead_letters_url or found.dead_letters_url,
        outside_urls={**found.outside_urls, **deployment.outside_urls, **target.outside_urls},
        broker_url=target.broker_url or deployment.amqp_url,
    )


def _check_urls(given: Mapping[str, str], manifest: Manifest) -> None:
    if strange := given.keys() - manifest.databases.keys():
        raise BackupError(
            f"the backup has no database of {', '.join(sorted(strange))}; it has "
            f"{', '.join(manifest.databases)}"
        )
    if not given:
        return
    if missing := manifest.databases.keys() - given.keys():
        raise BackupError(
            f"no database is named for {', '.join(sorted(missing))}: all of a backup are restored, "
            f"or none; for one that is lost alone, `saga history rebuild` makes it again"
        )
    for name, copied in manifest.databases.items():
        kind = "postgresql" if is_postgresql(given[name]) else "sqlite"
        if kind != copied.kind:
            raise BackupError(
                f"the backup's database of {name} is of {copied.kind}, and "
                f"{printable(given[name])} is of {kind}; name one of {copied.kind}"
            )


async def _is_alive(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError):
        async with client(url, ALIVE_SECONDS) as service:
            await service.get("/livez")
            return True
    return False


def _check_folder(target: Target, mark: str, manifest: Manifest) -> None:
    """Refuse a folder that has any of it; one where this very backup was being restored is cleared
    of what that has left."""
    folder, urls = target.folder, target.database_urls
    begun = folder / RESTORING
    files = [sqlite_file(target.dead_letters_url)] if manifest.dead_letters else []
    files += [
        sqlite_file(urls[name]) if urls else folder / f"{name}.db"
        for name, copied in manifest.databases.items()
        if copied.kind == "sqlite" or not urls
    ]
    for file in files:
        _check_unused(file)
    cluster = folder / CLUSTER_FOLDER
    if begun.exists():
        if _noted(folder)[:1] != [mark]:
            raise BackupError(
                f"the restore of another backup into {folder} has not come to its end: run that "
                f"again, or remove that folder's databases and {begun}"
            )
        for file in files:
            for beside in _BESIDE:
                file.with_name(file.name + beside).unlink(missing_ok=True)
        if not urls:
            shutil.rmtree(cluster, ignore_errors=True)
        return
    there = [f for f in files if any(f.with_name(f.name + beside).exists() for beside in _BESIDE)]
    if not urls and cluster.exists():
        there.append(cluster)
    if there:
        names = ", ".join(file.name for file in there)
        raise BackupError(
            f"{folder} has data already ({names}): restore into another folder, or put it aside; "
            f"if only some databases are lost, `saga history rebuild` makes them again, as one "
            f"that is older than the others does not add up"
        )
    if (node := folder / NODE_FOLDER).exists():
        raise BackupError(
            f"{node} has the messages of a broker that is ahead of the backup: restore into "
            f"another folder, or put it aside"
        )


async def _check_broker(target: Target, manifest: Manifest, report: Report) -> None:
    """Refuse a broker whose stream goes on after the backup: restored services would publish other
    events under numbers that are taken there. One that cannot be asked is reported."""
    try:
        end = await _end_of_stream(target.broker_url)
    except (BrokerError, StreamError, aiormq.exceptions.AMQPError, ConnectionError) as error:
        report(
            f"it is not known whether the broker is ahead of the backup ({error}); it must have "
            f"nothing that was published after {manifest.taken_at.isoformat(timespec='seconds')}"
        )
        return
    read_up_to = manifest.place.offset if manifest.place is not None else -1
    if end is not None and end > read_up_to:
        raise BackupError(
            f"the broker at {printable(target.broker_url)} is ahead of the backup: its stream "
            f"{HISTORY_STREAM} goes on to offset {end}, and the backup ends at {read_up_to}; let "
            f"the history read the rest and make the other databases again by `saga history "
            f"rebuild`, or name an empty broker in {target.folder / FILE_NAME}"
        )


async def _end_of_stream(url: str) -> int | None:
    connection = await connect(url, name="saga restore")
    async with connection:
        return await last_offset(connection)


def _check_unused(file: Path) -> None:
    """Refuse what a service has open, whether or not the file is still there."""
    try:
        lock = os.open(file.with_name(f"{file.name}.lock"), os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        raise BackupError(f"a service has {file} open: stop the system first") from None
    finally:
        os.close(lock)


def _begin(folder: Path, mark: str) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not (folder / RESTORING).exists():
        _note(folder, mark)


def _note(folder: Path, *lines: str) -> None:
    """Keep what a restore that is run again has to know of this one: first which backup it is."""
    note = folder / RESTORING
    write_whole(note, "".join(f"{line}\n" for line in lines))
    sync(note)
    sync(folder)


def _noted(folder: Path) -> list[str]:
    return (folder / RESTORING).read_text(encoding="utf-8").splitlines()


# --- what is put there ---------------------------------------------------------------------------


@asynccontextmanager
async def _places(target: Target, manifest: Manifest) -> AsyncIterator[Mapping[str, str]]:
    """The URLs of the databases that are to be filled, all of them empty; on a private server of
    the folder's while this lasts, where a backup is of PostgreSQL and nothing else is named."""
    folder, urls = target.folder, target.database_urls
    if urls:
        yield urls
        return
    on_server = [name for name, c in manifest.databases.items() if c.kind == "postgresql"]
    found = {name: sqlite_url(folder / f"{name}.db") for name in manifest.databases}
    if not on_server:
        yield found
        return
    cluster = PostgresCluster(folder / CLUSTER_FOLDER)
    try:
        await asyncio.to_thread(cluster.start)
        for name in on_server:
            found[name] = await asyncio.to_thread(cluster.create_database, name)
        yield found
    finally:
        await asyncio.to_thread(cluster.stop)


def _check_empty(name: str, url: str) -> None:
    there = read_database(url, lambda connection: sa.inspect(connection).get_table_names())
    if there:
        raise BackupError(
            f"the database of {name} at {printable(url)} has tables ({', '.join(sorted(there)[:3])}"
            f"{', ...' if there[3:] else ''}): name an empty one; if a restore was cut short, drop "
            f"and create all that it has filled; if only some databases are lost, `saga history "
            f"rebuild` makes them again"
        )


async def _put(file: Path, copied: Copied, url: str) -> None:
    if copied.kind == "postgresql":
        await programs.restore(file, url)
    else:
        await asyncio.to_thread(_copy, file, sqlite_file(url))


def _copy(file: Path, to: Path) -> None:
    to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    part = to.with_name(f"{to.name}.part")
    part.unlink(missing_ok=True)
    os.close(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    shutil.copyfile(file, part)
    sync(part)
    part.replace(to)
    sync(to.parent)


# --- what the outside may have done since ------------------------------------------------------


async def _look_outside(
    target: Target, manifest: Manifest, known: Mapping[str, Part], places: Mapping[str, str]
) -> tuple[AskedAgain, Mapping[str, int]]:
    """Put into the databases what outsides may have done: what they were asked, and, keyed by
    outside, about how many subjects an operator decides."""
    asked = AskedAgain()
    subjects: set[str] = set()
    here = saga()
    for participant in here.participants:
        name = participant.name
        files = [
            sqlite_file(target.outside_urls[outside.name])
            for outside in here.asked_by(name)
            if outside.memory is not None and outside.name in target.outside_urls
        ]
        if name not in places or not files or not all(file.is_file() for file in files):
            continue
        outside = await asyncio.to_thread(memory_of, here, name, target.outside_urls)
        subjects |= {*outside.keys}
        put = partial(put_asked, participant=participant, tables=tables_of(name), outside=outside)
        more = await _write(places[name], tables_of(name), put)
        asked = AskedAgain(
            (*asked.subjects, *more.subjects), (*asked.contradictions, *more.contradictions)
        )
    in_doubt: dict[str, int] = {}
    for each in here.outside:
        if each.doubt is None or each.asked_by not in places:
            continue
        if not in_doubt:
            for name, url in places.items():
                look = partial(subjects_in, known[name])
                subjects |= await asyncio.to_thread(read_database, url, look)
        traced = await asyncio.to_thread(subjects_traced, each, target.folder)
        doubt, about = each.doubt, subjects | traced
        note = partial(_note_doubt, doubt, about, why_in_doubt(manifest.taken_at))
        in_doubt[each.name] = await _write(places[each.asked_by], tables_of(each.asked_by), note)
    return asked, in_doubt


def _note_doubt(doubt: Doubt, subjects: Collection[str], why: str, connection: Connection) -> int:
    return doubt(connection, subjects, why)


async def _write(url: str, tables: Tables, work: Callable[[Connection], T]) -> T:
    """Bring a restored database up to date, and write into it, in one transaction."""
    database = await open_database(
        url, tables, name="saga restore", patience_seconds=PATIENCE_SECONDS
    )
    try:
        return await database.transaction(work)
    finally:
        await database.close()
