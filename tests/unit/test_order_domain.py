"""An order's life: placed, then confirmed or cancelled, exactly once."""

from __future__ import annotations

from datetime import datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from common.events import (
    CancellationReason,
    DeclineReason,
    OrderCancelled,
    OrderConfirmed,
    OrderLine,
    OrderPlaced,
    PaymentCharged,
    PaymentDeclined,
    PlaceOrder,
    RejectionReason,
    StockRejected,
)
from order_service.domain import (
    PARTICIPANT,
    CancelOrder,
    ExpireOrder,
    Order,
    OrderStatus,
    UnknownOrder,
)
from saga.due import Due
from saga.message import Event, Message, Priority
from saga.testing import NOW, GivenParticipant, assert_once, given
from tests.unit.strategies import customers, events, moments

ORDER = UUID(int=1)
LINES = (
    OrderLine(sku="pen", quantity=2, unit_price_cents=150),
    OrderLine(sku="ink", quantity=1, unit_price_cents=700),
)
DEADLINE = NOW + timedelta(seconds=60)

place = PlaceOrder(
    order_id=ORDER,
    customer="ada",
    currency="EUR",
    lines=LINES,
    priority=Priority.HIGH,
    time_limit_seconds=60,
)
placed = OrderPlaced(
    order_id=ORDER,
    customer="ada",
    currency="EUR",
    lines=LINES,
    total_cents=1_000,
    priority=Priority.HIGH,
    deadline=DEADLINE,
)
charged = PaymentCharged(order_id=ORDER, currency="EUR", amount_cents=1_000, reference="r-1")
declined = PaymentDeclined(order_id=ORDER, reason=DeclineReason.CARD_DECLINED)
rejected = StockRejected(order_id=ORDER, reason=RejectionReason.OUT_OF_STOCK, sku="pen")
confirmed = OrderConfirmed(order_id=ORDER, customer="ada", currency="EUR", total_cents=1_000)
cancel = CancelOrder(order_id=ORDER)
expire = ExpireOrder(order_id=ORDER)

ENDINGS: list[Message] = [charged, declined, rejected, cancel, expire]


def cancelled(reason: CancellationReason) -> OrderCancelled:
    return OrderCancelled(order_id=ORDER, customer="ada", reason=reason)


def test_an_order_is_placed_with_its_total_and_its_deadline() -> None:
    assert given(PARTICIPANT).when(place) == (placed,)


def test_a_placed_order_is_pending_and_knows_what_was_ordered() -> None:
    order = given(PARTICIPANT, placed).state(Order, ORDER)

    assert order == Order(
        str(ORDER),
        status=OrderStatus.PENDING,
        customer="ada",
        currency="EUR",
        lines=LINES,
        total_cents=1_000,
        priority=Priority.HIGH,
        deadline=DEADLINE,
        placed_at=NOW,
    )
    assert not order.terminal


@pytest.mark.parametrize(
    "before",
    [
        (placed,),
        (placed, confirmed),
        (placed, cancelled(CancellationReason.CUSTOMER_REQUEST)),
    ],
    ids=["pending", "confirmed", "cancelled"],
)
def test_an_order_is_placed_once(before: tuple[Event, ...]) -> None:
    assert given(PARTICIPANT, *before).when(place) == ()


def test_a_pending_order_is_confirmed_when_it_is_paid() -> None:
    assert given(PARTICIPANT, placed).when(charged) == (confirmed,)


@pytest.mark.parametrize("reason", RejectionReason)
def test_a_pending_order_without_stock_is_cancelled_with_inventorys_reason(
    reason: RejectionReason,
) -> None:
    event = StockRejected(order_id=ORDER, reason=reason, sku="pen")

    assert given(PARTICIPANT, placed).when(event) == (cancelled(CancellationReason(reason)),)


@pytest.mark.parametrize("reason", DeclineReason)
def test_a_pending_order_that_is_not_paid_is_cancelled(reason: DeclineReason) -> None:
    event = PaymentDeclined(order_id=ORDER, reason=reason)

    assert given(PARTICIPANT, placed).when(event) == (
        cancelled(CancellationReason.PAYMENT_DECLINED),
    )


def test_the_customer_may_cancel_a_pending_order() -> None:
    assert given(PARTICIPANT, placed).when(cancel) == (
        cancelled(CancellationReason.CUSTOMER_REQUEST),
    )


def test_a_pending_order_is_to_be_cancelled_at_its_deadline() -> None:
    order = given(PARTICIPANT, placed).state(Order, ORDER)

    assert order.due() == Due(DEADLINE, expire, Priority.HIGH)
    assert given(PARTICIPANT, placed).when(expire) == (
        cancelled(CancellationReason.DEADLINE_EXCEEDED),
    )


@pytest.mark.parametrize(
    "ending",
    [confirmed, *(cancelled(reason) for reason in CancellationReason)],
    ids=lambda event: getattr(event, "reason", "confirmed"),
)
def test_nothing_is_due_about_an_order_that_has_ended(ending: Event) -> None:
    assert given(PARTICIPANT, placed, ending).state(Order, ORDER).due() is None


def test_an_ended_order_keeps_when_and_why() -> None:
    reason = CancellationReason.CUSTOMER_REQUEST
    order = given(PARTICIPANT, placed).fold(cancelled(reason), at=DEADLINE).state(Order, ORDER)

    assert (order.status, order.reason, order.ended_at) == (OrderStatus.CANCELLED, reason, DEADLINE)
    assert order.placed_at == NOW
    assert order.terminal


def test_a_confirmed_order_keeps_when() -> None:
    order = given(PARTICIPANT, placed).fold(confirmed, at=DEADLINE).state(Order, ORDER)

    assert (order.status, order.reason, order.ended_at) == (OrderStatus.CONFIRMED, None, DEADLINE)
    assert order.terminal


@pytest.mark.parametrize("message", ENDINGS, ids=lambda m: type(m).__name__)
@pytest.mark.parametrize(
    "ending",
    [confirmed, *(cancelled(reason) for reason in CancellationReason)],
    ids=lambda event: getattr(event, "reason", "confirmed"),
)
def test_an_outcome_never_changes(ending: Event, message: Message) -> None:
    assert given(PARTICIPANT, placed, ending).when(message, now=DEADLINE) == ()


@pytest.mark.parametrize(
    "message", [charged, declined, rejected, cancel, expire], ids=lambda m: type(m).__name__
)
def test_a_message_about_an_order_never_placed_here_is_a_fault(message: Message) -> None:
    with pytest.raises(UnknownOrder, match=str(ORDER)):
        given(PARTICIPANT).when(message)


def test_nothing_is_due_about_an_order_never_placed() -> None:
    assert Order(str(ORDER)).due() is None


messages = st.sampled_from([place, *ENDINGS])


@for_all(history=st.lists(messages, max_size=6), message=messages)
def test_a_message_that_comes_twice_changes_nothing_more(
    history: list[Message], message: Message
) -> None:
    world = given(PARTICIPANT, placed)
    for earlier in history:
        world.live(earlier, now=DEADLINE)
    assert_once(world, message, now=DEADLINE)


@for_all(history=st.lists(messages, max_size=12))
def test_an_order_ends_at_most_once(history: list[Message]) -> None:
    world = GivenParticipant(PARTICIPANT)
    published = list(world.live(place))
    for message in history:
        published += world.live(message, now=DEADLINE)

    endings = [event for event in published if isinstance(event, OrderConfirmed | OrderCancelled)]
    assert len(endings) == (1 if any(message in ENDINGS for message in history) else 0)
    assert published == [placed, *endings]


orders = st.builds(
    Order,
    key=st.just(str(ORDER)),
    status=st.sampled_from(OrderStatus),
    customer=customers,
    deadline=moments,
    ended_at=st.none() | moments,
    reason=st.none() | st.sampled_from(CancellationReason),
)


@for_all(order=orders, event=events, at=moments)
def test_an_order_evolves_by_its_own_events_and_no_others(
    order: Order, event: Event, at: datetime
) -> None:
    after = order.evolve(event, at)

    if type(event) not in PARTICIPANT.publishes:
        assert after is order
    assert (after.key, after.sequence) == (order.key, order.sequence)
