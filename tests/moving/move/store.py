"""Where moves are kept."""

from __future__ import annotations

import sqlalchemy as sa

from saga.runtime.kernel.tables import StateTable, Tables, Utc, Word, due_columns
from tests.moving.language import Size
from tests.moving.move.domain import Move, Stage

_metadata = sa.MetaData()
moves = sa.Table(
    "moves",
    _metadata,
    sa.Column("move", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("stage", Word(Stage), nullable=False),
    sa.Column("size", Word(Size), nullable=False),
    sa.Column("deadline", Utc),
    *due_columns("moves"),
)
TABLES = Tables(_metadata, StateTable(Move, moves))
