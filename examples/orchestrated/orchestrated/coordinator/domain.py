"""An order, from the coordinator's seat: what it has asked for, and what is to be asked next.

Its state is all that it needs to go on after a restart. What it has sent is part of that state, so
a cancellation undoes what was asked for and nothing else, whatever has been answered so far.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import ClassVar, Self
from uuid import UUID

from saga import Command, Decided, Due, Participant, State

from orchestrated.language import (
    CancellationReason,
    CancelOrder,
    CancelPayment,
    ChargePayment,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    PaymentCharged,
    PaymentDeclined,
    PlaceOrder,
    ReleaseStock,
    ReserveStock,
    StockRejected,
    StockReserved,
)


class ExpireOrder(Command):
    """The order's deadline has passed."""

    type: ClassVar[str] = "order.expire"

    order_id: UUID

    @property
    def subject(self) -> str:
        return str(self.order_id)


class Step(StrEnum):
    """What an order waits for, or how it has ended."""

    UNKNOWN = "unknown"
    RESERVING = "reserving"
    CHARGING = "charging"
    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"


PENDING = (Step.RESERVING, Step.CHARGING)


@dataclass(frozen=True, slots=True)
class Order(State):
    """One order. It changes by what the coordinator itself sends, commands included."""

    step: Step = Step.UNKNOWN
    customer: str = ""
    currency: str = ""
    total_cents: int = 0
    deadline: datetime | None = None
    reason: CancellationReason | None = None

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case OrderPlaced():
                return replace(
                    self,
                    step=Step.RESERVING,
                    customer=message.customer,
                    currency=message.currency,
                    total_cents=message.total_cents,
                    deadline=message.deadline,
                )
            case ChargePayment():
                return replace(self, step=Step.CHARGING)
            case OrderConfirmed():
                return replace(self, step=Step.CONFIRMED)
            case OrderCancelled():
                return replace(self, step=Step.CANCELLED, reason=message.reason)
            case _:
                return self

    def due(self) -> Due[ExpireOrder] | None:
        """It is cancelled at its deadline, if nothing else has ended it."""
        if self.step not in PENDING or self.deadline is None:
            return None
        return Due(self.deadline, ExpireOrder(order_id=UUID(self.key)))


def place(
    command: PlaceOrder, order: Order, now: datetime
) -> tuple[OrderPlaced, ReserveStock] | None:
    if order.step is not Step.UNKNOWN:
        return None
    placed = OrderPlaced(
        order_id=command.order_id,
        customer=command.customer,
        currency=command.currency,
        total_cents=sum(line.quantity * line.unit_price_cents for line in command.lines),
        deadline=now + timedelta(seconds=command.time_limit_seconds),
    )
    return placed, ReserveStock(
        order_id=command.order_id, currency=command.currency, lines=command.lines
    )


def charge(event: StockReserved, order: Order) -> ChargePayment | None:
    if order.step is not Step.RESERVING:
        return None
    return ChargePayment(
        order_id=event.order_id,
        customer=order.customer,
        currency=order.currency,
        amount_cents=order.total_cents,
    )


def confirm(event: PaymentCharged, order: Order) -> OrderConfirmed | None:
    if order.step is not Step.CHARGING:
        return None  # Cancelled meanwhile: payment was told, and gives the money back.
    return OrderConfirmed(
        order_id=event.order_id,
        customer=order.customer,
        currency=event.currency,
        total_cents=event.amount_cents,
    )


def give_up(event: StockRejected, order: Order) -> OrderCancelled | None:
    """Nothing is held and no payment was asked for: nothing has to be undone."""
    if order.step is not Step.RESERVING:
        return None
    return _cancelled(order, CancellationReason(event.reason))


def give_up_unpaid(
    event: PaymentDeclined, order: Order
) -> tuple[OrderCancelled, ReleaseStock] | None:
    if order.step is not Step.CHARGING:
        return None
    cancelled = _cancelled(order, CancellationReason.PAYMENT_DECLINED)
    return cancelled, ReleaseStock(order_id=event.order_id)


Undoing = (
    tuple[OrderCancelled, ReleaseStock] | tuple[OrderCancelled, ReleaseStock, CancelPayment] | None
)
"""Cancel an order, and tell each participant that was asked for something."""


def cancel(command: CancelOrder, order: Order) -> Undoing:
    return _undo(order, CancellationReason.CUSTOMER_REQUEST)


def expire(command: ExpireOrder, order: Order) -> Undoing:
    return _undo(order, CancellationReason.DEADLINE_EXCEEDED)


def _undo(order: Order, reason: CancellationReason) -> Undoing:
    if order.step not in PENDING:
        return None
    cancelled, release = _cancelled(order, reason), ReleaseStock(order_id=UUID(order.key))
    if order.step is Step.RESERVING:
        return cancelled, release
    return cancelled, release, CancelPayment(order_id=UUID(order.key))


def _cancelled(order: Order, reason: CancellationReason) -> OrderCancelled:
    return OrderCancelled(order_id=UUID(order.key), customer=order.customer, reason=reason)


PARTICIPANT = Participant(
    "coordinator", place, charge, confirm, give_up, give_up_unpaid, cancel, expire
)
