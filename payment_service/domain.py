"""A payment: asked for once, and given back if the order was cancelled.

The provider is asked between two commits: first the intent, then the answer. What a crash leaves
in between is asked again under the same key, and the provider gives the same answer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import ClassVar, Final, Self
from uuid import UUID

from common.events import (
    Currency,
    Customer,
    DeclineReason,
    OrderCancelled,
    PaymentCharged,
    PaymentDeclined,
    PaymentRefunded,
    PaymentVoided,
    StockReserved,
)
from saga.asking import Phase, ask, record, record_undone, take_back
from saga.choreography import Participant, State
from saga.message import Answer, Decided, Intent
from saga.retry import Retry


class _OrderAnswer(Answer):
    order_id: UUID

    @property
    def subject(self) -> str:
        return str(self.order_id)


class ChargeAnswered(_OrderAnswer):
    """What the provider said to a charge: why it took no money, or, with None, that it did."""

    declined: DeclineReason | None
    reference: str


class RefundAnswered(_OrderAnswer):
    """The provider has given the money back."""


class _OrderIntent(Intent):
    order_id: UUID

    @property
    def subject(self) -> str:
        return str(self.order_id)


class Charge(_OrderIntent):
    """Ask the provider for the money, under the order's idempotency key."""

    answer: ClassVar[type[Answer]] = ChargeAnswered

    customer: Customer
    currency: Currency
    amount_cents: int


class SettleCharge(Charge):
    """The same question once more, because the order was cancelled while it was being asked."""


class Refund(_OrderIntent):
    """Ask the provider to give the money back, under the order's idempotency key."""

    answer: ClassVar[type[Answer]] = RefundAnswered

    currency: Currency
    amount_cents: int


class PaymentStatus(StrEnum):
    """Where a payment stands. In `charging`, `settling` and `refunding` the provider may have
    acted without our knowing yet. `voided` is also the marker of a cancellation that came first."""

    NONE = "none"
    CHARGING = "charging"
    SETTLING = "settling"
    CHARGED = "charged"
    DECLINED = "declined"
    REFUNDING = "refunding"
    REFUNDED = "refunded"
    VOIDED = "voided"


_PHASES: Final = {
    PaymentStatus.NONE: Phase.NEW,
    PaymentStatus.CHARGING: Phase.ASKING,
    PaymentStatus.SETTLING: Phase.SETTLING,
    PaymentStatus.CHARGED: Phase.TAKEN,
    PaymentStatus.DECLINED: Phase.REFUSED,
    PaymentStatus.REFUNDING: Phase.UNDOING,
    PaymentStatus.REFUNDED: Phase.UNDONE,
    PaymentStatus.VOIDED: Phase.VOID,
}


@dataclass(frozen=True, slots=True)
class Payment(State):
    """The payment for one order.

    What was only needed to ask the provider is forgotten with its answer. So a payment that is in
    the middle of no question is what its events tell, and can be told from them again.
    """

    status: PaymentStatus = PaymentStatus.NONE
    customer: Customer = ""
    currency: Currency = "EUR"
    amount_cents: int = 0

    @property
    def phase(self) -> Phase:
        return _PHASES[self.status]

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case SettleCharge():
                return replace(self, status=PaymentStatus.SETTLING)
            case Charge():
                return replace(
                    self,
                    status=PaymentStatus.CHARGING,
                    customer=message.customer,
                    currency=message.currency,
                    amount_cents=message.amount_cents,
                )
            case PaymentCharged():
                return replace(
                    self,
                    status=PaymentStatus.CHARGED,
                    customer="",
                    currency=message.currency,
                    amount_cents=message.amount_cents,
                )
            case PaymentDeclined():
                return self._nothing_taken(PaymentStatus.DECLINED)
            case Refund():
                return replace(self, status=PaymentStatus.REFUNDING)
            case PaymentRefunded():
                return replace(self, status=PaymentStatus.REFUNDED)
            case PaymentVoided():
                return self._nothing_taken(PaymentStatus.VOIDED)
            case _:
                return self

    def _nothing_taken(self, status: PaymentStatus) -> Self:
        return type(self)(self.key, self.sequence, status)


def charge(event: StockReserved, payment: Payment) -> Charge | None:
    return ask(
        payment.phase,
        lambda: Charge(
            order_id=event.order_id,
            customer=event.customer,
            currency=event.currency,
            amount_cents=event.total_cents,
        ),
    )


def record_charge(
    answer: ChargeAnswered, payment: Payment
) -> (
    PaymentCharged | PaymentDeclined | PaymentVoided | tuple[PaymentCharged, Refund] | Refund | None
):
    def refused() -> PaymentDeclined:
        assert answer.declined is not None  # noqa: S101 - it is called only then
        return PaymentDeclined(order_id=answer.order_id, reason=answer.declined)

    return record(
        payment.phase,
        answer.declined is None,
        taken=lambda: PaymentCharged(
            order_id=answer.order_id,
            currency=payment.currency,
            amount_cents=payment.amount_cents,
            reference=answer.reference,
        ),
        refused=refused,
        void=lambda: PaymentVoided(order_id=answer.order_id),
        undo=lambda: _refund(answer.order_id, payment),
    )


def compensate(
    event: OrderCancelled, payment: Payment
) -> PaymentVoided | SettleCharge | Refund | None:
    return take_back(
        payment.phase,
        void=lambda: PaymentVoided(order_id=event.order_id),
        settle=lambda: SettleCharge(
            order_id=event.order_id,
            customer=payment.customer,
            currency=payment.currency,
            amount_cents=payment.amount_cents,
        ),
        undo=lambda: _refund(event.order_id, payment),
    )


def record_refund(answer: RefundAnswered, payment: Payment) -> PaymentRefunded | None:
    return record_undone(
        payment.phase,
        lambda: PaymentRefunded(
            order_id=answer.order_id,
            currency=payment.currency,
            amount_cents=payment.amount_cents,
        ),
    )


def _refund(order_id: UUID, payment: Payment) -> Refund:
    return Refund(order_id=order_id, currency=payment.currency, amount_cents=payment.amount_cents)


PARTICIPANT = Participant(
    "payment",
    charge,
    record_charge,
    compensate,
    record_refund,
    # A charge is tried for some 7 s, the time a customer waits at a till. A provider that is away
    # for longer may be so for hours, through which trying on would only keep the order from the
    # person who can replay it. A refund is owed: it is tried for a quarter of an hour.
    retry=Retry(max_calls=4, delay=0.5, backoff=2.0, max_delay=5.0),
    retries={compensate: Retry(max_calls=12, delay=0.5, backoff=2.0, max_delay=300.0)},
)
