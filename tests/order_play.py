"""Orders played in memory."""

from __future__ import annotations

from dataclasses import dataclass, field
from uuid import uuid4

from common.events import DeclineReason, OrderLine, PlaceOrder
from notification_service.domain import Result, Send, SendAnswered
from payment_service.domain import Charge, ChargeAnswered, Refund, RefundAnswered
from saga.choreography import Choreography
from saga.discovery import choreography
from saga.message import Answer, Intent
from tests import play

BROKE = "broke"
"""The customer whose card is declined."""
PRICE_CENTS = 250
SAGA = Choreography(
    p for p in choreography().participants if p.name in ("order", "inventory", "payment")
)
"""Those who decide what becomes of an order, without those that only listen."""


@dataclass
class Play(play.Play):
    """The orders, with a provider that declines one customer's card and a mailer that always
    sends."""

    charges: list[Charge] = field(default_factory=list)
    refunds: list[Refund] = field(default_factory=list)
    provider_down: bool = False
    refunds_down: bool = False
    graph: Choreography = field(default_factory=choreography, kw_only=True)

    def place(self, customer: str = "ada", sku: str = "tea", quantity: int = 2) -> str:
        order_id = uuid4()
        line = OrderLine(sku=sku, quantity=quantity, unit_price_cents=PRICE_CENTS)
        self.give(
            "order",
            PlaceOrder(order_id=order_id, customer=customer, currency="EUR", lines=(line,)),
        )
        return str(order_id)

    def _fails(self, intent: Intent | None) -> bool:
        if isinstance(intent, Refund) and self.refunds_down:
            return True
        return isinstance(intent, Charge | Refund) and self.provider_down

    def _answer(self, intent: Intent | None) -> Answer | None:
        if isinstance(intent, Charge):
            self.charges.append(intent)
            declined = DeclineReason.CARD_DECLINED if intent.customer == BROKE else None
            return ChargeAnswered(order_id=intent.order_id, declined=declined, reference="r")
        if isinstance(intent, Refund):
            self.refunds.append(intent)
            return RefundAnswered(order_id=intent.order_id)
        if isinstance(intent, Send):
            return SendAnswered(order_id=intent.order_id, result=Result.ACCEPTED)
        return super()._answer(intent)


# Orders from placed to ended; each returns the order's id.


def confirmed(played: Play) -> str:
    order = played.place()
    played.deliver()
    return order


def declined(played: Play) -> str:
    order = played.place(customer=BROKE)
    played.deliver()
    return order


def out_of_stock(played: Play) -> str:
    order = played.place(quantity=1_000)
    played.deliver()
    return order
