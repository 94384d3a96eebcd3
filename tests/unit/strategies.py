"""Any message the published language allows."""

from __future__ import annotations

import inspect
import string
from datetime import UTC, timedelta
from typing import TypeVar, get_args, get_type_hints

from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

import common.events
from common.events import (
    LINES_MAX,
    QUANTITY_MAX,
    STOCK_QUANTITY_MAX,
    TIME_LIMIT_MAX_SECONDS,
    UNIT_PRICE_MAX_CENTS,
    CancellationReason,
    Currency,
    DeclineReason,
    HeldLine,
    Letter,
    LetterKind,
    NotificationBegun,
    NotificationDismissed,
    NotificationSent,
    NotificationUnconfirmed,
    OrderCancelled,
    OrderConfirmed,
    OrderLine,
    OrderPlaced,
    PaymentCharged,
    PaymentDeclined,
    PaymentRefunded,
    PaymentVoided,
    PlaceOrder,
    RejectionReason,
    StockAdded,
    StockRejected,
    StockReleased,
    StockReserved,
    total_of,
)
from saga.limits import TIME_END, TIME_MIN
from saga.message import Event, Priority
from saga.text import is_plain

E = TypeVar("E", CancellationReason, DeclineReason, LetterKind, Priority, RejectionReason)

_first = string.ascii_letters + string.digits

order_ids = st.uuids()
skus = st.builds(
    str.__add__, st.sampled_from(_first), st.text(alphabet=_first + "._-", max_size=63)
)
customers = st.text(st.characters(blacklist_categories=("Cs", "Cc")), min_size=1, max_size=128)
currencies: SearchStrategy[Currency] = st.sampled_from(get_args(Currency))
prices = st.integers(1, UNIT_PRICE_MAX_CENTS)
amounts = st.integers(1, LINES_MAX * QUANTITY_MAX * UNIT_PRICE_MAX_CENTS)
quantities = st.integers(1, QUANTITY_MAX)
moments = st.datetimes(
    TIME_MIN.replace(tzinfo=None),
    (TIME_END - timedelta(seconds=1)).replace(tzinfo=None),
    timezones=st.just(UTC),
)


def any_of(kind: type[E]) -> SearchStrategy[E]:
    return st.sampled_from(list(kind))


def _some(item: SearchStrategy[HeldLine], least: int = 1) -> SearchStrategy[tuple[HeldLine, ...]]:
    return st.lists(item, min_size=least, max_size=5).map(tuple)


held_lines = st.builds(HeldLine, sku=skus, quantity=quantities)
order_lines: SearchStrategy[tuple[OrderLine, ...]] = st.lists(
    st.builds(OrderLine, sku=skus, quantity=quantities, unit_price_cents=prices),
    min_size=1,
    max_size=5,
).map(tuple)

letters = st.builds(
    Letter,
    kind=any_of(LetterKind),
    customer=customers,
    currency=st.none() | currencies,
    total_cents=st.none() | amounts,
    reason=st.none() | any_of(CancellationReason),
)

place_orders = st.builds(
    PlaceOrder,
    order_id=order_ids,
    customer=customers.filter(is_plain),
    currency=currencies,
    lines=order_lines,
    priority=any_of(Priority),
    time_limit_seconds=st.integers(1, TIME_LIMIT_MAX_SECONDS),
)


@st.composite
def _orders_placed(draw: st.DrawFn) -> OrderPlaced:
    lines = draw(order_lines)
    return OrderPlaced(
        order_id=draw(order_ids),
        customer=draw(customers),
        currency=draw(currencies),
        lines=lines,
        total_cents=total_of(lines),
        priority=draw(any_of(Priority)),
        deadline=draw(moments),
    )


EVENTS: dict[type[Event], SearchStrategy[Event]] = {
    OrderPlaced: _orders_placed(),
    OrderConfirmed: st.builds(
        OrderConfirmed,
        order_id=order_ids,
        customer=customers,
        currency=currencies,
        total_cents=amounts,
    ),
    OrderCancelled: st.builds(
        OrderCancelled,
        order_id=order_ids,
        customer=customers,
        reason=any_of(CancellationReason),
    ),
    StockReserved: st.builds(
        StockReserved,
        order_id=order_ids,
        customer=customers,
        currency=currencies,
        total_cents=amounts,
        lines=_some(held_lines),
    ),
    StockRejected: st.builds(
        StockRejected, order_id=order_ids, reason=any_of(RejectionReason), sku=skus
    ),
    StockReleased: st.builds(StockReleased, order_id=order_ids, lines=_some(held_lines, least=0)),
    StockAdded: st.builds(
        StockAdded,
        sku=skus,
        quantity=st.integers(0, STOCK_QUANTITY_MAX),
        unit_price_cents=prices,
        currency=currencies,
    ),
    PaymentCharged: st.builds(
        PaymentCharged,
        order_id=order_ids,
        currency=currencies,
        amount_cents=amounts,
        reference=st.text(max_size=80),
    ),
    PaymentDeclined: st.builds(PaymentDeclined, order_id=order_ids, reason=any_of(DeclineReason)),
    PaymentRefunded: st.builds(
        PaymentRefunded, order_id=order_ids, currency=currencies, amount_cents=amounts
    ),
    PaymentVoided: st.builds(PaymentVoided, order_id=order_ids),
    NotificationBegun: st.builds(NotificationBegun, order_id=order_ids, letter=letters),
    NotificationSent: st.builds(NotificationSent, order_id=order_ids),
    NotificationUnconfirmed: st.builds(
        NotificationUnconfirmed, order_id=order_ids, detail=st.text(max_size=80)
    ),
    NotificationDismissed: st.builds(NotificationDismissed, order_id=order_ids),
}
"""Every event there is. Those that are not named here are made of their fields' types."""


def _of_its_fields(kind: type[Event]) -> SearchStrategy[Event]:
    usual = {"order_id": order_ids, "customer": customers, "currency": currencies, "sku": skus}
    types = get_type_hints(kind, include_extras=True)
    fields = {name: usual.get(name, st.from_type(types[name])) for name in kind.model_fields}
    return st.builds(kind, **fields)


EVENTS |= {
    kind: _of_its_fields(kind)
    for _, kind in inspect.getmembers(common.events, inspect.isclass)
    if issubclass(kind, Event) and hasattr(kind, "type") and kind not in EVENTS
}

events: SearchStrategy[Event] = st.one_of(*EVENTS.values())
