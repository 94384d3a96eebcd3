"""The copy of a message that failed: what it says of that, and what it must not carry."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from pamqp import commands

from saga.runtime.messaging import frames
from saga.runtime.messaging.dead_letters import (
    ATTEMPTS,
    ERROR,
    ERROR_MAX_CHARACTERS,
    FIRST_FAILED_AT,
    KEPT,
    LAST_FAILED_AT,
    LEFT_OUT,
    ORIGIN_EXCHANGE,
    ORIGIN_QUEUE,
    ORIGIN_ROUTING_KEY,
    REASON,
    REPLAYS,
    Failure,
    Reason,
    set_aside,
)
from saga.runtime.messaging.frames import Delivery
from saga.runtime.messaging.topology import EVENTS_EXCHANGE

NOW = datetime(2030, 1, 1, tzinfo=UTC)
QUEUE = "payment.normal"
AWAY = ConnectionError("the provider is away")


def came(headers: Mapping[str, Any], exchange: str = EVENTS_EXCHANGE, **others: Any) -> Delivery:
    """A delivery with these headers and other properties."""
    properties = commands.Basic.Properties(headers=dict(headers), **others)
    key = "stock.reserved.normal" if exchange else QUEUE
    return Delivery(1, False, exchange, key, properties.marshal(), b"{}")


def failure(at: datetime = NOW, error: Exception = AWAY) -> Failure:
    return Failure(Reason.FAILED, error, QUEUE, at)


def copied(delivery: Delivery, failed: Failure) -> frames.Properties:
    return frames.properties_in(set_aside(delivery, failed))


def headers_of(delivery: Delivery, failed: Failure | None = None) -> Mapping[str, Any]:
    return copied(delivery, failed or failure()).headers or {}


def again(delivery: Delivery, failed: Failure) -> Delivery:
    """What failed so, when it has waited: the broker routes it back by its queue's name."""
    return Delivery(1, False, "", QUEUE, set_aside(delivery, failed), delivery.body)


def test_a_copy_says_what_happened_and_where_it_came_from() -> None:
    said = headers_of(came({"traceparent": "00-trace"}))

    assert said["traceparent"] == "00-trace"
    assert (said[REASON], said[ERROR], said[ATTEMPTS]) == ("failed", str(AWAY), 1)
    assert said[FIRST_FAILED_AT] == said[LAST_FAILED_AT] == NOW.isoformat()
    assert (said[ORIGIN_EXCHANGE], said[ORIGIN_ROUTING_KEY], said[ORIGIN_QUEUE]) == (
        EVENTS_EXCHANGE,
        "stock.reserved.normal",
        QUEUE,
    )


def test_a_second_failure_counts_on_and_forgets_neither_the_first_nor_the_origin() -> None:
    later = NOW + timedelta(minutes=1)
    said = headers_of(again(came({}), failure()), failure(later, ValueError("another error")))

    assert said[ATTEMPTS] == 2
    assert said[FIRST_FAILED_AT] == NOW.isoformat()
    assert said[LAST_FAILED_AT] == later.isoformat()
    assert said[ERROR] == "another error"
    assert (said[ORIGIN_EXCHANGE], said[ORIGIN_ROUTING_KEY]) == (
        EVENTS_EXCHANGE,
        "stock.reserved.normal",
    )


def test_how_often_it_was_replayed_is_known_over_failures() -> None:
    said = headers_of(came({REPLAYS: 2}, exchange=""))

    assert (said[REPLAYS], said[ATTEMPTS]) == (2, 1)


def test_what_others_wrote_under_our_names_is_carried_along_and_not_believed() -> None:
    said = headers_of(came({ATTEMPTS: 7, REASON: "none", REPLAYS: 3}))

    assert (said[ATTEMPTS], said[REASON]) == (1, "failed")
    assert REPLAYS not in said
    assert frames.properties_in(said[KEPT]).headers == {ATTEMPTS: 7, REASON: "none", REPLAYS: 3}


def test_what_came_under_the_name_of_another_queue_is_not_believed() -> None:
    delivery = Delivery(1, False, "", "order.normal", again(came({}), failure()).raw, b"{}")

    assert headers_of(delivery)[ATTEMPTS] == 1


@pytest.mark.parametrize("name", ["CC", "BCC"])
def test_a_copy_goes_nowhere_else(name: str) -> None:
    said = headers_of(came({name: ["elsewhere"]}))

    assert name not in said
    assert frames.properties_in(said[KEPT]).headers == {name: ["elsewhere"]}


def test_a_copy_neither_expires_nor_has_a_user_but_knows_of_both() -> None:
    copy = copied(came({}, expiration="1000", user_id="eve", message_id="m"), failure())

    assert (copy.expiration, copy.user_id, copy.message_id) == (None, None, "m")
    assert copy.headers is not None
    kept = frames.properties_in(copy.headers[KEPT])
    assert (kept.expiration, kept.user_id) == ("1000", "eve")


def test_what_was_carried_along_is_so_the_second_time_as_well() -> None:
    said = headers_of(again(came({"CC": ["elsewhere"]}, expiration="1000"), failure()))

    kept = frames.properties_in(said[KEPT])
    assert (kept.expiration, kept.headers) == ("1000", {"CC": ["elsewhere"]})


def test_the_brokers_notes_of_a_wait_are_dropped_and_those_of_others_carried_along() -> None:
    waited = again(came({}), failure())
    fields = [
        *frames.fields_in(frames.split(waited.raw)[0]["headers"])[0],
        frames.field("x-delivery-count", 1),
    ]
    waited.raw = frames.join({"headers": frames.table_of(fields)})
    waited._properties = None

    assert {KEPT, "x-delivery-count"}.isdisjoint(headers_of(waited))
    assert frames.properties_in(headers_of(came({"x-delivery-count": 1}))[KEPT]).headers == {
        "x-delivery-count": 1
    }


def test_an_error_is_cut_and_never_keeps_a_copy_from_fitting() -> None:
    said = headers_of(came({}), failure(error=ValueError("x" * 1_000_000)))

    assert said[ERROR] == "x" * ERROR_MAX_CHARACTERS


def test_where_there_is_no_room_the_largest_foreign_headers_are_left_out_and_named() -> None:
    delivery = came({"small": "s", "large": "x" * 5_000, "larger": "y" * 6_000})
    raw = set_aside(delivery, failure(), frame_max=10_000)
    said = frames.properties_in(raw).headers or {}
    assert {"small", "large"} < said.keys()
    assert said[LEFT_OUT].startswith("larger (")
    assert said[ATTEMPTS] == 1
