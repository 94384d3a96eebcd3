"""What must hold of orders, payments and stock, at every reading: see `saga.view`."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Final
from uuid import UUID

from common.events import (
    CancellationReason,
    HeldLine,
    Letter,
    LetterKind,
    NotificationUnconfirmed,
    OrderCancelled,
    OrderConfirmed,
    OrderLine,
    OrderPlaced,
    PaymentCharged,
    PaymentRefunded,
    RejectionReason,
    StockAdded,
    StockRejected,
    StockReserved,
    total_of,
)
from inventory_service.domain import PARTICIPANT as INVENTORY
from inventory_service.domain import (
    Delivery,
    Reservation,
    ReservationStatus,
    StockItem,
    delivery_key,
)
from notification_service.domain import CUT_SHORT, Notification, NotificationStatus
from order_saga.outsides import MailLog
from order_service.domain import PARTICIPANT as ORDER
from order_service.domain import Order, OrderStatus
from payment_service.domain import Payment, PaymentStatus
from payment_service.ledger import Ledger, LedgerCharge
from saga.asking import Phase
from saga.view import Broken, Events, States
from saga.wording import counted

_ENDINGS: Final = {
    OrderStatus.CONFIRMED: OrderConfirmed.type,
    OrderStatus.CANCELLED: OrderCancelled.type,
}
_TOLD_IN: Final = {
    LetterKind.CONFIRMED: OrderConfirmed.type,
    LetterKind.CANCELLED: OrderCancelled.type,
}
_WITHOUT_AMOUNT: Final = (PaymentStatus.NONE, PaymentStatus.DECLINED, PaymentStatus.VOIDED)


# --- always -------------------------------------------------------------------------------------


def refund_exceeds_charge(ledger: Ledger) -> Iterator[Broken]:
    """No customer gets back more than was taken."""
    for charge in ledger:
        taken = 0 if charge.declined else charge.amount_cents
        if charge.refunded_cents > taken:
            yield (
                charge.key,
                f"the provider took {taken} cents and gave back {charge.refunded_cents}",
            )


def stock_negative(stock: States[StockItem]) -> Iterator[Broken]:
    """There is no less than nothing on the shelf."""
    for sku, item in stock.items():
        if item.free < 0 or item.held < 0:
            yield sku, f"units: {item.free} free and {item.held} held"


def stock_not_conserved(stock: States[StockItem], added: Events[StockAdded]) -> Iterator[Broken]:
    """Free and held units are what was ever put on the shelf."""
    deliveries: defaultdict[str, dict[int, int]] = defaultdict(dict)
    for event in added:
        deliveries[event.subject][event.sequence or 0] = event.data.quantity
    for sku, item in stock.items():
        if not added.complete(INVENTORY.name, sku):
            continue
        # Deliveries younger than the row that was read are not in it yet.
        units = sum(u for number, u in deliveries[sku].items() if number <= item.sequence)
        if item.free + item.held != units:
            yield (
                sku,
                f"of {counted(units, 'unit')} put on the shelf, {item.free} are free and "
                f"{item.held} held: {item.free + item.held}",
            )


def price_differs(stock: States[StockItem], added: Events[StockAdded]) -> Iterator[Broken]:
    """A SKU's price is that of its last delivery."""
    last = {(event.subject, event.sequence): event.data for event in added}
    for sku, item in stock.items():
        said = last.get((sku, item.sequence))
        if said is not None and _price(item, item.currency) != _price(said, said.currency):
            yield (
                sku,
                f"it costs {item.unit_price_cents} cents {item.currency}, its last delivery said "
                f"{said.unit_price_cents} cents {said.currency}",
            )


def delivered_twice(added: Events[StockAdded]) -> Iterator[Broken]:
    """A delivery brings a SKU once."""
    counts = Counter(
        (event.subject, event.data.delivery_id)
        for event in added
        if event.data.delivery_id is not None
    )
    for (sku, delivery_id), count in counts.items():
        if count > 1:
            yield sku, f"delivery {delivery_id} counts {counted(count, 'time')}"


def sold_untrue(
    reservations: States[Reservation],
    placed: Events[OrderPlaced],
    stock: States[StockItem],
    added: Events[StockAdded],
) -> Iterator[Broken]:
    """What is held was for sale, at the price and in the currency that its order says."""
    prices: defaultdict[str, set[tuple[int | None, str]]] = defaultdict(set)
    for sku, item in stock.items():
        prices[sku].add(_price(item, item.currency))
    for delivery in added:
        prices[delivery.subject].add(_price(delivery.data, delivery.data.currency))
    for order in placed:
        if reservations.of(order.subject).status is not ReservationStatus.HELD:
            continue
        for line in order.data.lines:
            price = _price(line, order.data.currency)
            if price not in prices[line.sku] and added.complete(INVENTORY.name, line.sku):
                yield (
                    order.subject,
                    f"{line.sku} is held for it at {line.unit_price_cents} cents "
                    f"{order.data.currency}, for which it never was for sale",
                )


def delivery_differs(deliveries: States[Delivery], added: Events[StockAdded]) -> Iterator[Broken]:
    """What is known of a delivery is what it brought, and at which price."""
    brought = {
        delivery_key(event.data.delivery_id, event.subject): event.data
        for event in added
        if event.data.delivery_id is not None
    }
    for key, delivery in deliveries.items():
        if (event := brought.get(key)) is None:
            continue
        if delivery.quantity != event.quantity:
            yield (
                key,
                f"it brought {counted(event.quantity, 'unit')}, and counts as {delivery.quantity}",
            )
        said, counts = (
            f"{each.unit_price_cents} cents {each.currency}" for each in (event, delivery)
        )
        if said != counts:
            yield key, f"it brought units at {said} each, and counts as at {counts}"


def held_mismatch(stock: States[StockItem], reservations: States[Reservation]) -> Iterator[Broken]:
    """What the shelf says is held, the reservations hold."""
    units: Counter[str] = Counter()
    for reservation in reservations.values():
        if reservation.status is ReservationStatus.HELD:
            units += _units(reservation.lines)
    for sku in stock.keys() | units.keys():
        held = stock.of(sku).held
        if held != units[sku]:
            yield (
                sku,
                f"by the shelf, {counted(held, 'unit is', 'units are')} held; the reservations "
                f"hold {units[sku]}",
            )


def held_differs(orders: States[Order], reservations: States[Reservation]) -> Iterator[Broken]:
    """What is held for an order, or was, is what was ordered."""
    for key, reservation in reservations.items():
        holds = reservation.status is ReservationStatus.HELD
        # Nothing was held for what was cancelled first; see `ReservationStatus`.
        if (holds or reservation.lines) and key in orders:
            held, ordered = (
                dict(_units(lines)) for lines in (reservation.lines, orders[key].lines)
            )
            if held != ordered:
                yield key, f"{held} {'is' if holds else 'was'} held, {ordered} was ordered"


def totals_differ(
    orders: States[Order],
    told: Events[OrderPlaced | StockReserved | PaymentCharged | PaymentRefunded | OrderConfirmed],
) -> Iterator[Broken]:
    """What is said of an order's total, from beginning to end, is what its lines add up to."""
    for order_id, order in orders.items():
        if order.total_cents != (total := total_of(order.lines)):
            yield order_id, f"it is over {order.total_cents} cents, its lines add up to {total}"
    for event in told:
        match event.data:
            case PaymentCharged() | PaymentRefunded() as said:
                over = said.amount_cents, said.currency
            case said:
                over = said.total_cents, said.currency
        ordered = orders.get(event.subject)
        if ordered is not None and over != (ordered.total_cents, ordered.currency):
            yield (
                event.subject,
                f"{event.type} is over {over[0]} cents {over[1]}, the order over "
                f"{ordered.total_cents} cents {ordered.currency}",
            )


def customers_differ(
    orders: States[Order],
    payments: States[Payment],
    told: Events[OrderPlaced | StockReserved | OrderConfirmed | OrderCancelled],
    ledger: Ledger,
) -> Iterator[Broken]:
    """Every event about an order, and the provider, name the customer who placed it."""
    named = chain(
        ((event.subject, event.type, event.data.customer) for event in told),
        # Once the provider has answered, a payment names no customer.
        ((key, "the payment", p.customer) for key, p in payments.items() if p.customer),
        ((charge.key, "the provider's charge", charge.customer) for charge in ledger),
    )
    for order_id, what, customer in named:
        order = orders.get(order_id)
        if order is not None and customer != order.customer:
            yield order_id, f"{what} names {customer!r}, {order.customer!r} placed the order"


def confirmed_unpaid(
    orders: States[Order], payments: States[Payment], ledger: Ledger
) -> Iterator[Broken]:
    """A confirmed order is charged and not refunded, in our books and in the provider's."""
    taken = _taken(ledger)
    for order_id, order in orders.items():
        if order.status is not OrderStatus.CONFIRMED:
            continue
        payment = payments.of(order_id)
        if payment.status is not PaymentStatus.CHARGED:
            yield order_id, f"the payment is {payment.status}"
        elif order_id not in taken:
            yield order_id, "the provider took no money"
        elif taken[order_id].refunded_cents:
            yield order_id, f"the provider gave back {taken[order_id].refunded_cents} cents"


def confirmed_not_held(
    orders: States[Order], reservations: States[Reservation]
) -> Iterator[Broken]:
    """A confirmed order's stock is held."""
    for order_id, order in orders.items():
        if (
            order.status is OrderStatus.CONFIRMED
            and reservations.of(order_id).status is not ReservationStatus.HELD
        ):
            yield order_id, "no stock is held for it"


def outcome_differs(
    orders: States[Order], ends: Events[OrderConfirmed | OrderCancelled]
) -> Iterator[Broken]:
    """The order service says of an ended order what its events say."""
    for order_id, order in orders.items():
        published = ends.types_about(order_id)
        ending = _ENDINGS.get(order.status)
        if ending is None or ending in published:
            continue
        if other := next(iter(published), None):
            yield order_id, f"{other} was published, but it is {order.status}"
        elif ends.complete(ORDER.name, order_id):
            yield order_id, f"it is {order.status}, but {ending} was never published"


def books_differ(
    orders: States[Order], payments: States[Payment], ledger: Ledger
) -> Iterator[Broken]:
    """Our payments, the provider's ledger and the orders' totals agree."""
    lines = {charge.key: charge for charge in ledger}
    for order_id in payments.keys() | lines.keys():
        payment = payments.get(order_id)
        if problem := _disagreement(payment, lines.get(order_id)):
            yield order_id, problem
        elif payment is not None and payment.status not in _WITHOUT_AMOUNT:
            order = orders.get(order_id)
            ours = (payment.amount_cents, payment.currency)
            if order is not None and ours != (order.total_cents, order.currency):
                yield (
                    order_id,
                    f"the payment is over {payment.amount_cents} cents {payment.currency}, the "
                    f"order over {order.total_cents} cents {order.currency}",
                )


def charge_unexplained(
    orders: States[Order],
    told: Events[OrderPlaced | OrderConfirmed | OrderCancelled],
    ledger: Ledger,
) -> Iterator[Broken]:
    """The provider keeps money only for orders that some book of ours knows. After a backup was
    restored it may have been told of others, which cannot be told any more."""
    # The history may have lost an order's first event, and have its end.
    known = orders.keys() | set(told.subjects())
    for charge in ledger:
        if charge.kept_cents > 0 and charge.key not in known:
            yield (
                charge.key,
                f"the provider keeps {charge.kept_cents} cents {charge.currency}, and neither the "
                f"order service nor the history knows such an order; pay it back, unless its "
                f"client sends the order again",
            )


def mailed_unended(
    notifications: States[Notification], ends: Events[OrderConfirmed | OrderCancelled]
) -> Iterator[Broken]:
    """A mail tells of an end that was published."""
    for order_id, notification in notifications.items():
        if notification.letter is None:
            continue
        kind = notification.letter.kind
        told = _TOLD_IN[kind] in ends.types_about(order_id)
        if not told and ends.complete(ORDER.name, order_id):
            yield order_id, f"the mail tells that it is {kind}, which was never published"


def mailed_twice(doubtful: Events[NotificationUnconfirmed], mails: MailLog) -> Iterator[Broken]:
    """No mail is taken twice, unless it was doubtful whether it was, and an operator had it
    sent again."""
    leave = Counter(event.subject for event in doubtful)
    for order_id, count in mails:
        if count > 1 + leave[order_id]:
            yield order_id, counted(count, "mail was taken", "mails were taken")


def _disagreement(payment: Payment | None, charge: LedgerCharge | None) -> str | None:
    if payment is None:
        return "the provider was asked, but there is no payment"
    if charge is None:
        if payment.status in (
            PaymentStatus.CHARGED,
            PaymentStatus.DECLINED,
            PaymentStatus.REFUNDING,
            PaymentStatus.REFUNDED,
        ):
            return f"the payment is {payment.status}, but the provider was never asked"
        return None
    if payment.status not in _WITHOUT_AMOUNT and (
        (payment.amount_cents, payment.currency) != (charge.amount_cents, charge.currency)
    ):
        return (
            f"the payment is over {payment.amount_cents} cents {payment.currency}, the provider's "
            f"over {charge.amount_cents} cents {charge.currency}"
        )
    theirs = (
        "declined"
        if charge.declined
        else "charged"
        if not charge.refunded_cents
        else "refunded"
        if charge.refunded_cents == charge.amount_cents
        else "refunded in part"
    )
    if theirs not in _THEIRS[payment.status]:
        return f"the payment is {payment.status}, the provider's is {theirs}"
    return None


_THEIRS: Final = {
    PaymentStatus.NONE: (),
    PaymentStatus.CHARGING: ("charged", "declined"),
    PaymentStatus.SETTLING: ("charged", "declined"),
    PaymentStatus.CHARGED: ("charged",),
    PaymentStatus.DECLINED: ("declined",),
    PaymentStatus.REFUNDING: ("charged", "refunded"),
    PaymentStatus.REFUNDED: ("refunded",),
    PaymentStatus.VOIDED: ("declined",),
}
"""What the provider may have done, by where a payment stands with us."""


# --- at rest ------------------------------------------------------------------------------------


def not_terminal(
    orders: States[Order], ends: Events[OrderConfirmed | OrderCancelled]
) -> Iterator[Broken]:
    """Every order comes to an end: it is confirmed or cancelled."""
    for order_id, order in orders.items():
        # See `outcome_unheard` for those whose end was published.
        if order.status not in _ENDINGS and not ends.types_about(order_id):
            yield order_id, f"it is {order.status}"


def outcome_unheard(
    orders: States[Order], ends: Events[OrderConfirmed | OrderCancelled]
) -> Iterator[Broken]:
    """An order whose end was published has ended."""
    for order_id, order in orders.items():
        if order.status not in _ENDINGS and (published := ends.types_about(order_id)):
            told = " and ".join(sorted(published))
            yield order_id, f"{told} was published, but it is {order.status}"


def order_missing(
    orders: States[Order],
    payments: States[Payment],
    reservations: States[Reservation],
    told: Events[OrderPlaced | StockReserved | PaymentCharged | OrderConfirmed | OrderCancelled],
) -> Iterator[Broken]:
    """Whatever was published, paid or held for an order, the order service knows the order."""
    held = {k for k, r in reservations.items() if r.status is ReservationStatus.HELD}
    missing = dict.fromkeys(told.subjects(), "there are events about it")
    missing |= dict.fromkeys(held, "stock is held for it")
    missing |= dict.fromkeys(payments, "there is a payment for it")
    for order_id, witness in missing.items():
        if order_id not in orders:
            yield order_id, f"{witness}, but the order service does not know it"


def charged_not_confirmed(
    orders: States[Order], payments: States[Payment], ledger: Ledger
) -> Iterator[Broken]:
    """No customer pays for an order that is not confirmed, in our books and in the provider's."""
    taken = _taken(ledger)
    for order_id, order in orders.items():
        if order.status is OrderStatus.CONFIRMED:
            continue
        ours = payments.of(order_id).status is PaymentStatus.CHARGED
        theirs = order_id in taken and not taken[order_id].refunded_cents
        if ours or theirs:
            books = " and ".join(
                name for name, said in (("our books", ours), ("the provider's", theirs)) if said
            )
            yield order_id, f"it is {order.status}, but charged in {books}"


def held_not_confirmed(
    orders: States[Order], reservations: States[Reservation]
) -> Iterator[Broken]:
    """No stock is held for an order that is not confirmed."""
    for order_id, reservation in reservations.items():
        if reservation.status is ReservationStatus.HELD and order_id in orders:
            order = orders[order_id]
            if order.status is not OrderStatus.CONFIRMED:
                yield order_id, f"it is {order.status}, but its stock is held"


def mail_untrue(orders: States[Order], notifications: States[Notification]) -> Iterator[Broken]:
    """A mail tells how its order ended, whose it is, and over how much or why not."""
    for order_id, notification in notifications.items():
        order = orders.of(order_id)
        letter = notification.letter
        if letter is None or order.status not in _ENDINGS:
            continue
        true: dict[str, object] = {"kind": order.status.value, "customer": order.customer}
        if order.status is OrderStatus.CONFIRMED:
            true |= {"total_cents": order.total_cents, "currency": order.currency}
        else:
            true["reason"] = order.reason
        for name, value in true.items():
            if (said := getattr(letter, name)) != value:
                yield order_id, f"the mail tells {name} {said}, the order's is {value}"


def mail_unsettled(notifications: States[Notification]) -> Iterator[Broken]:
    """No mail is left in the middle of being handed over, known or not by events."""
    for order_id, notification in notifications.items():
        if notification.status is NotificationStatus.SENDING:
            yield order_id, "its mail may have been sent, and no process goes on with it"


def payment_unsettled(orders: States[Order], payments: States[Payment]) -> Iterator[Broken]:
    """No payment is left in the middle of a question to the provider, known or not by events."""
    for order_id, payment in payments.items():
        asking = payment.phase in (Phase.ASKING, Phase.SETTLING, Phase.UNDOING)
        if asking and order_id in orders:  # See `order_missing` for others.
            yield order_id, f"the payment is {payment.status}"


def not_mailed(
    ends: Events[OrderConfirmed | OrderCancelled],
    notifications: States[Notification],
    mails: MailLog,
) -> Iterator[Broken]:
    """Each customer whose order has ended got a mail, or an operator knows of it."""
    for event in ends:
        status = notifications.of(event.subject).status
        if status in (NotificationStatus.NONE, NotificationStatus.WAITING):
            yield event.subject, f"its notification is {status}"
        elif status is NotificationStatus.SENT and not mails.of(event.subject):
            yield event.subject, "it counts as sent, and no mail was taken"


# --- for people ---------------------------------------------------------------------------------


def mails_unknown(notifications: States[Notification]) -> Iterator[Broken]:
    """Mails that may or may not have been sent (`GET /notifications`)."""
    for order_id, notification in notifications.items():
        if notification.status is NotificationStatus.UNKNOWN:
            yield order_id, notification.detail


# --- in scenarios -------------------------------------------------------------------------------


def not_undone(
    orders: States[Order], reservations: States[Reservation], payments: States[Payment]
) -> Iterator[Broken]:
    """Each participant that may have done something for a cancelled order has said that nothing is
    left."""
    for order_id, order in orders.items():
        if order.status is not OrderStatus.CANCELLED:
            continue
        reservation = reservations.of(order_id).status
        if reservation not in (ReservationStatus.RELEASED, ReservationStatus.REJECTED):
            yield order_id, f"it is cancelled, and the reservation is {reservation}"
        payment = payments.of(order_id).status
        if payment not in (
            PaymentStatus.VOIDED,
            PaymentStatus.DECLINED,
            PaymentStatus.REFUNDED,
        ):
            yield order_id, f"it is cancelled, and the payment is {payment}"


FIRST_DELIVERY: Final = UUID(int=1)
"""What this brings is on the shelf before anything is ordered."""


def rejected_untrue(
    placed: Events[OrderPlaced],
    rejected: Events[StockRejected],
    reserved: Events[StockReserved],
    added: Events[StockAdded],
) -> Iterator[Broken]:
    """Inventory rejects an order only for what, at some time, was on the shelf or was not."""
    orders = {event.subject: event.data for event in placed}
    for event in rejected:
        reason, sku = event.data.reason, event.data.sku
        lines = [line for line in orders[event.subject].lines if line.sku == sku]
        moments = _moments(sku, added)
        held = sum(
            _units(other.data.lines)[sku] for other in reserved if other.subject != event.subject
        )
        true = {
            RejectionReason.UNKNOWN_SKU: any(not there for there in moments),
            RejectionReason.PRICE_MISMATCH: any(
                _price(line, orders[event.subject].currency)
                != _price(there[-1], there[-1].currency)
                for there in moments
                if there
                for line in lines
            ),
            RejectionReason.OUT_OF_STOCK: any(
                sum(each.quantity for each in there) - held < _units(lines)[sku]
                for there in moments
                if there
            ),
        }
        if not true[reason]:
            yield event.subject, f"{sku} was rejected as {reason}, which was at no time so"


def _moments(sku: str, added: Events[StockAdded]) -> Sequence[Sequence[StockAdded]]:
    """The deliveries of a SKU that may have been there when the stock was read."""
    numbered = {event.sequence or 0: event.data for event in added if event.subject == sku}
    brought = [numbered[number] for number in sorted(numbered)]
    before = sum(each.delivery_id == FIRST_DELIVERY for each in brought)
    return [brought[:count] for count in range(before, len(brought) + 1)]


def letter_untrue(
    notifications: States[Notification], ends: Events[OrderConfirmed | OrderCancelled]
) -> Iterator[Broken]:
    """A mail tells what the event tells that it is about."""
    for event in ends:
        letter = notifications.of(event.subject).letter
        if letter is None:
            continue
        match event.data:
            case OrderConfirmed() as end:
                true = Letter(
                    kind=LetterKind.CONFIRMED,
                    customer=end.customer,
                    currency=end.currency,
                    total_cents=end.total_cents,
                )
            case end:
                true = Letter(kind=LetterKind.CANCELLED, customer=end.customer, reason=end.reason)
        if letter != true:
            yield event.subject, f"the mail tells {letter!r}; {event.type} told {end!r}"


def doubt_untrue(doubtful: Events[NotificationUnconfirmed]) -> Iterator[Broken]:
    """Where every mail is taken, none is in doubt but by a crash."""
    for event in doubtful:
        if event.data.detail != CUT_SHORT:
            yield event.subject, f"it counts as unknown, though it was taken: {event.data.detail!r}"


def reason_untrue(
    orders: States[Order], payments: States[Payment], rejected: Events[StockRejected]
) -> Iterator[Broken]:
    """An order is cancelled for what really happened."""
    reasons = {event.subject: event.data.reason.value for event in rejected}
    for order_id, order in orders.items():
        if order.status is not OrderStatus.CANCELLED:
            continue
        match order.reason:
            case None:
                yield order_id, "it was cancelled for no reason"
            case CancellationReason.CUSTOMER_REQUEST:
                pass
            case CancellationReason.DEADLINE_EXCEEDED:
                if order.ended_at is None or order.ended_at < order.deadline:
                    yield order_id, "it was cancelled for its deadline, before that had passed"
            case CancellationReason.PAYMENT_DECLINED:
                status = payments.of(order_id).status
                if status is not PaymentStatus.DECLINED:
                    yield order_id, f"it was cancelled as not paid, and the payment is {status}"
            case reason:
                if (said := reasons.get(order_id)) != reason.value:
                    yield order_id, f"it was cancelled as {reason}, and inventory said {said}"


ALWAYS = (
    refund_exceeds_charge,
    stock_negative,
    stock_not_conserved,
    price_differs,
    delivered_twice,
    delivery_differs,
    held_mismatch,
    held_differs,
    sold_untrue,
    confirmed_unpaid,
    confirmed_not_held,
    outcome_differs,
    books_differ,
    charge_unexplained,
    totals_differ,
    customers_differ,
    mailed_unended,
    mailed_twice,
)
AT_REST = (
    not_terminal,
    outcome_unheard,
    order_missing,
    charged_not_confirmed,
    held_not_confirmed,
    payment_unsettled,
    mail_untrue,
    mail_unsettled,
    not_mailed,
)


def _price(of: OrderLine | StockAdded | StockItem, currency: str) -> tuple[int | None, str]:
    return of.unit_price_cents, currency


def _units(lines: Iterable[HeldLine]) -> Counter[str]:
    units: Counter[str] = Counter()
    for line in lines:
        units[line.sku] += line.quantity
    return units


def _taken(ledger: Ledger) -> dict[str, LedgerCharge]:
    return {charge.key: charge for charge in ledger if not charge.declined}
