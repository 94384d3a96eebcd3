"""Notes in a data folder about a restore.

Until it has come to its end, no service may find an empty database beside older ones. Then the
broker is to be given what the databases say is owed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

RESTORING: Final = "restoring"
"""The note's name; it says which backup."""
RESTORED: Final = "restored"
"""What it is called afterwards."""


def is_being_restored(folder: Path) -> bool:
    """Whether a restore into the folder has not come to its end."""
    return (folder / RESTORING).exists()


def end_restore(folder: Path) -> None:
    """Note that everything is there. Raises `OSError`."""
    (folder / RESTORING).replace(folder / RESTORED)


def was_restored(folder: Path) -> bool:
    """Whether a broker has still to be given what the restored databases say is owed."""
    return (folder / RESTORED).exists()


def forget_restore(folder: Path) -> None:
    """Note that it was. Raises `OSError`."""
    (folder / RESTORED).unlink(missing_ok=True)
