"""What participants asked the outside, as far as the outside remembers: it is in no event.

Only looked up, never asked: nothing is charged or paid back by it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final, Protocol
from uuid import UUID

import sqlalchemy as sa
from pydantic import TypeAdapter

from common.choreography import State
from common.events import Currency
from common.message import Intent
from payment_service.domain import PARTICIPANT as PAYMENT
from payment_service.domain import Charge, Payment, PaymentStatus, Refund, SettleCharge
from payment_service.gateway import Charge as Charged
from payment_service.gateway import Outcome, SandboxGateway, ledger_file
from saga.history import HistoryError

_CURRENCY: Final[TypeAdapter[Any]] = TypeAdapter(Currency)


class Outside(Protocol):
    """What one participant's outside knows."""

    def asked(self, state: State) -> Intent | None:
        """The question that was asked about a state's subject and that no event of the participant
        tells of; None if there is none."""
        ...

    def taken_back(self, state: State) -> Intent | None:
        """The question by which a state that is in the middle of one is left to its subject's
        cancellation, because what the outside gave was given back since; None if it was not."""
        ...

    def contradiction(self, state: State) -> str | None:
        """What the outside did that cannot be, by what the participant said."""
        ...

    @property
    def keys(self) -> frozenset[str]:
        """The subjects that anything was ever asked about."""
        ...


class Nobody:
    """The outside of a participant that asks nobody."""

    keys: frozenset[str] = frozenset()

    def asked(self, state: State) -> Intent | None:
        return None

    def taken_back(self, state: State) -> Intent | None:
        return None

    def contradiction(self, state: State) -> str | None:
        return None


class Provider:
    """The payment provider's ledger."""

    def __init__(self, ledger: Mapping[str, Charged]) -> None:
        self._ledger = ledger
        self.keys = frozenset(ledger)

    def asked(self, state: State) -> Intent | None:
        with suppress(ValueError):  # See `contradiction`.
            return self._question(state)
        return None

    def _question(self, state: State) -> Intent | None:
        """What `asked` gives. Raises ValueError for a charge of which no order is the reason."""
        charged = self._ledger.get(state.key)
        if charged is None or not isinstance(state, Payment):
            return None
        match state.status:
            case PaymentStatus.NONE:
                return Charge(
                    order_id=UUID(state.key),
                    customer=charged.customer,
                    currency=_CURRENCY.validate_python(charged.currency),
                    amount_cents=charged.amount_cents,
                )
            case PaymentStatus.CHARGED if charged.refunded_cents:
                return Refund(
                    order_id=UUID(state.key),
                    currency=_CURRENCY.validate_python(charged.currency),
                    amount_cents=charged.refunded_cents,
                )
            case _:
                return None

    def taken_back(self, state: State) -> Intent | None:
        charged = self._ledger.get(state.key)
        if charged is None or not charged.refunded_cents or not isinstance(state, Payment):
            return None
        if state.status is not PaymentStatus.CHARGING:
            return None
        return SettleCharge(
            order_id=UUID(state.key),
            customer=state.customer,
            currency=state.currency,
            amount_cents=state.amount_cents,
        )

    def contradiction(self, state: State) -> str | None:
        charged = self._ledger.get(state.key)
        try:
            self._question(state)
        except ValueError:
            return "the provider took money under this key, which the saga cannot have asked for"
        took = charged is not None and charged.outcome is Outcome.CHARGED
        if isinstance(state, Payment) and took and charged is not None:
            kept = charged.amount_cents - charged.refunded_cents
            if state.status in (PaymentStatus.VOIDED, PaymentStatus.DECLINED) and kept:
                return f"payment says {state.status}, but the provider took {kept} cents"
        return None


def outside_of(participant: str, sandbox_url: str) -> Outside:
    """The outside of a participant; blocks. Raises `HistoryError` if it cannot be read."""
    if participant != PAYMENT.name:
        return Nobody()
    path = ledger_file(sandbox_url)
    if not path.is_file():  # The sandbox would make an empty one.
        raise HistoryError(
            f"the payment provider's ledger is not at {path}: put it there, since no event tells "
            f"what was asked and not answered yet"
        )
    try:
        gateway = SandboxGateway(sandbox_url)
        try:
            ledger = gateway.ledger()
        finally:
            asyncio.run(gateway.close())
    except (sa.exc.DBAPIError, ValueError) as error:
        raise HistoryError(f"cannot read the payment provider's ledger: {error}") from error
    return Provider({charge.key: charge for charge in ledger})
