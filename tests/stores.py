"""The tables of every participant there is, by its name."""

from __future__ import annotations

import importlib
from typing import Final

from common.kernel.tables import Tables
from saga.discovery import participants

TABLES: Final[dict[str, Tables]] = {
    participant.name: importlib.import_module(f"{package}.store").TABLES
    for package, participant in participants().items()
}
