"""Whom a participant believes about a message, and which of its headers."""

from __future__ import annotations

from typing import Any, ClassVar
from uuid import UUID

import pytest

from common.envelope import Envelope, Undecodable, wrap
from common.events import CancellationReason, OrderCancelled, OrderLine, PlaceOrder
from common.message import Event, Priority
from common.messaging.topology import EVENTS_EXCHANGE
from common.messaging.trust import EDITOR_SOURCE, believed_headers, check_sender
from tests.integration.toy import NOW

QUEUE = "toy.normal"
KEY = "order.cancelled.normal"


class Rumour(Event):
    type: ClassVar[str] = "rumour.heard"

    @property
    def subject(self) -> str:
        return "somebody"


def cancelled(source: str = "/services/order") -> Envelope[Any]:
    event = OrderCancelled(
        order_id=UUID(int=1), customer="ada", reason=CancellationReason.CUSTOMER_REQUEST
    )
    return wrap(event, id="1", source=source, time=NOW, priority=Priority.NORMAL)


def refused(exchange: str, key: str, envelope: Envelope[Any], queue: str = QUEUE) -> bool:
    try:
        check_sender(exchange, key, envelope, queue)
    except Undecodable as error:
        return error.reason == "misrouted"
    return False


def test_an_event_is_believed_from_its_publisher_under_its_own_routing_key() -> None:
    assert not refused(EVENTS_EXCHANGE, KEY, cancelled())
    assert refused(EVENTS_EXCHANGE, "payment.charged.normal", cancelled())


def test_a_retry_or_a_replay_is_believed_under_its_queues_name() -> None:
    assert not refused("", QUEUE, cancelled())
    assert refused("", "other.normal", cancelled())


@pytest.mark.parametrize("source", ["/services/payment", "/services/order/", "/", EDITOR_SOURCE])
def test_an_event_is_refused_that_says_another_source_than_its_publisher(source: str) -> None:
    assert refused(EVENTS_EXCHANGE, KEY, cancelled(source))


def test_a_retry_is_refused_that_says_another_source_than_its_publisher() -> None:
    assert refused("", QUEUE, cancelled("/services/payment"))


def test_a_corrected_copy_is_believed_by_the_default_exchange_only() -> None:
    assert not refused("", QUEUE, cancelled(EDITOR_SOURCE))


def test_a_command_may_come_from_anybody_who_may_write_the_queue() -> None:
    line = OrderLine(sku="tea", quantity=1, unit_price_cents=250)
    place = PlaceOrder(order_id=UUID(int=1), customer="ada", currency="EUR", lines=(line,))
    source = "https://shop.example"
    command = wrap(place, id="1", source=source, time=NOW, priority=Priority.NORMAL)

    assert not refused("", "order.intake.normal", command, "order.intake.normal")


def test_an_event_of_no_known_publisher_is_believed_for_its_routing_key() -> None:
    rumour = wrap(Rumour(), id="1", source="/anybody", time=NOW, priority=Priority.NORMAL)

    assert not refused(EVENTS_EXCHANGE, "rumour.heard.normal", rumour)


HEADERS = {"x-saga-attempts": 9, "x-saga-replays": 1, "traceparent": "00-"}


def test_headers_of_ours_count_on_what_comes_back_by_the_default_exchange() -> None:
    assert believed_headers("", QUEUE, HEADERS, QUEUE) == HEADERS


@pytest.mark.parametrize(("exchange", "key"), [(EVENTS_EXCHANGE, KEY), ("", "other.normal")])
def test_headers_of_ours_count_on_nothing_else(exchange: str, key: str) -> None:
    assert believed_headers(exchange, key, HEADERS, QUEUE) == {"traceparent": "00-"}


def test_a_message_without_headers_has_none() -> None:
    assert believed_headers(EVENTS_EXCHANGE, KEY, None, QUEUE) == {}
    assert believed_headers("", QUEUE, None, QUEUE) == {}
