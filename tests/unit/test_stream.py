"""What a message of the stream is, whatever its headers are."""

from __future__ import annotations

import pytest

from saga.archive.store import Stray, judge, key
from saga.runtime.messaging import frames
from saga.runtime.messaging.frames import Delivery, Field
from saga.runtime.messaging.stream import StreamError, record_of
from saga.runtime.messaging.topology import EVENTS_EXCHANGE
from tests.stores import GRAPH

OFFSET = "x-stream-offset"


def came(table: bytes, routing_key: str = "order.placed.normal") -> Delivery:
    return Delivery(
        1, False, EVENTS_EXCHANGE, routing_key, frames.join({"headers": table}), b"body"
    )


def test_a_publishers_own_offset_is_not_believed() -> None:
    """RabbitMQ 3.10 writes over the first header of the name, and leaves the second."""
    table = frames.table_of([frames.field(OFFSET, 7), frames.field(OFFSET, 999_999)])
    assert record_of(came(table), 6).offset == 7


def test_what_has_no_offset_is_from_no_stream() -> None:
    with pytest.raises(StreamError, match="is no stream"):
        record_of(came(frames.table_of([frames.field("a", 1)])), 6)


def test_an_entry_whose_headers_cannot_be_read_is_a_stray_after_the_one_before() -> None:
    record = record_of(came(frames.table_of([], b"\x01aQ" + b"\xff" * 40)), 6)
    assert (record.offset, record.body) == (7, b"body")
    stray = judge(record, 1, GRAPH)
    assert isinstance(stray, Stray)
    assert (stray.reason, stray.body) == ("unreadable", b"body")
    assert "cannot be read beyond byte 0" in stray.detail


def test_what_is_kept_of_a_stray_fits_into_its_columns() -> None:
    odd = b"\xff" * 255
    values = {
        "headers": frames.table_of([frames.field(OFFSET, 7), Field(odd, b"V")]),
        "message_id": b"\xff" + odd,
    }
    delivery = Delivery(1, False, EVENTS_EXCHANGE, "\\xff" * 255, frames.join(values), b"\x00")
    stray = judge(record := record_of(delivery, 6), 1, GRAPH)
    assert isinstance(stray, Stray)
    assert len(stray.routing_key) == 255
    assert len(key(record)) <= 255
