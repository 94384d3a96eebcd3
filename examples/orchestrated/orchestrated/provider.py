"""The payment provider, which `payment` asks: its rules, once, and who keeps its ledger.

`Ledger` is the rules. `DeskProvider` is the provider that the checker and the simulation ask;
`FileProvider` is a sandbox for a running system. Put the client of the real one in its place: it is
asked under a key, so that the same question, asked again, charges nothing twice.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import closing
from dataclasses import astuple, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID

from saga import Ask, Desk, Intent, OutsideError, Phase, State, TransientError

from orchestrated.language import DeclineReason
from orchestrated.payment.domain import (
    Charge,
    ChargeAnswered,
    Payment,
    Refund,
    RefundAnswered,
    SettleCharge,
)

SLOW, SLOW_SECONDS = "slow", 4.0
"""Customers whose name says so have a bank that takes its time."""


class Outcome(StrEnum):
    """What became of a charge; other than `charged`, the reason for a decline."""

    CHARGED = "charged"
    INSUFFICIENT_FUNDS = DeclineReason.INSUFFICIENT_FUNDS.value
    CARD_DECLINED = DeclineReason.CARD_DECLINED.value

    @classmethod
    def of(cls, customer: str) -> Outcome:
        """What the sandbox decides: the customer's name says it."""
        return next((outcome for outcome in cls if outcome in customer), cls.CHARGED)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the ledger: one charge, whatever the number of questions."""

    key: str
    customer: str
    currency: str
    amount_cents: int
    outcome: Outcome
    refunded_cents: int = 0

    @property
    def declined(self) -> DeclineReason | None:
        return None if self.outcome is Outcome.CHARGED else DeclineReason(self.outcome)

    @property
    def kept_cents(self) -> int:
        """What the provider took and has not given back."""
        return 0 if self.declined else self.amount_cents - self.refunded_cents


@dataclass(frozen=True, slots=True)
class Ledger:
    """All charges, in the order of their keys. It raises ValueError for what makes no sense."""

    all: tuple[Line, ...] = ()

    def __iter__(self) -> Iterator[Line]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)

    def find(self, key: str) -> Line | None:
        return next((line for line in self.all if line.key == key), None)

    def charge(self, wanted: Line) -> tuple[Ledger, Line]:
        """The ledger after a question, and the line that answers it: the first one decides."""
        line = self.find(wanted.key) or wanted
        asked = (wanted.customer, wanted.currency, wanted.amount_cents)
        if (line.customer, line.currency, line.amount_cents) != asked:
            raise ValueError(f"{wanted.key} is the key of a different charge")
        return self._with(line), line

    def refund(self, key: str, currency: str, amount_cents: int) -> Ledger:
        """The ledger after a refund: once, and at most what was charged."""
        line = self.find(key)
        if line is None or line.declined:
            raise ValueError(f"nothing was charged under {key}")
        cents = min(amount_cents, line.amount_cents)
        if currency != line.currency or line.refunded_cents not in (0, cents):
            raise ValueError(f"{key} is the key of a different refund")
        return self._with(replace(line, refunded_cents=cents))

    def _with(self, line: Line) -> Ledger:
        others = [each for each in self.all if each.key != line.key]
        return Ledger(tuple(sorted([*others, line], key=lambda each: each.key)))


class Provider(Protocol):
    """What `payment` needs of a provider."""

    async def charge(
        self, key: str, customer: str, currency: str, amount_cents: int
    ) -> DeclineReason | None: ...

    async def refund(self, key: str, currency: str, amount_cents: int) -> None: ...


def asks(provider: Provider) -> Mapping[type[Intent], Ask]:
    """How each question is put to it."""

    async def charge(intent: Charge) -> ChargeAnswered:
        declined = await provider.charge(
            intent.subject, intent.customer, intent.currency, intent.amount_cents
        )
        reference = "" if declined else f"receipt {intent.order_id}"
        return ChargeAnswered(order_id=intent.order_id, declined=declined, reference=reference)

    async def refund(intent: Refund) -> RefundAnswered:
        await provider.refund(intent.subject, intent.currency, intent.amount_cents)
        return RefundAnswered(order_id=intent.order_id)

    return {Charge: charge, SettleCharge: charge, Refund: refund}


class DeskProvider:
    """A `Provider` in memory."""

    def __init__(self, desk: Desk[Ledger]) -> None:
        self._desk = desk

    async def charge(
        self, key: str, customer: str, currency: str, amount_cents: int
    ) -> DeclineReason | None:
        wanted = Line(key, customer, currency, amount_cents, self._desk.decision)
        self._desk.books, line = self._desk.books.charge(wanted)
        return line.declined

    async def refund(self, key: str, currency: str, amount_cents: int) -> None:
        self._desk.books = self._desk.books.refund(key, currency, amount_cents)
        self._desk.said = "refunded"


_COLUMNS: Final = "key, customer, currency, amount_cents, outcome, refunded_cents"


class FileProvider:
    """A `Provider` in a SQLite file."""

    def __init__(self, url: str) -> None:
        self._path = _path(url)
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with closing(sqlite3.connect(self._path, timeout=10)) as connection, connection:
            connection.execute("PRAGMA journal_mode=WAL")
            connection.execute(
                "CREATE TABLE IF NOT EXISTS ledger (key TEXT PRIMARY KEY, customer TEXT, "
                "currency TEXT, amount_cents INTEGER, outcome TEXT, refunded_cents INTEGER)"
            )

    async def charge(
        self, key: str, customer: str, currency: str, amount_cents: int
    ) -> DeclineReason | None:
        wanted = Line(key, customer, currency, amount_cents, Outcome.of(customer))
        line = await asyncio.to_thread(self._change, key, lambda ledger: ledger.charge(wanted)[0])
        if SLOW in customer:
            await asyncio.sleep(SLOW_SECONDS)
        return line.declined

    async def refund(self, key: str, currency: str, amount_cents: int) -> None:
        await asyncio.to_thread(
            self._change, key, lambda ledger: ledger.refund(key, currency, amount_cents)
        )

    def _change(self, key: str, change: Callable[[Ledger], Ledger]) -> Line:
        """Change the line under a key; the line as it is then. Raises `TransientError`."""
        try:
            with closing(sqlite3.connect(self._path, timeout=10)) as connection, connection:
                connection.execute("BEGIN IMMEDIATE")
                line = change(_ledger(connection, "WHERE key = ?", key)).all[0]
                connection.execute("REPLACE INTO ledger VALUES (?, ?, ?, ?, ?, ?)", astuple(line))
        except sqlite3.Error as error:
            raise TransientError(f"the sandbox's ledger {self._path} is away: {error}") from error
        return line


def read(url: str) -> Ledger:
    """What such a file holds. Raises `OutsideError`."""
    path = _path(url)
    if not path.is_file():
        raise OutsideError(f"there is no ledger at {path}; start the service first")
    try:
        with closing(sqlite3.connect(path, timeout=10)) as connection:
            return _ledger(connection, "ORDER BY key")
    except sqlite3.Error as error:
        raise OutsideError(f"the ledger at {path} cannot be read: {error}") from error


def _ledger(connection: sqlite3.Connection, which: str, *arguments: str) -> Ledger:
    rows = connection.execute(f"SELECT {_COLUMNS} FROM ledger {which}", arguments)
    return Ledger(tuple(Line(k, c, y, a, Outcome(o), r) for k, c, y, a, o, r in rows))


def _path(url: str) -> Path:
    return Path(url.removeprefix("sqlite:///"))


class LedgerMemory:
    """What its ledger tells of questions that no event tells of: `saga history rebuild` asks."""

    def __init__(self, ledger: Ledger) -> None:
        self._lines = {line.key: line for line in ledger}

    @property
    def keys(self) -> Collection[str]:
        return self._lines.keys()

    def asked(self, state: State) -> Intent | None:
        line = self._lines.get(state.key)
        if line is None or not isinstance(state, Payment):
            return None
        order_id = UUID(state.key)
        if state.phase is Phase.NEW:
            return Charge(
                order_id=order_id,
                customer=line.customer,
                currency=line.currency,
                amount_cents=line.amount_cents,
            )
        if state.phase is Phase.TAKEN and line.refunded_cents:
            return Refund(
                order_id=order_id, currency=line.currency, amount_cents=line.refunded_cents
            )
        return None

    def taken_back(self, state: State) -> Intent | None:
        line = self._lines.get(state.key)
        if line is None or not line.refunded_cents or not isinstance(state, Payment):
            return None
        if state.phase is not Phase.ASKING:
            return None
        return SettleCharge(
            order_id=UUID(state.key),
            customer=state.customer,
            currency=state.currency,
            amount_cents=state.amount_cents,
        )

    def contradiction(self, state: State) -> str | None:
        line = self._lines.get(state.key)
        if line is None or not line.kept_cents or not isinstance(state, Payment):
            return None
        if state.phase in (Phase.VOID, Phase.REFUSED):
            return f"payment is {state.phase}, but the provider took {line.kept_cents} cents"
        return None
