"""The routes of the orders, as their signatures say them."""

from __future__ import annotations

import pytest

import inventory_service.domain
import order_service.domain
import payment_service.domain
from common.events import PlaceOrder
from saga.choreography import Choreography
from saga.discovery import choreography
from saga.graph.check import check
from saga.runtime.messaging.definitions import definitions
from saga.runtime.messaging.permissions import users_of
from saga.runtime.messaging.topology import topology_of

SAGA = Choreography(
    [
        order_service.domain.PARTICIPANT,
        inventory_service.domain.PARTICIPANT,
        payment_service.domain.PARTICIPANT,
    ]
)


@pytest.mark.parametrize(
    ("event", "reacting"),
    [
        ("order.placed", ["inventory"]),
        ("stock.reserved", ["payment"]),
        ("stock.rejected", ["order"]),
        ("payment.charged", ["order"]),
        ("payment.declined", ["order"]),
        ("order.confirmed", []),
        ("order.cancelled", ["inventory", "payment"]),
        ("stock.released", []),
        ("payment.refunded", []),
        ("payment.voided", []),
        ("stock.added", []),
    ],
)
def test_the_sagas_routes(event: str, reacting: list[str]) -> None:
    assert event in {kind.type for kind in SAGA.events}
    assert [participant.name for participant in SAGA.reacting_to(event)] == reacting


def test_everything_reacted_to_is_published_by_somebody() -> None:
    published = {kind for participant in SAGA.participants for kind in participant.publishes}
    consumed = {kind for participant in SAGA.participants for kind in participant.consumes}

    assert consumed <= published
    assert set(SAGA.events) == published


def test_every_event_is_published_by_one_participant() -> None:
    for event in SAGA.events:
        assert len([p for p in SAGA.participants if event in p.publishes]) == 1


def test_orders_may_be_placed_over_the_broker() -> None:
    intakes = {p.name: p.intake for p in SAGA.participants if p.intake}

    assert intakes == {"order": (PlaceOrder,)}


def test_the_orders_choreography_has_no_findings() -> None:
    graph = choreography()

    assert check(graph, definitions(topology_of(graph), users_of(graph))) == []
