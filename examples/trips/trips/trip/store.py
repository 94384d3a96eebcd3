"""Where trips are kept: a column for each field of the state."""

from __future__ import annotations

import sqlalchemy as sa
from saga import StateTable, Tables, Utc, Word, due_columns

from trips.trip.domain import Stage, Trip

_metadata = sa.MetaData()
trips = sa.Table(
    "trips",
    _metadata,
    sa.Column("trip", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("stage", Word(Stage), nullable=False),
    sa.Column("cents", sa.Integer, nullable=False),
    sa.Column("car", sa.Text, nullable=False),
    sa.Column("car_cents", sa.Integer, nullable=False),
    sa.Column("deadline", Utc),
    *due_columns("trips"),
)
TRIPS = StateTable(Trip, trips)
TABLES = Tables(_metadata, TRIPS)
