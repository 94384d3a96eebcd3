"""Every message of the orders is read as it was written."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import find
from hypothesis import given as for_all
from hypothesis import strategies as st

from common.events import PlaceOrder
from saga.envelope import Decoder, Envelope, wrap
from saga.message import Command, Event, Priority
from saga.testing import NOW
from tests.unit.strategies import EVENTS, place_orders

DECODER = Decoder([*EVENTS, PlaceOrder])


def wrapped(message: Event | Command) -> Envelope[Any]:
    return wrap(
        message, id="id-1", source="/services/order", time=NOW, priority=Priority.NORMAL, sequence=1
    )


@pytest.mark.parametrize("kind", EVENTS)
def test_there_is_a_strategy_for_every_event(kind: type[Event]) -> None:
    assert isinstance(find(EVENTS[kind], lambda _: True), kind), "write one in strategies.py"


def test_no_two_events_have_the_same_name() -> None:
    assert len({kind.type for kind in EVENTS}) == len(EVENTS)


@pytest.mark.parametrize("kind", EVENTS, ids=lambda kind: kind.type)
@for_all(data=st.data())
def test_every_event_is_read_as_it_was_written(kind: type[Event], data: st.DataObject) -> None:
    envelope = wrapped(data.draw(EVENTS[kind]))

    assert DECODER.decode(envelope.to_bytes()) == envelope


@for_all(command=place_orders)
def test_every_command_is_read_as_it_was_written(command: PlaceOrder) -> None:
    envelope = wrapped(command)

    assert DECODER.decode(envelope.to_bytes()) == envelope
