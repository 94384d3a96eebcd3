"""Where crews are kept."""

from __future__ import annotations

import sqlalchemy as sa

from saga.asking import Phase
from saga.runtime.kernel.tables import StateTable, Tables, Word
from tests.moving.crew.domain import Crew
from tests.moving.language import Size

_metadata = sa.MetaData()
crews = sa.Table(
    "crews",
    _metadata,
    sa.Column("move", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("phase", Word(Phase), nullable=False),
    sa.Column("size", Word(Size)),
)
TABLES = Tables(_metadata, StateTable(Crew, crews))
