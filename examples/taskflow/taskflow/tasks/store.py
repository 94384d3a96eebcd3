"""Where tasks are kept."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from saga import StateTable, Tables, Word

from taskflow.tasks.domain import Stage, Task

_metadata = sa.MetaData()
tasks = sa.Table(
    "tasks",
    _metadata,
    sa.Column("task", sa.String(255), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("stage", Word(Stage), nullable=False),
    sa.Column("user", sa.String(255)),
)
TABLES = Tables(
    _metadata, StateTable(Task, tasks), migrations=Path(__file__).with_name("migrations")
)
