"""What the simulation's watch makes of the places that urgent and normal messages get."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from types import SimpleNamespace
from typing import Any, cast
from uuid import UUID

import pytest

from saga.envelope import Envelope, wrap
from saga.message import Priority
from saga.runtime.kernel.lanes import Lanes
from saga.runtime.kernel.work import Work
from saga.runtime.messaging.publisher import posting_of
from saga.simulation.broker import PublishedMessage
from saga.simulation.loop import SimulatedProcess
from saga.simulation.server import SimulatedReplica
from saga.simulation.watch import Watch
from tests.words import Cancelled, Reason

NOW = datetime(2030, 1, 1, tzinfo=UTC)
NORMAL_SHARE = 2


class Taker:
    """A replica that takes messages one by one, each as a group."""

    def __init__(self) -> None:
        self.troubles: list[str] = []
        limits = SimpleNamespace(group_max=1, normal_share=NORMAL_SHARE, backlog_busy=10)
        replica = cast(SimulatedReplica, SimpleNamespace(name="keeper-1", limits=limits))
        self._process = SimulatedProcess("keeper-1")
        replica.outbox = None
        self._watch = Watch({"keeper-1": replica}, {}, lambda rule, _: self.troubles.append(rule))
        self._tags = count(1)

    def gets(self, envelope: Envelope[Any]) -> None:
        body = envelope.to_bytes()
        posting = posting_of(body, envelope.routing_key)
        message = PublishedMessage("", posting.routing_key, posting.properties, body)
        queue = f"keeper.{envelope.priority}"
        self._watch.delivered(self._process, "channel", next(self._tags), queue, message)

    def takes(self, envelope: Envelope[Any], *, asked: bool = False) -> None:
        work = Work(envelope, envelope.data, None, Lanes(), NOW, attempt=1, asked=asked)
        self._watch.group_begun(self._process, [work])


@pytest.fixture
def taker() -> Taker:
    return Taker()


@pytest.fixture
def urgent() -> Iterator[Envelope[Any]]:
    return (_message(number, Priority.HIGH) for number in count(1))


def _message(number: int, priority: Priority) -> Envelope[Any]:
    return wrap(
        Cancelled(thing=UUID(int=number), who="ann", reason=Reason.WISH),
        id=f"{priority}-{number}",
        source="/starter",
        time=NOW,
        priority=priority,
    )


A, B = (_message(number, Priority.NORMAL) for number in (1, 2))


def test_normal_messages_that_get_no_place_starve(
    taker: Taker, urgent: Iterator[Envelope[Any]]
) -> None:
    taker.gets(A)
    for _ in range(2 * NORMAL_SHARE):
        message = next(urgent)
        taker.gets(message)
        taker.takes(message)

    assert taker.troubles == ["normal_starves"]


def test_a_copy_of_a_message_takes_a_place_as_the_message_does(
    taker: Taker, urgent: Iterator[Envelope[Any]]
) -> None:
    for _ in range(1 + 2 * NORMAL_SHARE):
        taker.gets(A)
    taker.takes(A)
    taker.gets(B)
    for _ in range(2 * NORMAL_SHARE):
        message = next(urgent)
        taker.gets(message)
        taker.takes(message)
        taker.takes(A)

    assert not taker.troubles


def test_an_answer_takes_a_place_as_its_message_does(
    taker: Taker, urgent: Iterator[Envelope[Any]]
) -> None:
    taker.gets(A)
    taker.takes(A)
    taker.gets(B)
    for _ in range(2 * NORMAL_SHARE):
        message = next(urgent)
        taker.gets(message)
        taker.takes(message)
        taker.takes(A, asked=True)

    assert not taker.troubles


def test_urgent_messages_that_wait_for_copies_of_normal_ones_wait(
    taker: Taker, urgent: Iterator[Envelope[Any]]
) -> None:
    for _ in range(1 + NORMAL_SHARE):
        taker.gets(A)
    taker.takes(A)
    taker.gets(next(urgent))
    for _ in range(NORMAL_SHARE):
        taker.takes(A)

    assert taker.troubles == ["urgent_waits"]
