"""Events of the orders, for tests that speak to a running order system."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from common.events import CancellationReason, OrderCancelled
from saga.envelope import Envelope, wrap
from saga.message import Priority
from saga.testing import NOW


def cancelled(number: int, *, customer: str = "c") -> Envelope[Any]:
    """An `order.cancelled`, as the order service publishes it."""
    event = OrderCancelled(
        order_id=UUID(int=number), customer=customer, reason=CancellationReason.CUSTOMER_REQUEST
    )
    return wrap(
        event,
        id=f"event-{number}",
        source="/services/order",
        time=NOW,
        priority=Priority.NORMAL,
        sequence=1,
    )
