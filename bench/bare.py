"""The opponent: the same flow as plain FastStream handlers, with nothing durable but the messages.

    AMQP_URL=... HTTP_PORT=... python -m bench.bare inventory

Same queues, events and bodies; quorum queues, persistent messages, each event's confirm before the
ack of what caused it. No database: a message that comes twice is done twice, and what was ordered
is known only until the process ends.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any, Final, TypeAlias
from uuid import UUID, uuid4

import uvloop
from faststream.rabbit import Channel, RabbitBroker, RabbitExchange, RabbitMessage, RabbitQueue

from bench.health import serve_until_stopped
from common.events import (
    Currency,
    HeldLine,
    OrderConfirmed,
    OrderPlaced,
    PaymentCharged,
    PlaceOrder,
    StockReserved,
    total_of,
)
from saga.envelope import CONTENT_TYPE, Decoder, Envelope, source_of, wrap
from saga.message import Command, Event, Priority
from saga.runtime.messaging.topology import EVENTS_EXCHANGE, intake_queue, work_queue

PREFETCH: Final = int(os.environ.get("BENCH_PREFETCH", "100"))
GATEWAY_SECONDS: Final = float(os.environ.get("BENCH_GATEWAY_MS", "0")) / 1_000

Handler: TypeAlias = Callable[[Any, Priority], Awaitable[Event]]

_customers: dict[UUID, tuple[str, Currency, int]] = {}
"""Of the orders that are on their way."""


async def place(command: PlaceOrder, priority: Priority) -> Event:
    """The order service's beginning."""
    total_cents = total_of(command.lines)
    _customers[command.order_id] = (command.customer, command.currency, total_cents)
    return OrderPlaced(
        order_id=command.order_id,
        customer=command.customer,
        currency=command.currency,
        lines=command.lines,
        total_cents=total_cents,
        priority=priority,
        deadline=datetime.now(UTC) + timedelta(seconds=command.time_limit_seconds),
    )


async def confirm(event: PaymentCharged, _: Priority) -> Event:
    """The order service's end."""
    customer, currency, total_cents = _customers.pop(event.order_id)
    return OrderConfirmed(
        order_id=event.order_id, customer=customer, currency=currency, total_cents=total_cents
    )


async def reserve(event: OrderPlaced, _: Priority) -> Event:
    """The inventory service."""
    return StockReserved(
        order_id=event.order_id,
        customer=event.customer,
        currency=event.currency,
        total_cents=event.total_cents,
        lines=tuple(HeldLine(sku=line.sku, quantity=line.quantity) for line in event.lines),
    )


async def charge(event: StockReserved, _: Priority) -> Event:
    """The payment service."""
    if GATEWAY_SECONDS:
        await asyncio.sleep(GATEWAY_SECONDS)
    return PaymentCharged(
        order_id=event.order_id,
        currency=event.currency,
        amount_cents=event.total_cents,
        reference=uuid4().hex,
    )


HANDLERS: dict[str, dict[type[Event | Command], Handler]] = {
    "order": {PlaceOrder: place, PaymentCharged: confirm},
    "inventory": {OrderPlaced: reserve},
    "payment": {StockReserved: charge},
}


async def serve(name: str) -> None:
    """Run one service until SIGTERM."""
    handlers = HANDLERS[name]
    decoder = Decoder(handlers)
    broker = RabbitBroker(
        os.environ["AMQP_URL"], app_id=source_of(name), apply_types=False, logger=None
    )
    exchange = RabbitExchange(EVENTS_EXCHANGE, declare=False)

    async def decode(message: RabbitMessage) -> Envelope[Any]:
        return decoder.decode(message.body)

    async def handle(cause: Envelope[Any]) -> None:
        event = await handlers[type(cause.data)](cause.data, cause.priority)
        sequence = 2 if isinstance(event, OrderConfirmed) else 1
        envelope = wrap(
            event,
            id=str(uuid4()),
            source=source_of(name),
            time=datetime.now(UTC),
            priority=cause.priority,
            causation=cause.id,
            sequence=sequence,
            traceparent=cause.traceparent,
        )
        await broker.publish(
            envelope.to_bytes(),
            exchange=exchange,
            routing_key=envelope.routing_key,
            persist=True,
            message_id=envelope.id,
            message_type=envelope.type,
            correlation_id=envelope.correlationid,
            timestamp=envelope.time,
            content_type=CONTENT_TYPE,
        )

    queues = [work_queue(name, priority) for priority in Priority]
    if name == "order":
        queues += [intake_queue(name, priority) for priority in Priority]
    for queue in queues:
        broker.subscriber(
            RabbitQueue(queue, declare=False),
            channel=Channel(prefetch_count=PREFETCH),
            decoder=decode,
            no_reply=True,
        )(handle)
    await broker.start()
    await serve_until_stopped()
    await broker.stop()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1]))
