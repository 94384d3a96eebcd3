"""The tables of every participant there is, by its name; and what their events are folded into."""

from __future__ import annotations

import importlib
from typing import Final

from common.kernel.tables import Tables
from history_service.views import projection_of
from saga.discovery import choreography, participants

TABLES: Final[dict[str, Tables]] = {
    participant.name: importlib.import_module(f"{package}.store").TABLES
    for package, participant in participants().items()
}

GRAPH: Final = choreography()
PROJECTION: Final = projection_of(GRAPH)
