"""An order's life: placed, then confirmed or cancelled, exactly once."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import ClassVar, Self
from uuid import UUID

from common.events import (
    CancellationReason,
    Customer,
    OrderCancelled,
    OrderConfirmed,
    OrderLine,
    OrderPlaced,
    PaymentCharged,
    PaymentDeclined,
    PlaceOrder,
    StockRejected,
    total_of,
)
from saga.choreography import Participant, State
from saga.due import Due
from saga.message import Command, Decided, Priority

NEVER = datetime.max.replace(tzinfo=UTC)


class OrderStatus(StrEnum):
    """Where an order stands; confirmed and cancelled are terminal."""

    UNKNOWN = "unknown"
    PENDING = "pending"
    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"


class _OrderCommand(Command):
    order_id: UUID

    @property
    def subject(self) -> str:
        return str(self.order_id)


class CancelOrder(_OrderCommand):
    """The customer wants out."""

    type: ClassVar[str] = "order.cancel"


class ExpireOrder(_OrderCommand):
    """The order's deadline has passed."""

    type: ClassVar[str] = "order.expire"


@dataclass(frozen=True, slots=True)
class Order(State):
    """What is known of one order."""

    status: OrderStatus = OrderStatus.UNKNOWN
    customer: Customer = ""
    currency: str = ""
    lines: tuple[OrderLine, ...] = ()
    total_cents: int = 0
    priority: Priority = Priority.NORMAL
    deadline: datetime = NEVER
    placed_at: datetime | None = None
    ended_at: datetime | None = None
    reason: CancellationReason | None = None

    @property
    def terminal(self) -> bool:
        return self.status in (OrderStatus.CONFIRMED, OrderStatus.CANCELLED)

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case OrderPlaced():
                return replace(
                    self,
                    status=OrderStatus.PENDING,
                    customer=message.customer,
                    currency=message.currency,
                    lines=message.lines,
                    total_cents=message.total_cents,
                    priority=message.priority,
                    deadline=message.deadline,
                    placed_at=at,
                )
            case OrderConfirmed():
                return replace(self, status=OrderStatus.CONFIRMED, ended_at=at)
            case OrderCancelled():
                return replace(
                    self, status=OrderStatus.CANCELLED, ended_at=at, reason=message.reason
                )
            case _:
                return self

    def due(self) -> Due[ExpireOrder] | None:
        """A pending order is cancelled at its deadline."""
        if self.status is not OrderStatus.PENDING:
            return None
        return Due(self.deadline, ExpireOrder(order_id=UUID(self.key)), self.priority)


class UnknownOrder(LookupError):
    """An event about an order that was never placed here: impossible while the database lives."""

    def __init__(self, order_id: UUID) -> None:
        super().__init__(f"order {order_id} was never placed here; was the database replaced?")


def place(command: PlaceOrder, order: Order, now: datetime) -> OrderPlaced | None:
    if order.status is not OrderStatus.UNKNOWN:
        return None
    return OrderPlaced(
        order_id=command.order_id,
        customer=command.customer,
        currency=command.currency,
        lines=command.lines,
        total_cents=total_of(command.lines),
        priority=command.priority,
        deadline=now + timedelta(seconds=command.time_limit_seconds),
    )


def give_up(event: StockRejected, order: Order) -> OrderCancelled | None:
    return _cancel(event.order_id, order, CancellationReason(event.reason))


def confirm(event: PaymentCharged, order: Order) -> OrderConfirmed | None:
    match order.status:
        case OrderStatus.PENDING:
            return OrderConfirmed(
                order_id=event.order_id,
                customer=order.customer,
                currency=event.currency,
                total_cents=event.amount_cents,
            )
        case OrderStatus.UNKNOWN:
            raise UnknownOrder(event.order_id)
        case _:  # Cancelled: payment refunds on the cancellation, not on our word here.
            return None


def give_up_unpaid(event: PaymentDeclined, order: Order) -> OrderCancelled | None:
    return _cancel(event.order_id, order, CancellationReason.PAYMENT_DECLINED)


def cancel(command: CancelOrder, order: Order) -> OrderCancelled | None:
    return _cancel(command.order_id, order, CancellationReason.CUSTOMER_REQUEST)


def expire(command: ExpireOrder, order: Order) -> OrderCancelled | None:
    return _cancel(command.order_id, order, CancellationReason.DEADLINE_EXCEEDED)


def _cancel(order_id: UUID, order: Order, reason: CancellationReason) -> OrderCancelled | None:
    if order.status is OrderStatus.UNKNOWN:
        raise UnknownOrder(order_id)
    if order.terminal:
        return None
    return OrderCancelled(order_id=order_id, customer=order.customer, reason=reason)


PARTICIPANT = Participant("order", place, give_up, confirm, give_up_unpaid, cancel, expire)
