"""The limit: as many messages taken and published as the hot frames alone can move.

    AMQP_URL=... HTTP_PORT=... python -m bench.limit inventory

No framework, no decoding, no database: each message goes on as it came, under the next event's
routing key, and is acknowledged when that is confirmed. What arrives while a batch waits for its
confirms is the next batch.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Final

import uvloop

from bench.health import serve_until_stopped
from saga.message import Priority
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.frames import Delivery, Posting
from saga.runtime.messaging.topology import EVENTS_EXCHANGE, intake_queue, work_queue
from saga.runtime.messaging.wire import Channel
from saga.runtime.tasks import cancel_all

PREFETCH: Final = 300
CONFIRM_SECONDS: Final = 30.0
NEXT: Final = {
    "order.intake": "order.placed",
    "order.placed": "stock.reserved",
    "stock.reserved": "payment.charged",
    "payment.charged": "order.confirmed",
}
"""Keyed by the routing key that a message came with, without its priority."""


class Forwarder:
    """Passes on what is delivered, one batch at a time."""

    def __init__(self, publishing: Channel) -> None:
        self._publishing = publishing
        self._taken: list[tuple[Channel, Delivery]] = []
        self._arrived = asyncio.Event()

    def take(self, channel: Channel, delivery: Delivery) -> None:
        """A taker of deliveries."""
        self._taken.append((channel, delivery))
        self._arrived.set()

    async def run(self) -> None:
        """Pass on until cancelled."""
        while True:
            await self._arrived.wait()
            self._arrived.clear()
            taken, self._taken = self._taken, []
            errors = await self._publishing.publish(
                EVENTS_EXCHANGE, [_next(delivery) for _, delivery in taken], CONFIRM_SECONDS
            )
            assert not any(errors), errors
            last = {channel: delivery.tag for channel, delivery in taken}
            for channel, tag in last.items():
                channel.ack(tag, multiple=True)


def _next(delivery: Delivery) -> Posting:
    kind, _, priority = delivery.routing_key.rpartition(".")
    return Posting(f"{NEXT[kind]}.{priority}", delivery.raw, delivery.body)


async def serve(name: str) -> None:
    """Run one service until SIGTERM."""
    connection = await connect(os.environ["AMQP_URL"], name=name)
    forwarder = Forwarder(await connection.open_channel(confirms=True))
    queues = [work_queue(name, priority) for priority in Priority]
    if name == "order":
        queues += [intake_queue(name, priority) for priority in Priority]
    for queue in queues:
        channel = await connection.open_channel()
        await channel.consume(queue, forwarder.take, prefetch=PREFETCH)
    running = asyncio.ensure_future(forwarder.run())
    await serve_until_stopped()
    await cancel_all(running)
    await connection.close()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
