"""Where rooms are kept."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from saga import Phase, StateTable, Tables, Word

from project_name.room.domain import Room

_metadata = sa.MetaData()
rooms = sa.Table(
    "rooms",
    _metadata,
    sa.Column("stay", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("phase", Word(Phase), nullable=False),
    sa.Column("nights", sa.Integer),
)
TABLES = Tables(
    _metadata, StateTable(Room, rooms), migrations=Path(__file__).with_name("migrations")
)
