"""An outside to play with until there is a real one: what it keeps under keys, and its rules, once.

A rule is a function of one line of its books, the one under the key of the question, and of what it
decides on something new; it returns the line after the question, and the answer:

    def book(line: Booking | None, choice: Choice) -> tuple[Booking, bool]: ...

`DeskBookkeeper` applies rules to the books of a `Desk`, for the checker and the simulation;
`FileBookkeeper` to a SQLite file, for a running system. An adapter puts its questions to a
`Bookkeeper`, so it is the same for both. The client of a real outside takes the place of the file.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Final, Generic, Protocol, Self, TypeVar

from pydantic import TypeAdapter

from saga.outside import Desk, OutsideError
from saga.retry import TransientError
from saga.runtime.urls import sqlite_path

BUSY_SECONDS: Final = 1.0
"""How long a question waits for others at the file; then it is away."""
READING_SECONDS: Final = 10.0
_WRITTEN_AS: Final = "write the URL as sqlite:///data/books.db"


class Keyed(Protocol):
    """A line of an outside's books: immutable, of types that pydantic can validate."""

    @property
    def key(self) -> str: ...


L = TypeVar("L", bound=Keyed)
A = TypeVar("A")
Rule = Callable[[L | None, Any], tuple[L, A]]


@dataclass(frozen=True, slots=True)
class KeyedBooks(Generic[L]):
    """The books of an outside: its lines, in the order of their keys. Each outside has a class of
    its own, derived from this, that names the `kind` of its lines."""

    kind: ClassVar[type[Any]]

    lines: tuple[L, ...] = ()

    def __iter__(self) -> Iterator[L]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    def find(self, key: str) -> L | None:
        """The line under a key; None if there is none."""
        return next((line for line in self.lines if line.key == key), None)

    def with_line(self, line: L) -> Self:
        """The books with this line in the place of the one under its key, or beside the others."""
        others = [each for each in self.lines if each.key != line.key]
        return replace(self, lines=tuple(sorted([*others, line], key=lambda each: each.key)))

    @classmethod
    def read(cls, url: str) -> Self:
        """What the file of a `FileBookkeeper` holds. Blocks; raises `OutsideError`."""
        path = _path(url)
        if not path.is_file():
            raise OutsideError(f"there are no books at {path}; start the service first")
        with closing(sqlite3.connect(path, timeout=READING_SECONDS)) as connection:
            rows = connection.execute("SELECT line FROM lines ORDER BY key").fetchall()
        adapter = TypeAdapter(cls.kind)
        return cls(tuple(adapter.validate_json(line) for (line,) in rows))


class Bookkeeper(Protocol):
    """An outside that keeps books."""

    async def ask(self, key: str, rule: Rule[Any, A]) -> A:
        """The answer to a question about what is under the key. Raises what the rule raises, and
        `TransientError`; then the books are as before."""
        ...


class DeskBookkeeper:
    """A `Bookkeeper` in memory."""

    def __init__(self, desk: Desk[Any]) -> None:
        self._desk = desk

    async def ask(self, key: str, rule: Rule[Any, A]) -> A:
        books: KeyedBooks[Any] = self._desk.books
        line, answer = rule(books.find(key), self._desk.decision)
        self._desk.books = books.with_line(line)
        return answer


class FileBookkeeper:
    """A `Bookkeeper` with a SQLite file, which several processes may share. What it decides on
    something new, the key tells. One whose file cannot be written, or is locked, is away."""

    def __init__(
        self, url: str, books: type[KeyedBooks[Any]], decides: Callable[[str], Any] = lambda _: None
    ) -> None:
        """Makes the file, if it is not there. Blocks; raises `OutsideError`."""
        self._path = _path(url)
        self._decides = decides
        self._adapter: TypeAdapter[Any] = TypeAdapter(books.kind)
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with closing(self._connected(READING_SECONDS)) as connection, connection:
                connection.execute(
                    "CREATE TABLE IF NOT EXISTS lines (key TEXT PRIMARY KEY, line TEXT NOT NULL)"
                )
        except (OSError, sqlite3.Error) as error:
            raise OutsideError(f"cannot keep books at {self._path}: {error}") from error

    async def ask(self, key: str, rule: Rule[Any, A]) -> A:
        try:
            return await asyncio.to_thread(self._ask, key, rule)
        except sqlite3.OperationalError as error:
            raise TransientError(f"{self._path.name} is away: {error}") from error

    def _ask(self, key: str, rule: Rule[Any, A]) -> A:
        with closing(self._connected(BUSY_SECONDS)) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            found = connection.execute("SELECT line FROM lines WHERE key = ?", (key,)).fetchone()
            known = self._adapter.validate_json(found[0]) if found else None
            line, answer = rule(known, self._decides(key))
            if line != known:
                text = self._adapter.dump_json(line).decode()
                connection.execute("REPLACE INTO lines VALUES (?, ?)", (key, text))
        return answer

    def _connected(self, patience_seconds: float) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=patience_seconds)


def _path(url: str) -> Path:
    try:
        path = sqlite_path(url)
    except ValueError as error:
        raise OutsideError(f"no books are kept there: {error}; {_WRITTEN_AS}") from error
    if path is None:
        raise OutsideError(f"no books are kept in memory; {_WRITTEN_AS}")
    return path
