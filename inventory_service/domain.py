"""Stock on the shelf, and what is held of it for which order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Annotated, ClassVar, Self
from uuid import UUID

from pydantic import Field

from common.events import (
    STOCK_QUANTITY_MAX,
    Currency,
    HeldLine,
    OrderCancelled,
    OrderPlaced,
    RejectionReason,
    Sku,
    StockAdded,
    StockRejected,
    StockReleased,
    StockReserved,
    UnitPriceCents,
)
from saga.choreography import Participant, State
from saga.message import Command, Decided, Message


class AddStock(Command):
    """Put units on the shelf, and set the SKU's price. A quantity of 0 only sets the price.

    A delivery brings a SKU once, however often that is said.
    """

    type: ClassVar[str] = "stock.add"

    delivery_id: UUID
    sku: Sku
    quantity: Annotated[int, Field(ge=0, le=STOCK_QUANTITY_MAX)]
    unit_price_cents: UnitPriceCents
    currency: Currency

    @property
    def subject(self) -> str:
        return self.sku


class ReservationStatus(StrEnum):
    """What inventory has done for an order. `released` is also the marker of a cancellation that
    came first."""

    NONE = "none"
    HELD = "held"
    REJECTED = "rejected"
    RELEASED = "released"


@dataclass(frozen=True, slots=True)
class Reservation(State):
    """What is, or was, held for one order."""

    status: ReservationStatus = ReservationStatus.NONE
    lines: tuple[HeldLine, ...] = ()

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case StockReserved():
                return replace(self, status=ReservationStatus.HELD, lines=message.lines)
            case StockRejected():
                return replace(self, status=ReservationStatus.REJECTED)
            case StockReleased():
                return replace(self, status=ReservationStatus.RELEASED)
            case _:
                return self


@dataclass(frozen=True, slots=True)
class Delivery(State):
    """What one delivery brought of one SKU: nothing yet while there is no price."""

    quantity: int = 0
    unit_price_cents: int | None = None
    currency: str = ""

    @classmethod
    def keys(cls, message: Message, own: State) -> Iterable[str]:
        match message:
            case AddStock() | StockAdded() if message.delivery_id is not None:
                return (delivery_key(message.delivery_id, message.sku),)
            case _:  # Deliveries of before they had ids are not known.
                return ()

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case StockAdded():
                return replace(
                    self,
                    quantity=message.quantity,
                    unit_price_cents=message.unit_price_cents,
                    currency=message.currency,
                )
            case _:
                return self


def delivery_key(delivery_id: UUID, sku: str) -> str:
    """What is known of a delivery and a SKU is kept under this key."""
    return f"{delivery_id}/{sku}"


@dataclass(frozen=True, slots=True)
class StockItem(State):
    """Units of one SKU: `free` + `held` is what was ever put on the shelf."""

    unit_price_cents: int | None = None
    currency: str = ""
    free: int = 0
    held: int = 0

    @classmethod
    def keys(cls, message: Message, own: State) -> Iterable[str]:
        match message:
            case OrderPlaced() | StockReserved() | StockReleased():
                return {line.sku for line in message.lines}
            case OrderCancelled() if isinstance(own, Reservation):
                return {line.sku for line in own.lines}
            case AddStock() | StockAdded():
                return (message.sku,)
            case _:
                return ()

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case StockAdded():
                return replace(
                    self,
                    unit_price_cents=message.unit_price_cents,
                    currency=message.currency,
                    free=self.free + message.quantity,
                )
            case StockReserved():
                return self._hold(_units(message.lines)[self.key])
            case StockReleased():
                return self._hold(-_units(message.lines)[self.key])
            case _:
                return self

    def _hold(self, quantity: int) -> Self:
        return replace(self, free=self.free - quantity, held=self.held + quantity)


def _units(lines: Iterable[HeldLine]) -> Counter[str]:
    """Units per SKU; an order may name one SKU on several lines."""
    units: Counter[str] = Counter()
    for line in lines:
        units[line.sku] += line.quantity
    return units


def reserve(
    event: OrderPlaced, reservation: Reservation, shelf: Mapping[str, StockItem]
) -> StockReserved | StockRejected | None:
    if reservation.status is not ReservationStatus.NONE:
        return None
    for line in event.lines:
        item = shelf[line.sku]
        if item.unit_price_cents is None:
            return _reject(event, RejectionReason.UNKNOWN_SKU, line.sku)
        if (item.unit_price_cents, item.currency) != (line.unit_price_cents, event.currency):
            return _reject(event, RejectionReason.PRICE_MISMATCH, line.sku)
    for sku, quantity in _units(event.lines).items():
        if shelf[sku].free < quantity:
            return _reject(event, RejectionReason.OUT_OF_STOCK, sku)
    return StockReserved(
        order_id=event.order_id,
        customer=event.customer,
        currency=event.currency,
        total_cents=event.total_cents,
        lines=tuple(HeldLine(sku=line.sku, quantity=line.quantity) for line in event.lines),
    )


def _reject(event: OrderPlaced, reason: RejectionReason, sku: str) -> StockRejected:
    return StockRejected(order_id=event.order_id, reason=reason, sku=sku)


def release(event: OrderCancelled, reservation: Reservation) -> StockReleased | None:
    match reservation.status:
        case ReservationStatus.HELD:
            return StockReleased(order_id=event.order_id, lines=reservation.lines)
        case ReservationStatus.NONE:  # Overtook `order.placed`, which must now hold nothing.
            return StockReleased(order_id=event.order_id, lines=())
        case _:
            return None


def shelve(
    command: AddStock, item: StockItem, deliveries: Mapping[str, Delivery]
) -> StockAdded | None:
    if any(delivery.unit_price_cents is not None for delivery in deliveries.values()):
        return None
    return StockAdded(
        delivery_id=command.delivery_id,
        sku=command.sku,
        quantity=command.quantity,
        unit_price_cents=command.unit_price_cents,
        currency=command.currency,
    )


PARTICIPANT = Participant("inventory", reserve, release, shelve)
