"""The load, in a process of its own: places orders on the intake queues, or over HTTP, and sees
them end.

    python -m bench.load AMQP_URL FILE '{"orders": 3000, "seed": 1, "rate": 0, "one_sku": false}'

It takes the cores of what it measures, so it costs as little as it can: hot frames, and batches.
Writes one JSON object to the file: when each order ended, in seconds since the first was placed,
and each order's latency, from the moment at which it was due to be placed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import uvloop

from bench.over_http import placed, placing
from common.events import OrderCancelled, OrderConfirmed, OrderLine
from order_saga.orders import OrderLoad, PlannedOrder, Shares, plan
from saga.envelope import CONTENT_TYPE, source_of, wrap
from saga.message import Priority
from saga.runtime.messaging import frames
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.frames import Delivery, Posting
from saga.runtime.messaging.topology import EVENTS_EXCHANGE, intake_queue
from saga.runtime.messaging.wire import Channel

ORDER: Final = "order"
"""Who takes orders, in most variants."""
URGENT: Final = 0.1
SHARES: Final = Shares(
    high=URGENT, out_of_stock=0, mispriced=0, declined=0, cancelled=0, malformed=0
)
"""Orders that are all confirmed: the longest way, and the only one the opponent knows."""
BATCH_MAX: Final = 50
"""Orders published in one write."""
AT_ONCE_MAX, AT_A_RATE_MAX = 4, 200
"""Batches whose confirms are awaited: with all orders due at once, and where a rate says when. An
order that is due waits for no other's confirm."""
CONFIRM_SECONDS: Final = 30.0
CONSUMER_TAG: Final = "ends"
PERSISTENT: Final = b"\x02"
PATIENCE_SECONDS: Final = 30.0
"""How long no order may end before the run is given up."""


@dataclass(frozen=True, slots=True)
class Load:
    """So many orders: `rate` a second, or with 0 all at once; `one_sku` for all of them, or not;
    `taker` is the participant that they are placed at, and `customers` how many customers come
    again and again, where not each order has a new one. With a `port`, orders are placed over HTTP,
    the next one of a connection when one is answered."""

    orders: int
    seed: int
    rate: float = 0.0
    one_sku: bool = False
    taker: str = ORDER
    customers: int = 0
    port: int = 0
    credentials: str = ""
    """What the client is known by, over HTTP."""

    def plan(self) -> OrderLoad:
        """The orders, and the stock they need."""
        made = plan(self.orders, self.seed, SHARES)
        if self.customers:
            again = [f"customer-{order.number % self.customers}" for order in made.orders]
            named = zip(made.orders, again, strict=True)
            made = replace(made, orders=tuple(replace(o, customer=who) for o, who in named))
        if not self.one_sku:
            return made
        need = replace(made.stock[0], quantity=self.orders)
        line = OrderLine(sku=need.sku, quantity=1, unit_price_cents=need.unit_price_cents)
        orders = [replace(o, lines=(line,), currency=need.currency) for o in made.orders]
        return replace(made, orders=tuple(orders), stock=(need,))


async def run(url: str, load: Load) -> dict[str, object]:
    """Place the orders, and wait until each has ended."""
    connection = await connect(url, name="bench")
    ends = await _watch(await connection.open_channel())
    orders = load.plan().orders
    if load.port:
        requests = [_request(order, load.credentials) for order in orders]
        started = time.monotonic()
        answers = await placed(load.port, requests)
        due = {frames.short(json.loads(body)["order_id"]): sent for sent, body in answers}
    else:
        publishing = await connection.open_channel(confirms=True)
        postings = [_posting(order, load.taker) for order in orders]
        started = time.monotonic()
        due = await _place(publishing, postings, load.rate, started)
    while len(ends.at) < load.orders:
        ends.moved.clear()
        async with asyncio.timeout(PATIENCE_SECONDS):
            await ends.moved.wait()
    await connection.close()
    return {
        "ends": sorted(at - started for at in ends.at.values()),
        "latencies": sorted(ends.at[order] - due[order] for order in due),
    }


def _request(order: PlannedOrder, credentials: str) -> bytes:
    new = order.command().model_dump(mode="json", exclude={"order_id"})
    return placing(new, order.key, credentials)


def _posting(order: PlannedOrder, taker: str) -> tuple[bytes, Posting]:
    """The order's id, and what places it."""
    envelope = wrap(
        order.command(), id=order.key, source=source_of("bench"), time=datetime.now(UTC),
        priority=order.priority,
    )  # fmt: skip
    properties = frames.join(
        {
            "content_type": frames.short(CONTENT_TYPE),
            "delivery_mode": PERSISTENT,
            "correlation_id": frames.short(envelope.correlationid),
            "message_id": frames.short(envelope.id),
            "type": frames.short(envelope.type),
        }
    )
    queue = intake_queue(taker, Priority(order.priority))
    return _order_of(properties), Posting(queue, properties, envelope.to_bytes())


@dataclass(slots=True)
class _Ends:
    """When orders ended, keyed by order; `moved` is set whenever one does."""

    at: dict[bytes, float]
    moved: asyncio.Event


async def _watch(channel: Channel) -> _Ends:
    """Begin to read the ends of orders, on a queue of our own."""
    assert channel.client is not None
    queue = (await channel.client.queue_declare(exclusive=True, auto_delete=True)).queue
    assert queue is not None
    for kind in (OrderConfirmed, OrderCancelled):
        await channel.client.queue_bind(queue, EVENTS_EXCHANGE, f"{kind.type}.*")
    ends = _Ends({}, asyncio.Event())

    def end(delivery: Delivery) -> None:
        assert delivery.routing_key.startswith(OrderConfirmed.type), delivery.routing_key
        ends.at.setdefault(_order_of(delivery.raw), time.monotonic())
        ends.moved.set()

    # Past `Channel.consume`, which acknowledges: what is read here need not be.
    channel.take(CONSUMER_TAG.encode(), lambda _, delivery: end(delivery))
    await channel.client.basic_consume(queue, _never, no_ack=True, consumer_tag=CONSUMER_TAG)
    return ends


async def _place(
    channel: Channel, postings: Sequence[tuple[bytes, Posting]], rate: float, started: float
) -> dict[bytes, float]:
    """Publish the orders, each when it is due; when that was, keyed by order."""
    due: dict[bytes, float] = {}
    slots = asyncio.Semaphore(AT_A_RATE_MAX if rate else AT_ONCE_MAX)

    async def send(batch: Sequence[Posting]) -> None:
        try:
            errors = await channel.publish("", batch, CONFIRM_SECONDS)
        finally:
            slots.release()
        if refused := [error for error in errors if error is not None]:
            raise refused[0]

    async with asyncio.TaskGroup() as sending:
        number = 0
        while number < len(postings):
            await slots.acquire()
            beyond = number + BATCH_MAX
            if rate:
                await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
                # What has become due during the wait goes along.
                beyond = min(beyond, int((time.monotonic() - started) * rate) + 1)
            batch = postings[number : max(beyond, number + 1)]
            for order, _ in batch:
                due[order] = started + number / rate if rate else started
                number += 1
            sending.create_task(send([posting for _, posting in batch]))
    return due


def _order_of(properties: bytes) -> bytes:
    """The order's id, from a message's property list."""
    return frames.split(properties)[0]["correlation_id"]


async def _never(message: object) -> None:
    raise AssertionError(f"the client got {message}")


if __name__ == "__main__":
    _, url, result, load = sys.argv
    Path(result).write_text(json.dumps(uvloop.run(run(url, Load(**json.loads(load))))))
