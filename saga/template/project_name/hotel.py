"""The hotel, which `room` asks: its rules, once, and who keeps its books.

`HotelBooks` are the rules. `DeskHotel` is the hotel that the checker and the simulation ask;
`FileHotel` is a sandbox for a running system. Put the client of the real one in its place: it is
asked under a key, so that the same question, asked again, reserves nothing twice.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from saga import Ask, Desk, Intent, OutsideError, Phase, State

from project_name.room.domain import (
    GivenBack,
    GiveRoomBack,
    HotelAnswered,
    ReserveRoom,
    Room,
    SettleRoom,
)


class Choice(StrEnum):
    """What the hotel decides on a new wish."""

    KEEPS = "keeps a room"
    HAS_NONE = "has none"


@dataclass(frozen=True, slots=True)
class Reservation:
    """What was asked for under a key, and what became of it."""

    key: str
    nights: int
    kept: bool
    given_back: bool = False


@dataclass(frozen=True, slots=True)
class HotelBooks:
    """All reservations, in the order of their keys."""

    all: tuple[Reservation, ...] = ()

    def __iter__(self) -> Iterator[Reservation]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def find(self, key: str) -> Reservation | None:
        return next((each for each in self.all if each.key == key), None)

    def reserve(self, key: str, nights: int, choice: Choice) -> tuple[HotelBooks, bool]:
        """The books after a wish, and whether it is met: the first under a key decides."""
        known = self.find(key) or Reservation(key, nights, choice is Choice.KEEPS)
        if known.nights != nights:
            raise ValueError(f"{key} is the key of another reservation")
        return self._with(known), known.kept

    def give_back(self, key: str) -> HotelBooks:
        known = self.find(key)
        if known is None or not known.kept:
            raise ValueError(f"nothing is kept under {key}")
        return self._with(replace(known, given_back=True))

    def _with(self, reservation: Reservation) -> HotelBooks:
        others = [each for each in self.all if each.key != reservation.key]
        return HotelBooks(tuple(sorted([*others, reservation], key=lambda each: each.key)))


class Hotel(Protocol):
    """What `room` needs of a hotel."""

    async def reserve(self, key: str, nights: int) -> bool: ...

    async def give_back(self, key: str) -> None: ...


def asks(hotel: Hotel) -> Mapping[type[Intent], Ask]:
    """How each question is put to it."""

    async def reserve(intent: ReserveRoom) -> HotelAnswered:
        kept = await hotel.reserve(intent.stay, intent.nights)
        return HotelAnswered(stay=intent.stay, kept=kept)

    async def give_back(intent: GiveRoomBack) -> GivenBack:
        await hotel.give_back(intent.stay)
        return GivenBack(stay=intent.stay)

    return {ReserveRoom: reserve, SettleRoom: reserve, GiveRoomBack: give_back}


class DeskHotel:
    """A `Hotel` in memory."""

    def __init__(self, desk: Desk[HotelBooks]) -> None:
        self._desk = desk

    async def reserve(self, key: str, nights: int) -> bool:
        self._desk.books, kept = self._desk.books.reserve(key, nights, self._desk.decision)
        return kept

    async def give_back(self, key: str) -> None:
        self._desk.books = self._desk.books.give_back(key)
        self._desk.said = "takes it back"


class FileHotel:
    """A `Hotel` in a SQLite file. It has no room for stays whose key says `full`."""

    def __init__(self, url: str) -> None:
        self._path = _path(url)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._path, timeout=10)) as connection, connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS reservations "
                "(key TEXT PRIMARY KEY, nights INTEGER, kept INTEGER, given_back INTEGER)"
            )

    async def reserve(self, key: str, nights: int) -> bool:
        choice = Choice.HAS_NONE if "full" in key else Choice.KEEPS
        return await asyncio.to_thread(
            self._change, lambda books: books.reserve(key, nights, choice)
        )

    async def give_back(self, key: str) -> None:
        await asyncio.to_thread(self._change, lambda books: (books.give_back(key), True))

    def _change(self, change: Callable[[HotelBooks], tuple[HotelBooks, bool]]) -> bool:
        with closing(sqlite3.connect(self._path, timeout=10)) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            books, kept = change(_books(connection))
            connection.executemany(
                "REPLACE INTO reservations VALUES (?, ?, ?, ?)",
                [(r.key, r.nights, r.kept, r.given_back) for r in books],
            )
        return kept


def read(url: str) -> HotelBooks:
    """What such a file holds. Raises `OutsideError`."""
    path = _path(url)
    if not path.is_file():
        raise OutsideError(f"there are no reservations at {path}; start the service first")
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        return _books(connection)


def _books(connection: sqlite3.Connection) -> HotelBooks:
    rows = connection.execute("SELECT * FROM reservations ORDER BY key")
    return HotelBooks(
        tuple(
            Reservation(key, nights, bool(kept), bool(given_back))
            for key, nights, kept, given_back in rows
        )
    )


def _path(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


class HotelMemory:
    """What its books tell of questions that no event tells of: `saga history rebuild` asks."""

    def __init__(self, books: HotelBooks) -> None:
        self._books = books

    @property
    def keys(self) -> Collection[str]:
        return [each.key for each in self._books]

    def asked(self, state: State) -> Intent | None:
        found = self._books.find(state.key)
        if found is None or not isinstance(state, Room):
            return None
        if state.phase is Phase.NEW:
            return ReserveRoom(stay=state.key, nights=found.nights)
        if state.phase is Phase.TAKEN and found.given_back:
            return GiveRoomBack(stay=state.key)
        return None

    def taken_back(self, state: State) -> Intent | None:
        return None

    def contradiction(self, state: State) -> str | None:
        return None
