"""What customers do, and how each order may end, whatever goes wrong meanwhile."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Final
from uuid import UUID

from common.events import CancellationReason, DeclineReason, OrderLine, PlaceOrder, order_id_of
from inventory_service.domain import PARTICIPANT as INVENTORY
from inventory_service.domain import AddStock
from notification_service.domain import PARTICIPANT as NOTIFICATION
from notification_service.domain import DismissNotification, ResendNotification
from order_saga.outsides import PROVIDER
from order_service.domain import PARTICIPANT as ORDER
from order_service.domain import CancelOrder, OrderStatus
from payment_service.domain import Charge
from payment_service.ledger import ChargeOutcome
from saga.envelope import derived_id
from saga.load.plan import Given, Plan
from saga.message import Intent, Priority

LOAD_SECONDS: Final = (0.01, 0.01, 3.0)
"""In which all orders are placed."""
CANCELLED_SHARE: Final = 0.5
"""Orders that a customer cancels, or tries to: what is undone is what goes wrong."""
CANCEL_MAX_SECONDS: Final = 8.0
PERSON_MAX_SECONDS: Final = 40.0
"""Within which an operator looks at a mail."""
NEVER_SECONDS: Final = 7 * 24 * 3600
"""A time limit that no run reaches."""
SHORT_SECONDS: Final = 6

PRICE_CENTS: Final = 250
PLENTY, SCARCE, UNKNOWN = "plenty", "scarce", "unknown"

_DECLINES: Final = {str(reason): ChargeOutcome(reason) for reason in DeclineReason}
"""Keyed by customer: what the provider decides."""


def plan(chance: random.Random, orders: int) -> Plan:
    """Draw a plan."""
    priorities = list(Priority)[: chance.randint(1, 2)]
    commands = [_command(chance, f"order-{n}", priorities) for n in range(orders)]
    wanted = sum(
        line.quantity for _, command in commands for line in command.lines if line.sku == SCARCE
    )
    scarce = chance.randint(0, wanted)
    load_seconds = chance.choice(LOAD_SECONDS)
    given: list[Given] = []
    ends: dict[str, frozenset[str]] = {}
    for key, command in commands:
        endings = _endings(command, enough=scarce >= wanted)
        at_seconds = chance.random() * load_seconds
        over_broker = chance.random() < 0.3
        given.append(
            Given(
                ORDER.name,
                command,
                key if over_broker else derived_id(key, command.type),
                at_seconds,
                over_broker,
                command.priority,
            )
        )
        if chance.random() < CANCELLED_SHARE:
            cancelled_at = at_seconds + chance.random() * CANCEL_MAX_SECONDS
            cancel = CancelOrder(order_id=command.order_id)
            id = derived_id(key, cancel.type)
            given.append(Given(ORDER.name, cancel, id, cancelled_at, priority=command.priority))
            endings |= {CancellationReason.CUSTOMER_REQUEST}
        if chance.random() < 0.1:  # if it is for an operator to decide by then
            decision = chance.choice((ResendNotification, DismissNotification))
            at = at_seconds + chance.random() * PERSON_MAX_SECONDS
            wish = decision(order_id=command.order_id)
            given.append(Given(NOTIFICATION.name, wish, derived_id(key, wish.type), at))
        if command.time_limit_seconds < NEVER_SECONDS:
            endings |= {CancellationReason.DEADLINE_EXCEEDED}
        ends[command.subject] = endings
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
    return Plan(
        given,
        ends,
        before=[Given(INVENTORY.name, item, derived_id("stock", item.sku)) for item in stock],
        decisions={PROVIDER.name: _decide},
    )


def _decide(intent: Intent) -> ChargeOutcome:
    if isinstance(intent, Charge):
        return _DECLINES.get(intent.customer, ChargeOutcome.CHARGED)
    return ChargeOutcome.CHARGED


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
    customers = ["anna", "ben", *_DECLINES]
    command = PlaceOrder(
        order_id=order_id_of(key),
        customer=chance.choices(customers, weights=(4, 4, 1, 1))[0],
        currency="EUR",
        lines=tuple(lines),
        priority=chance.choice(priorities),
        time_limit_seconds=(
            chance.randint(1, SHORT_SECONDS) if chance.random() < 0.3 else NEVER_SECONDS
        ),
    )
    return key, command


def _endings(command: PlaceOrder, *, enough: bool) -> frozenset[str]:
    """How an order may end that is not cancelled and has all the time there is."""
    if any(line.sku == UNKNOWN for line in command.lines):
        return frozenset({CancellationReason.UNKNOWN_SKU})
    if any(line.unit_price_cents != PRICE_CENTS for line in command.lines):
        return frozenset({CancellationReason.PRICE_MISMATCH})
    paid: str = OrderStatus.CONFIRMED
    if command.customer in _DECLINES:
        paid = CancellationReason.PAYMENT_DECLINED
    if not enough and any(line.sku == SCARCE for line in command.lines):
        return frozenset({paid, CancellationReason.OUT_OF_STOCK})
    return frozenset({paid})
