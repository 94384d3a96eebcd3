"""What customers do in one run, and how each order may end, whatever goes wrong meanwhile."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from common.events import (
    CancellationReason,
    DeclineReason,
    OrderCancelled,
    OrderLine,
    OrderPlaced,
    PaymentCharged,
    PlaceOrder,
    StockReserved,
    order_id_of,
)
from common.message import Priority
from inventory_service.domain import AddStock

LOAD_SECONDS = (0.01, 0.01, 3.0)
"""In which all orders are placed."""
ORDERS = (1, 4, 6)
CANCEL_MAX_SECONDS = 8.0
NEVER_SECONDS = 7 * 24 * 3600
"""A time limit that no run reaches."""
SHORT_SECONDS = 6

PRICE_CENTS = 250
PLENTY, SCARCE, UNKNOWN = "plenty", "scarce", "unknown"

Ending = CancellationReason | None
"""Why an order was cancelled; None if it was confirmed."""


@dataclass(frozen=True, slots=True)
class PlannedOrder:
    """An order, what becomes of it, and how it may end."""

    key: str
    command: PlaceOrder
    at_seconds: float
    over_broker: bool
    """Placed by a command in the intake queue, and else over HTTP."""
    cancelled_after_seconds: float | None
    endings: frozenset[Ending]


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens in a run, faults apart."""

    stock: Sequence[AddStock]
    declines: Mapping[str, DeclineReason]
    """The customers that the provider takes no money from."""
    orders: Sequence[PlannedOrder]
    malformed: Sequence[tuple[str, bytes]]
    """Messages that nobody can read, with the routing keys they come under."""


def plan(chance: random.Random) -> Plan:
    """Draw a plan."""
    declines = {str(reason): reason for reason in DeclineReason}
    priorities = list(Priority)[: chance.randint(1, 2)]
    commands = [_command(chance, f"order-{n}", priorities) for n in range(chance.choice(ORDERS))]
    wanted = sum(
        line.quantity for _, command in commands for line in command.lines if line.sku == SCARCE
    )
    scarce = chance.randint(0, wanted)
    load_seconds = chance.choice(LOAD_SECONDS)
    orders = []
    for key, command in commands:
        endings = _endings(command, declines, enough=scarce >= wanted)
        cancelled_after = chance.random() * CANCEL_MAX_SECONDS if chance.random() < 0.3 else None
        if cancelled_after is not None:
            endings |= {CancellationReason.CUSTOMER_REQUEST}
        if command.time_limit_seconds < NEVER_SECONDS:
            endings |= {CancellationReason.DEADLINE_EXCEEDED}
        orders.append(
            PlannedOrder(
                key=key,
                command=command,
                at_seconds=chance.random() * load_seconds,
                over_broker=chance.random() < 0.3,
                cancelled_after_seconds=cancelled_after,
                endings=endings,
            )
        )
    malformed = []
    if chance.random() < 0.2:
        event = chance.choice((OrderPlaced, StockReserved, PaymentCharged, OrderCancelled))
        malformed.append((f"{event.type}.{chance.choice(list(Priority))}", b"{"))
    stock = [
        AddStock(
            delivery_id=UUID(int=1),
            sku=sku,
            quantity=units,
            unit_price_cents=PRICE_CENTS,
            currency="EUR",
        )
        for sku, units in ((PLENTY, 1_000), (SCARCE, scarce))
    ]
    return Plan(stock, declines, orders, malformed)


def _command(
    chance: random.Random, key: str, priorities: Sequence[Priority]
) -> tuple[str, PlaceOrder]:
    kind = chance.choices((PLENTY, SCARCE, UNKNOWN, "mispriced"), weights=(0.6, 0.25, 0.05, 0.1))[0]
    sku = PLENTY if kind == "mispriced" else kind
    lines = [
        OrderLine(
            sku=sku,
            quantity=chance.randint(1, 3),
            unit_price_cents=PRICE_CENTS + (kind == "mispriced"),
        )
    ]
    if chance.random() < 0.3:
        lines.append(OrderLine(sku=PLENTY, quantity=1, unit_price_cents=PRICE_CENTS))
    customers = ["anna", "ben", *map(str, DeclineReason)]
    command = PlaceOrder(
        order_id=order_id_of(key),
        customer=chance.choices(customers, weights=(4, 4, 1, 1))[0],
        currency="EUR",
        lines=tuple(lines),
        priority=chance.choice(priorities),
        time_limit_seconds=(
            chance.randint(1, SHORT_SECONDS) if chance.random() < 0.2 else NEVER_SECONDS
        ),
    )
    return key, command


def _endings(
    command: PlaceOrder, declines: Mapping[str, DeclineReason], *, enough: bool
) -> frozenset[Ending]:
    """How an order may end that nobody cancels and that has all the time there is."""
    if any(line.sku == UNKNOWN for line in command.lines):
        return frozenset({CancellationReason.UNKNOWN_SKU})
    if any(line.unit_price_cents != PRICE_CENTS for line in command.lines):
        return frozenset({CancellationReason.PRICE_MISMATCH})
    paid = CancellationReason.PAYMENT_DECLINED if command.customer in declines else None
    if not enough and any(line.sku == SCARCE for line in command.lines):
        return frozenset({paid, CancellationReason.OUT_OF_STOCK})
    return frozenset({paid})
