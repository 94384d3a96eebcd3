"""Where users are kept."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from saga import StateTable, Tables, Utc

from taskflow.users.domain import User

_metadata = sa.MetaData()
users = sa.Table(
    "users",
    _metadata,
    sa.Column("user_key", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("registered_at", Utc),
)
TABLES = Tables(
    _metadata, StateTable(User, users), migrations=Path(__file__).with_name("migrations")
)
