"""The plan of test orders: the same from the same seed, and right about how its orders end."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.events import CancellationReason, OrderPlaced, StockRejected, StockReserved
from inventory_service.domain import Reservation, StockItem, reserve
from order_saga.orders import (
    MALFORMED,
    RUN_MAX,
    SEED_MAX,
    OrderLoad,
    PlanError,
    PlannedOrder,
    Shares,
    expected,
    plan,
)
from order_service.domain import Order, place
from saga.discovery import choreography
from saga.envelope import Decoder, Undecodable
from saga.message import Priority


def test_the_same_seed_gives_the_same_orders_byte_for_byte() -> None:
    assert plan(300, seed=7).to_json() == plan(300, seed=7).to_json()


def test_the_orders_of_a_seed_are_the_same_in_every_version_of_python() -> None:
    # Changing what a seed means is allowed, but never by accident: then write the new digest here.
    digest = hashlib.sha256(plan(200, seed=7).to_json().encode()).hexdigest()

    assert digest.startswith("2aba13dbb6ccfef1")


def test_another_seed_gives_other_orders() -> None:
    one, other = plan(50, seed=1), plan(50, seed=2)

    assert [order.lines for order in one.orders] != [order.lines for order in other.orders]


def test_another_run_is_the_same_under_other_names() -> None:
    one, other = plan(200, seed=7), plan(200, seed=7, run=2)

    assert [_anonymous(order, one) for order in one.orders] == [
        _anonymous(order, other) for order in other.orders
    ]
    assert {order.order_id for order in one.orders}.isdisjoint(
        order.order_id for order in other.orders
    )


def test_loads_that_differ_in_anything_share_no_names() -> None:
    prefixes = [
        plan(orders, seed, shares, run=run).prefix
        for orders in (10, 20)
        for seed in (1, 2)
        for shares in (Shares(), Shares(high=0.5))
        for run in (1, 2)
    ]

    assert len(set(prefixes)) == len(prefixes)


def test_a_thousand_orders_are_mixed_as_promised() -> None:
    load = plan(1000, seed=1)

    assert Counter(expected(order) for order in load.orders) == {
        "confirmed": 830,
        "out_of_stock": 50,
        "price_mismatch": 25,
        "unknown_sku": 25,
        "payment_declined": 50,
        "customer_request": 20,
    }
    assert sum(order.priority is Priority.HIGH for order in load.orders) == 100
    assert len(load.malformed) == 10


@given(
    orders=st.integers(0, 120),
    seed=st.integers(0, SEED_MAX),
    parts=st.lists(st.floats(0, 0.25), min_size=4, max_size=4),
    run=st.integers(1, RUN_MAX),
)
def test_every_order_is_answered_by_inventory_as_planned(
    orders: int, seed: int, parts: list[float], run: int
) -> None:
    shares = Shares(0.3, *parts)
    load = plan(orders, seed, shares, run=run)
    shelf = {
        need.sku: StockItem(need.sku, 1, need.unit_price_cents, need.currency, need.quantity)
        for need in load.stock
    }

    assert len(load.orders) == orders
    for order in load.orders:
        placed = _placed(order)
        known = shelf | {line.sku: StockItem(line.sku) for line in placed.lines} | shelf
        match reserve(placed, Reservation(str(order.order_id)), known):
            case StockReserved() as held:
                assert order.reason in (
                    None,
                    CancellationReason.PAYMENT_DECLINED,
                    CancellationReason.CUSTOMER_REQUEST,
                )
                for line in held.lines:  # so that a later order would find too little, if any did
                    item = shelf[line.sku]
                    shelf[line.sku] = replace(item, free=item.free - line.quantity)
            case StockRejected() as rejected:
                assert order.reason == CancellationReason(rejected.reason)
            case answer:
                raise AssertionError(f"{order} was answered with {answer}")


def test_customers_with_an_account_have_one_order_each() -> None:
    load = plan(500, seed=3)
    orders = Counter(order.customer for order in load.orders)

    assert {account.customer for account in load.accounts} == {
        order.customer
        for order in load.orders
        if order.cancels or order.reason is CancellationReason.PAYMENT_DECLINED
    }
    assert all(orders[account.customer] == 1 for account in load.accounts)


@pytest.mark.parametrize("number", range(len(MALFORMED)))
def test_every_kind_of_malformed_message_is_undecodable_to_its_one_reader(number: int) -> None:
    graph = choreography()
    shares = Shares(malformed=1)
    message = plan(len(MALFORMED), seed=number, shares=shares).malformed[number]
    (reader,) = graph.reacting_to(message.routing_key.rpartition(".")[0])

    with pytest.raises(Undecodable):
        Decoder((*reader.consumes, *reader.intake)).decode(message.body)


def test_malformed_messages_have_ids_of_their_own() -> None:
    messages = plan(200, seed=1, shares=Shares(malformed=1)).malformed

    assert len({message.id for message in messages}) == 200


@pytest.mark.parametrize(
    ("name", "orders", "seed", "run"),
    [("orders", -1, 1, 1), ("orders", 10**9, 1, 1), ("seed", 1, -1, 1), ("run", 1, 1, 0)],
)
def test_an_argument_out_of_range_is_named(name: str, orders: int, seed: int, run: int) -> None:
    with pytest.raises(PlanError, match=f"^{name} is .* it takes"):
        plan(orders, seed, run=run)


def test_shares_that_exceed_the_whole_are_refused() -> None:
    with pytest.raises(PlanError, match="at most 1"):
        Shares(declined=0.6, cancelled=0.6)
    with pytest.raises(PlanError, match=r"high is 1\.5"):
        Shares(high=1.5)


def _anonymous(order: PlannedOrder, load: OrderLoad) -> str:
    return repr(order).replace(load.prefix, "")


def _placed(order: PlannedOrder) -> OrderPlaced:
    event = place(order.command(), Order(str(order.order_id)), datetime(2024, 1, 1, tzinfo=UTC))
    assert event is not None
    return event
