"""What the coordinator asks for, and what it takes back."""

from __future__ import annotations

from uuid import UUID

import pytest
from saga.testing import NOW, assert_once, given

from orchestrated.coordinator.domain import PARTICIPANT, ExpireOrder, Order
from orchestrated.language import (
    CancellationReason,
    CancelOrder,
    CancelPayment,
    ChargePayment,
    DeclineReason,
    OrderCancelled,
    OrderConfirmed,
    OrderLine,
    OrderPlaced,
    PaymentCharged,
    PaymentDeclined,
    PlaceOrder,
    RejectionReason,
    ReleaseStock,
    ReserveStock,
    StockRejected,
    StockReserved,
)

ID = UUID(int=1)
MUGS = OrderLine(sku="mug", quantity=2, unit_price_cents=1250)
place = PlaceOrder(order_id=ID, customer="anna", currency="EUR", lines=(MUGS,))
placed, reserve = given(PARTICIPANT).when(place)
charge = ChargePayment(order_id=ID, customer="anna", currency="EUR", amount_cents=2500)
reserved = StockReserved(order_id=ID, lines=(MUGS,))
charged = PaymentCharged(order_id=ID, currency="EUR", amount_cents=2500, reference="r")
release, cancel_payment = ReleaseStock(order_id=ID), CancelPayment(order_id=ID)
reserving = (placed, reserve)
charging = (*reserving, charge)


def cancelled(reason: CancellationReason) -> OrderCancelled:
    return OrderCancelled(order_id=ID, customer="anna", reason=reason)


def test_one_step_is_asked_for_after_the_other() -> None:
    assert isinstance(placed, OrderPlaced)
    assert reserve == ReserveStock(order_id=ID, currency="EUR", lines=(MUGS,))
    assert given(PARTICIPANT, *reserving).when(reserved) == (charge,)
    (confirmed,) = given(PARTICIPANT, *charging).when(charged)
    assert isinstance(confirmed, OrderConfirmed)


def test_what_comes_twice_is_asked_for_once() -> None:
    assert_once(given(PARTICIPANT), place)
    assert_once(given(PARTICIPANT, *reserving), reserved)
    assert_once(given(PARTICIPANT, *charging), charged)
    assert_once(given(PARTICIPANT, *charging), CancelOrder(order_id=ID))


def test_a_refusal_has_what_was_done_before_undone() -> None:
    rejected = StockRejected(order_id=ID, reason=RejectionReason.OUT_OF_STOCK, sku="mug")
    declined = PaymentDeclined(order_id=ID, reason=DeclineReason.CARD_DECLINED)
    no_stock = cancelled(CancellationReason.OUT_OF_STOCK)
    unpaid = cancelled(CancellationReason.PAYMENT_DECLINED)
    assert given(PARTICIPANT, *reserving).when(rejected) == (no_stock,)
    assert given(PARTICIPANT, *charging).when(declined) == (unpaid, release)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (CancelOrder(order_id=ID), CancellationReason.CUSTOMER_REQUEST),
        (ExpireOrder(order_id=ID), CancellationReason.DEADLINE_EXCEEDED),
    ],
)
def test_a_cancellation_undoes_whatever_was_asked_for_by_then(
    command: CancelOrder | ExpireOrder, reason: CancellationReason
) -> None:
    end = cancelled(reason)
    assert given(PARTICIPANT, *reserving).when(command) == (end, release)
    assert given(PARTICIPANT, *charging).when(command) == (end, release, cancel_payment)
    assert given(PARTICIPANT, *charging, end).when(charged) == ()


def test_an_order_is_due_at_its_time_limit_until_it_has_ended() -> None:
    due = given(PARTICIPANT, *charging).state(Order, str(ID)).due()
    assert due is not None
    assert (due.at - NOW).total_seconds() == place.time_limit_seconds
    ended = cancelled(CancellationReason.CUSTOMER_REQUEST)
    assert given(PARTICIPANT, *charging, ended).state(Order, str(ID)).due() is None
