"""Many rows in one statement, the way each database does it best.

On PostgreSQL the rows go as one array for each column. The statement's text is then the same for
any number of rows, so it is prepared once; and its count of rows is that of all of them, which a
driver's "many executions" of a statement would not give.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

OLD_VERSION = "old_version"

_ARRAYS: Mapping[type[sa.types.TypeEngine[Any]], type[sa.types.TypeEngine[Any]]] = {
    # The widest of each family: what does not fit a column is refused, not cut off by a cast.
    sa.String: sa.Text,
    sa.Integer: sa.BigInteger,
    sa.LargeBinary: sa.LargeBinary,
}

Row = Mapping[str, Any]


def on_postgresql(connection: Connection) -> bool:
    """Whether this is a connection to PostgreSQL; else it is one to SQLite."""
    return connection.dialect.name == "postgresql"


def any_of(
    connection: Connection, column: sa.ColumnElement[str], keys: Collection[str]
) -> sa.ColumnElement[bool]:
    """The condition that a text column has one of these values."""
    if on_postgresql(connection):
        values = sa.literal(list(keys), postgresql.ARRAY(sa.Text))
        return column == sa.any_(values)
    return column.in_(keys)


def clock_microseconds(
    connection: Connection, clock: Callable[[], datetime]
) -> sa.ColumnElement[int]:
    """The database's clock, in microseconds since 1970, whenever a statement with it is executed.
    SQLite has none but ours: `clock`."""
    if on_postgresql(connection):
        seconds = sa.extract("epoch", sa.func.clock_timestamp())
        return sa.cast(seconds * 1_000_000, sa.BigInteger)
    return sa.bindparam(
        None, callable_=lambda: int(clock().timestamp() * 1_000_000), type_=sa.BigInteger
    )


class ByKeys:
    """A statement about the rows of which a text column has one of many values.

    Built once for each kind of database, by `build`, which is given the condition: building a
    statement takes thrice as long as executing it.
    """

    def __init__(
        self,
        column: sa.ColumnElement[str],
        build: Callable[[sa.ColumnElement[bool]], sa.Executable],
    ) -> None:
        self._column = column
        self._build = build

    def execute(
        self, connection: Connection, keys: Collection[str]
    ) -> sa.CursorResult[*tuple[Any, ...]]:
        """Execute it with these values."""
        statement = self._on_arrays if on_postgresql(connection) else self._on_lists
        return connection.execute(statement, {"keys": list(keys)})

    @cached_property
    def _on_arrays(self) -> sa.Executable:
        keys = sa.bindparam("keys", type_=postgresql.ARRAY(sa.Text))
        return self._build(self._column == sa.any_(keys))

    @cached_property
    def _on_lists(self) -> sa.Executable:
        return self._build(self._column.in_(sa.bindparam("keys", expanding=True)))


class Writes:
    """Inserts into one table, and updates of it by key and version, many rows at once.

    A row is a mapping by column name, and has all of `columns`; by default that is the table's.
    """

    def __init__(self, table: sa.Table, columns: Iterable[str] | None = None) -> None:
        (self._key,) = table.primary_key.columns
        self._table = table
        self._columns = [table.c[name] for name in columns or table.columns.keys()]

    def insert(self, connection: Connection, rows: Sequence[Row]) -> int:
        """Insert rows in their order, but none whose key there is already; return how many.

        Whoever is about to commit such a key is waited for.
        """
        if on_postgresql(connection):
            arrays = self._arrays(connection, rows)
            return connection.execute(self._insert_arrays, arrays).rowcount
        return connection.execute(self._insert_each, [dict(row) for row in rows]).rowcount

    def update(self, connection: Connection, rows: Sequence[Row]) -> int:
        """Set all columns, where key and version are the row's key and `OLD_VERSION`; return how
        many rows that were."""
        if on_postgresql(connection):
            arrays = self._arrays(connection, rows)
            arrays[f"all_{OLD_VERSION}"] = [row[OLD_VERSION] for row in rows]
            return connection.execute(self._update_arrays, arrays).rowcount
        each = [dict(row) | {"old_key": row[self._key.name]} for row in rows]
        return connection.execute(self._update_each, each).rowcount

    @cached_property
    def _insert_each(self) -> sa.Executable:
        insert = sqlite.insert(self._table).on_conflict_do_nothing(index_elements=[self._key])
        return insert.execution_options(preserve_rowcount=True)

    @cached_property
    def _update_each(self) -> sa.Executable:
        changed = [column for column in self._columns if column is not self._key]
        return (
            self._table.update()
            .where(
                self._key == sa.bindparam("old_key"),
                self._table.c.version == sa.bindparam(OLD_VERSION),
            )
            .values({column.name: sa.bindparam(column.name) for column in changed})
        )

    @cached_property
    def _insert_arrays(self) -> sa.Executable:
        rows = _unnested({column.name: _element_type(column) for column in self._columns})
        return (
            postgresql.insert(self._table)
            .from_select([column.name for column in self._columns], sa.select(rows))
            .on_conflict_do_nothing(index_elements=[self._key])
            .execution_options(preserve_rowcount=True)
        )

    @cached_property
    def _update_arrays(self) -> sa.Executable:
        kinds = {column.name: _element_type(column) for column in self._columns}
        rows = _unnested({**kinds, OLD_VERSION: sa.BigInteger})
        changed = [column for column in self._columns if column is not self._key]
        return (
            self._table.update()
            .where(
                self._key == rows.c[self._key.name],
                self._table.c.version == rows.c[OLD_VERSION],
            )
            .values({column.name: rows.c[column.name] for column in changed})
        )

    def _arrays(self, connection: Connection, rows: Sequence[Row]) -> dict[str, list[Any]]:
        arrays: dict[str, list[Any]] = {}
        for column in self._columns:
            process: Callable[[Any], Any] | None = None
            if isinstance(column.type, sa.types.TypeDecorator):
                process = column.type.dialect_impl(connection.dialect).bind_processor(
                    connection.dialect
                )
            values = [row[column.name] for row in rows]
            arrays[f"all_{column.name}"] = values if process is None else [*map(process, values)]
        return arrays


def _unnested(kinds: Mapping[str, type[sa.types.TypeEngine[Any]]]) -> sa.FromClause:
    arrays = (
        sa.bindparam(f"all_{name}", type_=postgresql.ARRAY(kind)) for name, kind in kinds.items()
    )
    columns = (sa.column(name, kind) for name, kind in kinds.items())
    return sa.func.unnest(*arrays).table_valued(*columns, name="rows").render_derived()


def _element_type(column: sa.Column[Any]) -> type[sa.types.TypeEngine[Any]]:
    kind = column.type
    stored = kind.impl_instance if isinstance(kind, sa.types.TypeDecorator) else kind
    for family, widest in _ARRAYS.items():
        if isinstance(stored, family):
            return widest
    raise TypeError(
        f"the column {column} is stored as {stored!r}; states can be kept as text, integers and "
        f"bytes"
    )
