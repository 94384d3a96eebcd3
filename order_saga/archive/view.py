"""What the events say of an order, from all publishers and in whatever order they came.

A view is no state of a participant: no decision rests on it. Events of different participants reach
the history side by side, so each sets only what no other event sets, or what does not depend on
which came first: all orders of events lead to the same view.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Self

from common.events import (
    CancellationReason,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    PaymentCharged,
    PaymentDeclined,
    PaymentRefunded,
    PaymentVoided,
    StockRejected,
    StockReleased,
    StockReserved,
)
from saga.choreography import State
from saga.clock import elapsed
from saga.message import Decided, Priority

NEVER = datetime.max.replace(tzinfo=UTC)
LONG_AGO = datetime.min.replace(tzinfo=UTC)


class Status(StrEnum):
    """Where an order stands; confirmed and cancelled are terminal. An unknown one has events, but
    none that it was placed."""

    UNKNOWN = "unknown"
    PENDING = "pending"
    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"


class Stock(StrEnum):
    """What inventory has said; later ones replace earlier ones."""

    NONE = "none"
    REJECTED = "rejected"
    HELD = "held"
    RELEASED = "released"


class PaymentProgress(StrEnum):
    """What payment has said; later ones replace earlier ones."""

    NONE = "none"
    DECLINED = "declined"
    CHARGED = "charged"
    VOIDED = "voided"
    REFUNDED = "refunded"


_STOCK = tuple(Stock)
_PAYMENT = tuple(PaymentProgress)


@dataclass(frozen=True, slots=True)
class ArchivedOrder(State):
    """One order, as its events tell it; `sequence` counts them.

    `first_event_at` and `last_event_at` span all of its events, whatever their types. An amount is
    0 as long as no event has named it.
    """

    status: Status = Status.UNKNOWN
    reason: CancellationReason | None = None
    customer: str = ""
    currency: str = ""
    total_cents: int = 0
    charged_cents: int = 0
    refunded_cents: int = 0
    priority: Priority = Priority.NORMAL
    stock: Stock = Stock.NONE
    payment: PaymentProgress = PaymentProgress.NONE
    deadline: datetime | None = None
    placed_at: datetime | None = None
    stock_at: datetime | None = None
    payment_at: datetime | None = None
    ended_at: datetime | None = None
    first_event_at: datetime = NEVER
    last_event_at: datetime = LONG_AGO

    @property
    def terminal(self) -> bool:
        return self.status in (Status.CONFIRMED, Status.CANCELLED)

    @property
    def settled(self) -> bool:
        """Whether nothing is left to do: it is confirmed; or cancelled, and neither stock is held
        nor money kept for it, nor will be."""
        return self.status is Status.CONFIRMED or (
            self.status is Status.CANCELLED
            and self.stock in (Stock.REJECTED, Stock.RELEASED)
            and self.payment
            in (PaymentProgress.DECLINED, PaymentProgress.VOIDED, PaymentProgress.REFUNDED)
        )

    @property
    def duration_ms(self) -> float | None:
        """From placed to ended."""
        if self.placed_at is None or self.ended_at is None:
            return None
        return elapsed(self.placed_at, self.ended_at) / timedelta(milliseconds=1)

    def evolve(self, message: Decided, at: datetime) -> Self:
        seen = replace(
            self,
            sequence=self.sequence + 1,
            first_event_at=min(self.first_event_at, at),
            last_event_at=max(self.last_event_at, at),
        )
        match message:
            case OrderPlaced():
                return replace(
                    seen,
                    status=Status.PENDING if seen.status is Status.UNKNOWN else seen.status,
                    customer=message.customer,
                    currency=message.currency,
                    total_cents=message.total_cents,
                    priority=message.priority,
                    deadline=message.deadline,
                    placed_at=at,
                )
            case OrderConfirmed():
                return seen._end(Status.CONFIRMED, None, at)
            case OrderCancelled():
                return seen._end(Status.CANCELLED, message.reason, at)
            case StockReserved():
                return seen._stock(Stock.HELD, at)
            case StockRejected():
                return seen._stock(Stock.REJECTED, at)
            case StockReleased():
                return seen._stock(Stock.RELEASED, at)
            case PaymentCharged():
                return replace(
                    seen._payment(PaymentProgress.CHARGED, at), charged_cents=message.amount_cents
                )
            case PaymentDeclined():
                return seen._payment(PaymentProgress.DECLINED, at)
            case PaymentVoided():
                return seen._payment(PaymentProgress.VOIDED, at)
            case PaymentRefunded():
                return replace(
                    seen._payment(PaymentProgress.REFUNDED, at), refunded_cents=message.amount_cents
                )
            case _:
                return seen

    def _end(self, status: Status, reason: CancellationReason | None, at: datetime) -> Self:
        if self.ended_at is not None and self.ended_at <= at:
            return self  # An order ends once; should it be said twice, the first one counts.
        return replace(self, status=status, reason=reason, ended_at=at)

    def _stock(self, stock: Stock, at: datetime) -> Self:
        if _STOCK.index(stock) <= _STOCK.index(self.stock):
            return self
        return replace(self, stock=stock, stock_at=at)

    def _payment(self, payment: PaymentProgress, at: datetime) -> Self:
        if _PAYMENT.index(payment) <= _PAYMENT.index(self.payment):
            return self
        return replace(self, payment=payment, payment_at=at)
