"""Where bills are kept."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from saga import Flag, Phase, StateTable, Tables, Utc, Word, due_columns

from taskflow.billing.domain import Bill

_metadata = sa.MetaData()
bills = sa.Table(
    "bills",
    _metadata,
    sa.Column("task", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("phase", Word(Phase), nullable=False),
    sa.Column("until", Utc),
    sa.Column("given_up", Flag, nullable=False),
    *due_columns("bills"),
)
TABLES = Tables(
    _metadata, StateTable(Bill, bills), migrations=Path(__file__).with_name("migrations")
)
