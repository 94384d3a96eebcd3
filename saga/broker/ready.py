"""Taking what is ready in a queue, all of it."""

from __future__ import annotations

import asyncio
from typing import Final

from saga.runtime.messaging.frames import Delivery
from saga.runtime.messaging.wire import Channel

QUIET_SECONDS: Final = 0.1
"""A pause after which what the broker had ready has arrived."""
FIRST_SECONDS: Final = 5.0
"""How long the first message may take to arrive of a queue that says that it has some."""


async def take_ready(channel: Channel, queue: str, most: int) -> list[Delivery]:
    """About `most` messages, at most, not acknowledged; nothing only if the queue is empty for
    certain. The channel is for this one queue; what is not acknowledged when it closes goes back.

    Raises `ChannelLost`, for instance if there is no such queue. (`basic.get` says that a queue is
    empty but is slow, and consuming is fast but never says so: each where it is good.)
    """
    first = await channel.get(queue)
    return [] if first is None else await _consume(channel, queue, most, [first], QUIET_SECONDS)


async def take_alone(channel: Channel, queue: str, most: int) -> list[Delivery]:
    """The same of a queue that gives its messages to one consumer at a time, of which the broker
    allows no `basic.get`. Where another consumer reads it, nothing."""
    ready = (await channel.look_at(queue)).message_count or 0
    return await _consume(channel, queue, most, [], FIRST_SECONDS if ready else QUIET_SECONDS)


async def _consume(
    channel: Channel, queue: str, most: int, found: list[Delivery], patience_seconds: float
) -> list[Delivery]:
    """Add what arrives to what is found already, of which the first may take so long."""
    arrived = asyncio.Event()

    def take(_: Channel, delivery: Delivery) -> None:
        found.append(delivery)
        arrived.set()

    consuming = await channel.consume(queue, take, prefetch=most)
    while len(found) <= most:
        arrived.clear()
        try:
            async with asyncio.timeout(QUIET_SECONDS if found else patience_seconds):
                await arrived.wait()
        except TimeoutError:
            break
    await channel.cancel(consuming)
    return found
