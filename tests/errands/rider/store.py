"""Where the rider keeps what it knows."""

from __future__ import annotations

import sqlalchemy as sa

from saga.runtime.kernel.tables import StateTable, Tables
from tests.errands import Ride

_metadata = sa.MetaData()
_table = sa.Table(
    "rides",
    _metadata,
    sa.Column("key", sa.String(36), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("rides", sa.Integer, nullable=False),
    sa.Column("refusals", sa.Integer, nullable=False),
)

TABLES = Tables(_metadata, StateTable(Ride, _table))
