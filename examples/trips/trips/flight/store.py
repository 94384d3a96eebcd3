"""Where seats are kept."""

from __future__ import annotations

import sqlalchemy as sa
from saga import Json, Phase, StateTable, Tables, Utc, Word, due_columns

from trips.flight.domain import HoldSeat, Seat

_metadata = sa.MetaData()
seats = sa.Table(
    "seats",
    _metadata,
    sa.Column("trip", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("phase", Word(Phase), nullable=False),
    sa.Column("ticket", Word(Phase), nullable=False),
    sa.Column("until", Utc),
    sa.Column("asking", Json(HoldSeat | None), nullable=False),
    *due_columns("seats"),
)
TABLES = Tables(_metadata, StateTable(Seat, seats))
