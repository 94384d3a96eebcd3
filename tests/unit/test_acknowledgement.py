"""Which deliveries are acknowledged, and how many at once."""

from __future__ import annotations

import asyncio
import random

from common.messaging.acknowledgement import Acknowledger


class Broker:
    """What the broker still holds of the deliveries 1 to n, going by the protocol's rules."""

    def __init__(self, deliveries: int) -> None:
        self.unacknowledged = set(range(1, deliveries + 1))
        self.acks: list[tuple[int, bool]] = []
        self.closed_because: str | None = None
        self.drained = asyncio.Event()
        """Whether the client goes on after what it has sent."""
        self.drained.set()

    async def basic_ack(self, delivery_tag: int, multiple: bool = False, wait: bool = True) -> None:
        if delivery_tag not in self.unacknowledged:
            self.closed_because = f"unknown delivery tag {delivery_tag}"
        self.acks.append((delivery_tag, multiple))
        if multiple:
            self.unacknowledged = {tag for tag in self.unacknowledged if tag > delivery_tag}
        else:
            self.unacknowledged.discard(delivery_tag)
        await self.drained.wait()


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


async def test_an_acknowledgement_does_not_overtake_one_that_is_still_being_sent() -> None:
    broker = Broker(6)
    broker.drained.clear()
    acknowledger = Acknowledger(broker)
    for tag in (1, 2, 4, 5):
        acknowledger.resolve(tag)
    await settle()
    # What is settled up to the 6th includes the 4th and the 5th, which are still to be sent.
    for tag in (3, 6):
        acknowledger.resolve(tag)
    await settle()
    broker.drained.set()
    await settle()
    assert broker.unacknowledged == set()
    assert broker.closed_because is None
