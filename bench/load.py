"""The load, in a process of its own: places orders on the intake queues, sees them end.

    python -m bench.load AMQP_URL FILE '{"orders": 3000, "seed": 1, "rate": 0, "one_sku": false}'

Writes one JSON object to the file: when each order ended, in seconds since the first was placed,
and each order's latency, from the moment at which it was due to be placed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import aiormq
import uvloop
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic

from common.envelope import CONTENT_TYPE, source_of, wrap
from common.events import OrderCancelled, OrderConfirmed, OrderLine
from common.message import Priority
from common.messaging.topology import EVENTS_EXCHANGE, intake_queue
from saga.orders import Plan, Shares, plan

URGENT: Final = 0.1
SHARES: Final = Shares(
    high=URGENT, out_of_stock=0, mispriced=0, declined=0, cancelled=0, malformed=0
)
"""Orders that are all confirmed: the longest way, and the only one the opponent knows."""
IN_FLIGHT_MAX: Final = 200
"""Confirms awaited at once while placing."""
PATIENCE_SECONDS: Final = 30.0
"""How long no order may end before the run is given up."""


@dataclass(frozen=True, slots=True)
class Load:
    """So many orders: `rate` a second, or with 0 all at once; `one_sku` for all of them, or not."""

    orders: int
    seed: int
    rate: float = 0.0
    one_sku: bool = False

    def plan(self) -> Plan:
        """The orders, and the stock they need."""
        made = plan(self.orders, self.seed, SHARES)
        if not self.one_sku:
            return made
        need = replace(made.stock[0], quantity=self.orders)
        line = OrderLine(sku=need.sku, quantity=1, unit_price_cents=need.unit_price_cents)
        orders = [replace(o, lines=(line,), currency=need.currency) for o in made.orders]
        return replace(made, orders=tuple(orders), stock=(need,))


async def run(url: str, load: Load) -> dict[str, object]:
    """Place the orders, and wait until each has ended."""
    orders, rate = load.orders, load.rate
    bodies = []
    for order in load.plan().orders:
        envelope = wrap(
            order.command(), id=order.key, source=source_of("bench"), time=datetime.now(UTC),
            priority=order.priority,
        )  # fmt: skip
        body = envelope.to_bytes()
        properties = Basic.Properties(
            message_id=envelope.id,
            message_type=envelope.type,
            correlation_id=envelope.correlationid,
            content_type=CONTENT_TYPE,
            delivery_mode=2,
        )
        bodies.append((body, properties, intake_queue("order", Priority(order.priority))))
    due: dict[str, float] = {}
    ended: dict[str, float] = {}
    moved = asyncio.Event()

    connection = await aiormq.connect(url)
    reading = await connection.channel(publisher_confirms=False)
    ends = await reading.queue_declare(exclusive=True, auto_delete=True)
    assert ends.queue is not None
    for kind in (OrderConfirmed, OrderCancelled):
        await reading.queue_bind(ends.queue, EVENTS_EXCHANGE, f"{kind.type}.*")

    async def end(message: DeliveredMessage) -> None:
        order = message.header.properties.correlation_id
        assert order is not None
        assert (message.routing_key or "").startswith(OrderConfirmed.type), message.routing_key
        ended.setdefault(order, time.monotonic())
        moved.set()

    await reading.basic_consume(ends.queue, end, no_ack=True)
    publishing = await connection.channel(publisher_confirms=True)
    slots = asyncio.Semaphore(IN_FLIGHT_MAX)
    confirms: set[asyncio.Task[object]] = set()

    async def send(body: bytes, properties: Basic.Properties, queue: str) -> None:
        try:
            await publishing.basic_publish(body, routing_key=queue, properties=properties)
        finally:
            slots.release()

    started = time.monotonic()
    for number, (body, properties, queue) in enumerate(bodies):
        at = started
        if rate:
            at += number / rate
            await asyncio.sleep(max(0.0, at - time.monotonic()))
        await slots.acquire()
        assert properties.correlation_id is not None
        due[properties.correlation_id] = at
        task: asyncio.Task[object] = asyncio.create_task(send(body, properties, queue))
        confirms.add(task)
        task.add_done_callback(confirms.discard)
    await asyncio.gather(*confirms)
    while len(ended) < orders:
        moved.clear()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await moved.wait()
    await connection.close()
    return {
        "ends": sorted(at - started for at in ended.values()),
        "latencies": sorted(ended[order] - due[order] for order in due),
    }


if __name__ == "__main__":
    _, url, result, load = sys.argv
    Path(result).write_text(json.dumps(uvloop.run(run(url, Load(**json.loads(load))))))
