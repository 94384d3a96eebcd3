"""Where cars are kept."""

from __future__ import annotations

import sqlalchemy as sa
from saga import Json, Phase, StateTable, Tables, Word

from trips.car.domain import BookCar, Car

_metadata = sa.MetaData()
cars = sa.Table(
    "cars",
    _metadata,
    sa.Column("trip", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("phase", Word(Phase), nullable=False),
    sa.Column("asking", Json(BookCar | None), nullable=False),
)
TABLES = Tables(_metadata, StateTable(Car, cars))
