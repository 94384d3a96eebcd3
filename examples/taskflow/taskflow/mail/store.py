"""Where it is kept which mails were sent."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from saga import Phase, StateTable, Tables, Word

from taskflow.mail.domain import Notice, Welcome

_metadata = sa.MetaData()
welcomes = sa.Table(
    "welcomes",
    _metadata,
    sa.Column("user_key", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("phase", Word(Phase), nullable=False),
)
notices = sa.Table(
    "notices",
    _metadata,
    sa.Column("task", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("phase", Word(Phase), nullable=False),
)
TABLES = Tables(
    _metadata,
    StateTable(Welcome, welcomes),
    StateTable(Notice, notices),
    migrations=Path(__file__).with_name("migrations"),
)
