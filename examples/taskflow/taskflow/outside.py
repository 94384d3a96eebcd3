"""Whom we ask: a bank and a post office. Both are asked for something under a key, and may have to
undo it, so their rules are the same, and are here once.

A running system asks a sandbox with these rules. Put the client of a real one in its place: it is
asked under a key, so that the same question, asked again, has no second effect.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from saga import Ask, Bookkeeper, Intent, KeyedBooks, Phase, State, TransientError

from taskflow.billing.domain import Bill, Charge, Charged, Refund, Refunded, SettleCharge
from taskflow.mail.domain import (
    CorrectionSent,
    Notice,
    NoticeSent,
    SendCorrection,
    SendNotice,
    SendWelcome,
    SettleNotice,
    Welcome,
    WelcomeSent,
)


class Choice(StrEnum):
    """What the outside decides on something new."""

    YES = "does it"
    NO = "refuses"
    SILENT = "does it, and does not answer"


@dataclass(frozen=True, slots=True)
class Line:
    """What was asked for under a key, and what became of it."""

    key: str
    done: bool
    undone: bool = False

    @property
    def stands(self) -> bool:
        return self.done and not self.undone


class BankBooks(KeyedBooks[Line]):
    """What was charged, and given back."""

    __slots__ = ()
    kind = Line


class PostBooks(KeyedBooks[Line]):
    """What was sent, and corrected."""

    __slots__ = ()
    kind = Line


def _do(key: str, line: Line | None, choice: Choice) -> tuple[Line, bool]:
    """Do it, or refuse to: the first wish under a key decides."""
    if line is None and choice is Choice.SILENT:
        raise TransientError(f"no answer about {key}")
    line = line or Line(key, choice is not Choice.NO)
    return line, line.done


def _settle(key: str, line: Line | None, choice: Choice) -> tuple[Line, bool]:
    """Say whether it was done; if not, it never will be."""
    return _do(key, line, Choice.YES if choice is Choice.SILENT else Choice.NO)


def _undo(key: str, line: Line | None, _: Choice) -> tuple[Line, None]:
    if line is None or not line.done:
        raise ValueError(f"nothing was done under {key}")
    return replace(line, undone=True), None


def asks_bank(bank: Bookkeeper) -> Mapping[type[Intent], Ask]:
    """How billing puts its questions."""

    async def charge(intent: Charge) -> Charged:
        charged = await bank.ask(intent.task, partial(_do, intent.task))
        return Charged(task=intent.task, charged=charged)

    async def settle(intent: SettleCharge) -> Charged:
        charged = await bank.ask(intent.task, partial(_settle, intent.task))
        return Charged(task=intent.task, charged=charged)

    async def refund(intent: Refund) -> Refunded:
        await bank.ask(intent.task, partial(_undo, intent.task))
        return Refunded(task=intent.task)

    return {Charge: charge, SettleCharge: settle, Refund: refund}


def asks_post(post: Bookkeeper) -> Mapping[type[Intent], Ask]:
    """How mail puts its questions. A post office takes any mail."""

    async def welcome(intent: SendWelcome) -> WelcomeSent:
        await post.ask(intent.about, partial(_do, intent.about))
        return WelcomeSent(about=intent.about)

    async def notice(intent: SendNotice) -> NoticeSent:
        sent = await post.ask(intent.about, partial(_do, intent.about))
        return NoticeSent(about=intent.about, sent=sent)

    async def settle(intent: SettleNotice) -> NoticeSent:
        sent = await post.ask(intent.about, partial(_settle, intent.about))
        return NoticeSent(about=intent.about, sent=sent)

    async def correct(intent: SendCorrection) -> CorrectionSent:
        await post.ask(intent.about, partial(_undo, intent.about))
        return CorrectionSent(about=intent.about)

    return {
        SendWelcome: welcome,
        SendNotice: notice,
        SettleNotice: settle,
        SendCorrection: correct,
    }


def decides(key: str) -> Choice:
    """What the sandbox of the bank decides on a task: its name tells."""
    if "broke" in key:
        return Choice.NO
    return Choice.SILENT if "slow" in key else Choice.YES


class Remembered:
    """What books tell of questions that no event tells of: `saga history rebuild` asks."""

    def __init__(self, books: KeyedBooks[Line]) -> None:
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
            case Welcome(phase=Phase.NEW) if line and "@" in state.key:
                return SendWelcome(about=state.key)
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
