"""What tracing costs: microseconds of CPU per message, off and on.

    .venv/bin/python bench/tracing_cost.py

Of a message that is taken from a queue, reacted to with a question and an answer, and leads to one
event: everything that a service does for traces on its way. On, the spans are made and thrown away;
handing them over comes on top. Exit status 1 if it costs more than the limit while it is off.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from uuid import uuid4

from opentelemetry.sdk.trace import SpanProcessor

from common.events import PaymentCharged
from saga.envelope import wrap
from saga.message import Priority
from saga.runtime import tracing
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.frames import Delivery
from saga.runtime.messaging.publisher import posting_of
from saga.runtime.messaging.topology import EVENTS_EXCHANGE

OFF_LIMIT_MICROSECONDS = 3.0
"""Under one percent of what a message takes otherwise."""
MESSAGES = 20_000
ROUNDS = 5


def one_message() -> Callable[[], None]:
    """Does once what a message costs."""
    event = PaymentCharged(order_id=uuid4(), currency="EUR", amount_cents=100, reference="")
    envelope = wrap(event, id="1", source="/", time=utc_now(), priority=Priority.HIGH)
    outgoing = posting_of(envelope.to_bytes(), envelope.routing_key)
    incoming = Delivery(
        1, False, EVENTS_EXCHANGE, envelope.routing_key, outgoing.properties, outgoing.body
    )

    def count() -> None:
        with tracing.process("order.high", incoming, envelope.subject, envelope.traceparent):
            span = None
            context = None if tracing.active is None else tracing.active.here()
            for _ in range(2):
                if tracing.active is not None and context is not None:
                    span = tracing.active.reaction("order", "confirm", envelope, context)
                    tracing.active.traceparent_of(span)
                    tracing.active.end(span)
            with tracing.asking("Charge", span):
                pass
        with tracing.send(EVENTS_EXCHANGE, outgoing):
            pass

    return count


def cost() -> float:
    count = one_message()
    rounds: list[float] = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(MESSAGES):
            count()
        rounds.append((time.process_time() - started) / MESSAGES * 1e6)
    return min(rounds)


def main() -> None:
    off = cost()
    tracing.active = tracing.Tracing("bench", SpanProcessor())
    on = cost()
    print(
        f"microseconds of CPU per message: {off:.1f} off (limit {OFF_LIMIT_MICROSECONDS:g}), "
        f"{on:.0f} on"
    )
    sys.exit(off > OFF_LIMIT_MICROSECONDS)


if __name__ == "__main__":
    main()
