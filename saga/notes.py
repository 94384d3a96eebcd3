"""Notes in a data folder of unfinished work, for the next command there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

RESTORING: Final = "restoring"
"""A restore into the folder is under way; says of which backup."""
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
