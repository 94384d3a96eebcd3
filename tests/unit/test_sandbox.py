"""An outside to play with: the same rules in memory and in a file."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import pytest

from saga import sandbox
from saga.outside import Desk, OutsideError
from saga.retry import TransientError
from saga.sandbox import Bookkeeper, DeskBookkeeper, FileBookkeeper, KeyedBooks


@dataclass(frozen=True, slots=True)
class Seat:
    """A seat that was asked for."""

    key: str
    kept: bool
    times: int = 1


class Seats(KeyedBooks[Seat]):
    """All seats."""

    __slots__ = ()
    kind = Seat


def book(key: str, seat: Seat | None, choice: bool) -> tuple[Seat, bool]:
    seat = Seat(key, choice) if seat is None else replace(seat, times=seat.times + 1)
    return seat, seat.kept


def refuse(seat: Seat | None, choice: bool) -> tuple[Seat, bool]:
    raise TransientError("nobody answers")


@pytest.fixture(params=["desk", "file"])
def kept(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Bookkeeper, Callable[[], Seats]]:
    """A keeper that has seats, and what reads its books."""
    if request.param == "desk":
        desk = Desk(Seats(), True)
        return DeskBookkeeper(desk), lambda: desk.books
    url = f"sqlite:///{tmp_path / 'new' / 'seats.db'}"
    return FileBookkeeper(url, Seats, lambda _: True), lambda: Seats.read(url)


async def test_the_first_question_under_a_key_decides(
    kept: tuple[Bookkeeper, Callable[[], Seats]],
) -> None:
    keeper, books = kept

    for key in ("b", "a", "b"):
        assert await keeper.ask(key, partial(book, key))

    assert list(books()) == [Seat("a", kept=True), Seat("b", kept=True, times=2)]
    assert books().find("b") == Seat("b", kept=True, times=2)
    assert books().find("c") is None
    assert len(books()) == 2


async def test_where_a_rule_raises_the_books_are_as_before(
    kept: tuple[Bookkeeper, Callable[[], Seats]],
) -> None:
    keeper, books = kept

    with pytest.raises(TransientError, match="nobody answers"):
        await keeper.ask("a", refuse)

    assert books() == Seats()


async def test_what_a_file_decides_its_key_tells(tmp_path: Path) -> None:
    keeper = FileBookkeeper(f"sqlite:///{tmp_path / 'seats.db'}", Seats, lambda key: key != "full")

    assert not await keeper.ask("full", partial(book, "full"))
    assert await keeper.ask("empty", partial(book, "empty"))


async def test_a_file_that_somebody_has_locked_is_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sandbox, "BUSY_SECONDS", 0.01)
    keeper = FileBookkeeper(f"sqlite:///{tmp_path / 'seats.db'}", Seats, lambda _: True)

    with closing(sqlite3.connect(tmp_path / "seats.db")) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(TransientError, match=r"seats\.db is away: database is locked"):
            await keeper.ask("a", partial(book, "a"))
    assert await keeper.ask("a", partial(book, "a"))


def test_books_that_are_not_there_are_named(tmp_path: Path) -> None:
    with pytest.raises(OutsideError, match=r"there are no books at .*; start the service first"):
        Seats.read(f"sqlite:///{tmp_path / 'seats.db'}")
    with pytest.raises(OutsideError, match="no URL of a SQLite file; write the URL as sqlite"):
        FileBookkeeper("postgresql://localhost/seats", Seats)
