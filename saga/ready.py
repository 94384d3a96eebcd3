"""Taking what is ready in a queue, all of it."""

from __future__ import annotations

import asyncio
from typing import Final

from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp.commands import Basic

QUIET_SECONDS: Final = 0.1
"""A pause after which what the broker had ready has arrived."""


async def take_ready(channel: AbstractChannel, queue: str, most: int) -> list[DeliveredMessage]:
    """About `most` messages, at most, not acknowledged; nothing only if the queue is empty for
    certain. The channel is for this one queue; what is not acknowledged when it closes goes back.

    `basic.get` says that a queue is empty but is slow, and consuming is fast but never says so:
    each where it is good.
    """
    first = await channel.basic_get(queue)
    if isinstance(first.delivery, Basic.GetEmpty):
        return []
    found = [first]
    arrived = asyncio.Event()

    async def take(message: DeliveredMessage) -> None:
        found.append(message)
        arrived.set()

    await channel.basic_qos(prefetch_count=most)
    consuming = await channel.basic_consume(queue, take)
    while len(found) <= most:
        arrived.clear()
        try:
            async with asyncio.timeout(QUIET_SECONDS):
                await arrived.wait()
        except TimeoutError:
            break
    if consuming.consumer_tag is not None:
        await channel.basic_cancel(consuming.consumer_tag)
    await asyncio.sleep(0)  # What arrived before the answer is taken now.
    return list(found)
