"""The order saga with reactions that do not depend on their arguments alone, or change these."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, timedelta
from typing import Any, Self
from uuid import uuid4

from common.events import (
    HeldLine,
    OrderCancelled,
    OrderPlaced,
    PlaceOrder,
    RejectionReason,
    StockRejected,
    StockReleased,
    StockReserved,
)
from inventory_service import domain as inventory
from inventory_service.domain import Reservation, StockItem
from order_saga.outsides import PROVIDER, DeskGateway
from order_service import domain as order
from order_service.domain import ExpireOrder, Order
from payment_service.app import build_with
from payment_service.ledger import Decline, Ledger, Receipt
from saga.choreography import Participant
from saga.due import Due
from saga.message import Decided
from saga.outside import Outside
from saga.verify import Model
from tests.swapping import retyped, swapped
from tests.unit.twins import one_order


def _model(make: Callable[[], Participant | Outside[Any]]) -> Callable[[], Model]:
    def model() -> Model:
        return one_order(make(), source=f"{__name__}:{make.__name__}()")

    model.__name__ = make.__name__
    return model


@_model
def an_order_is_placed_once_by_memory() -> Participant:
    """What its state tells, its module remembers."""
    placed = set()

    def place(command: PlaceOrder, state: Order, now: datetime) -> OrderPlaced | None:
        if command.order_id in placed:
            return None
        placed.add(command.order_id)
        return order.place(command, state, now)

    return swapped(order.PARTICIPANT, place)


@_model
def a_cancellation_is_remembered_for_another_reaction() -> Participant:
    """Each by itself does the same when it is called again."""
    cancelled = set()

    def release(event: OrderCancelled, state: Reservation) -> StockReleased | None:
        cancelled.add(event.order_id)
        return inventory.release(event, state)

    def reserve(
        event: OrderPlaced, state: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        reserved = inventory.reserve(event, state, shelf)
        if isinstance(reserved, StockReserved) and event.order_id in cancelled:
            return StockRejected(
                order_id=event.order_id, reason=RejectionReason.OUT_OF_STOCK, sku="mug"
            )
        return reserved

    return swapped(inventory.PARTICIPANT, reserve, release)


@_model
def a_customer_gets_a_name_by_chance() -> Participant:
    def place(command: PlaceOrder, state: Order, now: datetime) -> OrderPlaced | None:
        placed = order.place(command, state, now)
        return placed and placed.model_copy(update={"customer": f"customer {uuid4()}"})

    return swapped(order.PARTICIPANT, place)


@_model
def dice_are_thrown_that_decide_on_nothing() -> Participant:
    """Today: who looks at the results alone never sees it."""

    def place(command: PlaceOrder, state: Order, now: datetime) -> OrderPlaced | None:
        return order.place(command, state, now) if random.random() >= 0 else None

    return swapped(order.PARTICIPANT, place)


@_model
def a_deadline_is_counted_from_the_clock() -> Participant:
    def place(command: PlaceOrder, state: Order, now: datetime) -> OrderPlaced | None:
        return order.place(command, state, datetime.now(UTC))

    return swapped(order.PARTICIPANT, place)


@_model
def nothing_is_placed_after_the_century() -> Participant:
    """The day is the same each time."""

    def place(command: PlaceOrder, state: Order, now: datetime) -> OrderPlaced | None:
        return order.place(command, state, now) if date.today().year < 2100 else None  # noqa: DTZ011

    return swapped(order.PARTICIPANT, place)


@_model
def lines_are_held_in_the_order_of_a_set() -> Participant:
    """Within one process, that is the same each time."""

    def reserve(
        event: OrderPlaced, state: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        reserved = inventory.reserve(event, state, shelf)
        if not isinstance(reserved, StockReserved):
            return reserved
        units = inventory._units(reserved.lines)
        lines = tuple(HeldLine(sku=sku, quantity=units[sku]) for sku in {*units})
        return reserved.model_copy(update={"lines": lines})

    return swapped(inventory.PARTICIPANT, reserve)


@dataclass(frozen=True, slots=True)
class OrderByTheClock(Order):
    def evolve(self, message: Decided, at: datetime) -> Self:
        after = Order.evolve(self, message, at)
        return after if after is self else replace(after, placed_at=datetime.now(UTC))


@_model
def a_state_keeps_when_it_was_made() -> Participant:
    return retyped(order.PARTICIPANT, Order, OrderByTheClock)


@dataclass(frozen=True, slots=True)
class OrderDueByTheClock(Order):
    def due(self) -> Due[ExpireOrder] | None:
        due = Order.due(self)
        return due if due and datetime.now(UTC) < due.at + timedelta(days=365_000) else None


@_model
def what_is_due_depends_on_the_clock() -> Participant:
    return retyped(order.PARTICIPANT, Order, OrderDueByTheClock)


@_model
def a_provider_gives_receipts_by_chance() -> Outside[Ledger]:
    """The rules of whom is asked have to be pure as well."""

    class Chancy(DeskGateway):
        async def charge(
            self, key: str, *, customer: str, currency: str, amount_cents: int
        ) -> Receipt | Decline:
            answer = await super().charge(
                key, customer=customer, currency=currency, amount_cents=amount_cents
            )
            return Receipt(f"{uuid4()}") if isinstance(answer, Receipt) else answer

    return replace(PROVIDER, ask=lambda desk: build_with(Chancy(desk)).ask)


_EVOLVED = [0]


@dataclass(frozen=True, slots=True)
class OrderThatCounts(Order):
    def evolve(self, message: Decided, at: datetime) -> Self:
        _EVOLVED[0] += 1
        after = Order.evolve(self, message, at)
        return after if after is self else replace(after, customer=f"{_EVOLVED[0]}")


@_model
def a_state_counts_with_its_module() -> Participant:
    return retyped(order.PARTICIPANT, Order, OrderThatCounts)


@_model
def a_reaction_changes_its_state() -> Participant:
    def place(command: PlaceOrder, state: Order, now: datetime) -> OrderPlaced | None:
        placed = order.place(command, state, now)
        object.__setattr__(state, "customer", command.customer)
        return placed

    return swapped(order.PARTICIPANT, place)


@_model
def a_reaction_changes_its_message() -> Participant:
    def reserve(
        event: OrderPlaced, state: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        reserved = inventory.reserve(event, state, shelf)
        vars(event)["lines"] = ()
        return reserved

    return swapped(inventory.PARTICIPANT, reserve)


@dataclass(frozen=True, slots=True)
class OrderThatChanges(Order):
    def evolve(self, message: Decided, at: datetime) -> Self:
        after = Order.evolve(self, message, at)
        object.__setattr__(self, "total_cents", after.total_cents)
        return after


@_model
def a_state_changes_in_place() -> Participant:
    return retyped(order.PARTICIPANT, Order, OrderThatChanges)


IMPURE: list[tuple[Callable[[], Model], str]] = [
    (an_order_is_placed_once_by_memory, "order.place is not pure: called at once again"),
    (a_customer_gets_a_name_by_chance, "place draws at random (urandom)"),
    (dice_are_thrown_that_decide_on_nothing, "place draws at random (random)"),
    (a_deadline_is_counted_from_the_clock, "place reads the clock (datetime.now)"),
    (nothing_is_placed_after_the_century, "place reads the clock (date.today)"),
    (a_state_keeps_when_it_was_made, "OrderByTheClock.evolve reads the clock (datetime.now)"),
    (
        a_state_counts_with_its_module,
        "OrderThatCounts.evolve, by what order.place decided, is not pure",
    ),
    (what_is_due_depends_on_the_clock, "OrderDueByTheClock.due reads the clock (datetime.now)"),
    (
        a_provider_gives_receipts_by_chance,
        "provider, asked Charge, is not pure: asked at once again",
    ),
    (a_reaction_changes_its_state, "order.place changes the Order"),
    (a_reaction_changes_its_message, "inventory.reserve changes its OrderPlaced in place"),
    (
        a_state_changes_in_place,
        "OrderThatChanges.evolve, by what order.place decided, changes the OrderThatChanges",
    ),
]
"""Found when a call is made twice, with what the finding says."""
