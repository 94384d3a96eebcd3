"""Where the desk keeps what it knows."""

from __future__ import annotations

import sqlalchemy as sa

from saga.runtime.kernel.tables import StateTable, Tables, Word
from tests.errands import Errand, Stage

_metadata = sa.MetaData()
_table = sa.Table(
    "errands",
    _metadata,
    sa.Column("key", sa.String(36), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("stage", Word(Stage), nullable=False),
)

TABLES = Tables(_metadata, StateTable(Errand, _table))
