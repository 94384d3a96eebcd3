"""What must hold in the worlds of `saga verify` beside what holds everywhere, rule by rule."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from common.events import (
    CancellationReason,
    HeldLine,
    OrderLine,
    OrderPlaced,
    RejectionReason,
    StockAdded,
    StockRejected,
    StockReserved,
)
from inventory_service.domain import Reservation, ReservationStatus
from notification_service.domain import PARTICIPANT as NOTIFICATION
from order_saga import SAGA
from order_saga.invariants import FIRST_DELIVERY, not_undone, reason_untrue, rejected_untrue
from order_service.domain import Order, OrderStatus
from payment_service.domain import Payment, PaymentStatus
from saga.choreography import Choreography, State
from saga.envelope import source_of, wrap
from saga.message import Event, Priority
from saga.rules import Rules
from saga.view import EventsInMemory, Invariant, View

NOW = datetime(2030, 1, 1, tzinfo=UTC)
A, B = str(UUID(int=1)), str(UUID(int=2))
MUG = OrderLine(sku="mug", quantity=2, unit_price_cents=1250)
PEN = OrderLine(sku="pen", quantity=1, unit_price_cents=150)


def broken(rule: Callable[..., Any], *found: State | Event) -> list[tuple[str, str]]:
    """What breaks the rule where there are these states and events."""
    states = {(type(each), each.key): each for each in found if isinstance(each, State)}
    events = [
        wrap(
            event,
            id=str(number),
            source=source_of(event.publisher or ""),
            time=NOW,
            priority=Priority.NORMAL,
            sequence=1,
        )
        for number, event in enumerate(each for each in found if isinstance(each, Event))
    ]
    view = View({"all": states}, EventsInMemory(events), rests=lambda _: True)
    return list(Invariant.of(rule).broken(view))


def order(key: str = A, **values: Any) -> Order:
    cancelled = Order(
        key,
        status=OrderStatus.CANCELLED,
        lines=(MUG, PEN),
        deadline=NOW + timedelta(seconds=300),
        ended_at=NOW,
        reason=CancellationReason.CUSTOMER_REQUEST,
    )
    return replace(cancelled, **values)


CONFIRMED = order(B, status=OrderStatus.CONFIRMED, reason=None)


# --- not_undone ---------------------------------------------------------------------------------


@pytest.mark.parametrize("reservation", [ReservationStatus.RELEASED, ReservationStatus.REJECTED])
@pytest.mark.parametrize(
    "payment", [PaymentStatus.VOIDED, PaymentStatus.DECLINED, PaymentStatus.REFUNDED]
)
def test_what_was_released_and_given_back_is_undone(
    reservation: ReservationStatus, payment: PaymentStatus
) -> None:
    held = Reservation(A, status=reservation, lines=(HeldLine(sku="mug", quantity=2),))

    assert broken(not_undone, order(), held, Payment(A, status=payment)) == []


def test_whoever_has_said_nothing_has_undone_nothing() -> None:
    assert broken(not_undone, CONFIRMED, order(reason=None)) == [
        (A, "it is cancelled, and the reservation is none"),
        (A, "it is cancelled, and the payment is none"),
    ]


# --- rejected_untrue ----------------------------------------------------------------------------


PLACED = OrderPlaced(
    order_id=UUID(A),
    customer="ada",
    currency="CHF",
    lines=(MUG, PEN),
    total_cents=2650,
    priority=Priority.NORMAL,
    deadline=NOW + timedelta(seconds=300),
)


def rejected(reason: RejectionReason, sku: str = "mug") -> StockRejected:
    return StockRejected(order_id=UUID(A), reason=reason, sku=sku)


def added(quantity: int, cents: int = 1250) -> StockAdded:
    return StockAdded(
        delivery_id=FIRST_DELIVERY,
        sku="mug",
        quantity=quantity,
        unit_price_cents=cents,
        currency="CHF",
    )


@pytest.mark.parametrize(
    ("reason", "shelf", "is_true"),
    [
        (RejectionReason.UNKNOWN_SKU, [], True),
        (RejectionReason.UNKNOWN_SKU, [added(2)], False),
        (RejectionReason.PRICE_MISMATCH, [added(2, 1260)], True),
        (RejectionReason.PRICE_MISMATCH, [added(2)], False),
        (RejectionReason.PRICE_MISMATCH, [], False),
        (RejectionReason.OUT_OF_STOCK, [added(1)], True),
        (RejectionReason.OUT_OF_STOCK, [added(2)], False),
        (RejectionReason.OUT_OF_STOCK, [], False),
    ],
)
def test_a_rejection_is_true_of_what_was_put_on_the_shelf(
    reason: RejectionReason, shelf: list[StockAdded], is_true: bool
) -> None:
    found = broken(rejected_untrue, PLACED, rejected(reason), *shelf)

    said = (A, f"mug was rejected as {reason}, which was at no time so")
    assert found == ([] if is_true else [said])


def test_what_others_hold_is_not_there() -> None:
    out = rejected(RejectionReason.OUT_OF_STOCK)
    others = StockReserved(
        order_id=UUID(B),
        customer="bob",
        currency="CHF",
        total_cents=2500,
        lines=(HeldLine(sku="mug", quantity=2),),
    )

    assert broken(rejected_untrue, PLACED, out, others, added(3)) == []
    assert len(broken(rejected_untrue, PLACED, out, others, added(4))) == 1


# --- reason_untrue ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cancelled", "others", "said"),
    [
        (order(), [], None),
        (order(reason=None), [], "it was cancelled for no reason"),
        (
            order(reason=CancellationReason.DEADLINE_EXCEEDED),
            [],
            "it was cancelled for its deadline, before that had passed",
        ),
        (
            order(reason=CancellationReason.DEADLINE_EXCEEDED, ended_at=None),
            [],
            "it was cancelled for its deadline, before that had passed",
        ),
        (order(reason=CancellationReason.DEADLINE_EXCEEDED, deadline=NOW), [], None),
        (
            order(reason=CancellationReason.PAYMENT_DECLINED),
            [Payment(A, status=PaymentStatus.DECLINED)],
            None,
        ),
        (
            order(reason=CancellationReason.PAYMENT_DECLINED),
            [Payment(A, status=PaymentStatus.VOIDED)],
            "it was cancelled as not paid, and the payment is voided",
        ),
        (
            order(reason=CancellationReason.OUT_OF_STOCK),
            [rejected(RejectionReason.OUT_OF_STOCK)],
            None,
        ),
        (
            order(reason=CancellationReason.OUT_OF_STOCK),
            [rejected(RejectionReason.UNKNOWN_SKU)],
            "it was cancelled as out_of_stock, and inventory said unknown_sku",
        ),
        (
            order(reason=CancellationReason.OUT_OF_STOCK),
            [],
            "it was cancelled as out_of_stock, and inventory said None",
        ),
    ],
)
def test_an_order_is_cancelled_for_what_happened(
    cancelled: Order, others: list[State | Event], said: str | None
) -> None:
    found = broken(reason_untrue, CONFIRMED, cancelled, *others)

    assert found == ([] if said is None else [(A, said)])


# --- who takes part -----------------------------------------------------------------------------


def test_only_rules_that_read_what_there_is_are_judged() -> None:
    everything, mails = Rules(SAGA), Rules(SAGA, Choreography((NOTIFICATION,)))
    names = [{rule.name for rule in rules.always} for rules in (everything, mails)]

    assert names[0] == {rule.name for rule in SAGA.always_holds}
    assert names[1] == {"mailed_unended", "mailed_twice"}
    assert {rule.name for rule in mails.at_rest} == {"mail_unsettled", "not_mailed"}
