"""Bringing a service's tables up to date: one line of scripts per service, run by Alembic.

A service migrates its database when it starts, before it does anything else, in one transaction
that whoever opens the database makes exclusive. A script may only add to what the version before
it needs, as replicas of both versions run while a new one is rolled out.
"""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.engine import Connection

from common.kernel.tables import Tables


class MigrationError(Exception):
    """The tables cannot be brought up to date. The message says why, and the way out."""


def prepare(connection: Connection, tables: Tables) -> None:
    """Create or change the tables in the connection's transaction, if they are not up to date.

    Raises `MigrationError`.
    """
    if tables.migrations is None:
        tables.metadata.create_all(connection)
        return
    script = ScriptDirectory(str(tables.migrations), version_locations=[str(tables.migrations)])
    known = {revision.revision for revision in script.walk_revisions()}
    found = MigrationContext.configure(connection).get_current_heads()
    if unknown := set(found) - known:
        raise MigrationError(
            f"its tables are of a newer version ({', '.join(sorted(unknown))}); run that version"
        )
    if not found and sa.inspect(connection).has_table(tables.inbox.name):
        raise MigrationError(
            "its tables were made by a version before the first release and cannot be migrated; "
            "remove it, or name another"
        )
    with EnvironmentContext(
        Config(), script, fn=lambda revision, _: script._upgrade_revs("head", revision)
    ) as environment:
        environment.configure(
            connection=connection, target_metadata=tables.metadata, transactional_ddl=True
        )
        try:
            with environment.begin_transaction():
                environment.run_migrations()
        except CommandError as error:
            raise MigrationError(str(error)) from error


def differences(connection: Connection, tables: Tables) -> list[Any]:
    """What the database has otherwise than `tables` describes it; empty when it is up to date."""
    context = MigrationContext.configure(
        connection, opts={"compare_type": True, "compare_server_default": True}
    )
    return list(compare_metadata(context, tables.metadata))
