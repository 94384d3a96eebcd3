"""Broken twins: the order saga with one mistake each, of the kinds choreographies die of.

`saga verify` has to find fault with each of them. `TWINS` holds them with the rule that a shortest
schedule breaks, and the number of its steps.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Protocol, Self

from common.events import (
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    PaymentCharged,
    PaymentDeclined,
    PaymentRefunded,
    PaymentVoided,
    PlaceOrder,
    RejectionReason,
    StockRejected,
    StockReleased,
    StockReserved,
)
from inventory_service import domain as inventory
from inventory_service.domain import Reservation, ReservationStatus, StockItem
from order_saga import SAGA
from order_saga.outsides import PROVIDER, DeskGateway
from order_service import domain as order
from order_service.domain import CancelOrder, ExpireOrder, Order, OrderStatus
from payment_service import domain as payment
from payment_service.app import build_with
from payment_service.domain import (
    Charge,
    ChargeAnswered,
    Payment,
    PaymentStatus,
    Refund,
    RefundAnswered,
    SettleCharge,
)
from payment_service.ledger import Ledger
from saga.choreography import Participant
from saga.due import Due
from saga.message import Ask, Decided, Intent
from saga.outside import Desk, Outside
from saga.verify import Model, model_of
from tests.swapping import retyped, swapped


@dataclass(frozen=True)
class Twin:
    """A twin, and what is to be found."""

    model: Callable[[], Model]
    rule: str
    steps: int

    @property
    def name(self) -> str:
        return self.model.__name__


TWINS: list[Twin] = []


def one_order(*stand_ins: Participant | Outside[Any], source: str = "") -> Model:
    """One order of three lines, with these in the place of ours."""
    return model_of(SAGA.with_(*stand_ins), "one order", source=source)


def two_orders(*stand_ins: Participant | Outside[Any], source: str = "") -> Model:
    """Two orders that both want the last mug."""
    return model_of(SAGA.with_(*stand_ins), "two orders", source=source)


class _Models(Protocol):
    def __call__(self, *stand_ins: Participant | Outside[Any], source: str = "") -> Model: ...


def twin(
    rule: str, steps: int, of: _Models = one_order
) -> Callable[[Callable[[], Participant | Outside[Any]]], Callable[[], Model]]:
    """The model that has this participant, or this outside, instead of ours."""

    def decorate(make: Callable[[], Participant | Outside[Any]]) -> Callable[[], Model]:
        @functools.wraps(make)
        def model() -> Model:
            return of(make(), source=f"{__name__}:{make.__name__}()")

        TWINS.append(Twin(model, rule, steps))
        return model

    return decorate


# --- order --------------------------------------------------------------------------------------


@twin("said_twice", 2)
def an_order_is_placed_twice() -> Participant:
    """No redelivery guard."""

    def place(command: PlaceOrder, state: Order, now: datetime) -> OrderPlaced | None:
        return order.place(command, Order(state.key), now)

    return swapped(order.PARTICIPANT, place)


@twin("due_ignored", 2)
def the_deadline_is_ignored() -> Participant:
    def expire(command: ExpireOrder, state: Order) -> OrderCancelled | None:
        return None

    return swapped(order.PARTICIPANT, expire)


@dataclass(frozen=True, slots=True)
class _DueAtOnce(Order):
    def due(self) -> Due[ExpireOrder] | None:
        due = Order.due(self)
        return due and replace(due, at=self.placed_at or due.at)


@twin("reason_untrue", 2)
def the_deadline_passes_at_once() -> Participant:
    """What is due, is due too early."""
    return retyped(order.PARTICIPANT, Order, _DueAtOnce)


@dataclass(frozen=True, slots=True)
class _DueAgain(Order):
    def due(self) -> Due[ExpireOrder] | None:
        pending = replace(self, status=OrderStatus.PENDING)
        return Order.due(pending) if self.placed_at else None


@twin("due_ignored", 2)
def the_deadline_passes_again_and_again() -> Participant:
    """What was done is due as before."""
    return retyped(order.PARTICIPANT, Order, _DueAgain)


@dataclass(frozen=True, slots=True)
class _NeverDue(Order):
    def due(self) -> Due[ExpireOrder] | None:
        return None


@twin("endless", 1)
def the_deadline_never_passes() -> Participant:
    return retyped(order.PARTICIPANT, Order, _NeverDue)


@dataclass(frozen=True, slots=True)
class _DueWhateverHappened(_DueAgain):
    """Due until it is cancelled, if it was confirmed before too."""

    def due(self) -> Due[ExpireOrder] | None:
        return None if self.status is OrderStatus.CANCELLED else _DueAgain.due(self)


@twin("outcome_changed", 7)
def the_deadline_of_a_confirmed_order_passes() -> Participant:
    def expire(command: ExpireOrder, state: Order) -> OrderCancelled | None:
        return order.expire(command, replace(state, status=OrderStatus.PENDING))

    return retyped(swapped(order.PARTICIPANT, expire), Order, _DueWhateverHappened)


@twin("outcome_changed", 7)
def a_cancelled_order_is_confirmed() -> Participant:
    def confirm(event: PaymentCharged, state: Order) -> OrderConfirmed | None:
        if state.status is OrderStatus.CANCELLED:
            state = replace(state, status=OrderStatus.PENDING)
        return order.confirm(event, state)

    return swapped(order.PARTICIPANT, confirm)


@twin("outcome_changed", 7)
def a_confirmed_order_is_cancelled() -> Participant:
    def cancel(command: CancelOrder, state: Order) -> OrderCancelled | None:
        if state.status is OrderStatus.CONFIRMED:
            state = replace(state, status=OrderStatus.PENDING)
        return order.cancel(command, state)

    return swapped(order.PARTICIPANT, cancel)


@twin("reaction_raised", 7)
def a_charge_for_a_cancelled_order_is_taken_for_impossible() -> Participant:
    def confirm(event: PaymentCharged, state: Order) -> OrderConfirmed | None:
        if state.status is OrderStatus.CANCELLED:
            raise ValueError("nobody pays for a cancelled order")
        return order.confirm(event, state)

    return swapped(order.PARTICIPANT, confirm)


@twin("not_terminal", 6)
def a_declined_order_stays_pending() -> Participant:
    """Its deadline would end it, which is no excuse."""

    def give_up_unpaid(event: PaymentDeclined, state: Order) -> OrderCancelled | None:
        return None

    return swapped(order.PARTICIPANT, give_up_unpaid)


@twin("reason_untrue", 3)
def a_rejected_order_is_cancelled_for_another_reason() -> Participant:
    def give_up(event: StockRejected, state: Order) -> OrderCancelled | None:
        event = event.model_copy(update={"reason": RejectionReason.OUT_OF_STOCK})
        return order.give_up(event, state)

    return swapped(order.PARTICIPANT, give_up)


# --- inventory ----------------------------------------------------------------------------------


@twin("held_mismatch", 3)
def stock_is_held_twice() -> Participant:
    """No redelivery guard."""

    def reserve(
        event: OrderPlaced, state: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        return inventory.reserve(event, Reservation(state.key), shelf)

    return swapped(inventory.PARTICIPANT, reserve)


@twin("held_not_confirmed", 6)
def stock_has_no_marker_for_an_overtaking_cancellation() -> Participant:
    def release(event: OrderCancelled, state: Reservation) -> StockReleased | None:
        return None if state.status is ReservationStatus.NONE else inventory.release(event, state)

    return swapped(inventory.PARTICIPANT, release)


@twin("said_twice", 4)
def stock_is_released_twice() -> Participant:
    def release(event: OrderCancelled, state: Reservation) -> StockReleased | None:
        if state.status is ReservationStatus.RELEASED:
            state = replace(state, status=ReservationStatus.HELD)
        return inventory.release(event, state)

    return swapped(inventory.PARTICIPANT, release)


@twin("held_mismatch", 4)
def a_line_is_forgotten_in_the_release() -> Participant:
    def release(event: OrderCancelled, state: Reservation) -> StockReleased | None:
        released = inventory.release(event, state)
        return released and StockReleased(order_id=event.order_id, lines=released.lines[:1])

    return swapped(inventory.PARTICIPANT, release)


@twin("held_mismatch", 4)
def stock_is_never_released() -> Participant:
    def release(event: OrderCancelled, state: Reservation) -> StockReleased | None:
        return StockReleased(order_id=event.order_id, lines=())

    return swapped(inventory.PARTICIPANT, release)


@twin("rejected_untrue", 2)
def the_last_one_is_never_sold() -> Participant:
    """Orders end all the same, and all books are right."""

    def reserve(
        event: OrderPlaced, state: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        less = {sku: replace(item, free=item.free - 1) for sku, item in shelf.items()}
        return inventory.reserve(event, state, less)

    return swapped(inventory.PARTICIPANT, reserve)


@twin("stock_negative", 2)
def more_is_sold_than_there_is() -> Participant:
    def reserve(
        event: OrderPlaced, state: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        endless = {sku: replace(item, free=10_000) for sku, item in shelf.items()}
        return inventory.reserve(event, state, endless)

    return swapped(inventory.PARTICIPANT, reserve)


@twin("stock_negative", 4, of=two_orders)
def the_last_mug_is_sold_to_both() -> Participant:
    """What is held for others counts as free. One order alone never notices."""

    def reserve(
        event: OrderPlaced, state: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        all_of_it = {
            sku: replace(item, free=item.free + item.held, held=0) for sku, item in shelf.items()
        }
        return inventory.reserve(event, state, all_of_it)

    return swapped(inventory.PARTICIPANT, reserve)


@twin("held_differs", 2)
def what_is_there_of_an_order_is_held() -> Participant:
    """In part, where it should be all or nothing."""

    def reserve(
        event: OrderPlaced, state: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        there = tuple(line for line in event.lines if shelf[line.sku].free >= line.quantity)
        return inventory.reserve(event.model_copy(update={"lines": there}), state, shelf)

    return swapped(inventory.PARTICIPANT, reserve)


@twin("rejected_untrue", 4)
def a_released_order_is_rejected_as_well() -> Participant:
    """A late `order.placed` makes a participant speak up again, long after the end."""

    def reserve(
        event: OrderPlaced, state: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        if state.status is ReservationStatus.RELEASED:
            return StockRejected(
                order_id=event.order_id, reason=RejectionReason.OUT_OF_STOCK, sku="mug"
            )
        return inventory.reserve(event, state, shelf)

    return swapped(inventory.PARTICIPANT, reserve)


# --- payment ------------------------------------------------------------------------------------


@twin("not_undone", 5)
def a_payment_has_no_marker_for_an_overtaking_cancellation() -> Participant:
    def compensate(
        event: OrderCancelled, state: Payment
    ) -> PaymentVoided | SettleCharge | Refund | None:
        return None if state.status is PaymentStatus.NONE else payment.compensate(event, state)

    return swapped(payment.PARTICIPANT, compensate)


@twin("payment_unsettled", 8)
def a_charge_is_asked_for_after_its_marker() -> Participant:
    def charge(event: StockReserved, state: Payment) -> Charge | None:
        if state.status is PaymentStatus.VOIDED:
            state = Payment(state.key)
        return payment.charge(event, state)

    return swapped(payment.PARTICIPANT, charge)


@twin("charged_not_confirmed", 9)
def a_refund_is_forgotten() -> Participant:
    def compensate(
        event: OrderCancelled, state: Payment
    ) -> PaymentVoided | SettleCharge | Refund | None:
        return None if state.status is PaymentStatus.CHARGED else payment.compensate(event, state)

    return swapped(payment.PARTICIPANT, compensate)


@twin("charged_not_confirmed", 10)
def a_refund_is_forgotten_after_a_crash() -> Participant:
    """The intent is there, so another process seems to be at it."""

    def compensate(
        event: OrderCancelled, state: Payment
    ) -> PaymentVoided | SettleCharge | Refund | None:
        return None if state.status is PaymentStatus.REFUNDING else payment.compensate(event, state)

    return swapped(payment.PARTICIPANT, compensate)


@twin("not_terminal", 4)
def a_charge_is_forgotten_after_a_crash() -> Participant:
    """The intent is there, so another process seems to be at it."""

    def charge(event: StockReserved, state: Payment) -> Charge | None:
        return None if state.status is PaymentStatus.CHARGING else payment.charge(event, state)

    return swapped(payment.PARTICIPANT, charge)


@twin("books_differ", 6)
def a_question_on_its_way_is_taken_for_unasked() -> Participant:
    """A cancellation that finds `charging` guesses."""

    def compensate(
        event: OrderCancelled, state: Payment
    ) -> PaymentVoided | SettleCharge | Refund | None:
        if state.status is PaymentStatus.CHARGING:
            return PaymentVoided(order_id=event.order_id)
        return payment.compensate(event, state)

    return swapped(payment.PARTICIPANT, compensate)


@twin("books_differ", 5)
def a_question_on_its_way_is_taken_for_paid() -> Participant:
    def compensate(
        event: OrderCancelled, state: Payment
    ) -> PaymentVoided | SettleCharge | Refund | None:
        if state.status is PaymentStatus.CHARGING:
            state = replace(state, status=PaymentStatus.CHARGED)
        return payment.compensate(event, state)

    return swapped(payment.PARTICIPANT, compensate)


@twin("charged_not_confirmed", 9)
def an_answer_for_a_cancelled_order_is_ignored() -> Participant:
    def record_charge(
        answer: ChargeAnswered, state: Payment
    ) -> (
        PaymentCharged
        | PaymentDeclined
        | PaymentVoided
        | tuple[PaymentCharged, Refund]
        | Refund
        | None
    ):
        if state.status is PaymentStatus.SETTLING:
            return None
        return payment.record_charge(answer, state)

    return swapped(payment.PARTICIPANT, record_charge)


@twin("charged_not_confirmed", 11)
def a_second_answer_closes_an_open_refund() -> Participant:
    """Two copies of a cancellation ask at once. The later answer ends its delivery, while the
    refund the earlier one led to may never be asked for."""

    def record_charge(
        answer: ChargeAnswered, state: Payment
    ) -> (
        PaymentCharged
        | PaymentDeclined
        | PaymentVoided
        | tuple[PaymentCharged, Refund]
        | Refund
        | None
    ):
        if state.status is PaymentStatus.REFUNDING:
            return None
        return payment.record_charge(answer, state)

    return swapped(payment.PARTICIPANT, record_charge)


@twin("payment_unsettled", 9)
def a_void_is_not_published() -> Participant:
    def record_charge(
        answer: ChargeAnswered, state: Payment
    ) -> PaymentCharged | PaymentDeclined | tuple[PaymentCharged, Refund] | Refund | None:
        result = payment.record_charge(answer, state)
        return None if isinstance(result, PaymentVoided) else result

    return swapped(payment.PARTICIPANT, record_charge)


@twin("never_at_rest", 4)
def a_declined_charge_is_asked_for_until_it_is_paid() -> Participant:
    """The provider's answer never changes."""

    def record_charge(
        answer: ChargeAnswered, state: Payment
    ) -> PaymentCharged | tuple[PaymentCharged, Refund] | Refund | SettleCharge | Charge | None:
        if answer.declined is None:
            result = payment.record_charge(answer, state)
            assert not isinstance(result, PaymentDeclined | PaymentVoided)
            return result
        again = SettleCharge if state.status is PaymentStatus.SETTLING else Charge
        return again(
            order_id=answer.order_id,
            customer=state.customer,
            currency=state.currency,
            amount_cents=state.amount_cents,
        )

    return swapped(payment.PARTICIPANT, record_charge)


@dataclass(frozen=True, slots=True)
class ForgetfulPayment(Payment):
    """Begins to count again with every event."""

    def evolve(self, message: Decided, at: datetime) -> Self:
        return replace(Payment.evolve(self, message, at), sequence=0)


@twin("sequence_reused", 9)
def the_sequence_is_not_counted() -> Participant:
    def charge(event: StockReserved, state: ForgetfulPayment) -> Charge | None:
        return payment.charge(event, state)

    def record_charge(
        answer: ChargeAnswered, state: ForgetfulPayment
    ) -> (
        PaymentCharged
        | PaymentDeclined
        | PaymentVoided
        | tuple[PaymentCharged, Refund]
        | Refund
        | None
    ):
        return payment.record_charge(answer, state)

    def compensate(
        event: OrderCancelled, state: ForgetfulPayment
    ) -> PaymentVoided | SettleCharge | Refund | None:
        return payment.compensate(event, state)

    def record_refund(answer: RefundAnswered, state: ForgetfulPayment) -> PaymentRefunded | None:
        return payment.record_refund(answer, state)

    return swapped(payment.PARTICIPANT, charge, record_charge, compensate, record_refund)


@twin("books_differ", 6)
def a_cancellation_asks_under_a_key_of_its_own() -> Outside[Ledger]:
    """The provider takes that for another charge."""

    def asks(desk: Desk[Ledger]) -> Mapping[type[Intent], Ask]:
        gateway = DeskGateway(desk)

        async def settle(intent: SettleCharge) -> ChargeAnswered:
            receipt = await gateway.charge(
                f"{intent.order_id}/settle",
                customer=intent.customer,
                currency=intent.currency,
                amount_cents=intent.amount_cents,
            )
            declined = getattr(receipt, "reason", None)
            return ChargeAnswered(order_id=intent.order_id, declined=declined, reference="")

        return {**build_with(gateway).ask, SettleCharge: settle}

    return replace(PROVIDER, ask=asks)
