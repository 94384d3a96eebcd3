"""What the participants say to each other: commands and events, and nothing else they share.

Money is integer cents, quantities are integers, times are UTC.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field
from saga import Command, Event, EventTypes, Moment, Role

COORDINATOR = ("coordinator",)

Sku = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Customer = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,128}$")]
Currency = Annotated[str, Field(pattern=r"^[A-Z]{3}$")]
Quantity = Annotated[int, Field(ge=1, le=10_000)]
Cents = Annotated[int, Field(ge=1)]
Lines = Annotated[tuple["OrderLine", ...], Field(min_length=1, max_length=100)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class HeldLine(_Part):
    """Units of one SKU held for an order."""

    sku: Sku
    quantity: Quantity


class OrderLine(HeldLine):
    """Units of one SKU a customer asks for, at the price they were shown."""

    unit_price_cents: Cents


class RejectionReason(StrEnum):
    """Why inventory holds nothing for an order."""

    OUT_OF_STOCK = "out_of_stock"
    UNKNOWN_SKU = "unknown_sku"
    PRICE_MISMATCH = "price_mismatch"


class DeclineReason(StrEnum):
    """Why the payment provider took no money."""

    INSUFFICIENT_FUNDS = "insufficient_funds"
    CARD_DECLINED = "card_declined"


class CancellationReason(StrEnum):
    """Why an order ended without being confirmed."""

    OUT_OF_STOCK = "out_of_stock"
    UNKNOWN_SKU = "unknown_sku"
    PRICE_MISMATCH = "price_mismatch"
    PAYMENT_DECLINED = "payment_declined"
    CUSTOMER_REQUEST = "customer_request"
    DEADLINE_EXCEEDED = "deadline_exceeded"


class _OrderCommand(Command):
    order_id: UUID

    @property
    def subject(self) -> str:
        return str(self.order_id)


class _OrderEvent(Event):
    order_id: UUID

    @property
    def subject(self) -> str:
        return str(self.order_id)


# --- what customers, and those who fill the shelf, ask for ---------------------------------------


class PlaceOrder(_OrderCommand):
    """A customer wants these lines, at these prices."""

    type: ClassVar[str] = "order.place"
    intake: ClassVar[bool] = True

    customer: Customer
    currency: Currency
    lines: Lines
    time_limit_seconds: int = Field(default=300, ge=1)


class CancelOrder(_OrderCommand):
    """The customer wants out."""

    type: ClassVar[str] = "order.cancel"
    intake: ClassVar[bool] = True


class AddStock(Command):
    """Put units on the shelf, and set the SKU's price. A delivery brings a SKU once."""

    type: ClassVar[str] = "stock.add"
    intake: ClassVar[bool] = True

    delivery_id: UUID
    sku: Sku
    quantity: Annotated[int, Field(ge=0)]
    unit_price_cents: Cents
    currency: Currency

    @property
    def subject(self) -> str:
        return self.sku


# --- what the coordinator has others do ----------------------------------------------------------


class ReserveStock(_OrderCommand):
    """Check the prices of these lines, and hold them."""

    type: ClassVar[str] = "stock.reserve"
    intake: ClassVar[bool] = True
    senders: ClassVar[tuple[str, ...]] = COORDINATOR

    currency: Currency
    lines: Lines


class ReleaseStock(_OrderCommand):
    """See to it that nothing is held in the end, whatever was asked until now."""

    type: ClassVar[str] = "stock.release"
    intake: ClassVar[bool] = True
    senders: ClassVar[tuple[str, ...]] = COORDINATOR


class ChargePayment(_OrderCommand):
    """Take the money."""

    type: ClassVar[str] = "payment.charge"
    intake: ClassVar[bool] = True
    senders: ClassVar[tuple[str, ...]] = COORDINATOR

    customer: Customer
    currency: Currency
    amount_cents: Cents


class CancelPayment(_OrderCommand):
    """See to it that nothing is charged in the end, whatever was asked until now."""

    type: ClassVar[str] = "payment.cancel"
    intake: ClassVar[bool] = True
    senders: ClassVar[tuple[str, ...]] = COORDINATOR


# --- what happened -------------------------------------------------------------------------------


class OrderPlaced(_OrderEvent):
    """What the coordinator has to remember of an order; no other participant needs it."""

    type: ClassVar[str] = "order.placed"
    publisher: ClassVar[str] = "coordinator"
    private: ClassVar[bool] = True

    customer: Customer
    currency: Currency
    total_cents: Cents
    deadline: Moment


class OrderConfirmed(_OrderEvent):
    """The order is paid and its stock is held."""

    type: ClassVar[str] = "order.confirmed"
    publisher: ClassVar[str] = "coordinator"
    role: ClassVar[Role] = Role.COMPLETION
    final: ClassVar[bool] = True

    customer: Customer
    currency: Currency
    total_cents: Cents

    @property
    def outcome(self) -> str:
        return "confirmed"


class OrderCancelled(_OrderEvent):
    """The order will not happen. What has to be undone, is told to those who have to."""

    type: ClassVar[str] = "order.cancelled"
    publisher: ClassVar[str] = "coordinator"
    role: ClassVar[Role] = Role.CANCELLATION
    final: ClassVar[bool] = True

    customer: Customer
    reason: CancellationReason

    @property
    def outcome(self) -> str:
        return str(self.reason)


class StockAdded(Event):
    """Units were put on the shelf, and this is the SKU's price from now on."""

    type: ClassVar[str] = "stock.added"
    publisher: ClassVar[str] = "inventory"
    final: ClassVar[bool] = True
    repeats: ClassVar[bool] = True

    delivery_id: UUID
    sku: Sku
    quantity: Annotated[int, Field(ge=0)]
    unit_price_cents: Cents
    currency: Currency

    @property
    def subject(self) -> str:
        return self.sku


class StockReserved(_OrderEvent):
    """Every line is known, priced right and held."""

    type: ClassVar[str] = "stock.reserved"
    publisher: ClassVar[str] = "inventory"
    role: ClassVar[Role] = Role.EFFECT

    lines: Annotated[tuple[HeldLine, ...], Field(min_length=1, max_length=100)]


class StockRejected(_OrderEvent):
    """Nothing is held for the order, because of this SKU."""

    type: ClassVar[str] = "stock.rejected"
    publisher: ClassVar[str] = "inventory"
    role: ClassVar[Role] = Role.FAILURE

    reason: RejectionReason
    sku: Sku


class StockReleased(_OrderEvent):
    """Nothing is held for the order any more; `lines` is what was, empty if nothing."""

    type: ClassVar[str] = "stock.released"
    publisher: ClassVar[str] = "inventory"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (StockReserved,)
    final: ClassVar[bool] = True

    lines: Annotated[tuple[HeldLine, ...], Field(max_length=100)]


class PaymentCharged(_OrderEvent):
    """The customer paid, once. `reference` is the provider's."""

    type: ClassVar[str] = "payment.charged"
    publisher: ClassVar[str] = "payment"
    role: ClassVar[Role] = Role.EFFECT

    currency: Currency
    amount_cents: Cents
    reference: str


class PaymentDeclined(_OrderEvent):
    """The provider took no money and never will for this order."""

    type: ClassVar[str] = "payment.declined"
    publisher: ClassVar[str] = "payment"
    role: ClassVar[Role] = Role.FAILURE

    reason: DeclineReason


class PaymentRefunded(_OrderEvent):
    """What was charged has been given back in full."""

    type: ClassVar[str] = "payment.refunded"
    publisher: ClassVar[str] = "payment"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (PaymentCharged,)
    final: ClassVar[bool] = True

    currency: Currency
    amount_cents: Cents


class PaymentVoided(_OrderEvent):
    """Nothing was charged for the order and nothing will be."""

    type: ClassVar[str] = "payment.voided"
    publisher: ClassVar[str] = "payment"
    role: ClassVar[Role] = Role.COMPENSATION
    final: ClassVar[bool] = True
