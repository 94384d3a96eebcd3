"""Broken twins about amounts, currencies, deliveries, rejections, priorities, outages, refunds,
mails, and commands that ask: what a world of one unit, one price and one currency never shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final, Self

from common.events import (
    CancellationReason,
    DeclineReason,
    HeldLine,
    NotificationBegun,
    NotificationDismissed,
    NotificationSent,
    NotificationUnconfirmed,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    PaymentVoided,
    PlaceOrder,
    RejectionReason,
    StockAdded,
    StockRejected,
    StockReleased,
    StockReserved,
)
from inventory_service import domain as inventory
from inventory_service.domain import AddStock, Delivery, Reservation, StockItem
from notification_service import domain as notification
from notification_service.domain import (
    DismissNotification,
    Notification,
    NotificationStatus,
    PutOff,
    Resend,
    ResendNotification,
    Result,
    Send,
    SendAnswered,
)
from order_saga.outsides import PROVIDER, DeskGateway
from order_service import domain as order
from order_service.domain import ExpireOrder, Order
from payment_service import domain as payment
from payment_service.app import build_with
from payment_service.domain import Charge, Payment, Refund, SettleCharge
from payment_service.gateway import GatewayUnavailable
from payment_service.ledger import Decline, Ledger, Receipt
from saga.choreography import Participant
from saga.due import Due
from saga.message import Ask, Decided, Intent, Priority
from saga.outside import Desk, Outside
from tests.swapping import retyped, swapped

StandIn = Participant | Outside[Any]
_Begun = tuple[NotificationBegun, Send] | Send | NotificationUnconfirmed | None


@dataclass(frozen=True)
class WiderTwin:
    """What takes the place of ours; in which scenario that is found, and by one of which rules."""

    make: Callable[[], StandIn]
    row: str
    scenario: str
    rules: frozenset[str]

    @property
    def name(self) -> str:
        return self.make.__name__


WIDER: Final[list[WiderTwin]] = []


def twin(
    row: str, scenario: str, *rules: str
) -> Callable[[Callable[[], StandIn]], Callable[[], StandIn]]:
    def decorate(make: Callable[[], StandIn]) -> Callable[[], StandIn]:
        WIDER.append(WiderTwin(make, row, scenario, frozenset(rules)))
        return make

    return decorate


# --- amounts ------------------------------------------------------------------------------------


def _reserving(change: Callable[[StockReserved], Mapping[str, Any]]) -> Participant:
    def reserve(
        event: OrderPlaced, state: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        reserved = inventory.reserve(event, state, shelf)
        if isinstance(reserved, StockReserved):
            return reserved.model_copy(update=change(reserved))
        return reserved

    return swapped(inventory.PARTICIPANT, reserve)


def _one_of_each(lines: tuple[HeldLine, ...]) -> tuple[HeldLine, ...]:
    return tuple(HeldLine(sku=line.sku, quantity=1) for line in lines)


@twin("amounts", "one order", "held_differs")
def one_unit_is_held_of_each_line() -> Participant:
    return _reserving(lambda reserved: {"lines": _one_of_each(reserved.lines)})


@twin("amounts", "one order", "books_differ", "totals_differ")
def a_total_counts_each_line_once() -> Participant:
    def reserve(
        event: OrderPlaced, state: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        reserved = inventory.reserve(event, state, shelf)
        if isinstance(reserved, StockReserved):
            cents = sum(line.unit_price_cents for line in event.lines)
            return reserved.model_copy(update={"total_cents": cents})
        return reserved

    return swapped(inventory.PARTICIPANT, reserve)


@twin("amounts", "one order", "held_mismatch")
def one_unit_is_released_of_each_line() -> Participant:
    def release(event: OrderCancelled, state: Reservation) -> StockReleased | None:
        released = inventory.release(event, state)
        return released and released.model_copy(update={"lines": _one_of_each(released.lines)})

    return swapped(inventory.PARTICIPANT, release)


# --- a second currency --------------------------------------------------------------------------


@twin("a second currency", "another currency", "sold_untrue")
def francs_are_worth_as_much_as_euros() -> Participant:
    def reserve(
        event: OrderPlaced, state: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        same = {
            sku: replace(item, currency=event.currency) if item.currency else item
            for sku, item in shelf.items()
        }
        return inventory.reserve(event, state, same)

    return swapped(inventory.PARTICIPANT, reserve)


@twin("a second currency", "another currency", "books_differ", "totals_differ")
def everything_is_charged_in_francs() -> Participant:
    def charge(event: StockReserved, state: Payment) -> Charge | None:
        return payment.charge(event.model_copy(update={"currency": "CHF"}), state)

    return swapped(payment.PARTICIPANT, charge)


def _refunding(change: Callable[[Refund], Mapping[str, Any]]) -> Participant:
    def compensate(
        event: OrderCancelled, state: Payment
    ) -> PaymentVoided | SettleCharge | Refund | None:
        asked = payment.compensate(event, state)
        return asked.model_copy(update=change(asked)) if isinstance(asked, Refund) else asked

    return swapped(payment.PARTICIPANT, compensate)


@twin("a second currency", "another currency", "question_refused")
def everything_is_refunded_in_francs() -> Participant:
    return _refunding(lambda _: {"currency": "CHF"})


# --- a second delivery, and another price -------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ReplacedStock(StockItem):
    def evolve(self, message: Decided, at: datetime) -> Self:
        after = StockItem.evolve(self, message, at)
        return replace(after, free=message.quantity) if isinstance(message, StockAdded) else after


@twin("a second delivery", "a shelf", "stock_not_conserved")
def a_delivery_takes_the_place_of_what_was_there() -> Participant:
    return retyped(inventory.PARTICIPANT, StockItem, ReplacedStock)


@dataclass(frozen=True, slots=True)
class FirstPricedStock(StockItem):
    def evolve(self, message: Decided, at: datetime) -> Self:
        after = StockItem.evolve(self, message, at)
        return replace(after, unit_price_cents=self.unit_price_cents or after.unit_price_cents)


@twin("a price change", "a shelf", "price_differs")
def the_first_price_stays() -> Participant:
    return retyped(inventory.PARTICIPANT, StockItem, FirstPricedStock)


@twin("a second delivery", "a shelf", "delivered_twice")
def a_delivery_counts_each_time_that_it_is_said() -> Participant:
    def shelve(
        command: AddStock, item: StockItem, deliveries: Mapping[str, Delivery]
    ) -> StockAdded | None:
        return inventory.shelve(command, item, {})

    return swapped(inventory.PARTICIPANT, shelve)


@twin("a second delivery", "a shelf", "delivery_lost")
def a_sku_is_delivered_once() -> Participant:
    def shelve(
        command: AddStock, item: StockItem, deliveries: Mapping[str, Delivery]
    ) -> StockAdded | None:
        if item.unit_price_cents is not None:
            return None
        return inventory.shelve(command, item, deliveries)

    return swapped(inventory.PARTICIPANT, shelve)


# --- who must be rejected, and who must not -----------------------------------------------------


@twin("somebody must be rejected", "one order", "sold_untrue")
def nobody_looks_at_the_price() -> Participant:
    def reserve(
        event: OrderPlaced, state: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        prices = {line.sku: line.unit_price_cents for line in event.lines}
        same = {
            sku: replace(item, unit_price_cents=item.unit_price_cents and prices[sku])
            for sku, item in shelf.items()
        }
        return inventory.reserve(event, state, same)

    return swapped(inventory.PARTICIPANT, reserve)


@twin("somebody must be rejected", "a shelf", "rejected_untrue")
def whoever_comes_second_is_rejected() -> Participant:
    """Even if there is enough for both."""

    def reserve(
        event: OrderPlaced, state: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        reserved = inventory.reserve(event, state, shelf)
        if isinstance(reserved, StockReserved) and (
            held := [sku for sku, item in shelf.items() if item.held]
        ):
            return StockRejected(
                order_id=event.order_id, reason=RejectionReason.OUT_OF_STOCK, sku=min(held)
            )
        return reserved

    return swapped(inventory.PARTICIPANT, reserve)


# --- priorities ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OrderDueAsAnyOther(Order):
    def due(self) -> Due[ExpireOrder] | None:
        due = Order.due(self)
        return due and replace(due, priority=Priority.NORMAL)


@twin("priorities", "an urgent order", "priority_lost")
def the_deadline_of_an_urgent_order_is_not_urgent() -> Participant:
    return retyped(order.PARTICIPANT, Order, OrderDueAsAnyOther)


@twin("priorities", "an urgent order", "priority_lost")
def every_order_is_placed_as_a_normal_one() -> Participant:
    def place(command: PlaceOrder, state: Order, now: datetime) -> OrderPlaced | None:
        return order.place(command.model_copy(update={"priority": Priority.NORMAL}), state, now)

    return swapped(order.PARTICIPANT, place)


@dataclass(frozen=True, slots=True)
class OrderOfNoPriority(Order):
    def evolve(self, message: Decided, at: datetime) -> Self:
        after = Order.evolve(self, message, at)
        return after if after is self else replace(after, priority=Priority.NORMAL)


@twin("priorities", "an urgent order", "priority_lost")
def an_order_forgets_that_it_is_urgent() -> Participant:
    return retyped(order.PARTICIPANT, Order, OrderOfNoPriority)


# --- an outside that is away --------------------------------------------------------------------


class _WithoutOutages(DeskGateway):
    """A client of the provider that makes an answer of an outage."""

    charged: Receipt | Decline = Decline(DeclineReason.CARD_DECLINED)

    async def charge(
        self, key: str, *, customer: str, currency: str, amount_cents: int
    ) -> Receipt | Decline:
        try:
            return await super().charge(
                key, customer=customer, currency=currency, amount_cents=amount_cents
            )
        except GatewayUnavailable:
            return self.charged


class _TakesItForPaid(_WithoutOutages):
    charged = Receipt("later")


class _TakesItForRefunded(DeskGateway):
    async def refund(self, key: str, *, currency: str, amount_cents: int) -> None:
        try:
            await super().refund(key, currency=currency, amount_cents=amount_cents)
        except GatewayUnavailable:
            return


def _asking(client: type[DeskGateway]) -> Outside[Ledger]:
    def asks(desk: Desk[Ledger]) -> Mapping[type[Intent], Ask]:
        return build_with(client(desk)).ask

    return replace(PROVIDER, ask=asks)


@twin("an outside that is away", "one order", "books_differ")
def a_provider_that_is_away_declines() -> Outside[Ledger]:
    return _asking(_WithoutOutages)


@twin("an outside that is away", "one order", "books_differ")
def a_provider_that_is_away_was_paid() -> Outside[Ledger]:
    return _asking(_TakesItForPaid)


@twin("an outside that is away", "one order", "books_differ")
def a_provider_that_is_away_has_refunded() -> Outside[Ledger]:
    return _asking(_TakesItForRefunded)


# --- refunds of too much ------------------------------------------------------------------------


@twin("refunds of too much", "one order", "question_refused")
def twice_the_money_is_refunded() -> Participant:
    return _refunding(lambda asked: {"amount_cents": 2 * asked.amount_cents})


# --- mails --------------------------------------------------------------------------------------


@twin("notification", "a mail of a confirmation", "letter_untrue")
def a_mail_goes_to_somebody_else() -> Participant:
    def tell_confirmed(event: OrderConfirmed, state: Notification) -> _Begun:
        other = event.model_copy(update={"customer": "somebody else"})
        return notification.tell_confirmed(other, state)

    return swapped(notification.PARTICIPANT, tell_confirmed)


@twin("notification", "a mail of a confirmation", "letter_untrue")
def a_mail_tells_another_total() -> Participant:
    def tell_confirmed(event: OrderConfirmed, state: Notification) -> _Begun:
        other = event.model_copy(update={"total_cents": event.total_cents * 100})
        return notification.tell_confirmed(other, state)

    return swapped(notification.PARTICIPANT, tell_confirmed)


@twin("notification", "a mail of a cancellation", "letter_untrue")
def a_mail_tells_another_reason() -> Participant:
    def tell_cancelled(event: OrderCancelled, state: Notification) -> _Begun:
        other = event.model_copy(update={"reason": CancellationReason.OUT_OF_STOCK})
        return notification.tell_cancelled(other, state)

    return swapped(notification.PARTICIPANT, tell_cancelled)


@twin("notification", "a mail that is taken", "doubt_untrue")
def no_mail_is_ever_known_to_be_sent() -> Participant:
    def record(
        answer: SendAnswered, state: Notification
    ) -> NotificationSent | PutOff | NotificationUnconfirmed | NotificationDismissed | None:
        if answer.result is Result.ACCEPTED:
            answer = answer.model_copy(update={"result": Result.UNKNOWN})
        return notification.record(answer, state)

    return swapped(notification.PARTICIPANT, record)


# --- commands that lead to questions ------------------------------------------------------------


def _resending(*statuses: NotificationStatus) -> Participant:
    """An operator may have it sent again in these, too."""

    def resend(command: ResendNotification, state: Notification) -> Resend | None:
        if state.status in statuses:
            state = replace(state, status=NotificationStatus.UNKNOWN)
        return notification.resend(command, state)

    return swapped(notification.PARTICIPANT, resend)


@twin("commands that ask", "a mail that is taken", "decided_in_vain")
def a_mail_that_was_sent_is_sent_again() -> Participant:
    return _resending(NotificationStatus.SENT)


@twin("commands that ask", "a mail of a confirmation", "decided_in_vain")
def a_mail_that_was_dismissed_is_sent_again() -> Participant:
    return _resending(NotificationStatus.DISMISSED)


@twin("commands that ask", "a mail of a confirmation", "mailed_twice")
def a_mail_is_sent_again_by_two() -> Participant:
    return _resending(NotificationStatus.RESENDING)


@twin("commands that ask", "a mail that is taken", "decided_in_vain")
def a_mail_that_was_sent_is_dismissed() -> Participant:
    def dismiss(command: DismissNotification, state: Notification) -> NotificationDismissed | None:
        if state.status is NotificationStatus.SENT:
            state = replace(state, status=NotificationStatus.UNKNOWN)
        return notification.dismiss(command, state)

    return swapped(notification.PARTICIPANT, dismiss)
