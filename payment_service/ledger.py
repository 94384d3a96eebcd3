"""The payment provider's rules: what becomes of a charge, in every ledger.

Pure. The sandbox applies them to a file, the checker and the simulation to a value in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import StrEnum

from common.events import DeclineReason


class GatewayRefused(Exception):
    """The question makes no sense and never will. It changed nothing."""


@dataclass(frozen=True, slots=True)
class Receipt:
    """The money was taken. `reference` is the provider's name for it."""

    reference: str


@dataclass(frozen=True, slots=True)
class Decline:
    """No money was taken, and none will be under this key."""

    reason: DeclineReason


class ChargeOutcome(StrEnum):
    """What became of a charge; other than `charged`, the reason for a decline."""

    CHARGED = "charged"
    INSUFFICIENT_FUNDS = DeclineReason.INSUFFICIENT_FUNDS.value
    CARD_DECLINED = DeclineReason.CARD_DECLINED.value


@dataclass(frozen=True, slots=True)
class LedgerCharge:
    """A line of the provider's ledger. Times are Unix time in milliseconds.

    `asked` counts the questions that reached the ledger, the first included.
    """

    key: str
    customer: str
    currency: str
    amount_cents: int
    outcome: ChargeOutcome
    reference: str
    charged_at_ms: int = 0
    asked: int = 0
    refunded_cents: int = 0
    refunded_at_ms: int | None = None

    @property
    def declined(self) -> bool:
        return self.outcome is not ChargeOutcome.CHARGED

    @property
    def kept_cents(self) -> int:
        """What the provider took and has not given back."""
        return 0 if self.declined else self.amount_cents - self.refunded_cents

    def answer(self, customer: str, currency: str, amount_cents: int) -> Receipt | Decline:
        """The answer to a charge under this key, the same each time. Raises `GatewayRefused` if
        another charge is asked for."""
        if (self.customer, self.currency, self.amount_cents) != (customer, currency, amount_cents):
            raise GatewayRefused(f"{self.key} is the key of a different charge")
        if self.declined:
            return Decline(DeclineReason(self.outcome))
        return Receipt(self.reference)


def refunded(
    charge: LedgerCharge | None,
    key: str,
    currency: str,
    amount_cents: int,
    at_ms: int | None = None,
) -> LedgerCharge:
    """The line after a refund under its key, once. Raises `GatewayRefused` if nothing was charged,
    or less, or another refund was made."""
    if charge is None or charge.declined:
        raise GatewayRefused(f"nothing was charged under {key}")
    if amount_cents > charge.amount_cents:
        raise GatewayRefused(
            f"{amount_cents} cents are more than the {charge.amount_cents} charged under {key}"
        )
    if currency != charge.currency or charge.refunded_cents not in (0, amount_cents):
        raise GatewayRefused(f"{key} is the key of a different refund")
    if charge.refunded_cents:
        return charge
    return replace(charge, refunded_cents=amount_cents, refunded_at_ms=at_ms)


@dataclass(frozen=True, slots=True)
class Ledger:
    """All charges at one moment, in the order of their keys."""

    charges: tuple[LedgerCharge, ...] = ()

    def __iter__(self) -> Iterator[LedgerCharge]:
        return iter(self.charges)

    def __len__(self) -> int:
        return len(self.charges)

    def find(self, key: str) -> LedgerCharge | None:
        return next((charge for charge in self.charges if charge.key == key), None)

    def with_line(self, line: LedgerCharge) -> Ledger:
        others = [charge for charge in self.charges if charge.key != line.key]
        return Ledger(tuple(sorted([*others, line], key=lambda charge: charge.key)))
