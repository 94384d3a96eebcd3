"""Whether a backup is what was written, and whether its databases can be read."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from pathlib import Path
from typing import Final
from urllib.parse import quote

from saga.backup import BackupError, programs
from saga.backup.manifest import Copied, Manifest, Progress, digest_of

_FINE: Final = "ok"


async def check(folder: Path, progress: Progress = lambda _: None) -> Manifest:
    """Read every copy: its size, its checksum and its own integrity. Changes nothing.

    Raises `BackupError` for the first damage, and `PostgresError`.
    """
    manifest = Manifest.load(folder)
    for _, copied in manifest.copies:
        file = folder / copied.file
        await asyncio.to_thread(_compare, file, copied, progress)
        if copied.kind == "sqlite":
            await asyncio.to_thread(_check_sqlite, file)
        else:
            await programs.look_through(file)
    return manifest


def _compare(file: Path, copied: Copied, progress: Progress) -> None:
    try:
        size = file.stat().st_size
        digest = digest_of(file, progress) if size == copied.bytes else ""
    except FileNotFoundError:
        raise BackupError(f"the backup is damaged: {file} is missing; use another backup") from None
    except OSError as error:
        raise BackupError(f"cannot read {file}: {error.strerror or error}") from error
    if size != copied.bytes:
        raise BackupError(
            f"the backup is damaged: {file} has {size} bytes, not {copied.bytes}; use another "
            f"backup"
        )
    if digest != copied.sha256:
        raise BackupError(
            f"the backup is damaged: {file} has another checksum than it was written with; use "
            f"another backup"
        )


def _check_sqlite(file: Path) -> None:
    # Immutable: nothing is made beside it, and nothing in it changed.
    address = f"file:{quote(str(file.absolute()))}?mode=ro&immutable=1"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True)) as connection:
            (verdict,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
    except sqlite3.Error as error:
        verdict = str(error)
    if verdict != _FINE:
        raise BackupError(f"the backup is damaged: {file} is no whole database: {verdict}")
