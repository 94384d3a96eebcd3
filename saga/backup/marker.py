"""A note in a data folder that its databases are being restored: until all are there, no service
may find an empty one beside older ones."""

from __future__ import annotations

from pathlib import Path
from typing import Final

RESTORING: Final = "restoring"
"""The note's name; it says which backup."""


def is_being_restored(folder: Path) -> bool:
    """Whether a restore into the folder has not come to its end."""
    return (folder / RESTORING).exists()
