"""Taking what is ready in a queue, all of it."""

from __future__ import annotations

import asyncio
from typing import Final

from saga.runtime.messaging.frames import Delivery
from saga.runtime.messaging.wire import Channel

QUIET_SECONDS: Final = 0.1
"""A pause after which what the broker had ready has arrived."""


async def take_ready(channel: Channel, queue: str, most: int) -> list[Delivery]:
    """About `most` messages, at most, not acknowledged; nothing only if the queue is empty for
    certain. The channel is for this one queue; what is not acknowledged when it closes goes back.

    Raises `ChannelLost`, for instance if there is no such queue. (`basic.get` says that a queue is
    empty but is slow, and consuming is fast but never says so: each where it is good.)
    """
    first = await channel.get(queue)
    if first is None:
        return []
    found = [first]
    arrived = asyncio.Event()

    def take(_: Channel, delivery: Delivery) -> None:
        found.append(delivery)
        arrived.set()

    consuming = await channel.consume(queue, take, prefetch=most)
    while len(found) <= most:
        arrived.clear()
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                await arrived.wait()
        except TimeoutError:
            break
    await channel.cancel(consuming)
    return found
