"""Where parcels are kept."""

from __future__ import annotations

import sqlalchemy as sa

from saga.runtime.kernel.tables import StateTable, Tables, Utc, Word, due_columns
from tests.parcels import Parcel, Stage

_metadata = sa.MetaData()
parcels = sa.Table(
    "parcels",
    _metadata,
    sa.Column("parcel", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("stage", Word(Stage), nullable=False),
    sa.Column("deadline", Utc),
    *due_columns("parcels"),
)
TABLES = Tables(_metadata, StateTable(Parcel, parcels))
