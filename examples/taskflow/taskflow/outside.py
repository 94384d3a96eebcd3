"""Whom we ask: a bank and a post office. Both are asked for something under a key, and may have to
undo it, so their rules are the same, and are here once.

`Books` are the rules. `DeskKeeper` is who the checker and the simulation ask; `FileKeeper` is a
sandbox for a running system. Put the client of a real one in its place: it is asked under a key, so
that the same question, asked again, has no second effect.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, Protocol, Self, TypeVar

from saga import Ask, Desk, Intent, OutsideError, Phase, State, TransientError

from taskflow.billing.domain import Bill, Charge, Charged, Refund, Refunded, SettleCharge
from taskflow.mail.domain import (
    CorrectionSent,
    Notice,
    NoticeSent,
    SendCorrection,
    SendNotice,
    SendWelcome,
    SettleNotice,
    WelcomeSent,
)


class Choice(StrEnum):
    """What somebody decides on something new."""

    YES = "does it"
    NO = "refuses"
    SILENT = "does not answer"


@dataclass(frozen=True, slots=True)
class Line:
    """What was asked for under a key, and what became of it."""

    key: str
    done: bool
    undone: bool = False


@dataclass(frozen=True, slots=True)
class Books:
    """All lines, in the order of their keys."""

    lines: tuple[Line, ...] = ()

    def __iter__(self) -> Iterator[Line]:
        return iter(self.lines)

    def __len__(self) -> int:
        return len(self.lines)

    def find(self, key: str) -> Line | None:
        return next((line for line in self.lines if line.key == key), None)

    def do(self, key: str, choice: Choice) -> tuple[Self, bool]:
        """The books after a wish, and whether it is met: the first under a key decides."""
        known = self.find(key)
        if known is None and choice is Choice.SILENT:
            raise TransientError(f"no answer about {key}")
        known = known or Line(key, choice is Choice.YES)
        return self._with(known), known.done

    def settle(self, key: str) -> tuple[Self, bool]:
        """Whether it was done; if not, it never will be."""
        return self.do(key, Choice.NO)

    def undo(self, key: str) -> tuple[Self, bool]:
        known = self.find(key)
        if known is None or not known.done:
            raise ValueError(f"nothing was done under {key}")
        return self._with(replace(known, undone=True)), True

    def _with(self, line: Line) -> Self:
        others = [each for each in self.lines if each.key != line.key]
        return replace(self, lines=tuple(sorted([*others, line], key=lambda each: each.key)))


class BankBooks(Books):
    """What was charged, and given back."""

    __slots__ = ()


class PostBooks(Books):
    """What was sent, and corrected."""

    __slots__ = ()


B = TypeVar("B", bound=Books)
Rule = Callable[[Books, Choice], tuple[Books, bool]]
"""The books after a question, and its answer, where this would be decided on something new."""


class Keeper(Protocol):
    """Somebody with such books."""

    async def ask(self, key: str, rule: Rule) -> bool: ...


def _do(key: str) -> tuple[str, Rule]:
    return key, lambda books, choice: books.do(key, choice)


def _settle(key: str) -> tuple[str, Rule]:
    return key, lambda books, _: books.settle(key)


def _undo(key: str) -> tuple[str, Rule]:
    return key, lambda books, _: books.undo(key)


def asks_bank(keeper: Keeper) -> Mapping[type[Intent], Ask]:
    """How billing puts its questions."""

    async def charge(intent: Charge) -> Charged:
        return Charged(task=intent.task, charged=await keeper.ask(*_do(intent.task)))

    async def settle(intent: SettleCharge) -> Charged:
        return Charged(task=intent.task, charged=await keeper.ask(*_settle(intent.task)))

    async def refund(intent: Refund) -> Refunded:
        await keeper.ask(*_undo(intent.task))
        return Refunded(task=intent.task)

    return {Charge: charge, SettleCharge: settle, Refund: refund}


def asks_post(keeper: Keeper) -> Mapping[type[Intent], Ask]:
    """How mail puts its questions. A post office takes any mail that it has heard of."""

    async def welcome(intent: SendWelcome) -> WelcomeSent:
        await keeper.ask(*_do(intent.about))
        return WelcomeSent(about=intent.about)

    async def notice(intent: SendNotice) -> NoticeSent:
        return NoticeSent(about=intent.about, sent=await keeper.ask(*_do(intent.about)))

    async def settle(intent: SettleNotice) -> NoticeSent:
        return NoticeSent(about=intent.about, sent=await keeper.ask(*_settle(intent.about)))

    async def correct(intent: SendCorrection) -> CorrectionSent:
        await keeper.ask(*_undo(intent.about))
        return CorrectionSent(about=intent.about)

    return {
        SendWelcome: welcome,
        SendNotice: notice,
        SettleNotice: settle,
        SendCorrection: correct,
    }


def decides(task: str) -> Choice:
    """What the sandbox of the bank decides on a task: its name tells."""
    if "broke" in task:
        return Choice.NO
    return Choice.SILENT if "slow" in task else Choice.YES


class DeskKeeper:
    """A `Keeper` in memory."""

    def __init__(self, desk: Desk[Any]) -> None:
        self._desk = desk

    async def ask(self, key: str, rule: Rule) -> bool:
        self._desk.books, answer = rule(self._desk.books, self._desk.decision)
        return answer


class FileKeeper:
    """A `Keeper` with a SQLite file. What it decides on something new, the key tells. A file that
    cannot be written, or is locked, is one who is away."""

    def __init__(self, url: str, decides: Callable[[str], Choice] = lambda _: Choice.YES) -> None:
        self._path = _path(url)
        self._decides = decides
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._path, timeout=10)) as connection, connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS lines (key TEXT PRIMARY KEY, done INTEGER, "
                "undone INTEGER)"
            )

    async def ask(self, key: str, rule: Rule) -> bool:
        try:
            return await asyncio.to_thread(self._ask, key, rule)
        except sqlite3.OperationalError as error:
            raise TransientError(f"{self._path.stem} is away: {error}") from error

    def _ask(self, key: str, rule: Rule) -> bool:
        with closing(sqlite3.connect(self._path, timeout=1)) as connection, connection:
            connection.execute("BEGIN IMMEDIATE")
            known = _lines(connection, "WHERE key = ?", key)
            books, answer = rule(Books(known), self._decides(key))
            (line,) = books
            connection.execute(
                "REPLACE INTO lines VALUES (?, ?, ?)", (line.key, line.done, line.undone)
            )
        return answer


def read(kind: type[B], url: str) -> B:
    """What such a file holds. Raises `OutsideError`."""
    path = _path(url)
    if not path.is_file():
        raise OutsideError(f"there are no books at {path}; start the service first")
    with closing(sqlite3.connect(path, timeout=10)) as connection:
        return kind(_lines(connection))


def _lines(connection: sqlite3.Connection, where: str = "", *values: str) -> tuple[Line, ...]:
    rows = connection.execute(f"SELECT * FROM lines {where} ORDER BY key", values)
    return tuple(Line(key, bool(done), bool(undone)) for key, done, undone in rows)


def _path(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


class Remembered:
    """What books tell of questions that no event tells of: `saga history rebuild` asks."""

    def __init__(self, books: Books) -> None:
        self._books = books

    @property
    def keys(self) -> Collection[str]:
        return [line.key for line in self._books]

    def asked(self, state: State) -> Intent | None:
        line = self._books.find(state.key)
        match state:
            case Bill(phase=Phase.NEW) if line:
                return Charge(task=state.key)
            case Bill(phase=Phase.TAKEN) if line and line.undone:
                return Refund(task=state.key)
            case Notice(phase=Phase.NEW) if line and "@" not in state.key:
                return SendNotice(about=state.key)
            case Notice(phase=Phase.TAKEN) if line and line.undone:
                return SendCorrection(about=state.key)
            case _:
                return None

    def taken_back(self, state: State) -> Intent | None:
        return None

    def contradiction(self, state: State) -> str | None:
        return None
