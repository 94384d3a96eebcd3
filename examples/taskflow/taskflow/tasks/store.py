"""Where tasks are kept."""

from __future__ import annotations

from saga import Tables

from taskflow.tasks.domain import Task

TABLES = Tables.of(__file__, tasks=Task)
