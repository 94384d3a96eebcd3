"""Opening a database and reading from it, by its URL.

PostgreSQL's client is imported where a URL names it: a command that reads files need not load it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from sqlalchemy.engine import Connection

from saga.runtime.kernel.database import Database, is_postgresql
from saga.runtime.kernel.sqlite import SqliteDatabase, read_file, sqlite_file
from saga.runtime.kernel.tables import Schema

T = TypeVar("T")


async def open_database(
    url: str, schema: Schema, *, name: str = "saga", patience_seconds: float = 0.0
) -> Database:
    """Open the database at `url` and bring its tables up to date.

    A server that is out of reach is waited for up to `patience_seconds`; it shows `name` for our
    connections. Raises `DatabaseError`.
    """
    if is_postgresql(url):
        from saga.runtime.kernel.postgresql import PostgresDatabase

        return await PostgresDatabase.open(
            url, schema, name=name, patience_seconds=patience_seconds
        )
    # In a thread, as it takes as long as changing the tables does.
    return await asyncio.to_thread(SqliteDatabase, url, schema)


def read_database(url: str, query: Callable[[Connection], T]) -> T:
    """Run `query` on a database that others use, as of one moment, and close it again.

    Blocks, and may not be called where an event loop runs: that is for `asyncio.to_thread`. Rows
    must be taken within `query`. Raises `DatabaseError`.
    """
    if is_postgresql(url):
        from saga.runtime.kernel.postgresql import read_once

        return asyncio.run(read_once(url, query))
    return read_file(url, query)


def database_file(url: str) -> Path | None:
    """The file of the database at `url`; None if that is on a server. Raises `DatabaseError`."""
    return None if is_postgresql(url) else sqlite_file(url)
