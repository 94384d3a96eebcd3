"""The outsides that movers ask: they keep things under a key, the rental vans and the agency
crews."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

from saga.asking import Phase
from saga.choreography import State
from saga.message import Ask, Intent
from saga.outside import Desk, OutsideError
from saga.retry import TransientError
from saga.runtime.urls import sqlite_path
from tests.moving.crew.domain import AgencyAnswered, BookCrew, Crew, LetGo, ReleaseCrew, SettleCrew
from tests.moving.language import Size
from tests.moving.van.domain import BookVan, GivenBack, RentalAnswered, ReturnVan, SettleVan, Van


class Choice(StrEnum):
    """What an outside decides on a new wish."""

    KEEPS = "keeps one"
    HAS_NONE = "has none"


@dataclass(frozen=True, slots=True)
class Booking:
    """What was asked for under a key, and what became of it."""

    key: str
    size: Size
    kept: bool
    let_go: bool = False


@dataclass(frozen=True, slots=True)
class Bookings:
    """All bookings, in the order of their keys. The rules are the same wherever they are kept."""

    all: tuple[Booking, ...] = ()

    def __iter__(self) -> Iterator[Booking]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def find(self, key: str) -> Booking | None:
        return next((booking for booking in self.all if booking.key == key), None)

    def keep(self, key: str, size: Size, choice: Choice) -> tuple[Self, bool]:
        """The books after a wish, and whether it is met: the first one decides."""
        known = self.find(key)
        if known is None:
            known = Booking(key, size, choice is Choice.KEEPS)
        elif known.size is not size:
            raise ValueError(f"{key} is the key of another booking")
        return self._with(known), known.kept

    def let_go(self, key: str) -> Self:
        known = self.find(key)
        if known is None or not known.kept:
            raise ValueError(f"nothing is kept under {key}")
        return self._with(replace(known, let_go=True))

    def _with(self, booking: Booking) -> Self:
        others = [each for each in self.all if each.key != booking.key]
        return replace(self, all=tuple(sorted([*others, booking], key=lambda each: each.key)))


class VanBookings(Bookings):
    """The rental's."""

    __slots__ = ()


class CrewBookings(Bookings):
    """The agency's."""

    __slots__ = ()


BK = TypeVar("BK", bound=Bookings)


class Keeper(Protocol):
    """An outside that keeps things. A key is one booking, however often it is asked for."""

    async def keep(self, key: str, size: Size) -> bool: ...

    async def let_go(self, key: str) -> None: ...


def asks_rental(keeper: Keeper) -> Mapping[type[Intent], Ask]:
    """As the van service puts its questions."""

    async def book(intent: BookVan) -> RentalAnswered:
        return RentalAnswered(move=intent.move, kept=await keeper.keep(intent.move, intent.size))

    async def give_back(intent: ReturnVan) -> GivenBack:
        await keeper.let_go(intent.move)
        return GivenBack(move=intent.move)

    return {BookVan: book, SettleVan: book, ReturnVan: give_back}


def asks_agency(keeper: Keeper) -> Mapping[type[Intent], Ask]:
    """As the crew service puts its questions."""

    async def book(intent: BookCrew) -> AgencyAnswered:
        return AgencyAnswered(move=intent.move, kept=await keeper.keep(intent.move, intent.size))

    async def release(intent: ReleaseCrew) -> LetGo:
        await keeper.let_go(intent.move)
        return LetGo(move=intent.move)

    return {BookCrew: book, SettleCrew: book, ReleaseCrew: release}


class DeskKeeper:
    """A `Keeper` in memory."""

    def __init__(self, desk: Desk[VanBookings] | Desk[CrewBookings]) -> None:
        self._desk = desk

    async def keep(self, key: str, size: Size) -> bool:
        self._desk.books, kept = self._desk.books.keep(key, size, self._desk.decision)
        return kept

    async def let_go(self, key: str) -> None:
        self._desk.books = self._desk.books.let_go(key)
        self._desk.said = "lets it go"


class FileKeeper:
    """A `Keeper` with a SQLite file. It has none for moves whose key says so; with a file `mute`
    beside it, it does what it is asked and its answers are lost."""

    def __init__(self, url: str, books: type[Bookings], says_no: Callable[[str], bool]) -> None:
        path = sqlite_path(url)
        assert path is not None
        self._path = path
        self._books = books
        self._says_no = says_no
        path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(path, timeout=10)) as connection, connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS bookings "
                "(key TEXT PRIMARY KEY, size TEXT, kept INTEGER, let_go INTEGER)"
            )

    async def keep(self, key: str, size: Size) -> bool:
        choice = Choice.HAS_NONE if self._says_no(key) else Choice.KEEPS

        def change(books: Bookings) -> tuple[Bookings, bool]:
            return books.keep(key, size, choice)

        return await asyncio.to_thread(self._change, key, change)

    async def let_go(self, key: str) -> None:
        await asyncio.to_thread(self._change, key, lambda books: (books.let_go(key), True))

    def _change(self, key: str, change: Callable[[Bookings], tuple[Bookings, bool]]) -> bool:
        with closing(sqlite3.connect(self._path, timeout=10)) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            rows = connection.execute("SELECT * FROM bookings WHERE key = ?", [key]).fetchall()
            books, said = change(self._books(tuple(map(_booking, rows))))
            connection.executemany(
                "REPLACE INTO bookings VALUES (?, ?, ?, ?)",
                [(b.key, b.size.value, b.kept, b.let_go) for b in books],
            )
        if self._path.with_name("mute").exists():
            raise TransientError("the answer is lost")
        return said


def _booking(row: tuple[str, str, int, int]) -> Booking:
    key, size, kept, let_go = row
    return Booking(key, Size(size), bool(kept), bool(let_go))


def read(kind: type[BK], url: str) -> BK:
    """What such a file holds. Raises `OutsideError`."""
    path = sqlite_path(url)
    if path is None or not Path(path).is_file():
        raise OutsideError(f"there are no bookings at {path}; start the service first")
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        rows = connection.execute("SELECT * FROM bookings ORDER BY key").fetchall()
    return kind(tuple(map(_booking, rows)))


class _Memory(Generic[BK]):
    """What an outside remembers; see `saga.outside.Memory`."""

    def __init__(self, books: BK) -> None:
        self._bookings = {booking.key: booking for booking in books}

    @property
    def keys(self) -> Collection[str]:
        return self._bookings.keys()

    def asked(self, state: State) -> Intent | None:
        booking = self._bookings.get(state.key)
        if booking is None or not isinstance(state, Van | Crew):
            return None
        if state.phase is Phase.NEW:
            return self._book(state.key, booking.size)
        given_back = state.phase is Phase.TAKEN and booking.let_go
        return self._let_go(state.key) if given_back else None

    def taken_back(self, state: State) -> Intent | None:
        return None

    def contradiction(self, state: State) -> str | None:
        return None

    def _book(self, move: str, size: Size) -> Intent:
        raise NotImplementedError

    def _let_go(self, move: str) -> Intent:
        raise NotImplementedError


class VanMemory(_Memory[VanBookings]):
    """The rental's."""

    def _book(self, move: str, size: Size) -> Intent:
        return BookVan(move=move, size=size)

    def _let_go(self, move: str) -> Intent:
        return ReturnVan(move=move)


class CrewMemory(_Memory[CrewBookings]):
    """The agency's."""

    def _book(self, move: str, size: Size) -> Intent:
        return BookCrew(move=move, size=size)

    def _let_go(self, move: str) -> Intent:
        return ReleaseCrew(move=move)
