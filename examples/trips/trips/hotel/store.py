"""Where rooms are kept."""

from __future__ import annotations

import sqlalchemy as sa
from saga import Json, Phase, StateTable, Tables, Word

from trips.hotel.domain import BookRoom, Room

_metadata = sa.MetaData()
rooms = sa.Table(
    "rooms",
    _metadata,
    sa.Column("trip", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("phase", Word(Phase), nullable=False),
    sa.Column("asking", Json(BookRoom | None), nullable=False),
)
TABLES = Tables(_metadata, StateTable(Room, rooms))
