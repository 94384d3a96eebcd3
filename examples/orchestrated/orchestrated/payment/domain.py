"""A payment: asked for once, and given back when the coordinator says so.

The rules of the order system's payment, with commands where that one reacts to others' events. The
provider is asked between two commits; `saga.ask`, `record` and `take_back` say what is right then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Self
from uuid import UUID

from saga import (
    Answer,
    Decided,
    Intent,
    Participant,
    Phase,
    Retry,
    State,
    ask,
    record,
    record_undone,
    take_back,
)

from orchestrated.language import (
    CancelPayment,
    ChargePayment,
    DeclineReason,
    PaymentCharged,
    PaymentDeclined,
    PaymentRefunded,
    PaymentVoided,
)


class _OrderAnswer(Answer):
    order_id: UUID

    @property
    def subject(self) -> str:
        return str(self.order_id)


class ChargeAnswered(_OrderAnswer):
    """What the provider said to a charge: why it took no money, or, with None, that it did."""

    declined: DeclineReason | None
    reference: str = ""


class RefundAnswered(_OrderAnswer):
    """The provider has given the money back."""


class _OrderIntent(Intent):
    order_id: UUID
    currency: str
    amount_cents: int

    @property
    def subject(self) -> str:
        return str(self.order_id)


class Charge(_OrderIntent):
    """Ask the provider for the money, under the order's idempotency key."""

    answer: ClassVar[type[Answer]] = ChargeAnswered

    customer: str


class SettleCharge(Charge):
    """The same question once more, because the order was cancelled while it was being asked."""


class Refund(_OrderIntent):
    """Ask the provider to give the money back, under the order's idempotency key."""

    answer: ClassVar[type[Answer]] = RefundAnswered


@dataclass(frozen=True, slots=True)
class Payment(State):
    """The payment for one order. What was only needed to ask is forgotten with the answer."""

    phase: Phase = Phase.NEW
    customer: str = ""
    currency: str = ""
    amount_cents: int = 0

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case SettleCharge():
                return replace(self, phase=Phase.SETTLING)
            case Charge():
                return replace(
                    self,
                    phase=Phase.ASKING,
                    customer=message.customer,
                    currency=message.currency,
                    amount_cents=message.amount_cents,
                )
            case PaymentCharged():
                return replace(
                    self,
                    phase=Phase.TAKEN,
                    customer="",
                    currency=message.currency,
                    amount_cents=message.amount_cents,
                )
            case PaymentDeclined():
                return self._nothing_taken(Phase.REFUSED)
            case Refund():
                return replace(self, phase=Phase.UNDOING)
            case PaymentRefunded():
                return replace(self, phase=Phase.UNDONE)
            case PaymentVoided():
                return self._nothing_taken(Phase.VOID)
            case _:
                return self

    def _nothing_taken(self, phase: Phase) -> Self:
        return type(self)(self.key, self.sequence, phase)


def charge(command: ChargePayment, payment: Payment) -> Charge | None:
    return ask(payment.phase, lambda: Charge(**dict(command)))


def record_charge(
    answer: ChargeAnswered, payment: Payment
) -> (
    PaymentCharged | PaymentDeclined | PaymentVoided | tuple[PaymentCharged, Refund] | Refund | None
):
    return record(
        payment.phase,
        answer.declined is None,
        taken=lambda: PaymentCharged(
            order_id=answer.order_id,
            currency=payment.currency,
            amount_cents=payment.amount_cents,
            reference=answer.reference,
        ),
        refused=lambda: PaymentDeclined.model_validate(
            {"order_id": answer.order_id, "reason": answer.declined}
        ),
        void=lambda: PaymentVoided(order_id=answer.order_id),
        undo=lambda: _refund(payment),
    )


def compensate(
    command: CancelPayment, payment: Payment
) -> PaymentVoided | SettleCharge | Refund | None:
    return take_back(
        payment.phase,
        void=lambda: PaymentVoided(order_id=command.order_id),
        settle=lambda: SettleCharge(
            order_id=command.order_id,
            customer=payment.customer,
            currency=payment.currency,
            amount_cents=payment.amount_cents,
        ),
        undo=lambda: _refund(payment),
    )


def record_refund(answer: RefundAnswered, payment: Payment) -> PaymentRefunded | None:
    return record_undone(
        payment.phase,
        lambda: PaymentRefunded(
            order_id=answer.order_id, currency=payment.currency, amount_cents=payment.amount_cents
        ),
    )


def _refund(payment: Payment) -> Refund:
    return Refund(
        order_id=UUID(payment.key), currency=payment.currency, amount_cents=payment.amount_cents
    )


PARTICIPANT = Participant(
    "payment",
    charge,
    record_charge,
    compensate,
    record_refund,
    retry=Retry(max_calls=4, delay=0.5, backoff=2.0, max_delay=5.0),
    # A refund is owed: it is tried for a quarter of an hour.
    retries={compensate: Retry(max_calls=12, delay=0.5, backoff=2.0, max_delay=300.0)},
)
