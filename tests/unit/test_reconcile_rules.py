"""What `saga reconcile` calls a violation: each rule finds its broken example and no clean one."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast
from uuid import UUID

import pytest

from common import events
from common.events import (
    CancellationReason,
    DeclineReason,
    HeldLine,
    LetterKind,
    NotificationBegun,
    NotificationSent,
    NotificationUnconfirmed,
    OrderCancelled,
    OrderConfirmed,
    OrderLine,
    OrderPlaced,
    PaymentCharged,
    PaymentDeclined,
    PaymentRefunded,
    PaymentVoided,
    StockAdded,
    StockReleased,
    StockReserved,
)
from inventory_service.domain import (
    Delivery,
    Reservation,
    ReservationStatus,
    StockItem,
    delivery_key,
)
from notification_service.domain import Notification, NotificationStatus
from order_saga import SAGA
from order_saga.invariants import charge_unexplained, stock_not_conserved
from order_saga.outsides import MailLog
from order_service.domain import Order, OrderStatus
from payment_service.domain import Payment, PaymentStatus
from payment_service.ledger import ChargeOutcome, Ledger, LedgerCharge
from saga.choreography import State
from saga.envelope import Envelope, source_of, wrap
from saga.message import Event, Priority
from saga.reconcile import conservation, history_for, judge, rule_names, view_of
from saga.reconcile.conservation import Rest, undecided
from saga.reconcile.databases import Books
from saga.reconcile.facts import Backlog, MessageFates, RestingMessage
from saga.reconcile.history import LOOKED_THROUGH_MAX, OwedMessage
from saga.rules import RULES as RULES_OF_ROLES
from saga.rules import Rules
from saga.runtime.messaging.dead_letters import key_of
from saga.view import EventsInMemory, Invariant, View, Violation

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
AT = NOW - timedelta(hours=1)
GRACE_SECONDS = 5.0

CONFIRMED = "00000000-0000-0000-0000-00000000000a"
DECLINED = "00000000-0000-0000-0000-00000000000b"
REFUNDED = "00000000-0000-0000-0000-00000000000c"
DELIVERY = UUID(int=1)
LETTER = events.Letter(kind=LetterKind.CONFIRMED, customer="ada", currency="EUR", total_cents=500)
NO_LETTER = events.Letter(
    kind=LetterKind.CANCELLED, customer="ada", reason=CancellationReason.CUSTOMER_REQUEST
)
STRANGER = "00000000-0000-0000-0000-00000000000d"
LINES = (OrderLine(sku="tea", quantity=2, unit_price_cents=250),)
HELD = (HeldLine(sku="tea", quantity=2),)


def order(status: OrderStatus, total_cents: int = 500, at: datetime = AT) -> Order:
    cancelled = status is OrderStatus.CANCELLED
    return Order(
        "",
        2,
        status,
        "ada",
        "EUR",
        LINES,
        total_cents,
        placed_at=at,
        ended_at=at,
        reason=CancellationReason.CUSTOMER_REQUEST if cancelled else None,
    )


def payment(status: PaymentStatus, amount_cents: int = 500, sequence: int = 1) -> Payment:
    return Payment("", sequence, status, "", "EUR", amount_cents)


def line(
    order_id: str, outcome: ChargeOutcome = ChargeOutcome.CHARGED, refunded_cents: int = 0
) -> LedgerCharge:
    return LedgerCharge(order_id, "ada", "EUR", 500, outcome, "r", refunded_cents=refunded_cents)


RELEASED_TEA = Reservation("", 2, ReservationStatus.RELEASED, HELD)
HELD_TEA = Reservation("", 1, ReservationStatus.HELD, HELD)


class Clean:
    """Three orders at their ends; a test breaks one thing and asks for the facts again."""

    def __init__(self) -> None:
        self.history = history_for(SAGA)
        self.said: list[tuple[str, int, Event, str | None, datetime]] = []
        self.orders = {
            CONFIRMED: order(OrderStatus.CONFIRMED),
            DECLINED: order(OrderStatus.CANCELLED),
            REFUNDED: order(OrderStatus.CANCELLED),
        }
        self.payments = {
            CONFIRMED: payment(PaymentStatus.CHARGED),
            DECLINED: Payment("", 1, PaymentStatus.DECLINED),
            REFUNDED: payment(PaymentStatus.REFUNDED, sequence=2),
        }
        self.provider = [
            line(CONFIRMED),
            line(DECLINED, ChargeOutcome.CARD_DECLINED),
            line(REFUNDED, refunded_cents=500),
        ]
        self.reservations = {
            CONFIRMED: HELD_TEA,
            DECLINED: RELEASED_TEA,
            REFUNDED: RELEASED_TEA,
        }
        self.notifications: dict[str, Notification] = {}
        self.rules = Rules(SAGA)
        self.mails: dict[str, int] | None = None
        """A mail server keeps no books that could be read; only a simulated one does."""
        self.stock = {"tea": StockItem("", 1, 250, "EUR", free=8, held=2)}
        self.deliveries = {delivery_key(DELIVERY, "tea"): Delivery("", 0, 10, 250, "EUR")}
        self.sequences = {
            "order": dict.fromkeys(self.orders, 2),
            "inventory": {CONFIRMED: 1, DECLINED: 2, REFUNDED: 2, "tea": 1},
            "payment": {CONFIRMED: 1, DECLINED: 1, REFUNDED: 2},
            "notification": dict.fromkeys(self.orders, 2),
        }
        self.undone: dict[str, dict[str, OwedMessage]] = {}
        self.letters: dict[str, list[RestingMessage]] = {}
        self.backlogs: dict[str, Backlog] = {}

        self.publish("inventory", 1, added(10))
        for order_id in self.orders:
            self.publish("order", 1, placed(order_id))
            self.publish("inventory", 1, reserved(order_id))
        for order_id in (CONFIRMED, REFUNDED):
            self.publish("payment", 1, charged(order_id))
        self.publish("order", 2, confirmed(CONFIRMED))
        self.publish(
            "payment",
            1,
            PaymentDeclined(order_id=UUID(DECLINED), reason=DeclineReason.CARD_DECLINED),
        )
        for order_id in (DECLINED, REFUNDED):
            self.publish("order", 2, cancelled(order_id))
            self.publish("inventory", 2, released(order_id))
        self.publish("payment", 2, refunded(REFUNDED))
        self.mail(CONFIRMED, LETTER)
        self.mail(DECLINED, NO_LETTER)
        self.mail(REFUNDED, NO_LETTER)

    def mail(self, order_id: str, letter: events.Letter) -> None:
        """Tell a customer how their order has ended."""
        self.publish("notification", 1, NotificationBegun(order_id=UUID(order_id), letter=letter))
        self.publish("notification", 2, NotificationSent(order_id=UUID(order_id)))
        self.notifications[order_id] = Notification(
            "", 2, NotificationStatus.SENT, letter, begun_at=AT, tries=1
        )

    def retell(self, tell: Callable[[Event], Event | None]) -> None:
        """Give the history as `tell` makes it of each event; None leaves one out."""
        said, self.said, self.history = self.said, [], history_for(SAGA)
        for participant, sequence, event, id, at in said:
            if (told := tell(event)) is not None:
                self.publish(participant, sequence, told, id=id, at=at)

    def correct(self, kind: type[Event], subject: str, **changes: Any) -> None:
        """Make the event of that kind about a subject say something else."""
        self.retell(
            lambda event: (
                event.model_copy(update=changes)
                if (type(event), event.subject) == (kind, subject)
                else event
            )
        )

    def reverse(self) -> None:
        """Read everything in the reverse order."""
        for states in (
            self.orders,
            self.payments,
            self.reservations,
            self.notifications,
            self.stock,
            self.deliveries,
        ):
            there = dict(reversed(states.items()))
            states.clear()
            cast(dict[str, Any], states).update(there)
        self.provider.reverse()

    def publish(
        self,
        participant: str,
        sequence: int,
        event: Event,
        *,
        id: str | None = None,
        at: datetime = AT,
    ) -> None:
        self.said.append((participant, sequence, event, id, at))
        envelope = wrap(
            event,
            id=id or f"{participant}-{sequence}-{event.subject}",
            source=source_of(participant),
            time=at,
            priority=Priority.NORMAL,
            sequence=sequence,
        )
        self.history.take(envelope.routing_key, envelope.id, at, envelope.to_bytes())

    def where(self, grace_seconds: float = GRACE_SECONDS) -> MessageFates:
        return MessageFates(
            started_at=NOW,
            grace_seconds=grace_seconds,
            history=self.history,
            sequences=self.sequences,
            undone=self.undone,
            letters=self.letters,
            backlogs=self.backlogs,
        )

    def view(self) -> View:
        known: dict[str, Mapping[str, State]] = {
            "order": self.orders,
            "payment": self.payments,
            "notification": self.notifications,
            "inventory": {**self.reservations, **self.stock, **self.deliveries},
        }
        books = Books(
            known={
                name: {(type(s), key): replace(s, key=key) for key, s in states.items()}
                for name, states in known.items()
            }
        )
        outside: dict[str, Any] = {"provider": Ledger(tuple(self.provider))}
        if self.mails is not None:
            outside["mail server"] = MailLog(tuple(sorted(self.mails.items())))
        return view_of(books, outside, self.where())

    def judged(self) -> list[Violation]:
        return judge(self.rules, self.view(), self.where())

    def found(self) -> dict[str, set[str]]:
        """The subjects found, by rule."""
        found: dict[str, set[str]] = {}
        for violation in self.judged():
            found.setdefault(violation.rule, set()).add(violation.subject)
        return found

    def owe(
        self, participant: str, key: str, *, subject: str = CONFIRMED, at: datetime = AT
    ) -> None:
        owed = OwedMessage("order.placed", subject, at, decodable=True)
        self.undone.setdefault(participant, {})[key] = owed


def placed(order_id: str) -> OrderPlaced:
    return OrderPlaced(
        order_id=UUID(order_id),
        customer="ada",
        currency="EUR",
        lines=LINES,
        total_cents=500,
        priority=Priority.NORMAL,
        deadline=NOW,
    )


def reserved(order_id: str) -> StockReserved:
    return StockReserved(
        order_id=UUID(order_id), customer="ada", currency="EUR", total_cents=500, lines=HELD
    )


def charged(order_id: str) -> PaymentCharged:
    return PaymentCharged(order_id=UUID(order_id), currency="EUR", amount_cents=500, reference="r")


def declined(order_id: str) -> PaymentDeclined:
    return PaymentDeclined(order_id=UUID(order_id), reason=DeclineReason.CARD_DECLINED)


def refunded(order_id: str) -> PaymentRefunded:
    return PaymentRefunded(order_id=UUID(order_id), currency="EUR", amount_cents=500)


def confirmed(order_id: str) -> OrderConfirmed:
    return OrderConfirmed(order_id=UUID(order_id), customer="ada", currency="EUR", total_cents=500)


def cancelled(order_id: str) -> OrderCancelled:
    return OrderCancelled(
        order_id=UUID(order_id), customer="ada", reason=CancellationReason.CUSTOMER_REQUEST
    )


def added(quantity: int, delivery: UUID = DELIVERY) -> StockAdded:
    return StockAdded(
        delivery_id=delivery, sku="tea", quantity=quantity, unit_price_cents=250, currency="EUR"
    )


def released(order_id: str) -> StockReleased:
    return StockReleased(order_id=UUID(order_id), lines=HELD)


def letter(key: str, subject: str | None = None) -> RestingMessage:
    return RestingMessage(key, subject, "failed")


# --- each rule's broken example ----------------------------------------------------------------


def charged_by_two_events(world: Clean) -> None:
    world.publish("payment", 1, charged(CONFIRMED), id="another")


def refunded_by_two_events(world: Clean) -> None:
    world.publish("payment", 2, refunded(REFUNDED), id="another")


def placed_after_the_end(world: Clean) -> None:
    world.publish("order", 3, placed(CONFIRMED), id="another")


def gave_back_too_much(world: Clean) -> None:
    world.provider[2] = replace(world.provider[2], refunded_cents=501)


def gave_back_what_it_declined(world: Clean) -> None:
    world.provider[1] = replace(world.provider[1], refunded_cents=1)


def less_than_nothing(world: Clean) -> None:
    world.stock["tea"] = replace(world.stock["tea"], free=-1, held=11)


def units_vanished(world: Clean) -> None:
    world.stock["tea"] = replace(world.stock["tea"], free=7)


def units_from_nowhere(world: Clean) -> None:
    world.stock["coffee"] = StockItem("", free=1)


def delivered_less(world: Clean) -> None:
    (key,) = world.deliveries
    world.deliveries[key] = replace(world.deliveries[key], quantity=9)


def delivered_at_another_price(world: Clean) -> None:
    (key,) = world.deliveries
    world.deliveries[key] = replace(world.deliveries[key], unit_price_cents=260)


def delivered_in_another_currency(world: Clean) -> None:
    (key,) = world.deliveries
    world.deliveries[key] = replace(world.deliveries[key], currency="SEK")


def dearer_than_delivered(world: Clean) -> None:
    world.stock["tea"] = replace(world.stock["tea"], unit_price_cents=260)


def delivered_again(world: Clean) -> None:
    world.publish("inventory", 2, added(10))


def held_at_another_price(world: Clean) -> None:
    dear = (OrderLine(sku="tea", quantity=2, unit_price_cents=300),)
    event = placed(STRANGER).model_copy(update={"lines": dear, "total_cents": 600})
    world.publish("order", 1, event)
    world.reservations[STRANGER] = HELD_TEA


def held_for_nobody(world: Clean) -> None:
    world.stock["tea"] = replace(world.stock["tea"], free=7, held=3)


def held_of_nothing(world: Clean) -> None:
    lines = (*HELD, HeldLine(sku="coffee", quantity=1))
    world.reservations[CONFIRMED] = replace(HELD_TEA, lines=lines)


def confirmed_without_payment(world: Clean) -> None:
    del world.payments[CONFIRMED]


def confirmed_and_refunded(world: Clean) -> None:
    world.payments[CONFIRMED] = payment(PaymentStatus.REFUNDED)


def confirmed_and_refunded_by_the_provider(world: Clean) -> None:
    world.provider[0] = replace(world.provider[0], refunded_cents=500)


def confirmed_and_never_taken(world: Clean) -> None:
    del world.provider[0]


def confirmed_and_released(world: Clean) -> None:
    world.reservations[CONFIRMED] = RELEASED_TEA


def ended_twice(world: Clean) -> None:
    world.publish("order", 3, cancelled(CONFIRMED))


def ended_otherwise(world: Clean) -> None:
    world.orders[DECLINED] = order(OrderStatus.CONFIRMED)


def ended_by_hand(world: Clean) -> None:
    world.orders[STRANGER] = order(OrderStatus.CANCELLED)


def ended_only_in_the_history(world: Clean) -> None:
    world.orders[DECLINED] = order(OrderStatus.PENDING)


def ended_twice_only_in_the_history(world: Clean) -> None:
    ended_only_in_the_history(world)
    world.publish("order", 3, confirmed(DECLINED))


def events_about_a_stranger(world: Clean) -> None:
    world.publish("inventory", 1, reserved(STRANGER))


def payment_for_a_stranger(world: Clean) -> None:
    world.payments[STRANGER] = payment(PaymentStatus.VOIDED, 0)


def stock_for_a_stranger(world: Clean) -> None:
    world.reservations[STRANGER] = HELD_TEA


def charge_of_an_order_that_is_forgotten(world: Clean) -> None:
    world.payments[STRANGER] = payment(PaymentStatus.CHARGING)
    world.provider.append(line(STRANGER))


def charge_nobody_asked_for(world: Clean) -> None:
    world.provider.append(line(STRANGER))


def charge_the_provider_lacks(world: Clean) -> None:
    del world.provider[0]


def declined_only_by_us(world: Clean) -> None:
    world.provider[1] = line(DECLINED)


def refunded_only_by_us(world: Clean) -> None:
    world.provider[2] = line(REFUNDED)


def refunded_in_part(world: Clean) -> None:
    world.provider[2] = line(REFUNDED, refunded_cents=499)


def other_amount_at_the_provider(world: Clean) -> None:
    world.provider[0] = replace(world.provider[0], amount_cents=501)


def other_currency_at_the_provider(world: Clean) -> None:
    world.provider[0] = replace(world.provider[0], currency="SEK")


def other_amount_than_the_order(world: Clean) -> None:
    world.orders[CONFIRMED] = order(OrderStatus.CONFIRMED, 501)


def still_pending(world: Clean) -> None:
    world.orders[STRANGER] = order(OrderStatus.PENDING)


def begun_and_not_known(world: Clean) -> None:
    world.publish("order", 1, placed(STRANGER))


def begun_with_nothing_due(world: Clean) -> None:
    world.publish("order", 1, placed(STRANGER))
    world.orders[STRANGER] = order(OrderStatus.UNKNOWN)


def cancelled_but_charged(world: Clean) -> None:
    world.payments[REFUNDED] = payment(PaymentStatus.CHARGED)


def cancelled_but_charged_by_the_provider(world: Clean) -> None:
    world.provider[1] = line(DECLINED)


def cancelled_but_held(world: Clean) -> None:
    world.reservations[DECLINED] = HELD_TEA


def cancelled_and_never_refunded(world: Clean) -> None:
    world.publish("payment", 1, charged(STRANGER))
    world.publish("order", 1, cancelled(STRANGER))
    world.orders[STRANGER] = order(OrderStatus.CANCELLED)
    world.payments[STRANGER] = payment(PaymentStatus.REFUNDED)
    world.provider.append(line(STRANGER, refunded_cents=500))


def left_charging(world: Clean) -> None:
    world.payments[DECLINED] = payment(PaymentStatus.CHARGING)


def left_settling(world: Clean) -> None:
    world.payments[DECLINED] = payment(PaymentStatus.SETTLING)


def left_refunding(world: Clean) -> None:
    world.payments[REFUNDED] = payment(PaymentStatus.REFUNDING, sequence=2)


def left_refused(world: Clean) -> None:
    """A mail server took no mail, and it is not tried again."""
    world.notifications[CONFIRMED] = Notification("", 1, NotificationStatus.WAITING, LETTER, AT)
    world.sequences["notification"][CONFIRMED] = 1


def left_sending(world: Clean) -> None:
    world.notifications[CONFIRMED] = Notification(
        "", 1, NotificationStatus.SENDING, LETTER, AT, tries=1
    )


def mailed_otherwise(world: Clean) -> None:
    write(world, CONFIRMED, kind=LetterKind.CANCELLED)


def mailed_another_total(world: Clean) -> None:
    write(world, CONFIRMED, total_cents=501)


def mailed_another_currency(world: Clean) -> None:
    write(world, CONFIRMED, currency="SEK")


def mailed_another_customer(world: Clean) -> None:
    write(world, REFUNDED, customer="eve")


def mailed_another_reason(world: Clean) -> None:
    write(world, DECLINED, reason=CancellationReason.DEADLINE_EXCEEDED)


def mailed_about_a_stranger(world: Clean) -> None:
    world.mail(STRANGER, LETTER)


def mailed_a_confirmation_that_never_was(world: Clean) -> None:
    world.mail(DECLINED, LETTER)


def write(world: Clean, order_id: str, **changes: Any) -> None:
    """Make the letter about an order say something else."""
    notification = world.notifications[order_id]
    assert notification.letter is not None
    letter = notification.letter.model_copy(update=changes)
    world.notifications[order_id] = replace(notification, letter=letter)


def mailed_two_times(world: Clean) -> None:
    world.mails = {CONFIRMED: 2, DECLINED: 1, REFUNDED: 1}


def mailed_a_third_time_after_one_doubt(world: Clean) -> None:
    world.mails = {CONFIRMED: 3, DECLINED: 1, REFUNDED: 1}
    doubtful = NotificationUnconfirmed(order_id=UUID(CONFIRMED), detail="no answer")
    world.publish("notification", 3, doubtful)


def sent_and_never_taken(world: Clean) -> None:
    world.mails = {CONFIRMED: 1, DECLINED: 1}


def never_mailed(world: Clean) -> None:
    world.mails = dict.fromkeys(world.orders, 1)
    del world.notifications[REFUNDED]


def refused_and_never_mailed(world: Clean) -> None:
    world.mails = dict.fromkeys(world.orders, 1)
    left_refused(world)


def ordered_otherwise(world: Clean) -> None:
    lines = (OrderLine(sku="tea", quantity=1, unit_price_cents=500),)
    world.orders[CONFIRMED] = replace(world.orders[CONFIRMED], lines=lines)


def released_otherwise(world: Clean) -> None:
    """What was released is not what was ordered, nor held."""
    lines = (HeldLine(sku="tea", quantity=1),)
    world.reservations[DECLINED] = replace(RELEASED_TEA, lines=lines)


def adds_up_to_something_else(world: Clean) -> None:
    lines = (OrderLine(sku="tea", quantity=2, unit_price_cents=251),)
    world.orders[CONFIRMED] = replace(world.orders[CONFIRMED], lines=lines)


def reserved_at_another_total(world: Clean) -> None:
    world.correct(StockReserved, DECLINED, total_cents=501)


def reserved_in_another_currency(world: Clean) -> None:
    world.correct(StockReserved, DECLINED, currency="SEK")


def charged_another_amount(world: Clean) -> None:
    world.correct(PaymentCharged, CONFIRMED, amount_cents=499)


def gave_back_another_amount(world: Clean) -> None:
    world.correct(PaymentRefunded, REFUNDED, amount_cents=499)


def confirmed_at_another_total(world: Clean) -> None:
    world.correct(OrderConfirmed, CONFIRMED, total_cents=499)


def placed_by_another_customer(world: Clean) -> None:
    world.correct(OrderPlaced, DECLINED, customer="eve")


def reserved_for_another_customer(world: Clean) -> None:
    world.correct(StockReserved, CONFIRMED, customer="eve")


def confirmed_to_another_customer(world: Clean) -> None:
    world.correct(OrderConfirmed, CONFIRMED, customer="eve")


def cancelled_for_another_customer(world: Clean) -> None:
    world.correct(OrderCancelled, REFUNDED, customer="eve")


def charged_to_another_customer(world: Clean) -> None:
    world.provider[0] = replace(world.provider[0], customer="eve")


def asks_another_customer_for_money(world: Clean) -> None:
    world.payments[CONFIRMED] = replace(payment(PaymentStatus.CHARGING), customer="eve")


def said_but_not_published(world: Clean) -> None:
    world.sequences["payment"][DECLINED] = 2


def never_done(world: Clean) -> None:
    world.owe("payment", "e1")


def never_buried(world: Clean) -> None:
    world.undone["payment"] = {
        "bad": OwedMessage("order.cancelled.normal", None, AT, decodable=False)
    }


UNEXPLAINED = (
    "the provider keeps 500 cents EUR, and neither the order service nor the history knows such an "
    "order; pay it back, unless its client sends the order again"
)
LEFT_OPEN = (
    "the Notification of notification is in the middle of a question: no event tells of what it is "
    "now"
)
BROKEN: Mapping[Callable[[Clean], None], tuple[str, str, str]] = {
    charged_by_two_events: (
        "said_twice",
        CONFIRMED,
        "payment.charged was published 2 times, as different events",
    ),
    refunded_by_two_events: (
        "said_twice",
        REFUNDED,
        "payment.refunded was published 2 times, as different events",
    ),
    placed_after_the_end: (
        "after_the_end",
        CONFIRMED,
        "order.placed was published after order.confirmed",
    ),
    gave_back_too_much: (
        "refund_exceeds_charge",
        REFUNDED,
        "the provider took 500 cents and gave back 501",
    ),
    gave_back_what_it_declined: (
        "refund_exceeds_charge",
        DECLINED,
        "the provider took 0 cents and gave back 1",
    ),
    less_than_nothing: ("stock_negative", "tea", "units: -1 free and 11 held"),
    units_vanished: (
        "stock_not_conserved",
        "tea",
        "of 10 units put on the shelf, 7 are free and 2 held: 9",
    ),
    units_from_nowhere: (
        "stock_not_conserved",
        "coffee",
        "of 0 units put on the shelf, 1 are free and 0 held: 1",
    ),
    delivered_less: (
        "delivery_differs",
        delivery_key(DELIVERY, "tea"),
        "it brought 10 units, and counts as 9",
    ),
    delivered_at_another_price: (
        "delivery_differs",
        delivery_key(DELIVERY, "tea"),
        "it brought units at 250 cents EUR each, and counts as at 260 cents EUR",
    ),
    delivered_in_another_currency: (
        "delivery_differs",
        delivery_key(DELIVERY, "tea"),
        "it brought units at 250 cents EUR each, and counts as at 250 cents SEK",
    ),
    dearer_than_delivered: (
        "price_differs",
        "tea",
        "it costs 260 cents EUR, its last delivery said 250 cents EUR",
    ),
    delivered_again: ("delivered_twice", "tea", f"delivery {DELIVERY} counts 2 times"),
    held_at_another_price: (
        "sold_untrue",
        STRANGER,
        "tea is held for it at 300 cents EUR, for which it never was for sale",
    ),
    held_for_nobody: (
        "held_mismatch",
        "tea",
        "by the shelf, 3 units are held; the reservations hold 2",
    ),
    held_of_nothing: (
        "held_mismatch",
        "coffee",
        "by the shelf, 0 units are held; the reservations hold 1",
    ),
    confirmed_without_payment: ("confirmed_unpaid", CONFIRMED, "the payment is none"),
    confirmed_and_refunded: ("confirmed_unpaid", CONFIRMED, "the payment is refunded"),
    confirmed_and_refunded_by_the_provider: (
        "confirmed_unpaid",
        CONFIRMED,
        "the provider gave back 500 cents",
    ),
    confirmed_and_released: ("confirmed_not_held", CONFIRMED, "no stock is held for it"),
    confirmed_and_never_taken: ("confirmed_unpaid", CONFIRMED, "the provider took no money"),
    ended_twice_only_in_the_history: (
        "outcome_unheard",
        DECLINED,
        "order.cancelled and order.confirmed was published, but it is pending",
    ),
    ended_twice: (
        "outcome_changed",
        CONFIRMED,
        "these were published: order.cancelled, order.confirmed",
    ),
    ended_otherwise: (
        "outcome_differs",
        DECLINED,
        "order.cancelled was published, but it is confirmed",
    ),
    ended_by_hand: (
        "outcome_differs",
        STRANGER,
        "it is cancelled, but order.cancelled was never published",
    ),
    ended_only_in_the_history: (
        "outcome_unheard",
        DECLINED,
        "order.cancelled was published, but it is pending",
    ),
    events_about_a_stranger: (
        "order_missing",
        STRANGER,
        "there are events about it, but the order service does not know it",
    ),
    payment_for_a_stranger: (
        "order_missing",
        STRANGER,
        "there is a payment for it, but the order service does not know it",
    ),
    stock_for_a_stranger: (
        "order_missing",
        STRANGER,
        "stock is held for it, but the order service does not know it",
    ),
    charge_nobody_asked_for: (
        "books_differ",
        STRANGER,
        "the provider was asked, but there is no payment",
    ),
    charge_of_an_order_that_is_forgotten: (
        "charge_unexplained",
        STRANGER,
        UNEXPLAINED,
    ),
    charge_the_provider_lacks: (
        "books_differ",
        CONFIRMED,
        "the payment is charged, but the provider was never asked",
    ),
    declined_only_by_us: (
        "books_differ",
        DECLINED,
        "the payment is declined, the provider's is charged",
    ),
    refunded_only_by_us: (
        "books_differ",
        REFUNDED,
        "the payment is refunded, the provider's is charged",
    ),
    refunded_in_part: (
        "books_differ",
        REFUNDED,
        "the payment is refunded, the provider's is refunded in part",
    ),
    other_amount_at_the_provider: (
        "books_differ",
        CONFIRMED,
        "the payment is over 500 cents EUR, the provider's over 501 cents EUR",
    ),
    other_currency_at_the_provider: (
        "books_differ",
        CONFIRMED,
        "the payment is over 500 cents EUR, the provider's over 500 cents SEK",
    ),
    other_amount_than_the_order: (
        "books_differ",
        CONFIRMED,
        "the payment is over 500 cents EUR, the order over 501 cents EUR",
    ),
    still_pending: ("not_terminal", STRANGER, "it is pending"),
    begun_and_not_known: (
        "order_missing",
        STRANGER,
        "there are events about it, but the order service does not know it",
    ),
    begun_with_nothing_due: (
        "endless",
        STRANGER,
        "it was begun and has not ended, and nothing is due that would end it",
    ),
    cancelled_but_charged: (
        "charged_not_confirmed",
        REFUNDED,
        "it is cancelled, but charged in our books",
    ),
    cancelled_but_charged_by_the_provider: (
        "charged_not_confirmed",
        DECLINED,
        "it is cancelled, but charged in the provider's",
    ),
    cancelled_but_held: ("held_not_confirmed", DECLINED, "it is cancelled, but its stock is held"),
    cancelled_and_never_refunded: (
        "effect_standing",
        STRANGER,
        "it was cancelled, and nothing undid payment.charged",
    ),
    left_charging: ("payment_unsettled", DECLINED, "the payment is charging"),
    left_settling: ("payment_unsettled", DECLINED, "the payment is settling"),
    left_refunding: ("payment_unsettled", REFUNDED, "the payment is refunding"),
    left_refused: (
        "question_open",
        CONFIRMED,
        LEFT_OPEN,
    ),
    left_sending: (
        "mail_unsettled",
        CONFIRMED,
        "its mail may have been sent, and no process goes on with it",
    ),
    mailed_otherwise: (
        "mail_untrue",
        CONFIRMED,
        "the mail tells kind cancelled, the order's is confirmed",
    ),
    mailed_another_total: (
        "mail_untrue",
        CONFIRMED,
        "the mail tells total_cents 501, the order's is 500",
    ),
    mailed_another_currency: (
        "mail_untrue",
        CONFIRMED,
        "the mail tells currency SEK, the order's is EUR",
    ),
    mailed_another_customer: (
        "mail_untrue",
        REFUNDED,
        "the mail tells customer eve, the order's is ada",
    ),
    mailed_another_reason: (
        "mail_untrue",
        DECLINED,
        "the mail tells reason deadline_exceeded, the order's is customer_request",
    ),
    mailed_about_a_stranger: (
        "mailed_unended",
        STRANGER,
        "the mail tells that it is confirmed, which was never published",
    ),
    mailed_a_confirmation_that_never_was: (
        "mailed_unended",
        DECLINED,
        "the mail tells that it is confirmed, which was never published",
    ),
    mailed_two_times: ("mailed_twice", CONFIRMED, "2 mails were taken"),
    mailed_a_third_time_after_one_doubt: ("mailed_twice", CONFIRMED, "3 mails were taken"),
    sent_and_never_taken: ("not_mailed", REFUNDED, "it counts as sent, and no mail was taken"),
    never_mailed: ("not_mailed", REFUNDED, "its notification is none"),
    refused_and_never_mailed: ("not_mailed", CONFIRMED, "its notification is waiting"),
    ordered_otherwise: ("held_differs", CONFIRMED, "{'tea': 2} is held, {'tea': 1} was ordered"),
    released_otherwise: ("held_differs", DECLINED, "{'tea': 1} was held, {'tea': 2} was ordered"),
    adds_up_to_something_else: (
        "totals_differ",
        CONFIRMED,
        "it is over 500 cents, its lines add up to 502",
    ),
    reserved_at_another_total: (
        "totals_differ",
        DECLINED,
        "stock.reserved is over 501 cents EUR, the order over 500 cents EUR",
    ),
    reserved_in_another_currency: (
        "totals_differ",
        DECLINED,
        "stock.reserved is over 500 cents SEK, the order over 500 cents EUR",
    ),
    charged_another_amount: (
        "totals_differ",
        CONFIRMED,
        "payment.charged is over 499 cents EUR, the order over 500 cents EUR",
    ),
    gave_back_another_amount: (
        "totals_differ",
        REFUNDED,
        "payment.refunded is over 499 cents EUR, the order over 500 cents EUR",
    ),
    confirmed_at_another_total: (
        "totals_differ",
        CONFIRMED,
        "order.confirmed is over 499 cents EUR, the order over 500 cents EUR",
    ),
    placed_by_another_customer: (
        "customers_differ",
        DECLINED,
        "order.placed names 'eve', 'ada' placed the order",
    ),
    reserved_for_another_customer: (
        "customers_differ",
        CONFIRMED,
        "stock.reserved names 'eve', 'ada' placed the order",
    ),
    confirmed_to_another_customer: (
        "customers_differ",
        CONFIRMED,
        "order.confirmed names 'eve', 'ada' placed the order",
    ),
    cancelled_for_another_customer: (
        "customers_differ",
        REFUNDED,
        "order.cancelled names 'eve', 'ada' placed the order",
    ),
    charged_to_another_customer: (
        "customers_differ",
        CONFIRMED,
        "the provider's charge names 'eve', 'ada' placed the order",
    ),
    asks_another_customer_for_money: (
        "customers_differ",
        CONFIRMED,
        "the payment names 'eve', 'ada' placed the order",
    ),
    said_but_not_published: (
        "unpublished",
        DECLINED,
        "of the 2 events of payment about it, number 2 is neither in the history nor in the outbox",
    ),
    never_done: (
        "lost",
        "payment/e1",
        f"order.placed about {CONFIRMED} is neither done nor in a queue of payment",
    ),
    never_buried: (
        "lost",
        "payment/bad",
        "the message sent to order.cancelled.normal, which it cannot read, is not dead of payment",
    ),
}
"""The rule that finds it, what about, and what it says."""


def test_orders_at_their_ends_break_no_rule() -> None:
    assert Clean().judged() == []


@pytest.mark.parametrize("damage", BROKEN, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("reverse", [False, True], ids=["", "reversed"])
def test_damage_is_found(damage: Callable[[Clean], None], reverse: bool) -> None:
    """Whatever else there is, before it or after it."""
    world = Clean()
    damage(world)
    if reverse:
        world.reverse()
    rule, subject, detail = BROKEN[damage]
    assert Violation(rule, subject, detail) in world.judged()


# --- each rule's own twin -----------------------------------------------------------------------


def sold_more_than_there_is(world: Clean) -> None:
    """One unit was delivered, and two of it are held."""
    world.correct(StockAdded, "tea", quantity=1)
    delivered = {key: replace(one, quantity=1) for key, one in world.deliveries.items()}
    world.deliveries = delivered
    world.stock["tea"] = replace(world.stock["tea"], free=-1)


def sold_at_another_price(world: Clean) -> None:
    """What was delivered, and all orders were for, has another price in all our books."""
    world.correct(StockAdded, "tea", unit_price_cents=300)
    dearer = {key: replace(one, unit_price_cents=300) for key, one in world.deliveries.items()}
    world.deliveries = dearer
    world.stock["tea"] = replace(world.stock["tea"], unit_price_cents=300)


def confirmed_and_given_back(world: Clean) -> None:
    """All books agree that the money of a confirmed order was given back."""
    world.payments[CONFIRMED] = payment(PaymentStatus.REFUNDED, sequence=2)
    world.provider[0] = line(CONFIRMED, refunded_cents=500)
    world.publish("payment", 2, refunded(CONFIRMED))
    world.sequences["payment"][CONFIRMED] = 2


def confirmed_and_put_back(world: Clean) -> None:
    """What was held for a confirmed order is on the shelf again, and all say so."""
    world.reservations[CONFIRMED] = RELEASED_TEA
    world.stock["tea"] = replace(world.stock["tea"], free=10, held=0)
    world.publish("inventory", 2, released(CONFIRMED))
    world.sequences["inventory"][CONFIRMED] = 2


def cancelled_and_then_confirmed(world: Clean) -> None:
    world.publish("order", 3, confirmed(DECLINED))


def cancelled_and_paid(world: Clean) -> None:
    """What was charged for a cancelled order is kept, and both books say so."""
    world.retell(lambda event: event if event != refunded(REFUNDED) else None)
    world.payments[REFUNDED] = payment(PaymentStatus.CHARGED)
    world.sequences["payment"][REFUNDED] = 1
    world.provider[2] = line(REFUNDED)


def cancelled_and_held(world: Clean) -> None:
    """What was held for a cancelled order is held still, and all say so."""
    world.retell(lambda event: event if event != released(DECLINED) else None)
    world.reservations[DECLINED] = HELD_TEA
    world.sequences["inventory"][DECLINED] = 1
    world.stock["tea"] = replace(world.stock["tea"], free=6, held=4)


def charged_while_it_is_forgotten(world: Clean) -> None:
    """Money was taken a moment ago for an order that was never placed."""
    world.payments[STRANGER] = payment(PaymentStatus.CHARGED)
    world.provider.append(line(STRANGER))
    world.publish("payment", 1, charged(STRANGER), at=NOW)


def placed_after_an_end_that_began_too_long_ago(world: Clean) -> None:
    """Retention has removed that the order was placed; now that is said again, after its end."""
    world.retell(lambda event: event if event != placed(CONFIRMED) else None)
    world.history.first_offset = 1
    world.publish("order", 3, placed(CONFIRMED))


def placed_and_left(world: Clean) -> None:
    """Its time has come, and nothing ends it. The order saga says so itself, and better; so this is
    a saga that says nothing."""
    world.rules = Rules(replace(SAGA, always=(), at_rest=()))
    world.publish("order", 1, placed(STRANGER))
    world.orders[STRANGER] = replace(order(OrderStatus.PENDING), sequence=1, ended_at=None)


def placed_and_put_back(world: Clean) -> None:
    """An order was placed a moment ago, and nothing is due about its row."""
    world.publish("order", 1, placed(STRANGER), at=NOW)
    world.orders[STRANGER] = order(OrderStatus.UNKNOWN)


def ended_and_put_back(world: Clean) -> None:
    """A backup's row of an order that has ended since."""
    world.orders[DECLINED] = replace(order(OrderStatus.PENDING), sequence=1, ended_at=None)


def undone_by_nobody(world: Clean) -> None:
    """What the events tell was done is not told to be undone, although no row says so."""
    world.retell(lambda event: event if event != released(DECLINED) else None)
    world.sequences["inventory"][DECLINED] = 1


ALONE: Mapping[str, tuple[Callable[[Clean], None], str]] = {
    "refund_exceeds_charge": (
        gave_back_what_it_declined,
        "the provider took 0 cents and gave back 1",
    ),
    "stock_negative": (sold_more_than_there_is, "units: -1 free and 2 held"),
    "stock_not_conserved": (
        units_vanished,
        "of 10 units put on the shelf, 7 are free and 2 held: 9",
    ),
    "delivery_differs": (delivered_less, "it brought 10 units, and counts as 9"),
    "price_differs": (
        dearer_than_delivered,
        "it costs 260 cents EUR, its last delivery said 250 cents EUR",
    ),
    "delivered_twice": (delivered_again, f"delivery {DELIVERY} counts 2 times"),
    "sold_untrue": (
        sold_at_another_price,
        "tea is held for it at 250 cents EUR, for which it never was for sale",
    ),
    "held_mismatch": (held_for_nobody, "by the shelf, 3 units are held; the reservations hold 2"),
    "held_differs": (ordered_otherwise, "{'tea': 2} is held, {'tea': 1} was ordered"),
    "confirmed_unpaid": (confirmed_and_given_back, "the payment is refunded"),
    "confirmed_not_held": (confirmed_and_put_back, "no stock is held for it"),
    "outcome_differs": (ended_by_hand, "it is cancelled, but order.cancelled was never published"),
    "books_differ": (
        other_currency_at_the_provider,
        "the payment is over 500 cents EUR, the provider's over 500 cents SEK",
    ),
    "charge_unexplained": (
        charged_while_it_is_forgotten,
        UNEXPLAINED,
    ),
    "totals_differ": (
        reserved_at_another_total,
        "stock.reserved is over 501 cents EUR, the order over 500 cents EUR",
    ),
    "customers_differ": (
        reserved_for_another_customer,
        "stock.reserved names 'eve', 'ada' placed the order",
    ),
    "mailed_unended": (
        mailed_about_a_stranger,
        "the mail tells that it is confirmed, which was never published",
    ),
    "mailed_twice": (mailed_two_times, "2 mails were taken"),
    "not_terminal": (still_pending, "it is pending"),
    "outcome_unheard": (ended_and_put_back, "order.cancelled was published, but it is pending"),
    "order_missing": (
        events_about_a_stranger,
        "there are events about it, but the order service does not know it",
    ),
    "charged_not_confirmed": (
        cancelled_and_paid,
        "it is cancelled, but charged in our books and the provider's",
    ),
    "held_not_confirmed": (cancelled_and_held, "it is cancelled, but its stock is held"),
    "payment_unsettled": (left_charging, "the payment is charging"),
    "mail_untrue": (mailed_another_total, "the mail tells total_cents 501, the order's is 500"),
    "mail_unsettled": (left_sending, "its mail may have been sent, and no process goes on with it"),
    "not_mailed": (sent_and_never_taken, "it counts as sent, and no mail was taken"),
    "outcome_changed": (
        cancelled_and_then_confirmed,
        "these were published: order.cancelled, order.confirmed",
    ),
    "said_twice": (
        charged_by_two_events,
        "payment.charged was published 2 times, as different events",
    ),
    "after_the_end": (
        placed_after_an_end_that_began_too_long_ago,
        "order.placed was published after order.confirmed",
    ),
    "not_ended": (placed_and_left, "order.placed was published, and no end"),
    "endless": (
        placed_and_put_back,
        "it was begun and has not ended, and nothing is due that would end it",
    ),
    "effect_standing": (undone_by_nobody, "it was cancelled, and nothing undid stock.reserved"),
    "question_open": (
        left_refused,
        LEFT_OPEN,
    ),
    "unpublished": (
        said_but_not_published,
        "of the 2 events of payment about it, number 2 is neither in the history nor in the outbox",
    ),
    "lost": (
        never_done,
        f"order.placed about {CONFIRMED} is neither done nor in a queue of payment",
    ),
}
"""Keyed by rule, a system with one thing wrong that this rule finds, and no other; and what it says
of it."""


def all_rules() -> list[str]:
    """Those of the saga, those that follow from roles, and that no message is lost; those also that
    read what can be read in simulations only."""
    own = [invariant.name for invariant in SAGA.invariants]
    return [*own, *RULES_OF_ROLES, *conservation.RULES]


@pytest.mark.parametrize("rule", all_rules())
def test_each_rule_has_a_twin_that_no_other_rule_finds(rule: str) -> None:
    world = Clean()
    assert rule in ALONE, f"no twin shows that {rule} finds anything: add one"

    twin, detail = ALONE[rule]
    twin(world)

    assert {(violation.rule, violation.detail) for violation in world.judged()} == {(rule, detail)}


def test_there_is_a_twin_for_no_rule_that_is_gone() -> None:
    assert ALONE.keys() == {*all_rules()} > {*rule_names(SAGA)}


def test_what_is_left_to_people_is_no_violation() -> None:
    world = Clean()
    assert left_to_people(world) == []

    doubtful = NotificationUnconfirmed(order_id=UUID(CONFIRMED), detail="no answer")
    world.retell(lambda event: event if event.subject != CONFIRMED else told_in_doubt(event))
    world.publish("notification", 2, doubtful)
    world.notifications[CONFIRMED] = replace(
        world.notifications[CONFIRMED], status=NotificationStatus.UNKNOWN, detail="no answer"
    )

    assert world.found() == {}
    assert left_to_people(world) == [("mails_unknown", CONFIRMED, "no answer")]


def told_in_doubt(event: Event) -> Event | None:
    return None if isinstance(event, NotificationSent) else event


def left_to_people(world: Clean) -> list[tuple[str, str, str]]:
    view = world.view()
    return [
        (rule.name, subject, detail)
        for rule in SAGA.left_to_people
        for subject, detail in rule.broken(view)
    ]


# --- what is not a violation -------------------------------------------------------------------


def test_the_same_event_published_again_is_one_event() -> None:
    world = Clean()
    world.publish("payment", 1, charged(CONFIRMED))
    world.publish("payment", 2, refunded(REFUNDED))
    world.publish("order", 2, confirmed(CONFIRMED))
    world.publish("inventory", 1, added(10))
    assert world.found() == {}


def test_a_delivery_younger_than_the_shelf_that_was_read_does_not_count_yet() -> None:
    world = Clean()
    world.publish("inventory", 2, added(5, UUID(int=2)))
    assert world.found() == {}


def test_a_mail_may_be_taken_once_more_for_each_time_that_it_was_in_doubt() -> None:
    world = Clean()
    mailed_a_third_time_after_one_doubt(world)
    world.mails = {CONFIRMED: 2, DECLINED: 1, REFUNDED: 1}

    assert world.found() == {}


def test_whoever_was_given_everything_back_is_owed_no_explanation() -> None:
    world = Clean()
    charged_while_it_is_forgotten(world)
    world.provider[-1] = line(STRANGER, refunded_cents=500)
    assert "charge_unexplained" not in world.found()

    world.provider[-1] = line(STRANGER, refunded_cents=499)
    assert world.found()["charge_unexplained"] == {STRANGER}


def at_rest(world: Clean) -> Callable[[str], bool]:
    return Rest(world.where())


def test_an_order_that_moved_within_the_grace_may_be_anywhere() -> None:
    world = Clean()
    world.orders[STRANGER] = order(OrderStatus.PENDING)
    world.reservations[STRANGER] = HELD_TEA
    world.stock["tea"] = replace(world.stock["tea"], free=6, held=4)
    assert world.found().keys() == {"not_terminal", "held_not_confirmed"}
    world.publish("inventory", 1, reserved(STRANGER), at=NOW - timedelta(seconds=GRACE_SECONDS - 1))
    assert not at_rest(world)(STRANGER)
    assert world.found() == {}


def test_a_clock_that_was_set_back_hides_no_order() -> None:
    world = Clean()
    tomorrow = NOW + timedelta(days=1)
    world.orders[STRANGER] = order(OrderStatus.PENDING, at=tomorrow)
    world.publish("inventory", 1, reserved(STRANGER), at=tomorrow)

    assert at_rest(world)(STRANGER)
    assert "not_terminal" in world.found()


def test_an_order_whose_newest_event_is_within_the_grace_moves_whatever_older_ones_say() -> None:
    world = Clean()
    tomorrow = NOW + timedelta(days=1)
    world.orders[STRANGER] = order(OrderStatus.PENDING, at=tomorrow)
    world.publish("inventory", 1, reserved(STRANGER), at=tomorrow)
    world.publish("payment", 1, charged(STRANGER), at=NOW - timedelta(seconds=1))

    assert not at_rest(world)(STRANGER)


def test_without_a_grace_every_order_is_judged_whatever_the_clocks_say() -> None:
    world = Clean()
    for seconds in (-1, 0, 1):
        at = NOW + timedelta(seconds=seconds)
        world.publish("order", 1, placed(str(UUID(int=100 + seconds))), at=at)

    rests = Rest(world.where(grace_seconds=0.0))

    assert all(rests(str(UUID(int=100 + seconds))) for seconds in (-1, 0, 1))


def test_an_order_that_ended_after_its_row_was_read_does_not_differ() -> None:
    world = Clean()
    world.orders[STRANGER] = order(OrderStatus.PENDING)
    world.publish("order", 1, placed(STRANGER))
    world.publish("order", 2, cancelled(STRANGER), at=NOW)
    assert world.found() == {}


def test_a_question_is_not_taken_for_open_while_its_message_may_be_in_hand() -> None:
    world = Clean()
    left_refused(world)
    world.owe("notification", "e1", subject=CONFIRMED)
    world.backlogs["notification"] = Backlog(ready=1, read=True)
    assert "question_open" not in world.found()

    world.letters["notification"] = [letter("e1", CONFIRMED)]
    assert "question_open" in world.found()


@pytest.mark.parametrize("status", [PaymentStatus.CHARGING, PaymentStatus.SETTLING])
@pytest.mark.parametrize("answer", ["none", "charged", "declined"])
def test_while_the_provider_is_asked_it_may_have_answered_or_not(
    status: PaymentStatus, answer: str
) -> None:
    world = Clean()
    world.payments[STRANGER] = payment(status)
    if answer != "none":
        declined = answer == "declined"
        outcome = ChargeOutcome.CARD_DECLINED if declined else ChargeOutcome.CHARGED
        world.provider.append(line(STRANGER, outcome))
    assert "books_differ" not in world.found()


def test_a_cancellation_that_came_first_leaves_a_payment_the_provider_never_heard_of() -> None:
    world = Clean()
    world.publish("order", 1, placed(STRANGER))
    world.publish("order", 2, cancelled(STRANGER))
    world.publish("payment", 1, PaymentVoided(order_id=UUID(STRANGER)))
    world.orders[STRANGER] = order(OrderStatus.CANCELLED)
    world.payments[STRANGER] = Payment("", 1, PaymentStatus.VOIDED)
    assert world.found() == {}


def test_a_dead_letter_is_not_lost() -> None:
    world = Clean()
    world.owe("payment", "e1")
    world.letters["payment"] = [letter("e1")]
    assert world.found() == {}


def test_a_dead_letter_explains_the_order_that_waits_for_it() -> None:
    world = Clean()
    world.orders[STRANGER] = order(OrderStatus.PENDING)
    world.owe("inventory", "e1", subject=STRANGER)
    world.letters["inventory"] = [letter("e1", STRANGER)]
    (violation,) = world.judged()
    assert violation.rule == "not_terminal"
    assert violation.detail == "it is pending; waiting on dead letter e1 of inventory (failed)"


def test_the_debtor_of_an_order_is_named() -> None:
    world = Clean()
    world.orders[STRANGER] = order(OrderStatus.PENDING)
    world.owe("inventory", "e1", subject=STRANGER)
    world.backlogs["inventory"] = Backlog(ready=1, waiting={"e1"})
    (violation,) = world.judged()
    assert violation.detail == "it is pending; inventory has not dealt with order.placed e1"


def test_what_waits_in_a_queue_that_nobody_reads_is_not_lost() -> None:
    world = Clean()
    world.owe("payment", "e1")
    world.owe("payment", "e2")
    world.backlogs["payment"] = Backlog(ready=1, waiting={"e1"})
    assert world.found() == {"lost": {"payment/e2"}}
    assert undecided(world.where()) == 0


def test_what_a_consumer_at_work_may_hold_is_undecided() -> None:
    world = Clean()
    world.owe("payment", "e1")
    world.owe("payment", "e2", at=NOW)
    world.backlogs["payment"] = Backlog(ready=1, read=True)
    assert world.found() == {}
    assert undecided(world.where()) == 2


def test_an_old_event_that_an_idle_consumer_has_not_done_is_lost() -> None:
    world = Clean()
    world.owe("payment", "e1")
    world.owe("payment", "e2", at=NOW)
    world.backlogs["payment"] = Backlog(ready=0, read=True)
    assert world.found() == {"lost": {"payment/e1"}}
    assert undecided(world.where()) == 1


# --- the history -------------------------------------------------------------------------------


def test_an_event_is_owed_by_each_participant_that_reacts_to_it() -> None:
    world = Clean()
    id = f"order-2-{REFUNDED}"
    debtors = {name for name, owed in world.history.owed.items() if id in owed}
    assert {"inventory", "payment"} <= debtors
    assert "order" not in debtors


def test_a_malformed_message_is_owed_wherever_its_routing_key_leads() -> None:
    history = history_for(SAGA)
    history.take("stock.reserved.high", "bad", AT, b"{")
    history.take("nobody.cares.high", "worse", AT, b"{")
    assert {name: set(owed) for name, owed in history.owed.items() if owed} == {"payment": {"bad"}}
    assert history.undecodable == 2


def test_an_event_under_a_foreign_routing_key_is_owed_by_both() -> None:
    history = history_for(SAGA)
    envelope = wrap(
        reserved(CONFIRMED),
        id="e1",
        source="/services/inventory",
        time=AT,
        priority=Priority.NORMAL,
    )
    history.take("order.placed.normal", "e1", AT, envelope.to_bytes())
    assert history.owed["payment"]["e1"].decodable
    assert not history.owed["inventory"]["e1"].decodable


def test_an_event_that_says_another_source_is_owed_as_a_dead_letter_unless_the_real_one_comes() -> (
    None
):
    history = history_for(SAGA)
    for source, decodable in (("/services/order", False), ("/services/inventory", True)):
        event = wrap(reserved(CONFIRMED), id="e1", source=source, time=AT, priority=Priority.NORMAL)
        history.take("stock.reserved.normal", "e1", AT, event.to_bytes())
        assert history.owed["payment"]["e1"].decodable == decodable

    assert history.undecodable == 1
    assert history.owed["payment"]["e1"].copies == 2


def test_messages_without_an_id_are_told_apart_by_their_bodies() -> None:
    assert key_of(None, b"{") == key_of("", b"{") != key_of(None, b"[")
    assert key_of("id", b"{") == "id"


def test_of_a_trimmed_history_only_the_gaps_after_its_head_are_missed() -> None:
    history = history_for(SAGA)
    world = Clean()
    world.history = history
    world.publish("payment", 3, charged(CONFIRMED))
    assert list(history.missing("payment", CONFIRMED, 5)) == [1, 2, 4, 5]
    assert list(history.missing("payment", DECLINED, 2)) == [1, 2]
    history.first_offset = 1
    assert list(history.missing("payment", CONFIRMED, 5)) == [4, 5]
    assert list(history.missing("payment", DECLINED, 2)) == []


def test_an_event_that_claims_a_huge_number_costs_no_more_than_another() -> None:
    history = history_for(SAGA)
    world = Clean()
    world.history = history
    last = LOOKED_THROUGH_MAX
    tracemalloc.start()
    for number in range(100):
        world.publish("payment", last, charged(str(UUID(int=number))))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak < 1_000_000
    one = str(UUID(int=1))
    missing = history.missing("payment", one, last)
    assert [next(missing), next(missing)] == [1, 2]
    history.first_offset = 1
    assert list(history.missing("payment", one, last)) == []
    world.publish("payment", last - 2, charged(one))
    assert list(history.missing("payment", one, last + 5)) == [last - 1]


def test_a_trimmed_history_does_not_say_what_was_put_on_the_shelf() -> None:
    world = Clean()
    world.history = history_for(SAGA)
    world.history.first_offset = 1
    assert world.found() == {}


def test_what_a_trimmed_history_does_not_tell_of_some_it_tells_of_others() -> None:
    """Retention has removed the first events about coffee and about an order, and no others."""
    world = Clean()
    units_vanished(world)
    world.stock = {"coffee": StockItem("", 7, 300, "EUR", free=3), **world.stock}
    another = str(UUID(int=99))
    world.orders = {another: order(OrderStatus.CANCELLED), **world.orders}
    world.publish("order", 1, placed(STRANGER))
    world.orders[STRANGER] = order(OrderStatus.CANCELLED)
    world.notifications = {
        another: Notification("", 2, NotificationStatus.SENT, NO_LETTER),
        **world.notifications,
        STRANGER: Notification("", 2, NotificationStatus.SENT, NO_LETTER),
    }
    world.history.first_offset = 1

    found = world.found()

    assert found["stock_not_conserved"] == {"tea"}
    assert found["outcome_differs"] == {STRANGER}
    assert found["mailed_unended"] == {STRANGER}
    assert {"coffee", another} <= world.history.incomplete


def test_of_an_open_question_a_trimmed_history_may_say_nothing() -> None:
    world = Clean()
    left_refused(world)
    world.retell(lambda event: None if isinstance(event, NotificationBegun) else event)
    world.history.first_offset = 1

    assert world.found() == {}
    assert world.history.incomplete >= {CONFIRMED}


def test_a_hole_behind_a_beginning_that_is_known_is_not_for_want_of_that() -> None:
    world = Clean()
    world.retell(
        lambda event: None if event == NotificationSent(order_id=UUID(CONFIRMED)) else event
    )
    world.history.first_offset = 1
    world.found()

    assert CONFIRMED not in world.history.incomplete


def test_units_that_came_before_deliveries_were_numbered_count() -> None:
    unnumbered = wrap(
        added(3), id="1", source="/services/inventory", time=AT, priority=Priority.NORMAL
    )
    item = StockItem("tea", 0, 250, "EUR", free=3)
    states: dict[tuple[type[State], str], State] = {(StockItem, "tea"): item}
    view = View({"inventory": states}, EventsInMemory([unnumbered]), rests=lambda _: True)

    assert list(Invariant.of(stock_not_conserved).broken(view)) == []


def test_a_mail_that_is_not_begun_hides_no_other() -> None:
    world = Clean()
    mailed_a_confirmation_that_never_was(world)
    world.notifications = {STRANGER: Notification(""), **world.notifications}

    assert world.found()["mailed_unended"] == {DECLINED}
    assert world.found()["mail_untrue"] == {DECLINED}


def test_a_delivery_that_the_history_does_not_know_hides_no_other() -> None:
    world = Clean()
    delivered_less(world)
    unknown = delivery_key(UUID(int=9), "tea")
    world.deliveries = {unknown: Delivery("", 0, 1, 250, "EUR"), **world.deliveries}

    assert world.found()["delivery_differs"] == {delivery_key(DELIVERY, "tea")}


def test_a_charge_is_explained_by_the_end_of_an_order_whose_beginning_is_lost() -> None:
    end = OrderCancelled(
        order_id=UUID(STRANGER), customer="ada", reason=CancellationReason.CUSTOMER_REQUEST
    )
    told = wrap(end, id="1", source="/services/order", time=AT, priority=Priority.NORMAL)
    books = Ledger((line(STRANGER),))
    rule = Invariant.of(charge_unexplained)

    def broken(*events: Envelope[Any]) -> list[str]:
        view = View({}, EventsInMemory(events), [books], rests=lambda _: True)
        return [subject for subject, _ in rule.broken(view)]

    assert (broken(), broken(told)) == ([STRANGER], [])
