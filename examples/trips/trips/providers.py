"""Who sells flights, rooms and cars: their rules, once, and who keeps their books.

`Books` are the rules, which the three providers share. `DeskProvider` is one that the checker and
the simulation ask; `FileProvider` is a sandbox for a running system. Put the client of a real one
in its place: it is asked under a key, so that the same question, asked again, books nothing twice.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from threading import Lock
from typing import Any, Final, Generic, Protocol, Self, TypeVar

from saga import Desk, OutsideError, TransientError

LAST: Final = "last one"
"""What is called so is sold once."""
DEARER_CENTS: Final = 1_000
SLOW_SECONDS: Final = 2.5
FOR_EVER: Final = datetime(9999, 1, 1, tzinfo=UTC)


class Choice(StrEnum):
    """What a provider decides on a new wish."""

    KEEPS = "keeps one"
    DEARER = "keeps a dearer one"
    HAS_NONE = "has none"


@dataclass(frozen=True, slots=True)
class Booking:
    """What was asked for under a key, and what became of it."""

    key: str
    what: str
    agreed_cents: int
    """The price it was asked for at."""
    until: datetime
    """It lapses then, unless it is firm by that time."""
    cents: int
    """The provider's price."""
    kept: bool
    firm: bool = False
    lapsed: bool = False
    given_up: bool = False

    @property
    def stands(self) -> bool:
        """Whether the provider keeps something now."""
        return self.kept and not self.lapsed and not self.given_up


@dataclass(frozen=True, slots=True)
class Books:
    """All bookings, in the order of their keys."""

    all: tuple[Booking, ...] = ()

    def __iter__(self) -> Iterator[Booking]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def find(self, key: str) -> Booking | None:
        return next((each for each in self.all if each.key == key), None)

    def keep(
        self, key: str, what: str, cents: int, until: datetime, choice: Choice
    ) -> tuple[Self, Booking]:
        """The books after a wish, and what came of it: the first under a key decides."""
        known = self.find(key)
        if known is None:
            price = cents + DEARER_CENTS if choice is Choice.DEARER else cents
            kept = choice is not Choice.HAS_NONE and not self._sold_out(what)
            known = Booking(key, what, cents, until, price, kept)
        if (known.what, known.agreed_cents, known.until) != (what, cents, until):
            raise ValueError(f"{key} is the key of another booking")
        return self._with(known), known

    def make_firm(self, key: str, choice: Choice) -> tuple[Self, bool]:
        """The books after what is kept was bought, if it has not lapsed; and whether it was."""
        known = self._kept(key)
        if not known.firm and known.stands:
            lapses = choice is Choice.HAS_NONE
            known = replace(known, lapsed=lapses, firm=not lapses)
        return self._with(known), known.firm and known.stands

    def give_up(self, key: str) -> Self:
        return self._with(replace(self._kept(key), given_up=True))

    def at(self, now: datetime) -> Self:
        """The books once what was not bought in time has lapsed."""
        return replace(
            self,
            all=tuple(
                replace(each, lapsed=each.lapsed or (each.until <= now and not each.firm))
                for each in self.all
            ),
        )

    def _sold_out(self, what: str) -> bool:
        return what.endswith(LAST) and any(each.what == what and each.stands for each in self.all)

    def _kept(self, key: str) -> Booking:
        known = self.find(key)
        if known is None or not known.kept:
            raise ValueError(f"nothing is kept under {key}")
        return known

    def _with(self, booking: Booking) -> Self:
        others = [each for each in self.all if each.key != booking.key]
        return replace(self, all=tuple(sorted([*others, booking], key=lambda each: each.key)))


class AirlineBooks(Books):
    """Of seats, which are held, and firm once they are ticketed."""

    __slots__ = ()


class HotelBooks(Books):
    """Of rooms."""

    __slots__ = ()


class RentalBooks(Books):
    """Of cars."""

    __slots__ = ()


B = TypeVar("B", bound=Books)
T = TypeVar("T")


class Provider(Protocol):
    """What the participants need of a provider."""

    async def keep(
        self, key: str, what: str, cents: int, until: datetime = FOR_EVER
    ) -> Booking: ...

    async def make_firm(self, key: str) -> bool: ...

    async def give_up(self, key: str) -> None: ...


class DeskProvider(Generic[B]):
    """A `Provider` in memory. Time is the desk's to decide about."""

    def __init__(self, desk: Desk[B]) -> None:
        self._desk = desk

    async def keep(self, key: str, what: str, cents: int, until: datetime = FOR_EVER) -> Booking:
        desk = self._desk
        desk.books, found = desk.books.keep(key, what, cents, until, desk.decision)
        desk.said = "has none" if not found.kept else ""
        return found

    async def make_firm(self, key: str) -> bool:
        self._desk.books, firm = self._desk.books.make_firm(key, self._desk.decision)
        self._desk.said = "issues a ticket" if firm else "issues none"
        return firm

    async def give_up(self, key: str) -> None:
        self._desk.books = self._desk.books.give_up(key)
        self._desk.said = "keeps none any more"


def choice_of(provider: str, key: str) -> Choice:
    """What a sandbox decides: the key says what it is to be short of."""
    if f"no-{provider}" in key:
        return Choice.HAS_NONE
    return Choice.DEARER if f"dear-{provider}" in key else Choice.KEEPS


class FileProvider(Generic[B]):
    """A `Provider` in a SQLite file. It takes its time for what its key says it is `slow` with.

    With a file of its name that ends in `.down` beside it, it cannot be reached.
    """

    def __init__(self, name: str, url: str, books: type[B]) -> None:
        self._name = name
        self._books = books
        self._path = _path(url)
        self._turn = Lock()  # SQLite has writers try again and again, in no order.
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with _open(self._path) as connection, connection:
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS bookings (key TEXT PRIMARY KEY, what TEXT, "
                "agreed_cents INTEGER, until TEXT, cents INTEGER, kept INTEGER, firm INTEGER, "
                "lapsed INTEGER, given_up INTEGER)"
            )
            connection.execute("CREATE INDEX IF NOT EXISTS by_what ON bookings (what)")

    async def keep(self, key: str, what: str, cents: int, until: datetime = FOR_EVER) -> Booking:
        choice = choice_of(self._name, key)
        others = what if what.endswith(LAST) else ""
        return await self._change(
            key, lambda books: books.keep(key, what, cents, until, choice), others
        )

    async def make_firm(self, key: str) -> bool:
        return await self._change(key, lambda books: books.make_firm(key, Choice.KEEPS))

    async def give_up(self, key: str) -> None:
        await self._change(key, lambda books: (books.give_up(key), None))

    async def _change(self, key: str, change: Callable[[B], tuple[B, T]], others: str = "") -> T:
        if f"slow-{self._name}" in key:
            await asyncio.sleep(SLOW_SECONDS)
        return await asyncio.to_thread(self._write, key, change, others)

    def _write(self, key: str, change: Callable[[B], tuple[B, T]], others: str) -> T:
        if self._path.with_suffix(".down").exists():
            raise TransientError(f"the {self._name} cannot be reached")
        with self._turn, _open(self._path) as connection, connection:
            try:
                connection.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError as error:  # Another replica has it for too long.
                raise TransientError(f"the {self._name} does not answer: {error}") from error
            rows = connection.execute(
                "SELECT * FROM bookings WHERE key = ? OR what = ?", [key, others]
            )
            books, answer = change(self._books(_read(rows)).at(datetime.now(UTC)))
            connection.executemany(
                "REPLACE INTO bookings VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                [(*row[:3], row[3].isoformat(), *row[4:]) for row in map(astuple, books)],
            )
        return answer


def reads(books: type[B]) -> Callable[[str], B]:
    """How such a file is read. It raises `OutsideError`."""

    def read(url: str) -> B:
        path = _path(url)
        if not path.is_file():
            raise OutsideError(f"there are no bookings at {path}; start the service first")
        with _open(path) as connection:
            rows = connection.execute("SELECT * FROM bookings ORDER BY key")
            return books(_read(rows)).at(datetime.now(UTC))

    return read


def _read(rows: Iterable[tuple[Any, ...]]) -> tuple[Booking, ...]:
    return tuple(
        Booking(key, what, agreed, datetime.fromisoformat(until), cents, *map(bool, flags))
        for key, what, agreed, until, cents, *flags in rows
    )


def _open(path: Path) -> closing[sqlite3.Connection]:
    connection = sqlite3.connect(path, timeout=10)
    connection.execute("PRAGMA synchronous = NORMAL")
    return closing(connection)


def _path(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))
