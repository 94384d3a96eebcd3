"""The saga played in memory: what the services would have decided, kept and published."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

from common.events import DeclineReason, OrderLine, PlaceOrder
from notification_service.domain import Result, Send, SendAnswered
from payment_service.domain import Charge, ChargeAnswered, Refund, RefundAnswered
from saga.choreography import Choreography, Participant, State
from saga.discovery import choreography
from saga.envelope import Envelope, MessageKey, wrap
from saga.message import Command, Intent, Priority
from saga.runtime.kernel.step import StateId, react
from saga.runtime.kernel.tables import utc_now

BROKE = "broke"
"""The customer whose card is declined."""
PRICE_CENTS = 250
SAGA = Choreography(
    p for p in choreography().participants if p.name in ("order", "inventory", "payment")
)
"""Those who decide what becomes of an order, without whoever only listens."""


@dataclass(frozen=True)
class Delivery:
    """An event on its way to one participant; `attempt` is the try that it will be."""

    participant: str
    event: Envelope[Any]
    attempt: int = 1


@dataclass
class Play:
    """Every event is delivered once, in order; each reaction takes a `tick`, as does each way."""

    at: datetime = field(default_factory=lambda: utc_now() - timedelta(hours=1))
    tick: timedelta = timedelta(0)
    states: dict[str, dict[StateId, State]] = field(default_factory=dict)
    inboxes: dict[str, set[MessageKey]] = field(default_factory=dict)
    events: list[Envelope[Any]] = field(default_factory=list)
    charges: list[Charge] = field(default_factory=list)
    refunds: list[Refund] = field(default_factory=list)
    down: set[str] = field(default_factory=set)
    """Participants that read nothing."""
    provider_down: bool = False
    refunds_down: bool = False
    failed: list[Delivery] = field(default_factory=list)
    """What failed because of the provider; `retry` has it tried again."""
    waiting: deque[Delivery] = field(default_factory=deque)
    graph: Choreography = field(default_factory=choreography)

    def __post_init__(self) -> None:
        self._participants = {p.name: p for p in self.graph.participants}
        for name in self._participants:
            self.states[name], self.inboxes[name] = {}, set()

    def give(self, participant: str, command: Command) -> None:
        cause = wrap(
            command, id=str(uuid4()), source="/test", time=self.at, priority=Priority.NORMAL
        )
        self._react(self._participants[participant], cause)

    def place(self, customer: str = "ada", sku: str = "tea", quantity: int = 2) -> str:
        order_id = uuid4()
        line = OrderLine(sku=sku, quantity=quantity, unit_price_cents=PRICE_CENTS)
        self.give(
            "order",
            PlaceOrder(order_id=order_id, customer=customer, currency="EUR", lines=(line,)),
        )
        return str(order_id)

    def deliver(self) -> None:
        """Until nothing is on its way to anybody who reads."""
        while delivery := self._next():
            self._react(self._participants[delivery.participant], delivery.event, delivery.attempt)

    def retry(self) -> None:
        """Have what failed tried again."""
        again, self.failed = self.failed, []
        self.waiting.extend(again)
        self.deliver()

    def retry_only(self, order_id: str) -> None:
        """Have what failed about one order tried again."""
        others = [delivery for delivery in self.failed if delivery.event.subject != order_id]
        self.failed = [d for d in self.failed if d.event.subject == order_id]
        self.retry()
        self.failed += others

    def about(self, order_id: str) -> list[Envelope[Any]]:
        """The events of one order."""
        return [event for event in self.events if event.subject == order_id]

    def _next(self) -> Delivery | None:
        for delivery in self.waiting:
            if delivery.participant not in self.down:
                self.waiting.remove(delivery)
                return delivery
        return None

    def _react(self, participant: Participant, cause: Envelope[Any], attempt: int = 1) -> None:
        states = self.states[participant.name]
        message = cause.data
        self.at += self.tick
        taken_at = self.at
        while message is not None:
            self.at += self.tick
            decision = react(
                participant,
                cause,
                message,
                lambda at: states.get(at) or at[0](at[1]),
                self.at,
                taken_at=taken_at,
                attempt=attempt,
            )
            states.update(decision.changes)
            self.events += decision.events
            self.waiting.extend(
                Delivery(reader.name, event)
                for event in decision.events
                for reader in self.graph.reacting_to(event.type)
            )
            if self._fails(decision.intent):
                self.failed.append(Delivery(participant.name, cause, attempt + 1))
                return
            message = self._answer(decision.intent)
        self.inboxes[participant.name].add(cause.key)

    def _fails(self, intent: Intent | None) -> bool:
        if isinstance(intent, Refund) and self.refunds_down:
            return True
        return isinstance(intent, Charge | Refund) and self.provider_down

    def _answer(self, intent: Any) -> Any:
        if isinstance(intent, Charge):
            self.charges.append(intent)
            declined = DeclineReason.CARD_DECLINED if intent.customer == BROKE else None
            return ChargeAnswered(order_id=intent.order_id, declined=declined, reference="r")
        if isinstance(intent, Refund):
            self.refunds.append(intent)
            return RefundAnswered(order_id=intent.order_id)
        if isinstance(intent, Send):
            return SendAnswered(order_id=intent.order_id, result=Result.ACCEPTED)
        return None


# Orders from placed to ended; each returns the order's id.


def confirmed(played: Play) -> str:
    order = played.place()
    played.deliver()
    return order


def declined(played: Play) -> str:
    order = played.place(customer=BROKE)
    played.deliver()
    return order


def out_of_stock(played: Play) -> str:
    order = played.place(quantity=1_000)
    played.deliver()
    return order
