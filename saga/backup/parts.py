"""Which databases a system has, and what of each a backup notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive import queries
from saga.archive.store import LastRead, events
from saga.discovery import schema_in, services
from saga.runtime.kernel.migrations import known_revisions, revision_of
from saga.runtime.kernel.tables import Schema, Tables

DEAD_LETTERS: Final = "dead_letters"
"""The operator's store, by the name that it has in a backup."""
OUTSIDE: Final = "outside"
"""The folder of a backup with the outsides' books, and how their names there begin."""


@dataclass(frozen=True, slots=True)
class DatabasePosition:
    """Where a database stands."""

    revision: str | None
    """The last script that made its tables."""
    events: int
    """How many events its service has published, or keeps."""
    place: LastRead | None
    """How far the history's stream was read, if it is the history's."""


@dataclass(frozen=True)
class Part:
    """One service's database."""

    name: str
    schema: Schema

    @property
    def taken_in(self) -> sa.Table:
        """The table that says which messages were taken: each transaction that takes one writes
        there."""
        return self.schema.inbox if isinstance(self.schema, Tables) else events

    @cached_property
    def revisions(self) -> frozenset[str]:
        """The scripts that this version of the program knows."""
        return known_revisions(self.schema)

    def standing(self, connection: Connection) -> DatabasePosition:
        """Where it stands, in the connection's transaction."""
        revision = revision_of(connection)
        if not isinstance(self.schema, Tables):
            last = connection.scalar(sa.select(sa.func.max(events.c.position)))
            return DatabasePosition(revision, last or 0, queries.place(connection))
        published = 0
        for state in self.schema.states.values():
            column = state.table.c.sequence
            published += int(connection.scalar(sa.select(sa.func.sum(column))) or 0)
        return DatabasePosition(revision, published, None)


def parts() -> Mapping[str, Part]:
    """The database of each service there is, by its name. Raises `SagaError`."""
    found: dict[str, Part] = {}
    for package, service in services().items():
        found[service.name] = Part(service.name, schema_in(package))
    return found
