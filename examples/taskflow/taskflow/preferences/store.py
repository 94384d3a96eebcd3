"""Where preferences are kept."""

from __future__ import annotations

from saga import Tables

from taskflow.preferences.domain import Preferences

TABLES = Tables.of(__file__, preferences=Preferences)
