"""What metrics cost: microseconds of CPU per message, for the message that costs most.

    .venv/bin/python bench/metrics_cost.py

That is the last message of an order: its handling, its reaction, the order's end, the event that
says so, and the message's share of a group (of one: the worst case). Exit status 1 beyond the
limit.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from uuid import uuid4

from common.events import PaymentCharged
from order_saga import SAGA
from order_service.domain import PARTICIPANT, Order
from saga.course import course_of
from saga.envelope import wrap
from saga.message import Priority
from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.kernel.tables import utc_now
from saga.runtime.kernel.work import Done
from saga.runtime.metrics import KernelMetrics, OutboxMetrics, SagaMetrics

LIMIT_MICROSECONDS = 15.0
MESSAGES = 20_000
ROUNDS = 7
"""The fastest one counts: what is slower was slowed by something else."""


def last_message() -> Callable[[], None]:
    """Does once what is measured and counted for that message."""
    kernel = KernelMetrics(PARTICIPANT)
    outbox = OutboxMetrics(PARTICIPANT.name)
    course = course_of(SAGA, PARTICIPANT)
    assert course is not None
    sagas = SagaMetrics(course)
    event = PaymentCharged(order_id=uuid4(), currency="EUR", amount_cents=100, reference="")
    envelope = wrap(event, id="1", source="/", time=utc_now(), priority=Priority.HIGH)
    outcome = Done((), Order(event.subject))
    published, confirmed = [Outgoing("2", "order.confirmed.high", b"")], [None]

    def count() -> None:
        began = time.perf_counter()
        kernel.reacted(event, time.perf_counter() - began)
        sagas.ended("order.confirmed", "", Priority.HIGH, True, envelope.traceparent)
        sagas.took("order.confirmed", Priority.HIGH, 0.1, envelope.traceparent)
        kernel.committed(1, 0.004)
        kernel.handled(envelope, outcome, 0.01)
        outbox.publish_seconds.observe(0.01)
        outbox.published(published, confirmed)

    return count


def main() -> None:
    count = last_message()
    rounds: list[float] = []
    for _ in range(ROUNDS):
        started = time.process_time()
        for _ in range(MESSAGES):
            count()
        rounds.append((time.process_time() - started) / MESSAGES * 1e6)
    cost = min(rounds)
    print(f"{cost:.1f} microseconds of CPU per message (limit {LIMIT_MICROSECONDS:g})")
    sys.exit(cost > LIMIT_MICROSECONDS)


if __name__ == "__main__":
    main()
