"""Which tables and columns no migration adds, told from the code alone: a service with such tables
does not start."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Final

from saga.archive import OBSERVER
from saga.choreography import Choreography, Participant
from saga.discovery import schema_in
from saga.graph.check import Finding
from saga.runtime.kernel.database import MigrationError
from saga.runtime.kernel.migrations import not_added
from saga.runtime.kernel.tables import Schema

MIGRATION: Final = "migration"
"""The rule that each column of a service's tables is added by a script in its migrations."""


def missing_migrations(choreography: Choreography) -> list[Finding]:
    """What a service's tables have and its migrations do not, by service. The scripts are run on
    an empty database in memory. Raises `SagaError` where the tables cannot be loaded."""
    return [*_missing(choreography)]


def _missing(choreography: Choreography) -> Iterator[Finding]:
    for service in choreography.own_services:
        package = service.package
        if find_spec(f"{package}.store") is None:
            continue  # It is not so far that it keeps anything: signatures are checked before.
        schema = _schema_of(package, service.name, choreography)
        if schema.migrations is not None and not any(schema.migrations.glob("v*.py")):
            yield _found(package, "its migrations have no script; run `saga generate`")
            continue
        try:
            lacking = not_added(schema)
        except MigrationError as error:
            yield _found(package, str(error))
            continue
        way_out = (
            f"write one with `saga migration {service.name} 'what changes'`"
            if isinstance(service, Participant)
            else f"write one in {schema.migrations}"
        )
        for what in lacking:
            yield _found(package, f"{what}, and no script in its migrations adds it; {way_out}")


def _found(package: str, said: str) -> Finding:
    return Finding(MIGRATION, None, f"{package}.store", said)


def _schema_of(package: str, service: str, choreography: Choreography) -> Schema:
    if service != OBSERVER.name:
        return schema_in(package)
    from saga.archive.store import schema_of  # FastAPI comes with a view's routes.
    from saga.archive.views import projection_of

    return schema_of(projection_of(choreography))
