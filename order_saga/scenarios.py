"""Worlds in which everything that can happen to an order is tried: see `saga verify`."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, Final, NamedTuple
from uuid import UUID

from common.events import (
    CancellationReason,
    Currency,
    OrderCancelled,
    OrderConfirmed,
    OrderLine,
    OrderPlaced,
    PlaceOrder,
    total_of,
)
from inventory_service.domain import PARTICIPANT as INVENTORY
from inventory_service.domain import AddStock, Delivery, delivery_key
from notification_service.domain import PARTICIPANT as NOTIFICATION
from notification_service.domain import (
    RESENDING_MAX,
    DismissNotification,
    Notification,
    NotificationStatus,
    ResendNotification,
)
from order_saga.invariants import (
    FIRST_DELIVERY,
    doubt_untrue,
    letter_untrue,
    not_undone,
    reason_untrue,
    rejected_untrue,
)
from order_saga.outsides import MAIL_SERVER, Mailing
from order_service.domain import PARTICIPANT as ORDER
from order_service.domain import CancelOrder, Order, OrderStatus
from saga.declaration import Scenario, Stimulus
from saga.message import Command, Event, Priority
from saga.view import Broken, View, Violation

BEFORE: Final = datetime(2030, 1, 1, tzinfo=UTC)
"""When orders are placed, and all time up to their deadlines."""
TIME_LIMIT_SECONDS: Final = 300
AFTER: Final = BEFORE + timedelta(seconds=TIME_LIMIT_SECONDS)
"""Their deadline, and all time from there."""

EVENTS_MAX: Final = 3
"""About a mail, after which no operator wants it sent again: each time adds one."""

CURRENCY: Final[Currency] = "CHF"
"""One that is no customer's default."""
OTHER_CURRENCY: Final[Currency] = "EUR"


class Goods(NamedTuple):
    """Units of one SKU, on a shelf or in an order, which has one currency for all of them."""

    sku: str
    quantity: int
    unit_price_cents: int
    currency: Currency = CURRENCY


TWO_MUGS: Final = Goods("mug", 2, 1250)
THREE_MUGS: Final = Goods("mug", 3, 1250)
FOUR_MUGS: Final = Goods("mug", 4, 1250)
FIVE_MUGS: Final = Goods("mug", 5, 1250)
PENS: Final = Goods("pen", 4, 150)


def _orders(
    name: str,
    *,
    starts: Mapping[str, Iterable[Goods]],
    orders: Mapping[str, Iterable[Goods]],
    influential: bool = False,
    priority: Priority = Priority.NORMAL,
) -> Scenario:
    ids = {label: UUID(int=number) for number, label in enumerate(orders, 1)}
    return Scenario(
        name,
        starts={
            start: [(INVENTORY.name, _delivery(FIRST_DELIVERY, goods)) for goods in shelf]
            for start, shelf in starts.items()
        },
        sent=[
            (ORDER.name, _place(label, order_id, [*orders[label]], priority))
            for label, order_id in ids.items()
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
        priorities={str(order_id): priority for order_id in ids.values()},
    )


def _delivery(delivery_id: UUID, goods: Goods) -> AddStock:
    return AddStock(
        delivery_id=delivery_id,
        sku=goods.sku,
        quantity=goods.quantity,
        unit_price_cents=goods.unit_price_cents,
        currency=goods.currency,
    )


def _place(
    label: str, order_id: UUID, goods: Sequence[Goods], priority: Priority = Priority.NORMAL
) -> PlaceOrder:
    return PlaceOrder(
        order_id=order_id,
        customer=f"customer {label}",
        currency=goods[0].currency,
        lines=_lines(goods),
        priority=priority,
        time_limit_seconds=TIME_LIMIT_SECONDS,
    )


def _lines(goods: Iterable[Goods]) -> tuple[OrderLine, ...]:
    return tuple(
        OrderLine(sku=each.sku, quantity=each.quantity, unit_price_cents=each.unit_price_cents)
        for each in goods
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
        "all is in stock": (FIVE_MUGS, PENS),
        "a mug is missing": (FOUR_MUGS, PENS),
        "pens are unknown": (FIVE_MUGS,),
        "pens have another price": (FIVE_MUGS, PENS._replace(unit_price_cents=160)),
    },
    orders={"A": (TWO_MUGS, THREE_MUGS, PENS)},
)
"""One order of three lines, two of them for mugs, whatever is in stock."""

ANOTHER_CURRENCY: Final = _orders(
    "another currency",
    starts={
        "all is priced in it": [
            each._replace(currency=OTHER_CURRENCY) for each in (FIVE_MUGS, PENS)
        ],
        "pens are priced in ours": (FIVE_MUGS._replace(currency=OTHER_CURRENCY), PENS),
    },
    orders={"A": [each._replace(currency=OTHER_CURRENCY) for each in (FIVE_MUGS, PENS)]},
)
"""An order in another currency than all others, which is not that of all it orders."""

AN_URGENT_ORDER: Final = _orders(
    "an urgent order",
    starts={
        "all is in stock": (FIVE_MUGS, PENS),
        "a mug is missing": (FOUR_MUGS, PENS),
    },
    orders={"A": (FIVE_MUGS, PENS)},
    priority=Priority.HIGH,
)
"""Whatever comes of an urgent order is urgent."""

AN_ORDER_AND_ITS_MAIL: Final = replace(
    ONE_ORDER,
    name="an order and its mail",
    starts={"a mug is missing": ONE_ORDER.starts["a mug is missing"]},
    without=(),
)
"""The same with the mail about its end; it takes no payment to see that through."""

TWO_ORDERS: Final = _orders(
    "two orders",
    starts={"mugs are there for one": (FOUR_MUGS, PENS)},
    orders={"A": (THREE_MUGS,), "B": (TWO_MUGS, PENS)},
    influential=True,
)
"""Two orders that both want the last mugs, one of them pens too."""


def _shelf() -> Scenario:
    """Two orders meet on a shelf, to which more is delivered, and whose price changes."""
    ids = {"A": UUID(int=1), "B": UUID(int=2)}
    wanted = {"A": (THREE_MUGS,), "B": (TWO_MUGS,)}

    def delivered(delivery_id: UUID, goods: Goods) -> Stimulus:
        key = delivery_key(delivery_id, goods.sku)

        def kept(view: View) -> Iterator[Violation]:
            known = view.states(Delivery).of(key)
            if (known.quantity, known.unit_price_cents) != (goods.quantity, goods.unit_price_cents):
                detail = f"{goods} was delivered, and it is not known that it was"
                yield Violation("delivery_lost", goods.sku, detail)

        return Stimulus(
            f"{goods.quantity} come at {goods.unit_price_cents} cents",
            INVENTORY.name,
            _delivery(delivery_id, goods),
            BEFORE,
            then=kept,
            at_rest=True,
        )

    placed = [
        OrderPlaced(
            order_id=order_id,
            customer=f"customer {label}",
            currency=CURRENCY,
            lines=_lines(wanted[label]),
            total_cents=total_of(_lines(wanted[label])),
            priority=Priority.NORMAL,
            deadline=AFTER,
        )
        for label, order_id in ids.items()
    ]
    cancelled = [
        OrderCancelled(
            order_id=order_id,
            customer=f"customer {label}",
            reason=CancellationReason.CUSTOMER_REQUEST,
        )
        for label, order_id in ids.items()
    ]
    return Scenario(
        "a shelf",
        starts={
            "mugs are there for both": [(INVENTORY.name, _delivery(FIRST_DELIVERY, FIVE_MUGS))],
            "mugs are there for one": [(INVENTORY.name, _delivery(FIRST_DELIVERY, FOUR_MUGS))],
            "nothing is there": [],
        },
        sent=[(INVENTORY.name, event) for event in (*placed, *cancelled)],
        stimuli=[
            delivered(UUID(int=2), FOUR_MUGS),
            delivered(UUID(int=3), Goods("mug", 0, 1400)),
        ],
        moments=(BEFORE,),
        names={str(order_id): label for label, order_id in ids.items()},
        only={INVENTORY.name},
        always=(rejected_untrue,),
    )


A_SHELF: Final = _shelf()


def _nothing_wrong(_: View) -> Iterator[Violation]:
    """Whatever comes of a command, rules tell what is wrong with it."""
    return iter(())


def _mail(
    name: str,
    end: Event,
    *,
    always: Sequence[Callable[..., Iterable[Broken]]] = (),
    decisions: Mapping[str, Collection[Any]] | None = None,
) -> Scenario:
    order_id = UUID(end.subject)

    def decides(what: str, command: Command, done: NotificationStatus) -> Iterator[Stimulus]:
        """An operator decides about what is unknown; and about what is not, which changes
        nothing."""

        def is_unknown(view: View) -> bool:
            notification = view.states(Notification).of(end.subject)
            unknown = notification.status is NotificationStatus.UNKNOWN
            return unknown and notification.sequence <= EVENTS_MAX

        def is_known(view: View) -> bool:
            status = view.states(Notification).of(end.subject).status
            return status not in (NotificationStatus.UNKNOWN, done)

        def is_done(view: View) -> bool:
            return view.states(Notification).of(end.subject).status is done

        def stays(view: View) -> Iterator[Violation]:
            if view.states(Notification).of(end.subject).status is done:
                detail = f"{command.type} was carried out, and no operator was to decide"
                yield Violation("decided_in_vain", end.subject, detail)

        yield Stimulus(what, NOTIFICATION.name, command, BEFORE, is_unknown, at_rest=True)
        for otherwise, when, then in (
            (f"{what}, which is not unknown", is_known, stays),
            (f"{what}, once more", is_done, _nothing_wrong),
        ):
            yield Stimulus(otherwise, NOTIFICATION.name, command, BEFORE, when, then, at_rest=True)

    return Scenario(
        name,
        sent=[(NOTIFICATION.name, end)],
        stimuli=[
            *decides(
                "an operator has it sent again",
                ResendNotification(order_id=order_id),
                NotificationStatus.RESENDING,
            ),
            *decides(
                "an operator dismisses it",
                DismissNotification(order_id=order_id),
                NotificationStatus.DISMISSED,
            ),
        ],
        moments=(BEFORE, BEFORE + RESENDING_MAX),
        names={end.subject: "A"},
        only={NOTIFICATION.name},
        always=(letter_untrue, *always),
        decisions=decisions or {},
    )


_A: Final = UUID(int=1)
_CONFIRMED: Final = OrderConfirmed(
    order_id=_A, customer="customer A", currency=CURRENCY, total_cents=2650
)
MAIL_OF_A_CONFIRMATION: Final = _mail("a mail of a confirmation", _CONFIRMED)
MAIL_OF_A_CANCELLATION: Final = _mail(
    "a mail of a cancellation",
    OrderCancelled(order_id=_A, customer="customer A", reason=CancellationReason.CUSTOMER_REQUEST),
)
A_MAIL_THAT_IS_TAKEN: Final = _mail(
    "a mail that is taken",
    _CONFIRMED,
    always=(doubt_untrue,),
    decisions={MAIL_SERVER.name: (Mailing.ACCEPTED,)},
)
"""Nothing is ever in doubt about it but by a crash."""
SCENARIOS: Final = (
    ONE_ORDER,
    ANOTHER_CURRENCY,
    AN_URGENT_ORDER,
    AN_ORDER_AND_ITS_MAIL,
    TWO_ORDERS,
    A_SHELF,
    MAIL_OF_A_CONFIRMATION,
    MAIL_OF_A_CANCELLATION,
    A_MAIL_THAT_IS_TAKEN,
)
