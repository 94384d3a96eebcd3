"""The payment provider, which `payment` asks: its rules, once, for the checker, the simulation and
the sandbox of a running system.

Put the client of the real one in the sandbox's place: it is asked under a key, so that the same
question, asked again, charges nothing twice.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial
from uuid import UUID

from saga import Ask, Bookkeeper, Intent, KeyedBooks, Phase, State

from orchestrated.language import DeclineReason
from orchestrated.payment.domain import (
    Charge,
    ChargeAnswered,
    Payment,
    Refund,
    RefundAnswered,
    SettleCharge,
)

SLOW, SLOW_SECONDS = "slow", 2.0
"""Customers whose name says so have a bank that takes its time, in the sandbox."""


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


class Ledger(KeyedBooks[Line]):
    """All charges."""

    __slots__ = ()
    kind = Line


def charge(
    intent: Charge, line: Line | None, outcome: Outcome | None
) -> tuple[Line, DeclineReason | None]:
    """Take the money, or say why not: the first question under a key decides, and another charge
    under it makes no sense. Without an `outcome`, the customer's name has it."""
    asked = intent.customer, intent.currency, intent.amount_cents
    line = line or Line(intent.subject, *asked, outcome or Outcome.of(intent.customer))
    if (line.customer, line.currency, line.amount_cents) != asked:
        raise ValueError(f"{line.key} is the key of a different charge")
    return line, line.declined


def refund(intent: Refund, line: Line | None, _: Outcome | None) -> tuple[Line, None]:
    """Give the money back: once, and no more than was charged."""
    if line is None or line.declined:
        raise ValueError(f"nothing was charged under {intent.subject}")
    cents = intent.amount_cents
    if cents > line.amount_cents:
        raise ValueError(f"{cents} cents are more than was charged under {intent.subject}")
    if intent.currency != line.currency or line.refunded_cents not in (0, cents):
        raise ValueError(f"{line.key} is the key of a different refund")
    return replace(line, refunded_cents=cents), None


def asks(provider: Bookkeeper, slow_seconds: float = 0.0) -> Mapping[type[Intent], Ask]:
    """How each question is put to it. A slow bank's first answer is held back after its effect."""

    async def ask_charge(intent: Charge) -> ChargeAnswered:
        declined = await provider.ask(intent.subject, partial(charge, intent))
        slow = SLOW in intent.customer and not isinstance(intent, SettleCharge)
        if slow_seconds and slow:
            await asyncio.sleep(slow_seconds)
        reference = "" if declined else f"receipt {intent.order_id}"
        return ChargeAnswered(order_id=intent.order_id, declined=declined, reference=reference)

    async def ask_refund(intent: Refund) -> RefundAnswered:
        await provider.ask(intent.subject, partial(refund, intent))
        return RefundAnswered(order_id=intent.order_id)

    return {Charge: ask_charge, SettleCharge: ask_charge, Refund: ask_refund}


class LedgerMemory:
    """What its ledger tells of questions that no event tells of: `saga history rebuild` asks."""

    def __init__(self, ledger: Ledger) -> None:
        self._lines = {line.key: line for line in ledger}

    @property
    def keys(self) -> Collection[str]:
        return self._lines.keys()

    def asked(self, state: State) -> Intent | None:
        line = self._lines.get(state.key)
        match state:
            case Payment(phase=Phase.NEW) if line:
                return Charge(
                    order_id=UUID(state.key),
                    customer=line.customer,
                    currency=line.currency,
                    amount_cents=line.amount_cents,
                )
            case Payment(phase=Phase.TAKEN) if line and line.refunded_cents:
                return Refund(
                    order_id=UUID(state.key),
                    currency=line.currency,
                    amount_cents=line.refunded_cents,
                )
            case _:
                return None

    def taken_back(self, state: State) -> Intent | None:
        line = self._lines.get(state.key)
        match state:
            case Payment(phase=Phase.ASKING) if line and line.refunded_cents:
                return SettleCharge(
                    order_id=UUID(state.key),
                    customer=state.customer,
                    currency=state.currency,
                    amount_cents=state.amount_cents,
                )
            case _:
                return None

    def contradiction(self, state: State) -> str | None:
        line = self._lines.get(state.key)
        match state:
            case Payment(phase=Phase.VOID | Phase.REFUSED) if line and line.kept_cents:
                return f"payment is {state.phase}, but the provider took {line.kept_cents} cents"
            case _:
                return None
