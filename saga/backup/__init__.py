"""Copies of all databases of a system as of one moment, and a system made of them again."""

from __future__ import annotations

from saga.errors import Explained


class BackupError(Explained):
    """A backup that cannot be taken, used or restored. One line that names it and the way out."""
