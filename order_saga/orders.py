"""Test orders with a known end: planned from a seed, with what has to be prepared for them.

The plan is pure. What is in it depends on the arguments of `plan` alone, whatever the Python
version, so an order can be named by (orders, seed, shares, run, number).
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import UUID

from common.events import (
    CancellationReason,
    HeldLine,
    OrderLine,
    OrderPlaced,
    PaymentCharged,
    PlaceOrder,
    StockReserved,
    order_id_of,
    total_of,
)
from payment_service.gateway import Account
from saga.envelope import derived_id, source_of, wrap
from saga.message import Event, Priority

ORDERS_MAX: Final = 1_000_000
SEED_MAX: Final = 2**63 - 1
RUN_MAX: Final = 1_000_000
TIME_LIMIT_SECONDS: Final = 600
"""Longer than any run: a deadline that cancels would make a lost message look like an answer."""
CANCELLING_ANSWER_DELAY_MS: Final = 1_500
"""How long the provider's answer takes for a customer who cancels, so that the cancellation, which
is sent at once, overtakes it."""

_CURRENCIES: Final = ("CHF", "EUR", "USD")
_SKUS_PER_CURRENCY: Final = 8
_SOLD_OUT_PER_CURRENCY: Final = 2
_LINES_MAX: Final = 3
_QUANTITY_MAX: Final = 5
_PRICE_MIN_CENTS, _PRICE_MAX_CENTS = 95, 19_995
_AT: Final = datetime(2024, 1, 1, tzinfo=UTC)

T = TypeVar("T")


class PlanError(ValueError):
    """No plan can be made of these arguments. Names the argument and what it takes."""


@dataclass(frozen=True, slots=True)
class Shares:
    """How the load is mixed; each from 0 to 1.

    The ways to end (`out_of_stock` to `cancelled`) exclude each other; `high` is spread over all of
    them. `malformed` messages come on top of the orders.
    """

    high: float = 0.10
    out_of_stock: float = 0.05
    mispriced: float = 0.05
    """Half of them at a wrong price, half for an unknown SKU."""
    declined: float = 0.05
    """Half of them for want of funds, half for the card."""
    cancelled: float = 0.02
    malformed: float = 0.01

    def __post_init__(self) -> None:
        for name, share in asdict(self).items():
            if not 0 <= share <= 1:
                raise PlanError(f"the share {name} is {share}; it takes a number from 0 to 1")
        together = self.out_of_stock + self.mispriced + self.declined + self.cancelled
        if together > 1 + 1e-9:
            raise PlanError(
                f"the shares out_of_stock, mispriced, declined and cancelled are {together:g} "
                f"together; they take at most 1"
            )


@dataclass(frozen=True, slots=True)
class PlannedOrder:
    """One order, and how it has to end: for `reason`, or confirmed with None."""

    number: int
    key: str
    customer: str
    currency: str
    lines: tuple[OrderLine, ...]
    priority: Priority
    reason: CancellationReason | None

    @property
    def order_id(self) -> UUID:
        return order_id_of(self.key)

    @property
    def cancels(self) -> bool:
        """Whether the customer cancels it right after placing it."""
        return self.reason is CancellationReason.CUSTOMER_REQUEST

    def command(self, time_limit_seconds: int = TIME_LIMIT_SECONDS) -> PlaceOrder:
        """The order as the command that places it."""
        return PlaceOrder.model_validate(
            {
                "order_id": self.order_id,
                "customer": self.customer,
                "currency": self.currency,
                "lines": self.lines,
                "priority": self.priority,
                "time_limit_seconds": time_limit_seconds,
            }
        )

    def request(self, time_limit_seconds: int = TIME_LIMIT_SECONDS) -> dict[str, Any]:
        """The order as the JSON body of `POST /orders`."""
        command = self.command(time_limit_seconds)
        return command.model_dump(mode="json", exclude={"order_id"})


@dataclass(frozen=True, slots=True)
class StockNeed:
    """Units that have to be on the shelf, and their price."""

    sku: str
    quantity: int
    unit_price_cents: int
    currency: str


@dataclass(frozen=True, slots=True)
class Malformed:
    """A message that one service cannot read, and that has to end as its dead letter."""

    id: str
    kind: str
    routing_key: str
    body: bytes


@dataclass(frozen=True, slots=True)
class OrderLoad:
    """A load: what to prepare, what to send, and what has to come of it."""

    prefix: str
    orders: tuple[PlannedOrder, ...]
    stock: tuple[StockNeed, ...]
    accounts: tuple[Account, ...]
    malformed: tuple[Malformed, ...]

    def to_json(self) -> str:
        """All of it as one JSON document, the same for the same arguments, byte for byte."""
        document = {
            "prefix": self.prefix,
            "orders": [
                {"key": order.key, "order_id": str(order.order_id), "expected": expected(order)}
                | order.request()
                for order in self.orders
            ],
            "stock": [asdict(need) for need in self.stock],
            "accounts": [asdict(account) for account in self.accounts],
            "malformed": [asdict(m) | {"body": m.body.hex()} for m in self.malformed],
        }
        return json.dumps(document, sort_keys=True)


def expected(order: PlannedOrder) -> str:
    """How the order has to end, in a word: `confirmed` or the reason for its cancellation."""
    return "confirmed" if order.reason is None else str(order.reason)


def plan(orders: int, seed: int, shares: Shares | None = None, *, run: int = 1) -> OrderLoad:
    """The load of so many orders.

    Every name in it starts with a prefix made of all the arguments. So loads on one system never
    share an order, a customer or a SKU unless they are one and the same; sending that again only
    repeats requests that are idempotent. `run` tells repetitions apart that are meant to be new.
    Raises `PlanError`.
    """
    shares = shares or Shares()
    for name, value, least, most in (
        ("orders", orders, 0, ORDERS_MAX),
        ("seed", seed, 0, SEED_MAX),
        ("run", run, 1, RUN_MAX),
    ):
        if not least <= value <= most:
            raise PlanError(f"{name} is {value}; it takes a number from {least} to {most}")
    prefix = prefix_of(orders, seed, shares, run)
    dice = _Dice(seed)
    catalogue = _Catalogue(prefix, dice)
    reasons = dice.shuffled(_reasons(orders, shares))
    urgent = round(orders * shares.high)
    priorities = dice.shuffled(
        [Priority.HIGH] * urgent + [Priority.NORMAL] * (orders - urgent),
    )
    made = [
        _order(number, prefix, reason, priority, catalogue, dice)
        for number, (reason, priority) in enumerate(zip(reasons, priorities, strict=True))
    ]
    kinds = list(MALFORMED)
    malformed = tuple(
        _malformed(f"{prefix}-malformed-{number}", kinds[number % len(kinds)], dice)
        for number in range(round(orders * shares.malformed))
    )
    return OrderLoad(
        prefix,
        tuple(made),
        catalogue.needs(made),
        tuple(account for order in made if (account := _account(order, dice)) is not None),
        malformed,
    )


def prefix_of(orders: int, seed: int, shares: Shares, run: int) -> str:
    """What every name in such a plan starts with."""
    arguments = json.dumps([orders, asdict(shares)], sort_keys=True).encode()
    return f"s{seed}-{hashlib.sha256(arguments).hexdigest()[:8]}-{run}"


def key_of(prefix: str, number: int) -> str:
    """The idempotency key of one order of a plan; they are numbered from 0."""
    return f"{prefix}-{number}"


def _reasons(orders: int, shares: Shares) -> list[CancellationReason | None]:
    """How each order has to end, sorted; the counts are the shares, rounded so that they add up."""
    half = shares.mispriced / 2
    parts = (
        (CancellationReason.OUT_OF_STOCK, shares.out_of_stock),
        (CancellationReason.PRICE_MISMATCH, half),
        (CancellationReason.UNKNOWN_SKU, half),
        (CancellationReason.PAYMENT_DECLINED, shares.declined),
        (CancellationReason.CUSTOMER_REQUEST, shares.cancelled),
    )
    reasons: list[CancellationReason | None] = []
    together = 0.0
    for reason, share in parts:
        together += share
        reasons += [reason] * (round(orders * together) - len(reasons))
    return reasons + [None] * (orders - len(reasons))


class _Dice:
    """Seeded choices. Only `Random.random` is promised to be the same in every Python version."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)

    def below(self, limit: int) -> int:
        """A whole number from 0 to `limit` - 1."""
        return int(self._random.random() * limit)

    def between(self, least: int, most: int) -> int:
        """A whole number from `least` to `most`."""
        return least + self.below(most - least + 1)

    def one_of(self, items: tuple[T, ...]) -> T:
        return items[self.below(len(items))]

    def shuffled(self, items: list[T]) -> list[T]:
        items = list(items)
        for last in range(len(items) - 1, 0, -1):
            other = self.below(last + 1)
            items[last], items[other] = items[other], items[last]
        return items


class _Catalogue:
    """The SKUs of one plan and their prices; some of them are sold out."""

    def __init__(self, prefix: str, dice: _Dice) -> None:
        self._price_cents: dict[str, int] = {}
        self._currency: dict[str, str] = {}
        self.kept: dict[str, tuple[str, ...]] = {}
        self.sold_out: dict[str, tuple[str, ...]] = {}
        for currency in _CURRENCIES:
            stem = f"{prefix}-{currency.lower()}"
            self.kept[currency] = tuple(f"{stem}-{n}" for n in range(_SKUS_PER_CURRENCY))
            self.sold_out[currency] = tuple(
                f"{stem}-sold-out-{n}" for n in range(_SOLD_OUT_PER_CURRENCY)
            )
            for sku in self.kept[currency] + self.sold_out[currency]:
                self._price_cents[sku] = dice.between(_PRICE_MIN_CENTS, _PRICE_MAX_CENTS)
                self._currency[sku] = currency

    def line(self, sku: str, quantity: int) -> OrderLine:
        return OrderLine(sku=sku, quantity=quantity, unit_price_cents=self._price_cents[sku])

    def needs(self, orders: list[PlannedOrder]) -> tuple[StockNeed, ...]:
        """Enough of everything that is not sold out, even if every order held its lines."""
        units: Counter[str] = Counter()
        for order in orders:
            for line in order.lines:
                units[line.sku] += line.quantity
        sold_out = {sku for skus in self.sold_out.values() for sku in skus}
        return tuple(
            StockNeed(sku, 0 if sku in sold_out else units[sku], cents, self._currency[sku])
            for sku, cents in self._price_cents.items()
        )


def _order(
    number: int,
    prefix: str,
    reason: CancellationReason | None,
    priority: Priority,
    catalogue: _Catalogue,
    dice: _Dice,
) -> PlannedOrder:
    currency = dice.one_of(_CURRENCIES)
    skus = dice.shuffled(list(catalogue.kept[currency]))[: dice.between(1, _LINES_MAX)]
    lines = [catalogue.line(sku, dice.between(1, _QUANTITY_MAX)) for sku in skus]
    bad = dice.below(len(lines))
    match reason:
        case CancellationReason.OUT_OF_STOCK:
            sku = dice.one_of(catalogue.sold_out[currency])
            lines[bad] = catalogue.line(sku, lines[bad].quantity)
        case CancellationReason.PRICE_MISMATCH:
            cents = lines[bad].unit_price_cents
            lines[bad] = lines[bad].model_copy(update={"unit_price_cents": cents - 1})
        case CancellationReason.UNKNOWN_SKU:
            lines[bad] = lines[bad].model_copy(update={"sku": f"{prefix}-unknown-{number}"})
        case _:
            pass
    # A declined customer, or one whose bank is slow, has no second order that it would affect.
    return PlannedOrder(
        number,
        key_of(prefix, number),
        f"{prefix}-customer-{number}",
        currency,
        tuple(lines),
        priority,
        reason,
    )


def _account(order: PlannedOrder, dice: _Dice) -> Account | None:
    """The customer's account at the payment sandbox, where an ordinary one will not do."""
    match order.reason:
        case CancellationReason.PAYMENT_DECLINED if dice.below(2):
            return Account(order.customer, card_blocked=True)
        case CancellationReason.PAYMENT_DECLINED:
            return Account(order.customer, funds_cents=total_of(order.lines) - 1)
        case CancellationReason.CUSTOMER_REQUEST:
            return Account(order.customer, answer_delay_ms=CANCELLING_ANSWER_DELAY_MS)
        case _:
            return None


# --- malformed messages ---------------------------------------------------------------------------
# Each is published with the routing key of an event that exactly one participant reacts to, so
# that it becomes exactly one dead letter.


def _placed(id: str) -> tuple[Event, str]:
    line = OrderLine(sku=f"{id}-sku", quantity=2, unit_price_cents=995)
    event = OrderPlaced(
        order_id=order_id_of(id),
        customer=id,
        currency="EUR",
        lines=(line,),
        total_cents=total_of((line,)),
        priority=Priority.NORMAL,
        deadline=_AT,
    )
    return event, "order"


def _reserved(id: str) -> tuple[Event, str]:
    event = StockReserved(
        order_id=order_id_of(id),
        customer=id,
        currency="EUR",
        total_cents=1990,
        lines=(HeldLine(sku=f"{id}-sku", quantity=2),),
    )
    return event, "inventory"


def _charged(id: str) -> tuple[Event, str]:
    event = PaymentCharged(
        order_id=order_id_of(id), currency="EUR", amount_cents=1990, reference="none"
    )
    return event, "payment"


def _edited(edit: Callable[[dict[str, Any]], object]) -> Callable[[bytes], bytes]:
    """Changes the document of a well-formed message."""

    def apply(body: bytes) -> bytes:
        document: dict[str, Any] = json.loads(body)
        edit(document)
        return json.dumps(document).encode()

    return apply


Spoil = Callable[[bytes], bytes]

MALFORMED: Final[Mapping[str, tuple[Callable[[str], tuple[Event, str]], Spoil]]] = {
    "not JSON": (_placed, lambda _: b"order.placed: two of the blue ones, please"),
    "truncated": (_reserved, lambda body: body[: len(body) // 2]),
    "wrong types": (
        _placed,
        _edited(lambda d: d["data"]["lines"][0].update(quantity="two")),
    ),
    "unknown version": (
        _charged,
        _edited(lambda d: d.update(dataschema="urn:order-saga:payment.charged:99")),
    ),
    "negative quantity": (
        _placed,
        _edited(lambda d: d["data"]["lines"][0].update(quantity=-2)),
    ),
    "subject mismatch": (
        _reserved,
        _edited(lambda d: d.update(subject=str(order_id_of("another's")))),
    ),
    "empty": (_charged, lambda _: b""),
    "unknown currency": (_placed, _edited(lambda d: d["data"].update(currency="XXX"))),
    "no data": (_reserved, _edited(lambda d: d.pop("data"))),
    "not UTF-8": (_charged, lambda body: b"\xff\xfe" + body),
    "lines that do not add up": (_placed, _edited(lambda d: d["data"].update(total_cents=1))),
    "a list": (_reserved, lambda body: b"[" + body + b"]"),
}
"""Ways to be malformed: a well-formed event with its sender, and what spoils it."""


def _malformed(id: str, kind: str, dice: _Dice) -> Malformed:
    make, spoil = MALFORMED[kind]
    event, sender = make(id)
    priority = dice.one_of((Priority.NORMAL, Priority.NORMAL, Priority.HIGH))
    envelope = wrap(
        event,
        id=derived_id(id, kind),
        source=source_of(sender),
        time=_AT,
        priority=priority,
        sequence=1,
    )
    return Malformed(envelope.id, kind, envelope.routing_key, spoil(envelope.to_bytes()))
