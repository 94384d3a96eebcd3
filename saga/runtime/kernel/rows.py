"""A table's rows, read and written many at once, below SQLAlchemy.

Every group of messages executes these statements. Through SQLAlchemy they took half of a small
group's time, and on PostgreSQL a round trip each; what a group writes is now one statement there.
A statement has the same text for any number of rows, or one of few, so that the driver need not
prepare it each time: on PostgreSQL the rows go as one array for each column.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final, Literal, TypeAlias

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection

from saga.runtime.kernel.statements import on_postgresql

OLD_VERSION: Final = "old_version"
"""In a row that is to be updated: the version that it must still have."""
FORMER_KEY: Final = "former_key"
"""In a row that is to be inserted: another key, under which there must be no row either."""

_ARRAYS: Final[Mapping[type[sa.types.TypeEngine[Any]], str]] = {
    # The widest of each family: what does not fit a column is refused, not cut off by a cast.
    sa.String: "text[]",
    sa.Integer: "bigint[]",
    sa.LargeBinary: "bytea[]",
}
_INTEGRITY: Final = "23"
"""How the codes of PostgreSQL's errors begin where a constraint does not allow a row."""
_CONFLICT: Final = re.compile(r"conflict (\d+)")
_NO_TEXT: Final = "Could not decode to UTF-8"
"""What Python's driver says of text in SQLite that is none, as if the database was out of order."""
_NO_NUMBER: Final = "22P02"
"""What a write set has PostgreSQL complain of, and the code of the complaint. The quotation marks
around it depend on the server's language."""

Row: TypeAlias = Mapping[str, Any]
_Process: TypeAlias = Callable[[Any], Any]
_Kind: TypeAlias = Literal["check", "remove", "add", "insert", "update"]


class Rows:
    """The rows of one table whose primary key is one column."""

    def __init__(
        self,
        table: sa.Table,
        columns: Iterable[str] | None = None,
        *,
        former_keys: bool = False,
    ) -> None:
        """A row that is read or written has these columns, by default all of the table's.

        With `former_keys`, a row that is inserted has a `FORMER_KEY` as well.
        """
        (key,) = table.primary_key.columns
        used = [table.c[name] for name in columns or table.columns.keys()]
        self.key = key.name
        self.sqlite = _OnSqlite(sqlite.dialect(), key, used, former_keys)
        postgresql_dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
        self.postgresql = _OnPostgresql(postgresql_dialect, key, used, former_keys)

    def find(
        self, connection: Connection, keys: Collection[str], *, lock: bool = False
    ) -> list[list[Any]]:
        """The rows that have one of these keys, a text.

        With `lock`, no other transaction can write them until this one ends: they are locked in the
        order of their keys, so that replicas cannot deadlock.
        """
        if on_postgresql(connection):
            text = self.postgresql.find_and_lock if lock else self.postgresql.find
            return self.postgresql.read(_ask_postgresql(connection, text, [list(keys)]))
        if not keys:
            return []
        # Some keys are asked for twice, so that there are few texts to prepare.
        places = 1 << (len(keys) - 1).bit_length()
        some = [*keys]
        some += some[-1:] * (places - len(some))
        text = f"{self.sqlite.find} ({', '.join('?' * places)})"
        try:
            found = _ask_sqlite(connection, text, some)
        except sa.exc.OperationalError as error:
            if _NO_TEXT in str(error.orig):
                which = some[0] if len(keys) == 1 else f"one of {len(keys)}"
                raise UnreadableRow(self.sqlite.table, which, error.orig or error) from error
            raise
        return self.sqlite.read(found)

    def insert(self, connection: Connection, rows: Sequence[Row]) -> int:
        """Insert rows in their order, but none whose key there is already; return how many.

        Waits for transactions that are about to commit such a key.
        """
        if on_postgresql(connection):
            text = self.postgresql.text("insert", 1)
            return len(_ask_postgresql(connection, text, self.postgresql.arrays("insert", rows)))
        values = self.sqlite.values("insert", rows)
        return _write_sqlite(connection, self.sqlite.texts["insert"], values)


class UnreadableRow(Exception):
    """A row holds what no version of this program writes there. Names it, and what is wrong."""

    def __init__(self, table: str, key: object, error: Exception) -> None:
        self.key = str(key)
        self.why = str(error).partition("\n")[0]
        super().__init__(f"the row {key!r} of the table {table} cannot be read: {self.why}")


class WriteSet:
    """Writes to several tables that are made together, or not at all, in no promised order.

    No row may be written twice. What is checked comes before what is written.
    """

    def __init__(self) -> None:
        self._writes: list[_Write] = []

    def check(self, of: Rows, versions: Mapping[str, int], conflict: Exception) -> None:
        """Where several processes may write: lock these rows, in the order of their keys and before
        what is written next. `conflict` is raised if one of them has another version by now."""
        if versions:
            rows = [{of.key: key, OLD_VERSION: version} for key, version in versions.items()]
            self._writes.append(_Write("check", of, rows, conflict))

    def insert(self, into: Rows, rows: Sequence[Row], conflict: Exception) -> None:
        """Insert rows. `conflict` is raised if one of their keys is there already."""
        if rows:
            self._writes.append(_Write("insert", into, rows, conflict))

    def add(self, to: Rows, rows: Sequence[Row]) -> None:
        """Insert rows, but none whose key is there already."""
        if rows:
            self._writes.append(_Write("add", to, rows, None))

    def update(self, of: Rows, rows: Sequence[Row], conflict: Exception) -> None:
        """Set all columns. `conflict` is raised if one of the rows has another version by now than
        its `OLD_VERSION`."""
        if rows:
            self._writes.append(_Write("update", of, rows, conflict))

    def remove(self, of: Rows, keys: Collection[str]) -> None:
        """Delete what there is of these rows."""
        if keys:
            self._writes.append(_Write("remove", of, [{of.key: key} for key in keys], None))

    def execute(self, connection: Connection) -> None:
        """Write it all. After a conflict, the caller's transaction must be rolled back.

        On PostgreSQL this is one statement, and does nothing at all if there is a conflict. So it
        may be the only one of its transaction.
        """
        if not self._writes:
            return
        if on_postgresql(connection):
            self._execute_at_once(connection)
            return
        if not _driver(connection).in_transaction:
            raise RuntimeError("several writes to SQLite need a transaction around them")
        for write in self._writes:
            # The transaction that is open is the only writer. (Several replicas on SQLite
            # there are in the simulation.)
            if write.kind == "check":
                continue
            values = write.rows.sqlite.values(write.kind, write.values)
            written = _write_sqlite(connection, write.rows.sqlite.texts[write.kind], values)
            if write.conflict is not None and written != len(values):
                raise write.conflict

    def _execute_at_once(self, connection: Connection) -> None:
        text = _all_of(tuple((write.kind, write.rows.postgresql) for write in self._writes))
        arguments: list[Any] = []
        for write in self._writes:
            arguments += write.rows.postgresql.arrays(write.kind, write.values)
        arguments += [len(write.values) for write in self._writes if write.conflict is not None]
        try:
            _ask_postgresql(connection, text, arguments)
        except sa.exc.StatementError as error:
            if getattr(error.orig, "sqlstate", None) == _NO_NUMBER:
                found = _CONFLICT.search(str(error.orig))
                conflict = self._writes[int(found[1])].conflict if found is not None else None
                if conflict is not None:
                    raise conflict from error
            raise


@contextmanager
def writing(connection: Connection) -> Iterator[WriteSet]:
    """A write set that is executed at the end, unless there is an error before."""
    writes = WriteSet()
    yield writes
    writes.execute(connection)


@dataclass(frozen=True, slots=True)
class _Write:
    kind: _Kind
    rows: Rows
    values: Sequence[Row]
    conflict: Exception | None


class _Columns:
    """A table's columns as one kind of database names and stores them."""

    def __init__(
        self,
        dialect: sa.Dialect,
        key: sa.Column[Any],
        columns: Sequence[sa.Column[Any]],
        former_keys: bool,
    ) -> None:
        self.quote = dialect.identifier_preparer.quote
        self.table = self.quote(key.table.name)
        self.key = self.quote(key.name)
        self.names = [self.quote(column.name) for column in columns]
        changed = [column.name for column in columns if column is not key]
        self.former_keys = former_keys
        self._in: dict[str, _Process | None] = {OLD_VERSION: None, FORMER_KEY: None}
        self._out: list[_Process | None] = []
        for column in columns:
            kind = column.type.dialect_impl(dialect)
            self._in[column.name] = kind.bind_processor(dialect)
            self._out.append(kind.result_processor(dialect, None))
        self.given: dict[_Kind, list[str]] = {
            "insert": [*(column.name for column in columns), *[FORMER_KEY] * former_keys],
            "add": [*(column.name for column in columns), *[FORMER_KEY] * former_keys],
            "update": [*changed, key.name, OLD_VERSION],
            "check": [key.name, OLD_VERSION],
            "remove": [key.name],
        }
        """What a row has for each kind of write, in the order of the statement's parameters."""

    def read(self, rows: Iterable[Sequence[Any]]) -> list[list[Any]]:
        """Rows as they are given to who asked. Raises `UnreadableRow`."""
        found = []
        for row in rows:
            try:
                found.append(
                    [
                        value if process is None else process(value)
                        for process, value in zip(self._out, row, strict=True)
                    ]
                )
            except (ValueError, TypeError, OverflowError) as error:
                key = row[self.names.index(self.key)]
                raise UnreadableRow(self.table, key, error) from error
        return found


class _OnSqlite(_Columns):
    def __init__(
        self,
        dialect: sa.Dialect,
        key: sa.Column[Any],
        columns: Sequence[sa.Column[Any]],
        former_keys: bool,
    ) -> None:
        super().__init__(dialect, key, columns, former_keys)
        names, places = ", ".join(self.names), ", ".join("?" for _ in self.names)
        changes = ", ".join(f"{name} = ?" for name in self.names if name != self.key)
        self.find = f"SELECT {names} FROM {self.table} WHERE {self.key} IN"
        values = f"VALUES ({places})"
        if former_keys:
            former = f"SELECT 1 FROM {self.table} WHERE {self.key} = ?"
            values = f"SELECT {places} WHERE NOT EXISTS ({former})"
        self.texts: dict[_Kind, str] = {
            "insert": (
                f"INSERT INTO {self.table} ({names}) {values} ON CONFLICT ({self.key}) DO NOTHING"
            ),
            "update": f"UPDATE {self.table} SET {changes} WHERE {self.key} = ? AND version = ?",
            "remove": f"DELETE FROM {self.table} WHERE {self.key} = ?",
        }
        self.texts["add"] = self.texts["insert"]
        self._processed: dict[_Kind, list[tuple[int, _Process]]] = {
            kind: [
                (place, process)
                for place, name in enumerate(given)
                if (process := self._in[name]) is not None
            ]
            for kind, given in self.given.items()
        }

    def values(self, kind: _Kind, rows: Sequence[Row]) -> list[list[Any]]:
        """For each row the statement's parameters."""
        given = self.given[kind]
        values = [[row[name] for name in given] for row in rows]
        for place, process in self._processed[kind]:
            for row in values:
                row[place] = process(row[place])
        return values


class _OnPostgresql(_Columns):
    def __init__(
        self,
        dialect: sa.Dialect,
        key: sa.Column[Any],
        columns: Sequence[sa.Column[Any]],
        former_keys: bool,
    ) -> None:
        super().__init__(dialect, key, columns, former_keys)
        names = ", ".join(self.names)
        self.find = f"SELECT {names} FROM {self.table} WHERE {self.key} = ANY($1::text[])"
        self.find_and_lock = f"{self.find} ORDER BY {self.key} FOR NO KEY UPDATE"
        self._kinds = {column.name: _array_of(column) for column in columns}
        self._kinds[OLD_VERSION] = _ARRAYS[sa.Integer]
        self._kinds[FORMER_KEY] = _ARRAYS[sa.String]

    def text(self, kind: _Kind, first: int) -> str:
        """The statement, with numbers from `first` on for its parameters."""
        given = self.given[kind]
        arrays = ", ".join(
            f"${number}::{self._kinds[name]}" for number, name in enumerate(given, start=first)
        )
        names = ", ".join(map(self.quote, given))
        rows = f"unnest({arrays}) AS rows({names})"
        if kind in ("insert", "add"):
            unless = ""
            if self.former_keys:
                names = ", ".join(self.names)
                former = f"SELECT 1 FROM {self.table} WHERE {self.key} = rows.{FORMER_KEY}"
                unless = f"WHERE NOT EXISTS ({former}) "
            return (
                f"INSERT INTO {self.table} ({names}) SELECT {names} FROM {rows} {unless}"
                f"ON CONFLICT ({self.key}) DO NOTHING RETURNING 1"
            )
        if kind == "remove":
            return f"DELETE FROM {self.table} WHERE {self.key} = ANY({arrays})"
        ours = (
            f"{self.table}.{self.key} = rows.{self.key} "
            f"AND {self.table}.version = rows.{OLD_VERSION}"
        )
        if kind == "check":
            return (
                f"SELECT 1 FROM {self.table} JOIN {rows} ON {ours} "
                f"ORDER BY {self.table}.{self.key} FOR NO KEY UPDATE OF {self.table}"
            )
        changes = ", ".join(f"{name} = rows.{name}" for name in self.names if name != self.key)
        return f"UPDATE {self.table} SET {changes} FROM {rows} WHERE {ours} RETURNING 1"

    def arrays(self, kind: _Kind, rows: Sequence[Row]) -> list[list[Any]]:
        """The statement's parameters."""
        return [self._column(name, rows) for name in self.given[kind]]

    def _column(self, name: str, rows: Sequence[Row]) -> list[Any]:
        """The rows' values of a column, as they are stored."""
        process = self._in[name]
        values = [row[name] for row in rows]
        return values if process is None else [*map(process, values)]


def _array_of(column: sa.Column[Any]) -> str:
    kind = column.type
    stored = kind.impl_instance if isinstance(kind, sa.types.TypeDecorator) else kind
    for family, array in _ARRAYS.items():
        if isinstance(stored, family):
            return array
    raise TypeError(
        f"the column {column} is stored as {stored!r}; states can be kept as text, integers and "
        f"bytes: let it be one of these, or `saga.Flag` for yes or no"
    )


@lru_cache(maxsize=256)
def _all_of(writes: tuple[tuple[_Kind, _OnPostgresql], ...]) -> str:
    """One statement that makes all writes. Where one of them should not have left out a row, it
    fails, by reading as a number what is none, and PostgreSQL undoes all of it.

    PostgreSQL runs them as they are counted, so in their order, and what is not counted at the end.
    That is not promised, and nothing but how seldom replicas conflict rests on it.
    """
    parts: list[str] = []
    first = 1
    for kind, columns in writes:
        parts.append(columns.text(kind, first))
        first += len(columns.given[kind])
    checks: list[str] = []
    for number, (kind, _) in enumerate(writes):
        if kind not in ("remove", "add"):
            checks.append(
                f"WHEN (SELECT count(*) FROM write_{number}) <> ${first}::bigint "
                f"THEN 'conflict {number}'"
            )
            first += 1
    if len(parts) == 1 and not checks:
        return parts[0]
    written = ", ".join(f"write_{number} AS ({part})" for number, part in enumerate(parts))
    if not checks:
        return f"WITH {written} SELECT 0"
    return f"WITH {written} SELECT CAST(CASE {' '.join(checks)} ELSE '0' END AS integer)"


def _ask_sqlite(connection: Connection, text: str, arguments: Sequence[Any]) -> list[Any]:
    try:
        return _driver(connection).execute(text, arguments).fetchall()  # type: ignore[no-any-return]
    except sqlite3.Error as error:
        raise as_sqlalchemy(error, text, connection) from error


def _write_sqlite(connection: Connection, text: str, values: Sequence[Sequence[Any]]) -> int:
    try:
        return _driver(connection).executemany(text, values).rowcount  # type: ignore[no-any-return]
    except sqlite3.Error as error:
        raise as_sqlalchemy(error, text, connection) from error


def _ask_postgresql(connection: Connection, text: str, arguments: Sequence[Any]) -> list[Any]:
    try:
        found: list[Any] = _driver(connection).run_async(lambda raw: raw.fetch(text, *arguments))
    except Exception as error:
        raise as_sqlalchemy(error, text, connection) from error
    return found


def _driver(connection: Connection) -> Any:
    """The driver's connection below SQLAlchemy's."""
    return connection.connection.dbapi_connection


def as_sqlalchemy(error: Exception, text: str, connection: Connection) -> Exception:
    """A driver's error as SQLAlchemy would have raised it."""
    if str(getattr(error, "sqlstate", "")).startswith(_INTEGRITY):
        return sa.exc.IntegrityError(text, None, error)
    return sa.exc.DBAPIError.instance(text, None, error, sqlite3.Error, dialect=connection.dialect)
