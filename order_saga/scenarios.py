"""Worlds in which everything that can happen to an order is tried: see `saga verify`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from common.events import (
    CancellationReason,
    Currency,
    OrderCancelled,
    OrderConfirmed,
    OrderLine,
    PlaceOrder,
)
from inventory_service.domain import PARTICIPANT as INVENTORY
from inventory_service.domain import AddStock
from notification_service.domain import PARTICIPANT as NOTIFICATION
from notification_service.domain import (
    RESENDING_MAX,
    DismissNotification,
    Notification,
    NotificationStatus,
    ResendNotification,
)
from order_saga.invariants import not_undone, reason_untrue, rejected_untrue
from order_service.domain import PARTICIPANT as ORDER
from order_service.domain import CancelOrder, Order, OrderStatus
from saga.declaration import Scenario, Stimulus
from saga.message import Event
from saga.view import View

BEFORE: Final = datetime(2030, 1, 1, tzinfo=UTC)
"""When orders are placed, and all time up to their deadlines."""
TIME_LIMIT_SECONDS: Final = 300
AFTER: Final = BEFORE + timedelta(seconds=TIME_LIMIT_SECONDS)
"""Their deadline, and all time from there."""

EVENTS_MAX: Final = 3
"""About a mail, after which nobody wants it sent again: each time adds one."""

Line = tuple[str, int, int]
"""SKU, quantity, unit price in cents."""

MUG: Final[Line] = ("mug", 1, 1250)
TWO_MUGS: Final[Line] = ("mug", 2, 1250)
PEN: Final[Line] = ("pen", 1, 150)
CURRENCY: Final[Currency] = "CHF"
"""One that is nobody's default."""


def _orders(
    name: str,
    *,
    starts: Mapping[str, Iterable[Line]],
    orders: Mapping[str, Iterable[Line]],
    influential: bool,
) -> Scenario:
    ids = {label: UUID(int=number) for number, label in enumerate(orders, 1)}
    return Scenario(
        name,
        starts={
            start: [
                (
                    INVENTORY.name,
                    AddStock(
                        delivery_id=UUID(int=1),
                        sku=sku,
                        quantity=quantity,
                        unit_price_cents=cents,
                        currency=CURRENCY,
                    ),
                )
                for sku, quantity, cents in shelf
            ]
            for start, shelf in starts.items()
        },
        sent=[
            (ORDER.name, _place(label, order_id, orders[label])) for label, order_id in ids.items()
        ],
        stimuli=[
            stimulus for label, order_id in ids.items() for stimulus in _stimuli(label, order_id)
        ],
        moments=(BEFORE, AFTER),
        names={str(order_id): label for label, order_id in ids.items()},
        without={NOTIFICATION.name},
        always=(rejected_untrue, reason_untrue),
        at_rest=(not_undone,),
        influential=influential,
    )


def _place(label: str, order_id: UUID, lines: Iterable[Line]) -> PlaceOrder:
    return PlaceOrder(
        order_id=order_id,
        customer=f"customer {label}",
        currency=CURRENCY,
        lines=tuple(
            OrderLine(sku=sku, quantity=quantity, unit_price_cents=cents)
            for sku, quantity, cents in lines
        ),
        time_limit_seconds=TIME_LIMIT_SECONDS,
    )


def _stimuli(label: str, order_id: UUID) -> Iterator[Stimulus]:
    """The customer may cancel at any time."""

    def is_known(view: View) -> bool:
        return view.states(Order).of(str(order_id)).status is not OrderStatus.UNKNOWN

    cancel = CancelOrder(order_id=order_id)
    yield Stimulus(f"the customer cancels {label}", ORDER.name, cancel, BEFORE, is_known)


ONE_ORDER: Final = _orders(
    "one order",
    starts={
        "all is in stock": (TWO_MUGS, PEN),
        "a mug is missing": (MUG, PEN),
        "pens are unknown": (TWO_MUGS,),
        "pens have another price": (TWO_MUGS, ("pen", 1, 160)),
    },
    orders={"A": (MUG, MUG, PEN)},
    influential=False,
)
"""One order of three lines, two of them for mugs, whatever is in stock."""

AN_ORDER_AND_ITS_MAIL: Final = replace(
    ONE_ORDER,
    name="an order and its mail",
    starts={"a mug is missing": ONE_ORDER.starts["a mug is missing"]},
    without=(),
)
"""The same with the mail about its end; it takes no payment to see that through."""

TWO_ORDERS: Final = _orders(
    "two orders",
    starts={"one mug is left": (MUG, PEN)},
    orders={"A": (MUG,), "B": (MUG, PEN)},
    influential=True,
)
"""Two orders that both want the last mug, one of them a pen too."""


def _mail(name: str, end: Event) -> Scenario:
    order_id = UUID(end.subject)

    def is_unknown(view: View) -> bool:
        notification = view.states(Notification).of(end.subject)
        unknown = notification.status is NotificationStatus.UNKNOWN
        return unknown and notification.sequence <= EVENTS_MAX

    return Scenario(
        name,
        sent=[(NOTIFICATION.name, end)],
        stimuli=[
            Stimulus(
                "a person has it sent again",
                NOTIFICATION.name,
                ResendNotification(order_id=order_id),
                BEFORE,
                is_unknown,
                at_rest=True,
            ),
            Stimulus(
                "a person dismisses it",
                NOTIFICATION.name,
                DismissNotification(order_id=order_id),
                BEFORE,
                is_unknown,
                at_rest=True,
            ),
        ],
        moments=(BEFORE, BEFORE + RESENDING_MAX),
        names={end.subject: "A"},
        only={NOTIFICATION.name},
    )


_A: Final = UUID(int=1)
MAIL_OF_A_CONFIRMATION: Final = _mail(
    "a mail of a confirmation",
    OrderConfirmed(order_id=_A, customer="customer A", currency=CURRENCY, total_cents=2650),
)
MAIL_OF_A_CANCELLATION: Final = _mail(
    "a mail of a cancellation",
    OrderCancelled(order_id=_A, customer="customer A", reason=CancellationReason.CUSTOMER_REQUEST),
)
SCENARIOS: Final = (
    ONE_ORDER,
    AN_ORDER_AND_ITS_MAIL,
    TWO_ORDERS,
    MAIL_OF_A_CONFIRMATION,
    MAIL_OF_A_CANCELLATION,
)
