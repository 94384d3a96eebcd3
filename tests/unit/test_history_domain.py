"""What a view of an order is, in whatever order its events come."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from random import Random
from uuid import UUID

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from common.events import CancellationReason, OrderCancelled, OrderConfirmed
from inventory_service.domain import AddStock
from order_saga.archive.queries import ORDER_VIEW
from order_saga.archive.view import ArchivedOrder, PaymentProgress, Status, Stock
from order_service.domain import CancelOrder
from saga.message import Event, Priority
from saga.testing import NOW
from tests.order_play import Play, confirmed, declined, out_of_stock
from tests.unit.strategies import events, moments

TICK = timedelta(milliseconds=5)


def play() -> Play:
    played = Play(at=NOW, tick=TICK)
    played.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=1), sku="tea", quantity=9, unit_price_cents=250, currency="EUR"
        ),
    )
    return played


def overtaken(played: Play) -> str:
    """Cancelled before inventory has even heard of it."""
    order = played.place()
    late = played.waiting.pop()
    played.give("order", CancelOrder(order_id=UUID(order)))
    played.deliver()
    played.waiting.append(late)
    played.deliver()
    return order


def refunded(played: Play) -> str:
    """Cancelled while the money is being taken."""
    order = played.place()
    played.down = {"order"}
    played.deliver()
    played.down = set()
    confirming = played.waiting.pop()
    played.give("order", CancelOrder(order_id=UUID(order)))
    played.waiting.append(confirming)
    played.deliver()
    return order


LIVES: dict[Callable[[Play], str], tuple[Status, Stock, PaymentProgress]] = {
    confirmed: (Status.CONFIRMED, Stock.HELD, PaymentProgress.CHARGED),
    declined: (Status.CANCELLED, Stock.RELEASED, PaymentProgress.DECLINED),
    out_of_stock: (Status.CANCELLED, Stock.REJECTED, PaymentProgress.VOIDED),
    overtaken: (Status.CANCELLED, Stock.RELEASED, PaymentProgress.VOIDED),
    refunded: (Status.CANCELLED, Stock.RELEASED, PaymentProgress.REFUNDED),
}


def folded(played: Play, order: str) -> ArchivedOrder:
    return ORDER_VIEW.of(order, ((event.data, event.time) for event in played.about(order)))


@pytest.mark.parametrize("life", LIVES)
def test_a_view_tells_how_an_order_ended(life: Callable[[Play], str]) -> None:
    played = play()
    order = life(played)
    view = folded(played, order)

    assert (view.status, view.stock, view.payment) == LIVES[life]
    assert view.settled
    assert view.sequence == len(played.about(order))
    assert (view.total_cents, view.currency) == (played_total(played, order), "EUR")


def played_total(played: Play, order: str) -> int:
    placed = played.about(order)[0].data
    total = placed.total_cents
    assert isinstance(total, int)
    return total


def test_a_view_has_amounts_times_and_the_reason() -> None:
    played = play()
    view = folded(played, refunded(played))

    assert (view.total_cents, view.charged_cents, view.refunded_cents) == (500, 500, 500)
    assert view.reason is CancellationReason.CUSTOMER_REQUEST
    assert view.priority is Priority.NORMAL
    assert view.placed_at == view.first_event_at
    assert view.ended_at is not None
    assert view.placed_at is not None
    assert view.duration_ms == (view.ended_at - view.placed_at) / timedelta(milliseconds=1)
    assert view.last_event_at == played.about(view.key)[-1].time


@for_all(life=st.sampled_from(list(LIVES)), random=st.randoms())
def test_the_order_in_which_events_come_makes_no_difference(
    life: Callable[[Play], str], random: Random
) -> None:
    played = play()
    order = life(played)
    mixed = played.about(order)
    random.shuffle(mixed)

    assert ORDER_VIEW.of(order, ((e.data, e.time) for e in mixed)) == folded(played, order)


@pytest.mark.parametrize("held_back", ["order.placed", "order.cancelled", "stock.released"])
def test_an_order_is_not_settled_while_something_is_missing(held_back: str) -> None:
    played = play()
    order = declined(played)
    told = [(e.data, e.time) for e in played.about(order) if e.type != held_back]

    assert ORDER_VIEW.of(order, told).settled == (held_back == "order.placed")


def test_an_order_ends_once_and_the_first_end_counts() -> None:
    order = UUID(int=1)
    end = OrderConfirmed(order_id=order, customer="ada", currency="EUR", total_cents=1)
    other = OrderCancelled(
        order_id=order, customer="ada", reason=CancellationReason.DEADLINE_EXCEEDED
    )
    told = [(end, NOW), (other, NOW + TICK)]

    assert ORDER_VIEW.of(str(order), told).status is Status.CONFIRMED
    assert ORDER_VIEW.of(str(order), reversed(told)) == ORDER_VIEW.of(str(order), told)


@for_all(told=st.lists(st.tuples(events, moments), max_size=8))
def test_no_event_makes_a_view_fail(told: list[tuple[Event, datetime]]) -> None:
    view = ArchivedOrder("x")
    for event, at in told:
        view = view.evolve(event, at)
    assert view.sequence == len(told)
