"""The index."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from saga import Flag, StateTable, Tables

from taskflow.search.domain import Entry

_metadata = sa.MetaData()
entries = sa.Table(
    "entries",
    _metadata,
    sa.Column("task", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("title", sa.String(255)),
    sa.Column("done", Flag, nullable=False),
    sa.Column("removed", Flag, nullable=False),
)
TABLES = Tables(
    _metadata, StateTable(Entry, entries), migrations=Path(__file__).with_name("migrations")
)
