"""`saga backup`: copies of all databases of a system as of one moment, while it is at work."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from saga.backup import BackupError
from saga.backup.cut import DatabaseSnapshot, SqliteView, cut, view_of
from saga.backup.manifest import (
    MANIFEST,
    SUFFIXES,
    Copied,
    Manifest,
    Progress,
    StreamPlace,
    digest_of,
    sync,
)
from saga.backup.parts import DEAD_LETTERS, OUTSIDE, DatabasePosition, Part, parts
from saga.broker.setup import partitions_at
from saga.deployment import dead_letters_url_in
from saga.discovery import choreography
from saga.history.sources import Sources
from saga.notes import noted_partitions
from saga.runtime.kernel.sqlite import sqlite_file
from saga.runtime.messaging.connection import BrokerError
from saga.version import engine_version

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Whole:
    """All that is copied of a system."""

    database_urls: Mapping[str, str]
    """Keyed by service."""
    dead_letters_url: str
    outside_urls: Mapping[str, str]
    """Keyed by outside."""
    amqp_url: str = ""
    """The broker, where it is known: it says how many partitions its queues have."""
    noted_partitions: int | None = None
    """How many they had when it was last noted."""

    @classmethod
    def of(cls, folder: Path) -> Self:
        """Of the system that runs in `folder`, or that ran there on SQLite. Raises
        `DeploymentError` and `HistoryError`."""
        sources = Sources.of(folder)
        store = sources.deployment and sources.deployment.dead_letters_url
        return cls(
            sources.database_urls,
            store or dead_letters_url_in(folder),
            sources.outside_urls,
            sources.deployment.amqp_url if sources.deployment else "",
            noted_partitions(folder),
        )

    async def partitions(self) -> int | None:
        """How many each queue has that events are routed to: as the broker says, or as was noted
        where it is away or has lost them; None where neither tells."""
        if self.amqp_url:
            try:
                there = await partitions_at(self.amqp_url, choreography())
            except BrokerError as error:
                log.info("how the queues are divided is as it was noted: %s", error)
            else:
                return max(there, self.noted_partitions or 1)
        return self.noted_partitions


async def take(whole: Whole, folder: Path, progress: Progress = lambda _: None) -> Manifest:
    """Copy everything into `folder`, which has to be empty or not to be there. The manifest comes
    last; where the backup fails or is cancelled, nothing is left of it.

    Raises `BackupError`, `DatabaseError` and `PostgresError`.
    """
    made = _claim(folder)
    try:
        return await _take(whole, folder, progress)
    except BaseException as error:
        _clear(folder, made)
        if isinstance(error, OSError):
            raise BackupError(f"cannot write in {folder}: {error.strerror or error}") from error
        raise


async def _take(whole: Whole, folder: Path, progress: Progress) -> Manifest:
    known = parts()
    async with AsyncExitStack() as stack:
        views: dict[str, DatabaseSnapshot] = {}
        for name, url in whole.database_urls.items():
            part = _part(known, name)
            views[name] = await stack.enter_async_context(view_of(url, part.taken_in.name).opened())
        if sqlite_file(whole.dead_letters_url).is_file():
            store = SqliteView(whole.dead_letters_url)
            views[DEAD_LETTERS] = await stack.enter_async_context(store.opened())
        for name, url in whole.outside_urls.items():
            if sqlite_file(url).is_file():
                # Its books are not ours to lock, and are never behind those that asked it before.
                books = SqliteView(url, locked=False)
                views[f"{OUTSIDE}/{name}"] = await stack.enter_async_context(books.opened())
        made = await cut(views)
        copies: dict[str, Copied] = {}
        place: StreamPlace | None = None
        for name, view in views.items():
            standing = None
            if name in whole.database_urls:
                standing = await view.read(known[name].standing)
                place = place or _place(standing)
            copies[name] = await _copy(view, folder, name, standing, progress)
    manifest = Manifest(
        program=engine_version(),
        taken_at=made.taken_at,
        pause_seconds=round(made.pause_seconds, 6),
        databases={name: copies[name] for name in whole.database_urls},
        place=place,
        partitions=await whole.partitions(),
        dead_letters=copies.get(DEAD_LETTERS),
        outside={
            name: copied
            for name in whole.outside_urls
            if (copied := copies.get(f"{OUTSIDE}/{name}")) is not None
        },
    )
    manifest.save(folder)
    return manifest


def _part(known: Mapping[str, Part], name: str) -> Part:
    try:
        return known[name]
    except KeyError:
        raise BackupError(
            f"the system has a database of {name}, which is no service of this version: use the "
            f"version that the system runs"
        ) from None


def _place(standing: DatabasePosition) -> StreamPlace | None:
    place = standing.place
    if place is None:
        return None
    return StreamPlace(stream_number=place.stream_number, offset=place.offset, key=place.key)


async def _copy(
    view: DatabaseSnapshot,
    folder: Path,
    name: str,
    standing: DatabasePosition | None,
    progress: Progress,
) -> Copied:
    file = folder / f"{name}{SUFFIXES[view.kind]}"
    where = file.parent
    where.mkdir(mode=0o700, exist_ok=True)
    await view.copy(file, progress)
    sync(where)
    return Copied(
        kind=view.kind,
        file=file.relative_to(folder).as_posix(),
        bytes=file.stat().st_size,
        sha256=await asyncio.to_thread(digest_of, file),
        revision=standing.revision if standing else None,
        events=standing.events if standing else None,
    )


def _claim(folder: Path) -> bool:
    """Ensure an empty folder; returns whether it was made. Raises `BackupError`."""
    try:
        try:
            folder.mkdir(mode=0o700, parents=True)
        except FileExistsError:
            if any(folder.iterdir()):
                what = (
                    "has a backup already"
                    if (folder / MANIFEST).is_file()
                    else f"is not empty, and no whole backup without a {MANIFEST}"
                )
                raise BackupError(f"the folder {folder} {what}: name a new one") from None
            return False
    except OSError as error:
        raise BackupError(
            f"cannot write in {folder}: {error.strerror or error}; name another folder"
        ) from error
    return True


def _clear(folder: Path, made: bool) -> None:
    """Remove what a backup has left that failed."""
    if made:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for path in folder.iterdir():
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
