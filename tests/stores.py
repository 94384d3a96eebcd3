"""The tables of every participant there is, by its name; and what their events are folded into."""

from __future__ import annotations

import importlib
from typing import Final

from saga.archive.store import schema_of
from saga.archive.views import projection_of
from saga.discovery import choreography, participants
from saga.runtime.kernel.tables import Tables

TABLES: Final[dict[str, Tables]] = {
    participant.name: importlib.import_module(f"{package}.store").TABLES
    for package, participant in participants().items()
}

GRAPH: Final = choreography()
PROJECTION: Final = projection_of(GRAPH)

HISTORY: Final = schema_of(PROJECTION)
"""The tables of the archive, those of the view of orders among them."""
