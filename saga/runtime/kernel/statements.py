"""What SQLAlchemy's statements need of the database they are for."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Collection
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.engine import Connection

_TEXTS: Final = ARRAY(sa.Text)
_UNIQUE_VIOLATION: Final = "23505"
_SQLITE_UNIQUE: Final = (
    sqlite3.SQLITE_CONSTRAINT_UNIQUE,
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY,
    sqlite3.SQLITE_CONSTRAINT_ROWID,
)


def on_postgresql(connection: Connection) -> bool:
    """Whether this is a connection to PostgreSQL; else it is one to SQLite."""
    return connection.dialect.name == "postgresql"


def any_of(
    connection: Connection, column: sa.ColumnElement[str], keys: Collection[str]
) -> sa.ColumnElement[bool]:
    """The condition that a text column has one of these values."""
    if on_postgresql(connection):
        values = sa.literal(list(keys), _TEXTS)
        return column == sa.any_(values)
    return column.in_(keys)


def among(
    column: sa.ColumnElement[str], parameter: str, *, postgresql: bool
) -> sa.ColumnElement[bool]:
    """The same, of a statement that is built once; see `as_parameter` for the values."""
    if postgresql:
        return column == sa.any_(sa.bindparam(parameter, type_=_TEXTS))
    each = sa.func.json_each(sa.bindparam(parameter, type_=sa.Text)).table_valued("value")
    return column.in_(sa.select(each.c.value))


def as_parameter(connection: Connection, keys: Collection[str]) -> Any:
    """Texts as the parameter of `among`."""
    return list(keys) if on_postgresql(connection) else json.dumps(list(keys))


def database_clock(*, postgresql: bool) -> sa.ColumnElement[int]:
    """The database's clock, in microseconds since 1970, whenever a statement with it is executed.
    SQLite has none: there it is the parameter `now`."""
    if postgresql:
        seconds = sa.extract("epoch", sa.func.clock_timestamp())
        return sa.cast(seconds * 1_000_000, sa.BigInteger)
    return sa.bindparam("now", type_=sa.BigInteger)


def is_taken(error: sa.exc.IntegrityError) -> bool:
    """Whether a row was refused because another one has its key, or what is unique of it."""
    return (
        getattr(error.orig, "sqlstate", None) == _UNIQUE_VIOLATION
        or getattr(error.orig, "sqlite_errorcode", None) in _SQLITE_UNIQUE
    )
