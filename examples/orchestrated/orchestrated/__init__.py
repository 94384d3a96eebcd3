"""The saga as a whole: what no single participant may know."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from saga import (
    ARCHIVE,
    Broken,
    Command,
    DeskBookkeeper,
    Events,
    Outside,
    Phase,
    Saga,
    Scenario,
    States,
    Stimulus,
    View,
)

from orchestrated.coordinator.domain import PARTICIPANT as COORDINATOR
from orchestrated.coordinator.domain import Order, Step
from orchestrated.inventory.domain import PARTICIPANT as INVENTORY
from orchestrated.inventory.domain import (
    Delivery,
    Reservation,
    ReservationStatus,
    StockItem,
    delivery_key,
    units,
)
from orchestrated.language import (
    AddStock,
    CancellationReason,
    CancelOrder,
    OrderLine,
    PlaceOrder,
    StockAdded,
)
from orchestrated.load import plan
from orchestrated.payment.domain import PARTICIPANT as PAYMENT
from orchestrated.payment.domain import Payment
from orchestrated.provider import Ledger, LedgerMemory, Outcome, asks

PROVIDER: Final = Outside(
    "provider",
    asked_by=PAYMENT.name,
    blank=Ledger(),
    decisions=(Outcome.CHARGED, Outcome.CARD_DECLINED),
    ask=lambda desk: asks(DeskBookkeeper(desk)),
    read=Ledger.read,
    setting="SANDBOX_URL",
    file="provider.db",
    memory=LedgerMemory,
)


# --- what must hold, beside what follows from roles ----------------------------------------------


def stock_not_conserved(stock: States[StockItem], added: Events[StockAdded]) -> Iterator[Broken]:
    """Free and held units are what was ever put on the shelf, and none is less than nothing."""
    deliveries: defaultdict[str, dict[int, int]] = defaultdict(dict)
    for event in added:
        deliveries[event.subject][event.sequence or 0] = event.data.quantity
    for sku, item in stock.items():
        if min(item.free, item.held) < 0:
            yield sku, f"{item.free} units are free and {item.held} are held"
        # Deliveries younger than the row that was read are not in it yet.
        put = sum(units for number, units in deliveries[sku].items() if number <= item.sequence)
        if added.complete(INVENTORY.name, sku) and item.free + item.held != put:
            yield sku, f"{put} units were put on the shelf, and {item.free + item.held} are there"


def delivery_differs(deliveries: States[Delivery], added: Events[StockAdded]) -> Iterator[Broken]:
    """What is known of a delivery is what it brought."""
    for event in added:
        known = deliveries.get(delivery_key(event.data))
        if known is not None and known.quantity != event.data.quantity:
            yield known.key, f"it brought {event.data.quantity}, and counts as {known.quantity}"


def held_mismatch(stock: States[StockItem], reservations: States[Reservation]) -> Iterator[Broken]:
    """What the shelf says is held, the reservations hold."""
    held: Counter[str] = Counter()
    for reservation in reservations.values():
        if reservation.status is ReservationStatus.HELD:
            held += units(reservation.lines)
    for sku in stock.keys() | held.keys():
        if stock.of(sku).held != held[sku]:
            yield sku, f"the shelf says {stock.of(sku).held} are held, reservations {held[sku]}"


def confirmed_without(
    orders: States[Order],
    reservations: States[Reservation],
    payments: States[Payment],
    ledger: Ledger,
) -> Iterator[Broken]:
    """A confirmed order's stock is held, and it is paid, in our books and in the provider's."""
    kept = {line.key: line.kept_cents for line in ledger}
    for key, order in orders.items():
        if order.step is not Step.CONFIRMED:
            continue
        if reservations.of(key).status is not ReservationStatus.HELD:
            yield key, f"it is confirmed, and the reservation is {reservations.of(key).status}"
        if payments.of(key).phase is not Phase.TAKEN:
            yield key, f"it is confirmed, and the payment is {payments.of(key).phase}"
        if kept.get(key) != order.total_cents:
            yield key, f"{order.total_cents} cents are due, the provider keeps {kept.get(key, 0)}"


def reason_untrue(orders: States[Order], payments: States[Payment]) -> Iterator[Broken]:
    """An order is cancelled as not paid only if the provider took no money."""
    for key, order in orders.items():
        unpaid = order.reason is CancellationReason.PAYMENT_DECLINED
        if unpaid and payments.of(key).phase is not Phase.REFUSED:
            yield key, f"it was cancelled as not paid, and the payment is {payments.of(key).phase}"


def kept_in_vain(
    orders: States[Order], reservations: States[Reservation], ledger: Ledger
) -> Iterator[Broken]:
    """Nothing is held, and nothing is paid, for an order that is not confirmed."""
    kept = {line.key: f"{line.kept_cents} cents are kept" for line in ledger if line.kept_cents}
    for key, reservation in reservations.items():
        if reservation.status is ReservationStatus.HELD:
            kept[key] = "stock is held"
    for key, what in kept.items():
        if orders.of(key).step is not Step.CONFIRMED:
            yield key, f"it is {orders.of(key).step}, and {what}"


# --- how that is tried ---------------------------------------------------------------------------

NOW: Final = datetime(2030, 1, 1, tzinfo=UTC)
TIME_LIMIT_SECONDS: Final = 300
MUG: Final = OrderLine(sku="mug", quantity=1, unit_price_cents=1250)
PEN: Final = OrderLine(sku="pen", quantity=1, unit_price_cents=150)


def _stock(delivery: UUID, units: int, *lines: OrderLine) -> list[tuple[str, Command]]:
    return [
        (
            INVENTORY.name,
            AddStock(
                delivery_id=delivery,
                sku=line.sku,
                quantity=units,
                unit_price_cents=line.unit_price_cents,
                currency="CHF",
            ),
        )
        for line in lines
    ]


def _scenario(
    name: str, starts: Mapping[str, list[tuple[str, Command]]], **orders: Iterable[OrderLine]
) -> Scenario:
    ids = {label: UUID(int=number) for number, label in enumerate(orders, 1)}

    def stimulus(label: str, order_id: UUID) -> Stimulus:
        def known(view: View) -> bool:
            return view.states(Order).of(str(order_id)).step is not Step.UNKNOWN

        cancel = CancelOrder(order_id=order_id)
        return Stimulus(f"the customer cancels {label}", COORDINATOR.name, cancel, NOW, known)

    return Scenario(
        name,
        starts=starts,
        sent=[
            (
                COORDINATOR.name,
                PlaceOrder(
                    order_id=ids[label],
                    customer=f"customer {label}",
                    currency="CHF",
                    lines=tuple(lines),
                    time_limit_seconds=TIME_LIMIT_SECONDS,
                ),
            )
            for label, lines in orders.items()
        ],
        stimuli=[stimulus(label, order_id) for label, order_id in ids.items()],
        moments=(NOW, NOW + timedelta(seconds=TIME_LIMIT_SECONDS)),
        names={str(order_id): label for label, order_id in ids.items()},
    )


_A: Final = UUID(int=1)
ONE_ORDER: Final = _scenario(
    "one order",
    {
        "all is in stock": _stock(_A, 2, MUG, PEN),
        "a mug is missing": _stock(_A, 1, MUG, PEN),
        "pens are unknown": _stock(_A, 2, MUG),
        "pens have another price": _stock(
            _A, 2, MUG, PEN.model_copy(update={"unit_price_cents": 160})
        ),
    },
    A=(MUG, MUG, PEN),
)
TWO_ORDERS: Final = _scenario(
    "two orders", {"one mug is left": _stock(_A, 1, MUG, PEN)}, A=(MUG,), B=(MUG, PEN)
)


SAGA: Final = Saga(
    "orchestrated",
    participants=(COORDINATOR, INVENTORY, PAYMENT),
    observers=(ARCHIVE,),
    subject=Order,
    outside=(PROVIDER,),
    always=(stock_not_conserved, delivery_differs, held_mismatch, confirmed_without, reason_untrue),
    at_rest=(kept_in_vain,),
    scenarios=(ONE_ORDER, TWO_ORDERS),
    load=plan,
)
