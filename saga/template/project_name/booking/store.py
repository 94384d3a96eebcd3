"""Where stays are kept: a column for each field of the state."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from saga import StateTable, Tables, Utc, Word, due_columns

from project_name.booking.domain import Stage, Stay

_metadata = sa.MetaData()
stays = sa.Table(
    "stays",
    _metadata,
    sa.Column("stay", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("stage", Word(Stage), nullable=False),
    sa.Column("deadline", Utc),
    *due_columns("stays"),
)
STAYS = StateTable(Stay, stays)
TABLES = Tables(_metadata, STAYS, migrations=Path(__file__).with_name("migrations"))
