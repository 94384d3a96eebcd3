"""The published language: every event of the saga, once, and the one command that travels.

Money is integer cents, quantities are integers, times are UTC. The limits below bound what one
message may hold; they are part of the contract.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Literal, Self
from uuid import UUID, uuid5

from pydantic import BaseModel, ConfigDict, Field, model_validator

from saga.limits import Moment, Plain
from saga.message import Command, Event, EventTypes, Priority, Role
from saga.personal import Personal

_ORDERS = UUID("8a1c9a38-6a6e-5f0b-9d53-0f3c4d2f6b11")

LINES_MAX = 100
QUANTITY_MAX = 10_000
STOCK_QUANTITY_MAX = 1_000_000_000
UNIT_PRICE_MAX_CENTS = 100_000_000
TIME_LIMIT_MAX_SECONDS = 7 * 24 * 3600

Sku = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
# No database has to store control characters.
Customer = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,128}$"), Personal]
"""As events carry it: older ones have what was taken then. Sealed where persons' data is."""
NewCustomer = Annotated[Customer, Plain]
"""As it is taken from people."""
Reference = Annotated[str, Field(max_length=255)]
Detail = Annotated[str, Field(max_length=255)]
Quantity = Annotated[int, Field(ge=1, le=QUANTITY_MAX)]
UnitPriceCents = Annotated[int, Field(ge=1, le=UNIT_PRICE_MAX_CENTS)]
AmountCents = Annotated[int, Field(ge=1, le=LINES_MAX * QUANTITY_MAX * UNIT_PRICE_MAX_CENTS)]
Currency = Literal["CHF", "EUR", "GBP", "JPY", "SEK", "USD"]
Lines = Annotated[tuple["OrderLine", ...], Field(min_length=1, max_length=LINES_MAX)]


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


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class HeldLine(_Part):
    """Units of one SKU held for an order."""

    sku: Sku
    quantity: Quantity


class OrderLine(HeldLine):
    """Units of one SKU a customer asks for, at the price they were shown."""

    unit_price_cents: UnitPriceCents


def order_id_of(idempotency_key: str, owner: str | None = None) -> UUID:
    """The id of the order placed under this key: the same however often it is placed. Each owner
    has keys of their own; without one, it is the operators' key."""
    return uuid5(_ORDERS if owner is None else uuid5(_ORDERS, owner), idempotency_key)


def total_of(lines: tuple[OrderLine, ...]) -> int:
    """The sum of the lines, in cents."""
    return sum(line.quantity * line.unit_price_cents for line in lines)


class PlaceOrder(Command):
    """Place this order. The envelope's id is the idempotency key."""

    type: ClassVar[str] = "order.place"
    intake: ClassVar[bool] = True

    order_id: UUID
    customer: NewCustomer
    currency: Currency
    lines: Lines
    priority: Priority = Priority.NORMAL
    time_limit_seconds: int = Field(default=300, ge=1, le=TIME_LIMIT_MAX_SECONDS)

    @property
    def subject(self) -> str:
        return str(self.order_id)


class OrderEvent(Event):
    """An event in the life of one order."""

    order_id: UUID

    @property
    def subject(self) -> str:
        return str(self.order_id)


class OrderPlaced(OrderEvent):
    """A customer wants these lines, at these prices, before the deadline."""

    type: ClassVar[str] = "order.placed"
    publisher: ClassVar[str] = "order"

    customer: Customer
    currency: Currency
    lines: Lines
    total_cents: AmountCents
    priority: Priority
    deadline: Moment

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.total_cents != total_of(self.lines):
            raise ValueError(
                f"total_cents is {self.total_cents}, but the lines add up to {total_of(self.lines)}"
            )
        return self


class OrderConfirmed(OrderEvent):
    """The order is paid and its stock is held."""

    type: ClassVar[str] = "order.confirmed"
    publisher: ClassVar[str] = "order"
    role: ClassVar[Role] = Role.COMPLETION
    final: ClassVar[bool] = True

    customer: Customer
    currency: Currency
    total_cents: AmountCents

    @property
    def outcome(self) -> str:
        return "confirmed"


class OrderCancelled(OrderEvent):
    """The order will not happen; the one trigger of every compensation."""

    type: ClassVar[str] = "order.cancelled"
    publisher: ClassVar[str] = "order"
    role: ClassVar[Role] = Role.CANCELLATION

    customer: Customer
    reason: CancellationReason

    @property
    def outcome(self) -> str:
        return str(self.reason)


class StockReserved(OrderEvent):
    """Every line is known, priced right and held. Carries what payment needs."""

    type: ClassVar[str] = "stock.reserved"
    publisher: ClassVar[str] = "inventory"
    role: ClassVar[Role] = Role.EFFECT

    customer: Customer
    currency: Currency
    total_cents: AmountCents
    lines: Annotated[tuple[HeldLine, ...], Field(min_length=1, max_length=LINES_MAX)]


class StockRejected(OrderEvent):
    """Nothing is held for the order, because of this SKU."""

    type: ClassVar[str] = "stock.rejected"
    publisher: ClassVar[str] = "inventory"
    role: ClassVar[Role] = Role.FAILURE

    reason: RejectionReason
    sku: Sku


class StockReleased(OrderEvent):
    """Nothing is held for the order any more; `lines` is what was, empty if nothing."""

    type: ClassVar[str] = "stock.released"
    publisher: ClassVar[str] = "inventory"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (StockReserved,)
    final: ClassVar[bool] = True

    lines: Annotated[tuple[HeldLine, ...], Field(max_length=LINES_MAX)]


class PaymentCharged(OrderEvent):
    """The customer paid, once. `reference` is the provider's."""

    type: ClassVar[str] = "payment.charged"
    publisher: ClassVar[str] = "payment"
    role: ClassVar[Role] = Role.EFFECT

    currency: Currency
    amount_cents: AmountCents
    reference: Reference


class PaymentDeclined(OrderEvent):
    """The provider took no money and never will for this order."""

    type: ClassVar[str] = "payment.declined"
    publisher: ClassVar[str] = "payment"
    role: ClassVar[Role] = Role.FAILURE

    reason: DeclineReason


class PaymentRefunded(OrderEvent):
    """What was charged has been given back in full."""

    type: ClassVar[str] = "payment.refunded"
    publisher: ClassVar[str] = "payment"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (PaymentCharged,)
    final: ClassVar[bool] = True

    currency: Currency
    amount_cents: AmountCents


class PaymentVoided(OrderEvent):
    """Nothing was charged for the order and nothing will be."""

    type: ClassVar[str] = "payment.voided"
    publisher: ClassVar[str] = "payment"
    role: ClassVar[Role] = Role.COMPENSATION
    final: ClassVar[bool] = True


class LetterKind(StrEnum):
    """What a mail to a customer tells."""

    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"


class Letter(_Part):
    """What a mail to a customer says; the words, and the address, are notification's."""

    kind: LetterKind
    customer: Customer
    currency: Currency | None = None
    total_cents: AmountCents | None = None
    reason: CancellationReason | None = None


class NotificationBegun(OrderEvent):
    """The customer is to be mailed how the order ended, and may have been from here on."""

    type: ClassVar[str] = "notification.begun"
    publisher: ClassVar[str] = "notification"
    final: ClassVar[bool] = True

    letter: Letter


class NotificationSent(OrderEvent):
    """The mail was accepted for delivery."""

    type: ClassVar[str] = "notification.sent"
    publisher: ClassVar[str] = "notification"
    final: ClassVar[bool] = True


class NotificationUnconfirmed(OrderEvent):
    """It is unknown whether the mail was accepted; an operator decides what to do."""

    type: ClassVar[str] = "notification.unconfirmed"
    publisher: ClassVar[str] = "notification"
    final: ClassVar[bool] = True
    repeats: ClassVar[bool] = True

    detail: Detail


class DismissalReason(StrEnum):
    """Why a mail is not sent that was owed, or may not have arrived."""

    OPERATOR = "operator"
    """An operator decided not to send it."""
    FORGOTTEN = "forgotten"
    """The address cannot be read any more: the customer was forgotten."""


class NotificationDismissed(OrderEvent):
    """A mail is not sent: an operator dismissed an unconfirmed one, or the customer was
    forgotten."""

    type: ClassVar[str] = "notification.dismissed"
    publisher: ClassVar[str] = "notification"
    final: ClassVar[bool] = True

    reason: DismissalReason = DismissalReason.OPERATOR


class StockAdded(Event):
    """Units were put on the shelf, and this is the SKU's price from now on."""

    type: ClassVar[str] = "stock.added"
    publisher: ClassVar[str] = "inventory"
    final: ClassVar[bool] = True
    repeats: ClassVar[bool] = True

    delivery_id: UUID | None = None
    """Which delivery brought them; not known of what came before deliveries had ids."""
    sku: Sku
    quantity: Annotated[int, Field(ge=0, le=STOCK_QUANTITY_MAX)]
    unit_price_cents: UnitPriceCents
    currency: Currency

    @property
    def subject(self) -> str:
        return self.sku
