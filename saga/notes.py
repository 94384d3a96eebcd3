"""Notes in a data folder for the next command there: of unfinished work, and of what a broker knew
that may be lost."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from saga.choreography import PARTITIONS_MAX
from saga.discovery import declared_partitions
from saga.runtime.files import write_whole

RESTORING: Final = "restoring"
"""A restore into the folder is under way; says of which backup."""
_PARTITIONS: Final = "partitions"
"""How many partitions the queues have had: the broker knows, for as long as it is there."""
_OWED: Final = "owed"
"""The broker has still to be given what the books say is owed; says why."""


def is_being_restored(folder: Path) -> bool:
    """Whether a restore has not come to its end: no service may find an empty database then."""
    return (folder / RESTORING).exists()


def end_restore(folder: Path) -> None:
    """Note that everything is there, and that a broker does not know of it. Raises `OSError`."""
    note_owed(folder, "a backup was restored")
    (folder / RESTORING).unlink()


def note_owed(folder: Path, why: str) -> None:
    """Note that the broker is to be given what is owed, before it loses anything; an older note
    stays. Raises `OSError`."""
    try:
        with (folder / _OWED).open("x", encoding="utf-8") as note:
            note.write(f"{why}\n")
            note.flush()
            os.fsync(note.fileno())
    except FileExistsError:
        pass


def owed(folder: Path) -> str:
    """Why the broker has still to be given what is owed; empty if it has not."""
    try:
        return (folder / _OWED).read_text(encoding="utf-8", errors="replace").strip() or "unknown"
    except FileNotFoundError:
        return ""


def forget_owed(folder: Path) -> None:
    """Note that it was given all of it. Raises `OSError`."""
    (folder / _OWED).unlink(missing_ok=True)


def note_partitions(folder: Path, number: int) -> None:
    """Note how many partitions the broker's queues have, where `folder` is there. Raises
    `OSError`."""
    if folder.is_dir() and number != noted_partitions(folder):
        write_whole(folder / _PARTITIONS, f"{number}\n")


def known_partitions(folder: Path) -> int | None:
    """How many partitions the queues have at least, whatever a broker has lost: as was noted, or
    as the project says where that is more; None where neither tells. Raises `SagaError`."""
    known = [number for number in (noted_partitions(folder), declared_partitions()) if number]
    return max(known, default=None)


def noted_partitions(folder: Path) -> int | None:
    """How many partitions the broker's queues had when it was last noted; None if it was not."""
    try:
        number = int((folder / _PARTITIONS).read_text(encoding="ascii"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    return number if 1 <= number <= PARTITIONS_MAX else None
