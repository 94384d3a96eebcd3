"""Stock on the shelf, and what is held of it for which order.

The rules of the order system's inventory, with commands where that one reacts to others' events.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Self

from saga import Decided, Message, Participant, State

from orchestrated.language import (
    AddStock,
    HeldLine,
    RejectionReason,
    ReleaseStock,
    ReserveStock,
    StockAdded,
    StockRejected,
    StockReleased,
    StockReserved,
)


class ReservationStatus(StrEnum):
    """What inventory has done for an order. `released` also marks a release that came first."""

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
    """What one delivery has brought of one SKU; None as long as it has not come."""

    quantity: int | None = None

    @classmethod
    def keys(cls, message: Message, own: State) -> Iterable[str]:
        match message:
            case AddStock() | StockAdded():
                return (delivery_key(message),)
            case _:
                return ()

    def evolve(self, message: Decided, at: datetime) -> Self:
        return replace(self, quantity=message.quantity) if isinstance(message, StockAdded) else self


def delivery_key(message: AddStock | StockAdded) -> str:
    """What is known of a delivery and a SKU is kept under this key."""
    return f"{message.delivery_id}/{message.sku}"


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
            case ReserveStock() | StockReserved() | StockReleased():
                return {line.sku for line in message.lines}
            case ReleaseStock() if isinstance(own, Reservation):
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
                return self._hold(units(message.lines)[self.key])
            case StockReleased():
                return self._hold(-units(message.lines)[self.key])
            case _:
                return self

    def _hold(self, quantity: int) -> Self:
        return replace(self, free=self.free - quantity, held=self.held + quantity)


def units(lines: Iterable[HeldLine]) -> Counter[str]:
    """Units per SKU; an order may name one SKU on several lines."""
    counted: Counter[str] = Counter()
    for line in lines:
        counted[line.sku] += line.quantity
    return counted


def reserve(
    command: ReserveStock, reservation: Reservation, shelf: Mapping[str, StockItem]
) -> StockReserved | StockRejected | None:
    if reservation.status is not ReservationStatus.NONE:
        return None
    for line in command.lines:
        item = shelf[line.sku]
        if item.unit_price_cents is None:
            return _reject(command, RejectionReason.UNKNOWN_SKU, line.sku)
        if (item.unit_price_cents, item.currency) != (line.unit_price_cents, command.currency):
            return _reject(command, RejectionReason.PRICE_MISMATCH, line.sku)
    for sku, quantity in units(command.lines).items():
        if shelf[sku].free < quantity:
            return _reject(command, RejectionReason.OUT_OF_STOCK, sku)
    held = tuple(HeldLine(sku=line.sku, quantity=line.quantity) for line in command.lines)
    return StockReserved(order_id=command.order_id, lines=held)


def _reject(command: ReserveStock, reason: RejectionReason, sku: str) -> StockRejected:
    return StockRejected(order_id=command.order_id, reason=reason, sku=sku)


def release(command: ReleaseStock, reservation: Reservation) -> StockReleased | None:
    match reservation.status:
        case ReservationStatus.HELD:
            return StockReleased(order_id=command.order_id, lines=reservation.lines)
        case ReservationStatus.NONE:  # Overtook `stock.reserve`, which must now hold nothing.
            return StockReleased(order_id=command.order_id, lines=())
        case _:
            return None


def shelve(
    command: AddStock, item: StockItem, deliveries: Mapping[str, Delivery]
) -> StockAdded | None:
    if any(delivery.quantity is not None for delivery in deliveries.values()):
        return None
    return StockAdded(**dict(command))


PARTICIPANT = Participant("inventory", reserve, release, shelve)
