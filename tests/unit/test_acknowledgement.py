"""Which deliveries are acknowledged, and how many at once."""

from __future__ import annotations

import asyncio
import random

from saga.runtime.messaging.acknowledgement import Acknowledger
from saga.runtime.messaging.wire import ChannelLost


class Broker:
    """What the broker still holds of the deliveries 1 to n, going by the protocol's rules."""

    def __init__(self, deliveries: int) -> None:
        self.unacknowledged = set(range(1, deliveries + 1))
        self.acks: list[tuple[int, bool]] = []
        self.rejected: list[int] = []
        self.closed_because: str | None = None

    def nack(self, tag: int, *, multiple: bool = False, requeue: bool = True) -> None:
        assert not multiple
        assert not requeue
        self.unacknowledged.discard(tag)
        self.rejected.append(tag)

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        if tag not in self.unacknowledged:
            self.closed_because = f"unknown delivery tag {tag}"
        self.acks.append((tag, multiple))
        if multiple:
            self.unacknowledged = {held for held in self.unacknowledged if held > tag}
        else:
            self.unacknowledged.discard(tag)


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_what_is_resolved_together_is_acknowledged_at_once() -> None:
    broker = Broker(32)
    acknowledger = Acknowledger(broker)
    for tag in range(1, 33):
        acknowledger.resolve(tag)
    await settle()
    assert broker.acks == [(32, True)]
    assert broker.closed_because is None


async def test_a_delivery_still_held_is_never_acknowledged_with_later_ones() -> None:
    broker = Broker(5)
    acknowledger = Acknowledger(broker)
    for tag in (1, 2, 4, 5):
        acknowledger.resolve(tag)
    await settle()
    assert broker.unacknowledged == {3}
    assert broker.acks == [(2, True), (4, False), (5, False)]

    acknowledger.resolve(3)
    await settle()
    assert broker.unacknowledged == set()
    assert broker.acks[-1] == (3, False)
    assert broker.closed_because is None


async def test_what_is_rejected_goes_by_itself_and_holds_nothing_up() -> None:
    broker = Broker(4)
    acknowledger = Acknowledger(broker)
    for tag in (1, 2, 4):
        acknowledger.resolve(tag)
    acknowledger.reject(3)
    await settle()
    assert broker.unacknowledged == set()
    assert broker.rejected == [3]
    assert broker.closed_because is None


async def test_any_order_of_resolving_acknowledges_exactly_the_resolved() -> None:
    for seed in range(200):
        rng = random.Random(seed)
        broker = Broker(40)
        acknowledger = Acknowledger(broker)
        order = rng.sample(range(1, 41), 40)
        resolved: set[int] = set()
        while order:
            for tag in [order.pop() for _ in range(min(len(order), rng.randint(1, 8)))]:
                acknowledger.resolve(tag)
                resolved.add(tag)
            await settle()
            assert broker.unacknowledged == set(range(1, 41)) - resolved, f"seed {seed}"
            assert broker.closed_because is None, f"seed {seed}"


async def test_an_acknowledgement_lost_with_its_channel_harms_nobody() -> None:
    class Lost(Broker):
        def ack(self, tag: int, *, multiple: bool = False) -> None:
            raise ChannelLost("reset")

    acknowledger = Acknowledger(Lost(2))
    acknowledger.resolve(1)
    await settle()
    acknowledger.resolve(2)
    await settle()


async def test_what_is_rejected_is_not_acknowledged_with_what_came_before_it() -> None:
    broker = Broker(2)
    acknowledger = Acknowledger(broker)
    acknowledger.reject(2)
    acknowledger.resolve(1)
    await settle()
    assert broker.acks == [(1, False)]
    assert broker.closed_because is None
