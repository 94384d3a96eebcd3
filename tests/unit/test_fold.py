"""The states of participants, folded from nothing but what they published."""

from __future__ import annotations

from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest
from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from inventory_service.domain import AddStock
from order_service.domain import CancelOrder
from payment_service.domain import Charge
from saga.choreography import State
from saga.discovery import choreography
from saga.envelope import Envelope, source_of
from saga.runtime.kernel.fold import Fold
from saga.runtime.kernel.step import StateId
from saga.testing import NOW
from tests.order_play import BROKE, Play

PARTICIPANTS = {p.name: p for p in choreography().participants}


def played(random: Random, orders: int = 12) -> Play:
    """Orders of all kinds; some cancelled, early or late, while messages overtake each other."""
    play = Play(at=NOW, tick=timedelta(milliseconds=1))
    for sku, quantity in (("tea", 20), ("mug", 1)):
        play.give(
            "inventory",
            AddStock(
                delivery_id=uuid4(),
                sku=sku,
                quantity=quantity,
                unit_price_cents=250,
                currency="EUR",
            ),
        )
    for _ in range(orders):
        order = play.place(
            customer=random.choice(["ada", BROKE]), sku=random.choice(["tea", "mug", "nothing"])
        )
        play.down = set(random.sample(sorted(PARTICIPANTS), random.randrange(3)))
        play.deliver()
        if random.random() < 0.4:
            play.give("order", CancelOrder(order_id=UUID(order)))
        random.shuffle(play.waiting)
    play.down = set()
    play.deliver()
    return play


def folded(name: str, events: list[Envelope[Any]]) -> dict[StateId, State]:
    fold = Fold(PARTICIPANTS[name])
    for event in events:
        if event.source == source_of(name):
            fold.take(event)
    return fold.states


@pytest.mark.parametrize("name", PARTICIPANTS)
@for_all(random=st.randoms(use_true_random=False))
@settings(max_examples=25)
def test_at_rest_a_participants_states_are_the_fold_of_its_own_events(
    name: str, random: Random
) -> None:
    play = played(random)

    assert folded(name, play.events) == play.states[name]


@pytest.mark.parametrize("name", PARTICIPANTS)
@for_all(random=st.randoms(use_true_random=False))
@settings(max_examples=10)
def test_events_of_different_orders_commute(name: str, random: Random) -> None:
    play = played(random)
    subjects = sorted({event.subject for event in play.events}, key=lambda _: random.random())
    by_subject = [e for subject in subjects for e in play.events if e.subject == subject]

    assert folded(name, by_subject) == play.states[name]


def test_a_question_that_is_open_is_no_event_and_can_be_folded_where_it_is_known() -> None:
    play = Play(at=NOW)
    play.give(
        "inventory",
        AddStock(delivery_id=uuid4(), sku="tea", quantity=9, unit_price_cents=250, currency="EUR"),
    )
    play.provider_down = True
    order = play.place()
    play.deliver()
    fold = Fold(PARTICIPANTS["payment"])
    assert folded("payment", play.events) == {}
    fold.ask(
        Charge(order_id=UUID(order), customer="ada", currency="EUR", amount_cents=500), play.at
    )

    assert fold.states == play.states["payment"]


def test_events_after_a_hole_keep_their_numbers() -> None:
    play = Play(at=NOW)
    order = play.place()
    play.give("order", CancelOrder(order_id=UUID(order)))
    fold = Fold(PARTICIPANTS["order"])
    fold.take(play.events[1])

    assert fold.own("order.cancelled", order).sequence == 2
