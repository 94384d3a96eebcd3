"""SQLAlchemy's statements, executed below SQLAlchemy: a run executes some hundreds, each of which
takes longer to be executed than to be answered.

What is executed is the text that SQLAlchemy makes of a statement, with its own conversions of
parameters and results. A statement is compiled when the same object comes for a second time, as
those do that are built once; any other goes through SQLAlchemy.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Final
from weakref import WeakKeyDictionary

import sqlalchemy as sa
from sqlalchemy.engine import Connection, IteratorResult
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.sql.compiler import SQLCompiler

from saga.runtime.kernel.rows import as_sqlalchemy

_Process = Callable[[Any], Any]
_NOTHING: Final[Mapping[str, Any]] = {}


class QuickConnection:
    """A connection to SQLite, as far as `saga` uses SQLAlchemy's; all else is that one's own."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._raw: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]  # as the dialect is SQLite's
        self._prepared: WeakKeyDictionary[sa.Executable, _Prepared | None] = WeakKeyDictionary()
        """Keyed by statement that has come before; None where it came only once, or where only
        SQLAlchemy can execute it."""
        self.dialect = connection.dialect
        self.connection = SimpleNamespace(dbapi_connection=self._raw)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)

    def execute(
        self, statement: sa.Executable, parameters: Any = None, **options: Any
    ) -> _Fetched | sa.CursorResult[Any]:
        """See `sqlalchemy.Connection.execute`."""
        prepared = self._prepared_for(statement, parameters, options)
        if prepared is None:
            return self._connection.execute(statement, parameters, **options)
        return self._ask(prepared, parameters or _NOTHING)

    def scalars(
        self, statement: sa.Executable, parameters: Any = None, **options: Any
    ) -> _Scalars | sa.ScalarResult[Any]:
        """See `sqlalchemy.Connection.scalars`."""
        prepared = self._prepared_for(statement, parameters, options)
        if prepared is None:
            return self._connection.scalars(statement, parameters, **options)
        return _Scalars(self._ask(prepared, parameters or _NOTHING))

    def scalar(self, statement: sa.Executable, parameters: Any = None, **options: Any) -> Any:
        """See `sqlalchemy.Connection.scalar`."""
        prepared = self._prepared_for(statement, parameters, options)
        if prepared is None:
            return self._connection.scalar(statement, parameters, **options)
        rows = self._ask(prepared, parameters or _NOTHING).rows
        return rows[0][0] if rows else None

    def _prepared_for(
        self, statement: sa.Executable, parameters: Any, options: Mapping[str, Any]
    ) -> _Prepared | None:
        """How to execute a statement; None if SQLAlchemy has to."""
        known = self._prepared
        try:
            found = known[statement]
        except KeyError:
            known[statement] = None
            return None
        if options or (parameters is not None and not isinstance(parameters, Mapping)):
            return None
        if found is None:
            found = known[statement] = _Prepared(statement, self.dialect, parameters or _NOTHING)
        return found if found.takes(parameters or _NOTHING) else None

    def _ask(self, prepared: _Prepared, parameters: Mapping[str, Any]) -> _Fetched:
        values = prepared.values(parameters)
        try:
            cursor = self._raw.execute(prepared.text, values)
            return _Fetched(prepared, cursor.fetchall(), cursor.rowcount)
        except sqlite3.Error as error:
            raise as_sqlalchemy(error, prepared.text, self._connection) from error


class _Prepared:
    """A statement's text, and the conversions of what goes in and of what comes out."""

    def __init__(
        self, statement: sa.Executable, dialect: sa.Dialect, parameters: Mapping[str, Any]
    ) -> None:
        self._names = parameters.keys()
        options = statement.get_execution_options()
        compiled: Any = statement.compile(dialect=dialect, column_keys=sorted(parameters) or None)  # type: ignore[attr-defined]  # all that is executed can be compiled
        self._is_plain = (
            isinstance(compiled, SQLCompiler)
            and not options.keys() - {"yield_per"}
            and not compiled.post_compile_params
            and not compiled.literal_execute_params
            and not compiled.insert_prefetch
            and not compiled.update_prefetch
            and not any(
                bound.required and name not in parameters for name, bound in compiled.binds.items()
            )
        )
        """Whether nothing has to be done about it for each execution, and nothing is missing."""
        if not self._is_plain:
            return
        self.text = str(compiled)
        given = compiled.params
        processes = compiled._bind_processors
        self._given = [
            (name, given[name], processes.get(name)) for name in compiled.positiontup or ()
        ]
        columns = compiled._result_columns
        self.keys = SimpleResultMetaData([column.keyname for column in columns])
        found = [
            column.type.dialect_impl(dialect).result_processor(dialect, None) for column in columns
        ]
        self._results = found if any(found) else None

    def takes(self, parameters: Mapping[str, Any]) -> bool:
        """Whether it can be executed with these; others may make another text of it."""
        return self._is_plain and parameters.keys() == self._names

    def values(self, parameters: Mapping[str, Any]) -> list[Any]:
        """The parameters in the order of the text, as they are stored."""
        return [
            parameters.get(name, value) if process is None else process(parameters.get(name, value))
            for name, value, process in self._given
        ]

    def read(self, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Rows as they are given to who asked."""
        if self._results is None:
            return rows
        return [
            tuple(
                value if process is None else process(value)
                for process, value in zip(self._results, row, strict=True)
            )
            for row in rows
        ]


class _Fetched:
    """What came of a statement; see `sqlalchemy.CursorResult`."""

    def __init__(self, prepared: _Prepared, rows: list[tuple[Any, ...]], rowcount: int) -> None:
        self._prepared = prepared
        self.rows = prepared.read(rows)
        self.rowcount = rowcount

    def __iter__(self) -> Iterator[sa.Row[Any]]:
        return iter(self.result())

    def __getattr__(self, name: str) -> Any:
        return getattr(self.result(), name)

    def result(self) -> IteratorResult[Any]:
        return IteratorResult(self._prepared.keys, iter(self.rows))


class _Scalars:
    """The first values of all rows; see `sqlalchemy.ScalarResult`."""

    def __init__(self, answer: _Fetched) -> None:
        self._answer = answer

    def __iter__(self) -> Iterator[Any]:
        return iter(self.all())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._answer.result().scalars(), name)

    def all(self) -> Sequence[Any]:
        return [row[0] for row in self._answer.rows]
