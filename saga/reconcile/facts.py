"""What a reconciliation looks at, each fact as its witness has it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime

from order_service.domain import OrderStatus
from payment_service.domain import PaymentStatus
from saga.reconcile.history import History, Owed


class ReconcileError(Exception):
    """Something to be compared cannot be read. Names it and the way out."""


@dataclass(frozen=True, slots=True)
class OrderFact:
    """A row of the order service. `changed_at` is when it was placed or, later, ended."""

    status: OrderStatus
    currency: str
    total_cents: int
    changed_at: datetime | None


@dataclass(frozen=True, slots=True)
class PaymentFact:
    """A row of the payment service."""

    status: PaymentStatus
    currency: str
    amount_cents: int


@dataclass(frozen=True, slots=True)
class StockFact:
    """A row of the shelf. `sequence` counts the deliveries that ever came."""

    free: int
    held: int
    sequence: int


@dataclass(frozen=True, slots=True)
class ProviderCharge:
    """What the payment provider was asked for, whether it took that, and what it gave back."""

    order_id: str
    currency: str
    amount_cents: int
    declined: bool = False
    refunded_cents: int = 0


@dataclass(frozen=True, slots=True)
class Letter:
    """One message resting in a queue. `key` names the message wherever it is: see `key_of`."""

    key: str
    subject: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class Backlog:
    """Where else a participant's messages may be, besides done and dead.

    `ready` are in its work queues; `read` says that a consumer is at work on them, and may hold
    more; `waiting` are the keys found there, known only where nobody reads.
    """

    ready: int = 0
    read: bool = False
    waiting: Set[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything `judge` judges. Mappings are by order id, by SKU or by participant.

    Read in an order that makes most comparisons free of races: orders, payments, stock, provider
    and outboxes first, then the history, which by then holds all that these had published; then
    what has been done of it, then what is dead, what waits, and what is in the work queues: each
    before the place that a message goes to from there.
    """

    started_at: datetime
    grace_seconds: float
    history: History
    orders: Mapping[str, OrderFact] = field(default_factory=dict)
    payments: Mapping[str, PaymentFact] = field(default_factory=dict)
    held_orders: Set[str] = frozenset()
    held_units: Mapping[str, int] = field(default_factory=Counter)
    """Units per SKU over all reservations that are held."""
    stock: Mapping[str, StockFact] = field(default_factory=dict)
    provider: Sequence[ProviderCharge] = ()
    sequences: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """How many events each participant has committed, by subject."""
    undone: Mapping[str, Mapping[str, Owed]] = field(default_factory=dict)
    """By key, the messages each participant should have dealt with and has no inbox row for."""
    letters: Mapping[str, Sequence[Letter]] = field(default_factory=dict)
    """What is dead, in a queue or in the operator's store."""
    waiting: Mapping[str, Sequence[Letter]] = field(default_factory=dict)
    """What waits on the broker to be tried again."""
    settled: Mapping[str, Set[str]] = field(default_factory=dict)
    """The keys of messages that a person has discarded, or replaced by a corrected copy."""
    backlogs: Mapping[str, Backlog] = field(default_factory=dict)
    unpublished: int = 0
    """Rows in the outboxes."""
