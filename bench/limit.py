"""The limit: as many messages taken and published through the AMQP client alone.

    AMQP_URL=... HTTP_PORT=... python -m bench.limit inventory

No framework, no decoding, no database: each message's body goes on as it came, under the next
event's name, and is acknowledged when that is confirmed.
"""

from __future__ import annotations

import os
import sys
from typing import Final

import aiormq
import uvloop
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from bench.health import serve_until_stopped
from common.message import Priority
from common.messaging.topology import EVENTS_EXCHANGE, intake_queue, work_queue

PREFETCH: Final = 300
NEXT: Final = {
    "order.place": "order.placed",
    "order.placed": "stock.reserved",
    "stock.reserved": "payment.charged",
    "payment.charged": "order.confirmed",
}


async def serve(name: str) -> None:
    """Run one service until SIGTERM."""
    connection = await aiormq.connect(os.environ["AMQP_URL"])
    publishing = await connection.channel(publisher_confirms=True)
    queues = [(work_queue(name, priority), priority) for priority in Priority]
    if name == "order":
        queues += [(intake_queue(name, priority), priority) for priority in Priority]

    async def read(queue: str, priority: Priority) -> None:
        channel = await connection.channel(publisher_confirms=False)
        await channel.basic_qos(prefetch_count=PREFETCH)

        async def take(message: DeliveredMessage) -> None:
            properties = message.header.properties
            kind = NEXT[properties.message_type or ""]
            await publishing.basic_publish(
                message.body,
                exchange=EVENTS_EXCHANGE,
                routing_key=f"{kind}.{priority}",
                mandatory=True,
                properties=Basic.Properties(
                    message_type=kind, correlation_id=properties.correlation_id, delivery_mode=2
                ),
            )
            assert message.delivery_tag is not None
            await channel.basic_ack(message.delivery_tag, wait=False)

        await channel.basic_consume(queue, take)

    for queue, priority in queues:
        await read(queue, priority)
    await serve_until_stopped()
    await connection.close()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
