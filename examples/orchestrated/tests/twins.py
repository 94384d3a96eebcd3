"""The saga with one mistake each, of the kinds that orchestrations die of.

`saga verify` has to find fault with each. `TWINS` holds them, with the rule that a shortest
schedule breaks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, Final, Self, get_type_hints

from saga import Decided, Due, Participant, Phase

from orchestrated.coordinator import domain as coordinator
from orchestrated.coordinator.domain import ExpireOrder, Order, Step, Undoing
from orchestrated.inventory import domain as inventory
from orchestrated.inventory.domain import Reservation, ReservationStatus
from orchestrated.language import (
    CancelPayment,
    ChargePayment,
    OrderCancelled,
    OrderConfirmed,
    PaymentCharged,
    PaymentDeclined,
    PaymentVoided,
    ReleaseStock,
    StockReleased,
    StockReserved,
)
from orchestrated.payment import domain as payment
from orchestrated.payment.domain import Payment, Refund, SettleCharge

TWINS: Final[dict[str, tuple[Callable[[], Participant], str]]] = {}
"""Keyed by name: what makes the participant, and the rule that is broken."""


def twin(rule: str) -> Callable[[Callable[[], Participant]], Callable[[], Participant]]:
    def decorate(make: Callable[[], Participant]) -> Callable[[], Participant]:
        TWINS[make.__name__] = make, rule
        return make

    return decorate


def _swapped(participant: Participant, *instead: Callable[..., Any]) -> Participant:
    """The participant with these functions for the reactions of the same names."""
    names = {function.__name__: function for function in instead}
    functions = [names.pop(r.name, r.function) for r in participant.reactions]
    assert not names
    return Participant(participant.name, *functions, package=participant.package)


def _coordinator(kind: type[Order], *instead: Callable[..., Any]) -> Participant:
    """The coordinator with another kind of orders."""

    def taking(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def reaction(*arguments: Any) -> Any:
            return function(*arguments)

        hints = get_type_hints(function).items()
        reaction.__annotations__ = {name: kind if h is Order else h for name, h in hints}
        return reaction

    swapped = _swapped(coordinator.PARTICIPANT, *instead)
    functions = (taking(reaction.function) for reaction in swapped.reactions)
    return Participant(swapped.name, *functions, package=swapped.package)


# --- the coordinator's memory --------------------------------------------------------------------


class _Forgetful(Order):
    __slots__ = ()

    def evolve(self, message: Decided, at: datetime) -> Self:
        return self if isinstance(message, ChargePayment) else Order.evolve(self, message, at)


@twin("said_twice")
def the_coordinator_forgets_what_it_asked() -> Participant:
    """That payment was asked was only in the memory of a process that is gone: the stock's answer
    comes again, and payment is asked again."""
    return _coordinator(_Forgetful)


class _DueLate(Order):
    __slots__ = ()

    def due(self) -> Due[ExpireOrder] | None:
        return None if self.step is Step.RESERVING else Order.due(self)


@twin("endless")
def the_coordinator_forgets_that_it_waits() -> Participant:
    """The time limit begins with the charge: an order whose stock is asked for waits for ever."""
    return _coordinator(_DueLate)


# --- what has to be undone -----------------------------------------------------------------------


@twin("kept_in_vain")
def stock_is_kept_when_the_payment_is_declined() -> Participant:
    def give_up_unpaid(
        event: PaymentDeclined, order: Order
    ) -> tuple[OrderCancelled, ReleaseStock] | OrderCancelled | None:
        undoing = coordinator.give_up_unpaid(event, order)
        return undoing and undoing[0]

    return _swapped(coordinator.PARTICIPANT, give_up_unpaid)


@twin("kept_in_vain")
def what_was_not_answered_yet_is_not_undone() -> Participant:
    """It undoes what it has an answer to, and what it was asking for at that moment stays."""

    def expire(
        command: ExpireOrder, order: Order
    ) -> OrderCancelled | tuple[OrderCancelled, ReleaseStock] | None:
        undoing = coordinator.expire(command, order)
        if undoing is None or order.step is Step.RESERVING:
            return undoing and undoing[0]
        return undoing[0], undoing[1]

    return _swapped(coordinator.PARTICIPANT, expire)


@twin("said_twice")
def the_payment_is_cancelled_twice() -> Participant:
    """Money that comes after the cancellation is sent back, though payment was told already."""

    def confirm(event: PaymentCharged, order: Order) -> OrderConfirmed | CancelPayment | None:
        if order.step is Step.CANCELLED:
            return CancelPayment(order_id=event.order_id)
        return coordinator.confirm(event, order)

    return _swapped(coordinator.PARTICIPANT, confirm)


@twin("said_twice")
def a_refund_is_made_twice() -> Participant:
    """A payment that was given back is given back again, when it is told again."""

    def compensate(
        command: CancelPayment, state: Payment
    ) -> PaymentVoided | SettleCharge | Refund | None:
        if state.phase is Phase.UNDONE:
            return Refund(
                order_id=command.order_id,
                currency=state.currency,
                amount_cents=state.amount_cents,
            )
        return payment.compensate(command, state)

    return _swapped(payment.PARTICIPANT, compensate)


# --- answers and cancellations that cross each other ---------------------------------------------


@twin("after_the_end")
def a_cancelled_order_is_charged() -> Participant:
    """The stock's answer is taken for a reason to go on, whatever has happened meanwhile."""

    def charge(event: StockReserved, order: Order) -> ChargePayment | None:
        if order.step is Step.CANCELLED:
            order = replace(order, step=Step.RESERVING)
        return coordinator.charge(event, order)

    return _swapped(coordinator.PARTICIPANT, charge)


@twin("confirmed_without")
def an_order_is_confirmed_when_the_money_is_asked_for() -> Participant:
    def charge(event: StockReserved, order: Order) -> tuple[ChargePayment, OrderConfirmed] | None:
        if (asked := coordinator.charge(event, order)) is None:
            return None
        return asked, OrderConfirmed(
            order_id=event.order_id,
            customer=order.customer,
            currency=order.currency,
            total_cents=order.total_cents,
        )

    return _swapped(coordinator.PARTICIPANT, charge)


class _DueAfterwards(Order):
    __slots__ = ()

    def due(self) -> Due[ExpireOrder] | None:
        pending = replace(self, step=Step.CHARGING)
        return Order.due(pending if self.step is Step.CONFIRMED else self)


@twin("outcome_changed")
def the_time_limit_cancels_what_is_confirmed() -> Participant:
    def expire(command: ExpireOrder, order: Order) -> Undoing:
        if order.step is Step.CONFIRMED:
            order = replace(order, step=Step.CHARGING)
        return coordinator.expire(command, order)

    return _coordinator(_DueAfterwards, expire)


@twin("kept_in_vain")
def an_overtaking_release_leaves_no_marker() -> Participant:
    """The release comes before what it releases, which is then held for ever."""

    def release(command: ReleaseStock, state: Reservation) -> StockReleased | None:
        if state.status is ReservationStatus.NONE:
            return None
        return inventory.release(command, state)

    return _swapped(inventory.PARTICIPANT, release)


@twin("kept_in_vain")
def a_charge_on_its_way_is_taken_for_unasked() -> Participant:
    """A cancellation that finds a question without an answer takes it for one never put."""

    def compensate(
        command: CancelPayment, state: Payment
    ) -> PaymentVoided | SettleCharge | Refund | None:
        if state.phase is Phase.ASKING:
            state = replace(state, phase=Phase.NEW)
        return payment.compensate(command, state)

    return _swapped(payment.PARTICIPANT, compensate)
