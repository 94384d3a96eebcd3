"""What the kernel needs of a database, whichever that is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from sqlalchemy.engine import Connection

from saga.errors import Explained
from saga.runtime.urls import SQLITE_SCHEMES

T = TypeVar("T")

POSTGRESQL_SCHEMES = ("postgresql", "postgres", "postgresql+asyncpg")
OLDER_TABLES = (
    "its tables are missing or of an older version: restart its service, which brings them up to "
    "date"
)
"""What is said of a database that lacks what this version reads."""


class DatabaseError(Explained):
    """The database cannot be opened. The message names it and the way out."""


class MigrationError(Exception):
    """The tables cannot be brought up to date. The message says why, and the way out."""


class Database(Protocol):
    """What the kernel needs of a database. Safe to call from many tasks at once."""

    @property
    def shared(self) -> bool:
        """Whether several processes may be using it, replicas of one service."""
        ...

    async def transaction(self, work: Callable[[Connection], T], *, brief: bool = False) -> T:
        """Run `work` in a transaction; committed durably when this returns, else rolled back.

        `brief` promises that `work` takes a few milliseconds at most, executes nothing but what
        `saga.runtime.kernel.rows` does, and writes by its last statement only. Then it may run on
        the event loop, and what it has read may have been changed by another replica when it
        writes.
        """
        ...

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run `query` on committed data as of one moment, without waiting for transactions."""
        ...

    def is_away(self, error: BaseException) -> bool:
        """Whether `error` is of the database or the way there, not of the data: then the same
        transaction may succeed later."""
        ...

    async def close(self) -> None: ...


def is_postgresql(url: str) -> bool:
    """Whether that is the URL of a PostgreSQL database, not of a SQLite file."""
    scheme, slashes, _ = url.partition("://")
    if scheme in POSTGRESQL_SCHEMES:
        return True
    if not slashes:
        raise DatabaseError(
            "DATABASE_URL is no database URL; write sqlite:///path/to/file.db "
            "or postgresql://user:password@host/database"
        )
    if scheme not in SQLITE_SCHEMES:
        raise DatabaseError(
            f"DATABASE_URL names the driver {scheme!r}; this version stores in sqlite:///FILE "
            f"or postgresql://HOST/DATABASE"
        )
    return False
