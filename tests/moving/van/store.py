"""Where vans are kept."""

from __future__ import annotations

import sqlalchemy as sa

from saga.asking import Phase
from saga.runtime.kernel.tables import StateTable, Tables, Word
from tests.moving.language import Size
from tests.moving.van.domain import Van

_metadata = sa.MetaData()
vans = sa.Table(
    "vans",
    _metadata,
    sa.Column("move", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("phase", Word(Phase), nullable=False),
    sa.Column("size", Word(Size)),
    sa.Column("departures", sa.Integer, nullable=False),
)
TABLES = Tables(_metadata, StateTable(Van, vans))
