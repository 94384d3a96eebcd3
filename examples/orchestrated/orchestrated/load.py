"""What customers do, and how each order ends, whatever goes wrong meanwhile."""

from __future__ import annotations

import random
from typing import Final
from uuid import UUID

from saga import Given, Intent, Plan, Priority, derived_id

from orchestrated.coordinator.domain import PARTICIPANT as COORDINATOR
from orchestrated.inventory.domain import PARTICIPANT as INVENTORY
from orchestrated.language import (
    AddStock,
    CancellationReason,
    CancelOrder,
    OrderLine,
    PlaceOrder,
)
from orchestrated.payment.domain import Charge
from orchestrated.provider import SLOW, Outcome

PRICE_CENTS: Final = 250
LOAD_SECONDS: Final = 3.0
"""In which all orders are placed."""
CANCEL_AFTER_SECONDS, LAPSES_AFTER_SECONDS = 1.0, 1
"""Long before a slow bank answers."""
NEVER_SECONDS: Final = 7 * 24 * 3600

ENDS: Final[dict[str, tuple[int, str]]] = {
    "": (13, "confirmed"),
    "sold-out": (1, CancellationReason.OUT_OF_STOCK),
    "unknown": (1, CancellationReason.UNKNOWN_SKU),
    "mispriced": (1, CancellationReason.PRICE_MISMATCH),
    Outcome.INSUFFICIENT_FUNDS: (1, CancellationReason.PAYMENT_DECLINED),
    Outcome.CARD_DECLINED: (1, CancellationReason.PAYMENT_DECLINED),
    f"{SLOW}, out of time": (1, CancellationReason.DEADLINE_EXCEEDED),
    f"{SLOW}, cancels": (1, CancellationReason.CUSTOMER_REQUEST),
}
"""Keyed by what a customer is like: how many of twenty they are, and how their order ends."""


def plan(chance: random.Random, orders: int) -> Plan:
    """Draw a load.

    What waits for a slow bank may also be confirmed: a simulated bank is never slow.
    """
    delivery_id = UUID(int=chance.getrandbits(128))
    sku = f"mug-{delivery_id.hex[:8]}"
    given: list[Given] = []
    ends: dict[str, frozenset[str]] = {}
    for number in range(orders):
        kind = chance.choices(list(ENDS), weights=[share for share, _ in ENDS.values()])[0]
        command = _order(chance, sku, f"customer {number} {kind}".strip(), kind)
        at, priority = chance.random() * LOAD_SECONDS, chance.choice(list(Priority))
        over_broker = chance.random() < 0.5
        key = derived_id(command.subject, command.type)
        given.append(Given(COORDINATOR.name, command, key, at, over_broker, priority))
        ends[command.subject] = frozenset({str(ENDS[kind][1])})
        if SLOW in kind:
            ends[command.subject] |= {"confirmed"}
        if "cancels" in kind:
            cancel = CancelOrder(order_id=command.order_id)
            key, later = derived_id(command.subject, cancel.type), at + CANCEL_AFTER_SECONDS
            given.append(Given(COORDINATOR.name, cancel, key, later, priority=priority))
    stock = [
        AddStock(
            delivery_id=delivery_id,
            sku=name,
            quantity=quantity,
            unit_price_cents=PRICE_CENTS,
            currency="EUR",
        )
        for name, quantity in ((sku, 3 * orders), (f"{sku}-sold-out", 0))
    ]
    before = [Given(INVENTORY.name, each, derived_id(each.sku, each.type)) for each in stock]
    return Plan(given, ends, before=before, decisions={"provider": _decide})


def _order(chance: random.Random, sku: str, customer: str, kind: str) -> PlaceOrder:
    line = OrderLine(
        sku=f"{sku}-{kind}" if kind in ("sold-out", "unknown") else sku,
        quantity=chance.randint(1, 3),
        unit_price_cents=PRICE_CENTS - (kind == "mispriced"),
    )
    return PlaceOrder(
        order_id=UUID(int=chance.getrandbits(128)),
        customer=customer,
        currency="EUR",
        lines=(line,),
        time_limit_seconds=LAPSES_AFTER_SECONDS if "out of time" in kind else NEVER_SECONDS,
    )


def _decide(intent: Intent) -> Outcome:
    return Outcome.of(intent.customer) if isinstance(intent, Charge) else Outcome.CHARGED
