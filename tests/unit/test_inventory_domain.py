"""Stock on the shelf, and what is held of it for which order."""

from __future__ import annotations

from collections import Counter
from datetime import datetime
from uuid import UUID

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from common.events import (
    CancellationReason,
    Currency,
    HeldLine,
    OrderCancelled,
    OrderLine,
    OrderPlaced,
    RejectionReason,
    StockAdded,
    StockRejected,
    StockReleased,
    StockReserved,
    total_of,
)
from inventory_service.domain import (
    PARTICIPANT,
    AddStock,
    Delivery,
    Reservation,
    ReservationStatus,
    StockItem,
    delivery_key,
)
from saga.message import Event, Message, Priority
from saga.testing import NOW, GivenParticipant, assert_once, given
from tests.unit.strategies import currencies, events, moments

ORDER = UUID(int=1)
OTHER = UUID(int=2)

Line = tuple[str, int, int]
"""SKU, quantity, unit price in cents."""


def placed(*lines: Line, order_id: UUID = ORDER, currency: Currency = "EUR") -> OrderPlaced:
    order_lines = tuple(
        OrderLine(sku=sku, quantity=quantity, unit_price_cents=cents)
        for sku, quantity, cents in lines
    )
    return OrderPlaced(
        order_id=order_id,
        customer="ada",
        currency=currency,
        lines=order_lines,
        total_cents=total_of(order_lines),
        priority=Priority.NORMAL,
        deadline=NOW,
    )


def reserved(event: OrderPlaced) -> StockReserved:
    return StockReserved(
        order_id=event.order_id,
        customer=event.customer,
        currency=event.currency,
        total_cents=event.total_cents,
        lines=held(event),
    )


def held(event: OrderPlaced) -> tuple[HeldLine, ...]:
    return tuple(HeldLine(sku=line.sku, quantity=line.quantity) for line in event.lines)


def rejected(reason: RejectionReason, sku: str) -> StockRejected:
    return StockRejected(order_id=ORDER, reason=reason, sku=sku)


def added(sku: str, quantity: int, cents: int, currency: Currency = "EUR") -> StockAdded:
    return StockAdded(sku=sku, quantity=quantity, unit_price_cents=cents, currency=currency)


def cancelled(order_id: UUID = ORDER) -> OrderCancelled:
    return OrderCancelled(
        order_id=order_id, customer="ada", reason=CancellationReason.CUSTOMER_REQUEST
    )


def shelf(world: GivenParticipant, sku: str) -> tuple[int, int]:
    item = world.state(StockItem, sku)
    return item.free, item.held


PENS = added("pen", 10, 150)
INK = added("ink", 3, 700)
ORDERED = placed(("pen", 2, 150), ("ink", 1, 700))
RELEASED = StockReleased(order_id=ORDER, lines=held(ORDERED))
MARKER = StockReleased(order_id=ORDER, lines=())


def test_stock_is_put_on_the_shelf_with_its_price() -> None:
    command = AddStock(
        delivery_id=UUID(int=1), sku="pen", quantity=10, unit_price_cents=150, currency="EUR"
    )
    world = given(PARTICIPANT)

    assert world.live(command) == (PENS.model_copy(update={"delivery_id": UUID(int=1)}),)
    assert world.state(StockItem, "pen") == StockItem(
        "pen", unit_price_cents=150, currency="EUR", free=10, held=0
    )


def test_a_delivery_brings_a_sku_once_and_another_one_brings_more() -> None:
    world = given(PARTICIPANT)
    first, second = (
        AddStock(
            delivery_id=UUID(int=n), sku="pen", quantity=10, unit_price_cents=150, currency="EUR"
        )
        for n in (1, 2)
    )

    assert [len(world.live(command)) for command in (first, first, second, first)] == [1, 0, 1, 0]
    assert shelf(world, "pen") == (20, 0)


def test_a_delivery_brings_each_of_its_skus_once_and_what_it_brought_is_known() -> None:
    world = given(PARTICIPANT)
    pens, ink = (
        AddStock(
            delivery_id=UUID(int=1), sku=sku, quantity=10, unit_price_cents=150, currency="EUR"
        )
        for sku in ("pen", "ink")
    )

    assert [len(world.live(command)) for command in (pens, ink, pens, ink)] == [1, 1, 0, 0]
    key = delivery_key(UUID(int=1), "ink")
    brought = Delivery(key, quantity=10, unit_price_cents=150, currency="EUR")
    assert world.state(Delivery, key) == brought
    assert brought.evolve(RELEASED, NOW) == brought


def test_a_delivery_of_before_they_had_ids_adds_up_as_it_did() -> None:
    world = given(PARTICIPANT, PENS, PENS)

    assert shelf(world, "pen") == (20, 0)
    assert list(world.states(Delivery)) == []


def test_more_stock_adds_up_and_the_newest_price_holds() -> None:
    world = given(PARTICIPANT, PENS, added("pen", 5, 160))

    assert world.state(StockItem, "pen").unit_price_cents == 160
    assert shelf(world, "pen") == (15, 0)


def test_a_price_may_be_set_without_adding_units() -> None:
    world = given(PARTICIPANT, PENS, added("pen", 0, 160))

    assert world.state(StockItem, "pen").unit_price_cents == 160
    assert shelf(world, "pen") == (10, 0)


def test_an_order_of_known_rightly_priced_free_stock_is_reserved() -> None:
    assert given(PARTICIPANT, PENS, INK).when(ORDERED) == (reserved(ORDERED),)


def test_reserved_stock_is_held_and_no_longer_free() -> None:
    world = given(PARTICIPANT, PENS, INK, reserved(ORDERED))

    assert shelf(world, "pen") == (8, 2)
    assert shelf(world, "ink") == (2, 1)
    assert world.state(Reservation, ORDER).status is ReservationStatus.HELD


def test_the_last_unit_can_be_reserved() -> None:
    event = placed(("pen", 10, 150))

    assert given(PARTICIPANT, PENS).when(event) == (reserved(event),)


def test_an_order_of_more_than_is_free_is_rejected() -> None:
    assert given(PARTICIPANT, PENS).when(placed(("pen", 11, 150))) == (
        rejected(RejectionReason.OUT_OF_STOCK, "pen"),
    )


def test_what_is_held_for_another_order_is_not_free() -> None:
    other = placed(("pen", 9, 150), order_id=OTHER)

    assert given(PARTICIPANT, PENS, reserved(other)).when(placed(("pen", 2, 150))) == (
        rejected(RejectionReason.OUT_OF_STOCK, "pen"),
    )


def test_lines_of_the_same_sku_count_together() -> None:
    fits = placed(("pen", 5, 150), ("pen", 5, 150))
    too_much = placed(("pen", 5, 150), ("pen", 6, 150))
    world = given(PARTICIPANT, PENS)

    assert world.when(too_much) == (rejected(RejectionReason.OUT_OF_STOCK, "pen"),)
    assert world.live(fits) == (reserved(fits),)
    assert shelf(world, "pen") == (0, 10)


def test_an_order_of_an_unknown_sku_is_rejected() -> None:
    assert given(PARTICIPANT, PENS).when(placed(("pen", 1, 150), ("lamp", 1, 10))) == (
        rejected(RejectionReason.UNKNOWN_SKU, "lamp"),
    )


@pytest.mark.parametrize("cents", [149, 151])
def test_an_order_at_another_price_is_rejected(cents: int) -> None:
    assert given(PARTICIPANT, PENS).when(placed(("pen", 1, cents))) == (
        rejected(RejectionReason.PRICE_MISMATCH, "pen"),
    )


def test_an_order_in_another_currency_is_rejected() -> None:
    assert given(PARTICIPANT, PENS).when(placed(("pen", 1, 150), currency="JPY")) == (
        rejected(RejectionReason.PRICE_MISMATCH, "pen"),
    )


def test_a_wrong_line_is_named_before_a_missing_unit() -> None:
    event = placed(("pen", 11, 150), ("ink", 1, 1))

    assert given(PARTICIPANT, PENS, INK).when(event) == (
        rejected(RejectionReason.PRICE_MISMATCH, "ink"),
    )


def test_all_of_an_order_is_held_or_nothing() -> None:
    world = given(PARTICIPANT, PENS, INK)
    world.live(placed(("pen", 2, 150), ("ink", 4, 700)))

    assert shelf(world, "pen") == (10, 0)
    assert shelf(world, "ink") == (3, 0)
    assert world.state(Reservation, ORDER).status is ReservationStatus.REJECTED


@pytest.mark.parametrize(
    "before",
    [
        (reserved(ORDERED),),
        (reserved(ORDERED), RELEASED),
        (rejected(RejectionReason.OUT_OF_STOCK, "pen"),),
    ],
    ids=["held", "released", "rejected"],
)
def test_an_order_is_reserved_or_rejected_once(before: tuple[Event, ...]) -> None:
    assert given(PARTICIPANT, PENS, INK, *before).when(ORDERED) == ()


def test_a_cancelled_order_gives_its_stock_back() -> None:
    world = given(PARTICIPANT, PENS, INK, reserved(ORDERED))

    assert world.live(cancelled()) == (RELEASED,)
    assert shelf(world, "pen") == (10, 0)
    assert shelf(world, "ink") == (3, 0)
    assert world.state(Reservation, ORDER).status is ReservationStatus.RELEASED


def test_stock_is_given_back_once() -> None:
    assert given(PARTICIPANT, PENS, INK, reserved(ORDERED), RELEASED).when(cancelled()) == ()


def test_stock_that_was_given_back_can_be_reserved_by_another_order() -> None:
    event = placed(("pen", 10, 150), order_id=OTHER)

    assert given(PARTICIPANT, PENS, INK, reserved(ORDERED), RELEASED).when(event) == (
        reserved(event),
    )


def test_the_cancellation_of_a_rejected_order_releases_nothing() -> None:
    world = given(PARTICIPANT, PENS, rejected(RejectionReason.OUT_OF_STOCK, "pen"))

    assert world.when(cancelled()) == ()


def test_a_cancellation_that_overtakes_its_order_leaves_a_marker() -> None:
    world = given(PARTICIPANT, PENS, INK)

    assert world.live(cancelled()) == (MARKER,)
    assert world.state(Reservation, ORDER).status is ReservationStatus.RELEASED


def test_an_order_that_comes_after_its_cancellation_holds_nothing() -> None:
    world = given(PARTICIPANT, PENS, INK, MARKER)

    assert world.when(ORDERED) == ()
    assert shelf(world, "pen") == (10, 0)


def test_a_cancellation_concerns_no_other_order() -> None:
    world = given(PARTICIPANT, PENS, INK, reserved(ORDERED))
    world.live(cancelled(OTHER))

    assert shelf(world, "pen") == (8, 2)
    assert world.state(Reservation, ORDER).status is ReservationStatus.HELD


def test_a_cancellation_concerns_the_skus_that_are_held_for_the_order() -> None:
    reservation = given(PARTICIPANT, PENS, INK, reserved(ORDERED)).state(Reservation, ORDER)

    assert set(StockItem.keys(cancelled(), reservation)) == {"pen", "ink"}


def test_a_delivery_concerns_its_sku() -> None:
    command = AddStock(
        delivery_id=UUID(int=1), sku="pen", quantity=10, unit_price_cents=150, currency="EUR"
    )

    assert tuple(StockItem.keys(command, StockItem("pen"))) == ("pen",)


skus = st.sampled_from(["pen", "ink", "lamp"])
lines = st.lists(st.tuples(skus, st.integers(1, 4), st.integers(1, 2)), min_size=1, max_size=3)
order_ids = st.integers(0, 3).map(lambda n: UUID(int=n))
orders_placed = st.builds(
    lambda order_id, lines: placed(*lines, order_id=order_id), order_ids, lines
)
deliveries = st.builds(
    AddStock,
    sku=skus,
    quantity=st.integers(0, 6),
    unit_price_cents=st.integers(1, 2),
    currency=st.just("EUR"),
)
reactions_to_events: st.SearchStrategy[Message] = orders_placed | order_ids.map(cancelled)
histories = st.lists(reactions_to_events | deliveries, max_size=15)


@for_all(history=histories, message=reactions_to_events | deliveries)
def test_a_message_that_comes_twice_changes_nothing_more(
    history: list[Message], message: Message
) -> None:
    world = GivenParticipant(PARTICIPANT)
    for earlier in history:
        world.live(earlier)
    assert_once(world, message)


@for_all(history=histories)
def test_free_and_held_are_what_was_ever_put_on_the_shelf(history: list[Message]) -> None:
    world = GivenParticipant(PARTICIPANT)
    on_shelf: Counter[str] = Counter()
    for message in history:
        if world.live(message) and isinstance(message, AddStock):
            on_shelf[message.sku] += message.quantity
        held_for_orders: Counter[str] = Counter()
        for reservation in world.states(Reservation):
            if reservation.status is ReservationStatus.HELD:
                for line in reservation.lines:
                    held_for_orders[line.sku] += line.quantity
        for item in world.states(StockItem):
            assert item.free >= 0
            assert item.held == held_for_orders[item.key]
            assert item.free + item.held == on_shelf[item.key]


any_state = st.one_of(
    st.builds(
        Reservation,
        key=st.just(str(ORDER)),
        status=st.sampled_from(ReservationStatus),
        lines=st.just(held(ORDERED)),
    ),
    st.builds(
        StockItem,
        key=skus,
        unit_price_cents=st.none() | st.integers(1),
        currency=st.just("") | currencies,
        free=st.integers(0),
        held=st.integers(0),
    ),
)


@for_all(state=any_state, event=events, at=moments)
def test_states_evolve_by_inventorys_own_events_and_no_others(
    state: Reservation | StockItem, event: Event, at: datetime
) -> None:
    after = state.evolve(event, at)

    if type(event) not in PARTICIPANT.publishes:
        assert after is state
    assert (after.key, after.sequence) == (state.key, state.sequence)
