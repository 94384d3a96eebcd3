"""Bringing a service's tables up to date: one line of scripts per service, run by Alembic.

A service migrates its database when it starts, before it does anything else, in one transaction
that the opener of the database makes exclusive. A script may only add to what the version before
it needs, as replicas of both versions run while a new one is rolled out.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

import sqlalchemy as sa
from alembic.autogenerate import compare_metadata, produce_migrations, render_python_code
from alembic.config import Config
from alembic.operations.ops import AddColumnOp, ModifyTableOps, UpgradeOps
from alembic.runtime.environment import EnvironmentContext
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy.engine import Connection

from saga.runtime.files import write_public
from saga.runtime.kernel.database import MigrationError
from saga.runtime.kernel.tables import OF_METRICS, Schema, Tables

KERNELS: Final = frozenset(
    {"inbox", "outbox", "outbox_kept", "outbox_leases", "due_audit", OF_METRICS}
)
"""The tables that any participant may have."""


def prepare(connection: Connection, schema: Schema) -> None:
    """Create or change the tables in the connection's transaction, if they are not up to date.

    Raises `MigrationError`, also where no script makes what the code reads and writes.
    """
    _run_scripts(connection, schema)
    for what in _lacking(connection, schema):
        raise MigrationError(
            f"{what}, and no script in its migrations adds it; write one with `saga migration`"
        )


def not_added(schema: Schema) -> list[str]:
    """What `prepare` would refuse a new database for, a table with its columns at a time: what no
    script adds of what the code reads and writes. Raises `MigrationError` where the scripts cannot
    be run."""
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        _run_scripts(connection, schema)
        return [*_lacking(connection, schema)]


def _lacking(connection: Connection, schema: Schema) -> Iterator[str]:
    there = sa.inspect(connection)
    for each in (schema, *schema.parts):
        for table in each.metadata.tables.values():
            if table.name == OF_METRICS:
                continue
            found = there.has_table(table.name) and there.get_columns(table.name)
            if not found:
                yield f"there is no table {table.name}"
            elif lacking := set(table.columns.keys()) - {column["name"] for column in found}:
                columns = ", ".join(sorted(lacking))
                yield f"its table {table.name} has no column {columns}"


def _run_scripts(connection: Connection, schema: Schema) -> None:
    for each in (schema, *schema.parts):
        if each.migrations is None:
            each.metadata.create_all(connection)
        else:
            _migrate(connection, each, each.migrations, part=each is not schema)


def _migrate(
    connection: Connection, schema: Schema, migrations: Path, *, part: bool = False
) -> None:
    script = _scripts(migrations)
    known = {revision.revision for revision in script.walk_revisions()}
    found = _revisions(connection, schema)
    if not part:
        _check_whose(connection, schema, found)
    if unknown := set(found) - known:
        raise MigrationError(
            f"its tables are of a newer version ({', '.join(sorted(unknown))}); run that version"
        )
    with EnvironmentContext(
        Config(), script, fn=lambda revision, _: script._upgrade_revs("head", revision)
    ) as environment:
        environment.configure(
            connection=connection,
            target_metadata=schema.metadata,
            transactional_ddl=True,
            version_table=schema.version_table,
        )
        try:
            with environment.begin_transaction():
                environment.run_migrations()
        except CommandError as error:
            raise MigrationError(str(error)) from error


def _check_whose(connection: Connection, schema: Schema, found: Sequence[str]) -> None:
    there = set(sa.inspect(connection).get_table_names())
    own = schema.metadata.tables.keys() - KERNELS
    if found and own and not there & own:
        # Before its scripts change anything.
        others = ", ".join(sorted(there - KERNELS - {"alembic_version"}))
        raise MigrationError(
            f"that is another service's database, with the tables {others}; name one of its own"
        )
    if not found and there & schema.metadata.tables.keys():
        raise MigrationError(
            "its tables were made by a version before the first release and cannot be migrated; "
            "remove it, or name another"
        )


def revision_of(connection: Connection) -> str | None:
    """The last script that was run on a database; None if none was."""
    return max(MigrationContext.configure(connection).get_current_heads(), default=None)


def _revisions(connection: Connection, schema: Schema) -> Sequence[str]:
    context = MigrationContext.configure(connection, opts={"version_table": schema.version_table})
    return context.get_current_heads()


def _folder_of(schema: Schema) -> Path:
    if schema.migrations is None:
        raise MigrationError("these tables have no folder for migrations")
    return schema.migrations


def known_revisions(schema: Schema) -> frozenset[str]:
    """The scripts that this version has. Raises `MigrationError`."""
    if schema.migrations is None:
        return frozenset()
    walk = _scripts(schema.migrations).walk_revisions()
    return frozenset(revision.revision for revision in walk)


def widen_text(connection: Connection, table: str, column: str, characters: int) -> None:
    """Let a column of texts hold longer ones. For scripts; no row is written again.

    SQLite heeds no length and has no statement for it, but says what a table was made with: so the
    text of that is changed, in the way its documentation of ALTER TABLE describes.
    """
    if connection.dialect.name != "sqlite":
        wide = sa.String(characters).compile(dialect=connection.dialect)
        connection.exec_driver_sql(f'ALTER TABLE "{table}" ALTER COLUMN "{column}" TYPE {wide}')
        return
    made = {"name": table}
    query = sa.text("SELECT sql FROM sqlite_master WHERE type = 'table' AND name = :name")
    before = connection.execute(query, made).scalar_one()
    pattern = re.compile(rf"(?P<column>\b{column}\b\"? VARCHAR)\(\d+\)")
    after, found = pattern.subn(rf"\g<column>({characters})", before)
    if found != 1:
        raise MigrationError(f"{table}.{column} is no column of texts with a length")
    if after == before:
        return
    version = connection.exec_driver_sql("PRAGMA schema_version").scalar_one()
    connection.exec_driver_sql("PRAGMA writable_schema = ON")
    connection.execute(
        sa.text("UPDATE sqlite_master SET sql = :sql WHERE type = 'table' AND name = :name"),
        {**made, "sql": after},
    )
    connection.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    connection.exec_driver_sql("PRAGMA writable_schema = OFF")


def differences(connection: Connection, schema: Schema) -> list[Any]:
    """What the database has otherwise than `schema` describes it; empty when it is up to date."""
    return list(compare_metadata(_comparing(connection, schema), _all_of(schema)))


def _comparing(connection: Connection, schema: Schema) -> MigrationContext:
    """A context in which tables are compared, but for those that say which scripts were run, and
    what only measures."""
    beside = {part.version_table for part in schema.parts} | {OF_METRICS}
    opts = {
        "compare_type": True,
        "version_table": schema.version_table,
        "include_name": lambda name, kind, _: kind != "table" or name not in beside,
    }
    return MigrationContext.configure(connection, opts=opts)


def _all_of(schema: Schema) -> sa.MetaData:
    metadata = sa.MetaData()
    for each in (schema, *schema.parts):
        for table in each.metadata.sorted_tables:
            table.to_metadata(metadata)
    return metadata


def write_script(schema: Schema, message: str) -> Path | None:
    """Write the next script: what leads from the last one to `schema`, to be read and corrected;
    Alembic overlooks check constraints, for one.

    Returns where it is, or None if there is nothing to do. Raises `MigrationError`.
    """
    folder = _folder_of(schema)
    last = _scripts(folder).get_current_head()
    engine = sa.create_engine("sqlite://")
    with engine.begin() as connection:
        _run_scripts(connection, schema)
        context = _comparing(connection, schema)
        operations = produce_migrations(context, schema.metadata).upgrade_ops
        _fill_rows(operations, schema, connection.dialect)
    if operations is None or operations.is_empty():
        return None
    number = int(last or 0) + 1
    code = render_python_code(operations, render_item=_render_item).splitlines()
    own = "\n".join(line for line in code if not line.lstrip().startswith("#"))
    body = textwrap.indent(textwrap.dedent(own), "    ").strip()
    path = folder / f"{script_name(number, message)}.py"
    script = _TEMPLATE.format(message=message, number=f"{number:04}", last=last, body=body)
    write_public(path, script)
    return path


def _fill_rows(operations: UpgradeOps | None, schema: Schema, dialect: sa.Dialect) -> None:
    """Give each new column that takes no NULL a default: that of the state's field. Without one, no
    database adds it to a table with rows, and a replica of the version before could add no row."""
    fields = {
        state.table.name: state.kind("")
        for state in (schema.states.values() if isinstance(schema, Tables) else ())
    }
    for table in operations.ops if operations else ():
        for each in table.ops if isinstance(table, ModifyTableOps) else ():
            if not isinstance(each, AddColumnOp):
                continue
            column, new = each.column, fields.get(each.table_name)
            if column.nullable or column.server_default is not None:
                continue
            value = getattr(new, column.name, None)
            if value is None:
                raise MigrationError(
                    f"{each.table_name}.{column.name} takes no NULL, and nothing says what is in "
                    f"it of rows that are there; make it nullable, or give it a `server_default`"
                )
            literal = sa.literal(value, column.type).compile(
                dialect=dialect, compile_kwargs={"literal_binds": True}
            )
            column.server_default = sa.DefaultClause(sa.text(str(literal)))


def script_name(number: int, message: str) -> str:
    """What the script of that number is called, as a module."""
    slug = re.sub(r"\W+", "_", message.lower()).strip("_")
    return f"v{number:04}_{slug}"


def _scripts(folder: Path) -> ScriptDirectory:
    if not folder.is_dir():
        raise MigrationError(f"the folder {folder} for the scripts is not there: make it")
    return ScriptDirectory(str(folder), version_locations=[str(folder)])


def _render_item(kind: str, item: Any, _: Any) -> str | Literal[False]:
    """Write a column's type as what it is in the database: a script outlives our classes."""
    if kind == "type" and isinstance(item, sa.types.TypeDecorator):
        return f"sa.{item.impl_instance!r}"
    return False


_TEMPLATE = '''"""{message}."""

import sqlalchemy as sa
from alembic import op

revision = "{number}"
down_revision = {last!r}


def upgrade() -> None:
    {body}
'''
