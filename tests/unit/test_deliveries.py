"""What becomes of one delivery: when it is acknowledged, where its copy goes, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, cast
from uuid import UUID

import pytest

from common.events import CancellationReason, HeldLine, OrderCancelled, StockReserved
from payment_service.domain import PARTICIPANT, Payment
from saga.envelope import Envelope, source_of, wrap
from saga.message import Event, Priority
from saga.retry import TransientError
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.work import Conflicting, Done, Failed, Outcome
from saga.runtime.messaging import consumer as consumer_module
from saga.runtime.messaging import frames
from saga.runtime.messaging.consumer import Deliveries, DeliveryChannel
from saga.runtime.messaging.dead_letters import ATTEMPTS, ERROR_TYPE, REASON
from saga.runtime.messaging.frames import Delivery, Posting
from saga.runtime.messaging.publisher import BrokerPublisher
from saga.runtime.messaging.topology import DEAD_EXCHANGE, EVENTS_EXCHANGE, wait_queue, work_queue
from tests.polling import until

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ORDER = UUID(int=1)
QUEUE = work_queue("payment", Priority.NORMAL)
reserved = StockReserved(
    order_id=ORDER,
    customer="ada",
    currency="EUR",
    total_cents=500,
    lines=(HeldLine(sku="tea", quantity=1),),
)
cancelled = OrderCancelled(
    order_id=ORDER, customer="ada", reason=CancellationReason.CUSTOMER_REQUEST
)
DONE = Done((), Payment(str(ORDER)))
AWAY = Failed(TransientError("the provider is away"))


class WatchedChannel:
    """A channel on which is noted what is settled."""

    def __init__(self) -> None:
        self.on_lost: list[Callable[[], None]] = []
        self.acked: list[int] = []
        self.left_to_broker: list[int] = []

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        first = max(self.acked, default=0) + 1 if multiple else tag
        self.acked += range(first, tag + 1)

    def nack(self, tag: int, *, multiple: bool = False, requeue: bool = True) -> None:
        assert not requeue
        self.left_to_broker.append(tag)

    def lose(self) -> None:
        for callback in self.on_lost:
            callback()


@dataclass(eq=False)
class HeldWork:
    """What a kernel has taken; `then` ends it."""

    envelope: Envelope[Any]
    then: Callable[[Outcome], None]
    attempt: int


class HoldingKernel:
    """A kernel that decides on nothing by itself."""

    def __init__(self) -> None:
        self.taken: list[HeldWork] = []
        self.abandoned: list[HeldWork] = []

    def take(
        self,
        envelope: Envelope[Any],
        then: Callable[[Outcome], None],
        *,
        attempt: int,
        digest: bytes,
    ) -> HeldWork:
        self.taken.append(HeldWork(envelope, then, attempt))
        return self.taken[-1]

    def abandon_all(self, works: Iterable[HeldWork]) -> None:
        self.abandoned += works


class CopyingPublisher:
    """A publisher whose broker confirms when it is told to, after the errors it is given."""

    frame_max = frames.FRAME_MAX_BYTES

    def __init__(self) -> None:
        self.copies: list[tuple[str, str, dict[str, Any]]] = []
        self.errors: list[Exception] = []
        self.confirms = asyncio.Event()
        self.confirms.set()

    async def open(self) -> CopyingPublisher:
        return self

    async def publish(self, exchange: str, posting: Posting) -> None:
        headers = frames.properties_in(posting.properties).headers or {}
        self.copies.append((exchange, posting.routing_key, dict(headers)))
        await self.confirms.wait()
        if self.errors:
            raise self.errors.pop(0)


class Desk:
    """One queue's deliveries, with all that is around them."""

    def __init__(self) -> None:
        self.kernel, self.publisher = HoldingKernel(), CopyingPublisher()
        self.channel = WatchedChannel()
        self.deliveries = Deliveries(
            PARTICIPANT,
            cast(Kernel, self.kernel),
            cast(BrokerPublisher, self.publisher),
            lambda: NOW,
        )
        self._take = self.deliveries.taker(QUEUE)

    def deliver(self, delivery: Delivery) -> None:
        self._take(cast(DeliveryChannel, self.channel), delivery)

    @property
    def copies(self) -> list[tuple[str, str, Any]]:
        """Where copies went: exchange, routing key, and how often they say that it failed."""
        return [(where, key, said.get(ATTEMPTS)) for where, key, said in self.publisher.copies]


@pytest.fixture
async def desk() -> Desk:
    return Desk()


def envelope_of(event: Event, source: str = "") -> Envelope[Any]:
    return wrap(
        event,
        id="e1",
        source=source or source_of(event.publisher or ""),
        time=NOW,
        priority=Priority.NORMAL,
        sequence=1,
    )


def published(event: Event, tag: int = 1, *, source: str = "", attempts: int = 0) -> Delivery:
    """As it comes the first time; `attempts` are what its sender says of tries."""
    envelope = envelope_of(event, source)
    headers = raw({ATTEMPTS: attempts} if attempts else {})
    key = envelope.routing_key
    return Delivery(tag, False, EVENTS_EXCHANGE, key, headers, envelope.to_bytes())


def waited(event: Event, attempts: int, tag: int = 1) -> Delivery:
    """As it comes once it has failed so often, and waited."""
    headers = raw({ATTEMPTS: attempts})
    return Delivery(tag, False, "", QUEUE, headers, envelope_of(event).to_bytes())


def raw(headers: dict[str, Any]) -> bytes:
    if not headers:
        return frames.NO_PROPERTIES
    fields = [frames.field(name, value) for name, value in headers.items()]
    return frames.join({"headers": frames.table_of(fields)})


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_delivery_is_acknowledged_once_it_is_decided_on_and_not_before(desk: Desk) -> None:
    desk.deliver(published(reserved, 1))
    desk.deliver(published(cancelled, 2))
    await settle()
    assert desk.channel.acked == []

    desk.kernel.taken[1].then(DONE)
    await settle()
    assert desk.channel.acked == [2]

    desk.kernel.taken[0].then(DONE)
    await settle()
    assert desk.channel.acked == [2, 1]
    assert desk.copies == []


async def test_what_fails_waits_as_a_copy_and_is_acknowledged_once_that_is_confirmed(
    desk: Desk,
) -> None:
    desk.publisher.confirms.clear()
    desk.deliver(published(reserved))
    desk.kernel.taken[0].then(AWAY)
    await settle()
    assert desk.copies == [(wait_queue(500), QUEUE, 1)]
    assert desk.channel.acked == []

    desk.publisher.confirms.set()
    await settle()
    assert desk.channel.acked == [1]


async def test_a_kernel_is_told_which_try_it_is(desk: Desk) -> None:
    desk.deliver(published(reserved, 1))
    desk.deliver(waited(reserved, 2, 2))

    assert [work.attempt for work in desk.kernel.taken] == [1, 3]


async def test_what_has_failed_as_often_as_its_policy_allows_is_dead(desk: Desk) -> None:
    most = PARTICIPANT.retry_of(StockReserved).max_calls
    desk.deliver(waited(reserved, most - 2, 1))
    desk.deliver(waited(reserved, most - 1, 2))
    for work in desk.kernel.taken:
        work.then(AWAY)
    await settle()

    (again, _, said), dead = desk.copies
    assert again.startswith("saga.retry.")
    assert said == most - 1
    assert dead == (DEAD_EXCHANGE, "payment", most)


async def test_a_reactions_own_policy_counts(desk: Desk) -> None:
    desk.deliver(waited(cancelled, PARTICIPANT.retry_of(StockReserved).max_calls))
    desk.kernel.taken[0].then(AWAY)
    await settle()

    ((exchange, _, _),) = desk.copies
    assert exchange.startswith("saga.retry.")


async def test_what_would_fail_again_is_dead_at_once(desk: Desk) -> None:
    desk.deliver(published(reserved))
    desk.kernel.taken[0].then(Failed(ValueError("no such currency")))
    await settle()

    assert desk.copies == [(DEAD_EXCHANGE, "payment", 1)]
    assert desk.publisher.copies[0][2][REASON] == "failed"
    assert desk.publisher.copies[0][2][ERROR_TYPE] == "ValueError"


async def test_another_message_under_the_id_of_one_that_was_done_is_dead_as_that(
    desk: Desk,
) -> None:
    desk.deliver(published(reserved))
    desk.kernel.taken[0].then(Failed(Conflicting("another one")))
    await settle()

    assert desk.publisher.copies[0][2][REASON] == "conflicting"


@pytest.mark.parametrize(
    "delivery",
    [
        Delivery(1, False, EVENTS_EXCHANGE, "stock.reserved.normal", body=b"{"),
        published(reserved, source="/services/payment"),
    ],
    ids=["malformed", "another's event"],
)
async def test_what_cannot_be_believed_is_dead_and_never_decided_on(
    delivery: Delivery, desk: Desk
) -> None:
    desk.deliver(delivery)
    await settle()

    assert desk.kernel.taken == []
    assert desk.copies == [(DEAD_EXCHANGE, "payment", 1)]
    assert desk.channel.acked == [1]


async def test_what_others_say_of_tries_counts_for_nothing(desk: Desk) -> None:
    desk.deliver(published(reserved, attempts=3))
    assert desk.kernel.taken[0].attempt == 1

    desk.kernel.taken[0].then(AWAY)
    await settle()
    assert desk.copies == [(wait_queue(500), QUEUE, 1)]


async def test_a_copy_is_published_again_until_it_is_confirmed(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consumer_module, "BACKOFF_MIN_SECONDS", 0.0)
    desk.publisher.errors = [ConnectionError("away"), ConnectionError("away")]
    desk.deliver(published(reserved))
    desk.kernel.taken[0].then(AWAY)
    await until(lambda: len(desk.copies) == 3)
    await settle()

    assert desk.copies == [(wait_queue(500), QUEUE, 1)] * 3
    assert desk.channel.acked == [1]
    assert desk.channel.left_to_broker == []


async def test_what_no_copy_can_be_made_of_is_left_to_the_broker(desk: Desk) -> None:
    desk.publisher.errors = [ValueError("it fits into no frame")]
    desk.deliver(published(reserved))
    desk.kernel.taken[0].then(AWAY)
    await settle()

    assert desk.channel.left_to_broker == [1]
    assert desk.channel.acked == []


async def test_what_came_on_a_lost_channel_is_given_up_and_comes_again_on_the_next(
    desk: Desk,
) -> None:
    lost = desk.channel
    desk.deliver(published(reserved, 1))
    desk.deliver(published(cancelled, 2))
    desk.kernel.taken[1].then(DONE)
    lost.lose()
    assert desk.kernel.abandoned == [desk.kernel.taken[0]]

    desk.channel = WatchedChannel()
    desk.deliver(published(reserved, 1))
    desk.kernel.taken[2].then(DONE)
    await settle()
    assert desk.channel.acked == [1]


async def test_a_copy_that_is_being_published_when_its_channel_is_lost_is_given_up(
    desk: Desk,
) -> None:
    desk.publisher.confirms.clear()
    desk.deliver(published(reserved))
    desk.kernel.taken[0].then(AWAY)
    await settle()
    desk.channel.lose()
    desk.publisher.confirms.set()
    await settle()

    assert desk.channel.acked == []


async def test_who_stops_takes_no_more_and_waits_for_what_was_taken(desk: Desk) -> None:
    desk.deliver(published(reserved, 1))
    finishing = asyncio.create_task(desk.deliveries.finish(60.0))
    await settle()
    desk.deliver(published(cancelled, 2))
    assert len(desk.kernel.taken) == 1
    assert not finishing.done()

    desk.kernel.taken[0].then(DONE)
    await asyncio.wait_for(finishing, 60)
    assert desk.channel.acked == [1]
