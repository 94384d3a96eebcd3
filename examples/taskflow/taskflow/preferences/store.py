"""Where preferences are kept."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from saga import Flag, StateTable, Tables

from taskflow.preferences.domain import Preferences

_metadata = sa.MetaData()
preferences = sa.Table(
    "preferences",
    _metadata,
    sa.Column("user_key", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("digest", Flag),
)
TABLES = Tables(
    _metadata,
    StateTable(Preferences, preferences),
    migrations=Path(__file__).with_name("migrations"),
)
