"""The models of the order saga: what is ordered, how the provider answers, what must never be.

The rules are those of `saga reconcile`, applied to every state there is instead of a running
system, and a few more that a running system gives no means to check.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from common.choreography import Choreography, Participant
from common.events import (
    CancellationReason,
    Currency,
    DeclineReason,
    HeldLine,
    OrderEvent,
    OrderLine,
    PlaceOrder,
    RejectionReason,
    StockAdded,
    StockRejected,
)
from common.kernel.groups import Ask
from common.message import Answer, Intent
from inventory_service.domain import PARTICIPANT as INVENTORY
from inventory_service.domain import AddStock, Reservation, ReservationStatus, StockItem
from order_service.domain import PARTICIPANT as ORDER
from order_service.domain import CancelOrder, Order, OrderStatus
from payment_service.app import build_with
from payment_service.domain import Payment, PaymentStatus
from payment_service.gateway import (
    Charge,
    Decline,
    GatewayRefused,
    Outcome,
    PaymentGateway,
    Receipt,
)
from saga import discovery
from saga.reconcile.facts import Facts, OrderFact, PaymentFact, ProviderCharge, StockFact
from saga.reconcile.history import History
from saga.reconcile.rules import judge as reconcile
from saga.verify.model import Model, Reply, Stimulus, VerifyError, View, Violation

BEFORE = datetime(2030, 1, 1, tzinfo=UTC)
"""When orders are placed, and all time up to their deadlines."""
TIME_LIMIT_SECONDS = 300
AFTER = BEFORE + timedelta(seconds=TIME_LIMIT_SECONDS)
"""Their deadline, and all time from there."""
AT_REST = AFTER + timedelta(days=1)
EVER_SECONDS = timedelta(days=365).total_seconds()
"""A grace that no order of a model is older than."""

Line = tuple[str, int, int]
"""SKU, quantity, unit price in cents."""

MUG: Line = ("mug", 1, 1250)
PEN: Line = ("pen", 1, 150)
CURRENCY: Currency = "CHF"
"""One that is nobody's default."""

Asks = Callable[[PaymentGateway], Mapping[type[Intent], Ask]]


def _asks(gateway: PaymentGateway) -> Mapping[type[Intent], Ask]:
    """As the payment service puts its questions."""
    return build_with(gateway).ask


def one_order(*participants: Participant, asks: Asks | None = None, source: str = "") -> Model:
    """One order of three lines, two of them for mugs, whatever is in stock.

    `participants` stand in for those of the same name, and `asks` for how payment asks the
    provider; `source` is the function that makes this model, if it is not this one.
    """
    two_mugs = ("mug", 2, 1250)
    return _model(
        "one order",
        source or f"{__name__}.{one_order.__name__}",
        _answered(_participants(participants), asks),
        asks,
        starts={
            "all is in stock": (two_mugs, PEN),
            "a mug is missing": (MUG, PEN),
            "pens are unknown": (two_mugs,),
            "pens have another price": (two_mugs, ("pen", 1, 160)),
        },
        orders={"A": (MUG, MUG, PEN)},
    )


def two_orders(*participants: Participant, asks: Asks | None = None, source: str = "") -> Model:
    """Two orders that both want the last mug, one of them a pen too. See `one_order`."""
    return _model(
        "two orders",
        source or f"{__name__}.{two_orders.__name__}",
        _influential(_participants(participants)),
        asks,
        starts={"one mug is left": (MUG, PEN)},
        orders={"A": (MUG,), "B": (MUG, PEN)},
    )


def _participants(instead: Sequence[Participant]) -> Choreography:
    """The participants there are, these standing in for those of the same name."""
    found = {p.name: p for p in discovery.participants().values()}
    return Choreography((found | {p.name: p for p in instead}).values())


def _answered(choreography: Choreography, asks: Asks | None) -> Choreography:
    """Without participants whose events nobody takes and who ask somebody the model does not know,
    a mail server for instance: what they are answered cannot change what becomes of orders, so it
    need not be modelled. Their own tests have to show what they do."""
    known = (asks or _asks)(Provider((), Outcome.CHARGED)).keys()
    influential = _influential(choreography).participants
    return Choreography(
        p
        for p in choreography.participants
        if p in influential or all(i in known for r in p.reactions for i in r.intends)
    )


def _influential(choreography: Choreography) -> Choreography:
    """Without participants whose events nobody takes: they cannot change what becomes of orders,
    and one order is enough to see what they do."""
    participants = choreography.participants
    while True:
        consumed = {event for p in participants for event in p.consumes}
        kept = tuple(p for p in participants if consumed.intersection(p.publishes))
        if kept == participants:
            return Choreography(kept)
        participants = kept


def _model(
    name: str,
    source: str,
    choreography: Choreography,
    asks: Asks | None,
    *,
    starts: Mapping[str, Iterable[Line]],
    orders: Mapping[str, Iterable[Line]],
) -> Model:
    ids = {label: UUID(int=number) for number, label in enumerate(orders, 1)}
    return Model(
        name=name,
        source=source,
        choreography=choreography,
        starts={
            start: [
                (
                    INVENTORY.name,
                    AddStock(
                        delivery_id=UUID(int=1),
                        sku=sku,
                        quantity=quantity,
                        unit_price_cents=cents,
                        currency=CURRENCY,
                    ),
                )
                for sku, quantity, cents in shelf
            ]
            for start, shelf in starts.items()
        },
        sent=[
            (ORDER.name, _place(label, order_id, orders[label])) for label, order_id in ids.items()
        ],
        stimuli=[
            stimulus for label, order_id in ids.items() for stimulus in _stimuli(label, order_id)
        ],
        moments=(BEFORE, AFTER),
        judge=_Judge(choreography),
        ask=_Asking(asks or _asks),
        outside=(),
        outside_name="provider",
        names={str(order_id): label for label, order_id in ids.items()},
    )


# --- what happens to an order -------------------------------------------------------------------


def _place(label: str, order_id: UUID, lines: Iterable[Line]) -> PlaceOrder:
    return PlaceOrder(
        order_id=order_id,
        customer=f"customer {label}",
        currency=CURRENCY,
        lines=tuple(
            OrderLine(sku=sku, quantity=quantity, unit_price_cents=cents)
            for sku, quantity, cents in lines
        ),
        time_limit_seconds=TIME_LIMIT_SECONDS,
    )


def _stimuli(label: str, order_id: UUID) -> Iterator[Stimulus]:
    """The customer may cancel at any time."""

    def is_known(view: View) -> bool:
        return view.state(Order, str(order_id)).status is not OrderStatus.UNKNOWN

    cancel = CancelOrder(order_id=order_id)
    yield Stimulus(f"the customer cancels {label}", ORDER.name, cancel, BEFORE, is_known)


# --- the payment provider -----------------------------------------------------------------------

Ledger = tuple[Charge, ...]
"""The provider's charges, in the order of their keys."""


class Provider:
    """A `PaymentGateway` for one question: answers as the sandbox does, and decides on a new
    charge as it is told. A test compares the two."""

    def __init__(self, ledger: Ledger, decision: Outcome) -> None:
        self._charges = {charge.key: charge for charge in ledger}
        self._decision = decision
        self.said = ""

    @property
    def ledger(self) -> Ledger:
        return tuple(self._charges[key] for key in sorted(self._charges))

    async def charge(
        self, key: str, *, customer: str, currency: str, amount_cents: int
    ) -> Receipt | Decline:
        known = self._charges.get(key)
        if known is None:
            known = self._charges[key] = Charge(
                key, customer, currency, amount_cents, self._decision, f"receipt {key}", 0
            )
        if (known.customer, known.currency, known.amount_cents) != (
            customer,
            currency,
            amount_cents,
        ):
            raise GatewayRefused(f"{key} is the key of a different charge")
        if known.outcome is Outcome.CHARGED:
            self.said = "charged"
            return Receipt(known.reference)
        self.said = "declined"
        return Decline(DeclineReason(known.outcome))

    async def refund(self, key: str, *, currency: str, amount_cents: int) -> None:
        known = self._charges.get(key)
        if known is None or known.outcome is not Outcome.CHARGED:
            raise GatewayRefused(f"nothing was charged under {key}")
        cents = min(amount_cents, known.amount_cents)
        if currency != known.currency or known.refunded_cents not in (0, cents):
            raise GatewayRefused(f"{key} is the key of a different refund")
        self._charges[key] = replace(known, refunded_cents=cents)
        self.said = "refunded"

    async def close(self) -> None:
        pass


class _Asking:
    """Puts intents to the provider as the payment service does."""

    def __init__(self, asks: Asks) -> None:
        self._asks = asks

    def __call__(self, ledger: Ledger, intent: Intent) -> Iterator[Reply]:
        replies = set()
        for decision in (Outcome.CHARGED, Outcome.CARD_DECLINED):
            provider = Provider(ledger, decision)
            ask = self._asks(provider).get(type(intent))
            if ask is None:
                raise VerifyError(
                    f"the model knows nobody who answers {type(intent).__name__}; "
                    f"say who does in {__name__}"
                )
            answer = _at_once(ask(intent))
            if provider.said not in replies:
                replies.add(provider.said)
                yield Reply(provider.said, provider.ledger, answer)


def _at_once(question: Awaitable[Answer]) -> Answer:
    """The answer to a question that waits for nothing."""
    waiting = question.__await__()
    try:
        next(waiting)
    except StopIteration as answered:
        answer: Answer = answered.value
        return answer
    raise VerifyError("a question to the model's provider must not wait for anything")


# --- what must never be -------------------------------------------------------------------------


class _Judge:
    """The rules of `saga reconcile`, and those below."""

    def __init__(self, choreography: Choreography) -> None:
        self._choreography = choreography

    def __call__(self, view: View, at_rest: bool) -> Iterator[Violation]:
        for found in reconcile(_facts(self._choreography, view, at_rest)):
            yield Violation(found.rule, found.subject, found.detail)
        for rule in (*ALWAYS, *(AT_REST_ONLY if at_rest else ())):
            for subject, detail in rule(view):
                yield Violation(rule.__name__, subject, detail)


def _facts(choreography: Choreography, view: View, at_rest: bool) -> Facts:
    """The system as `saga reconcile` sees it. Unless it is at rest, no order has been still."""
    history = History(choreography)
    for envelope in view.events:
        history.take_unpublished(envelope.to_bytes())
    held = [r for r in view.states(Reservation) if r.status is ReservationStatus.HELD]
    units: Counter[str] = Counter()
    for reservation in held:
        units += _units(reservation.lines)
    ledger: Ledger = view.outside
    return Facts(
        started_at=AT_REST,
        grace_seconds=0.0 if at_rest else EVER_SECONDS,
        history=history,
        orders={
            order.key: OrderFact(
                order.status, order.currency, order.total_cents, order.ended_at or order.placed_at
            )
            for order in view.states(Order)
        },
        payments={
            payment.key: PaymentFact(payment.status, payment.currency, payment.amount_cents)
            for payment in view.states(Payment)
        },
        held_orders={reservation.key for reservation in held},
        held_units=units,
        stock={
            item.key: StockFact(item.free, item.held, item.sequence)
            for item in view.states(StockItem)
        },
        provider=[
            ProviderCharge(
                charge.key,
                charge.currency,
                charge.amount_cents,
                charge.outcome is not Outcome.CHARGED,
                charge.refunded_cents,
            )
            for charge in ledger
        ],
        sequences={
            participant: {state.key: state.sequence for state in known.values() if state.sequence}
            for participant, known in view.known.items()
        },
    )


def _units(lines: Iterable[HeldLine]) -> Counter[str]:
    units: Counter[str] = Counter()
    for line in lines:
        units[line.sku] += line.quantity
    return units


def said_twice(view: View) -> Iterator[tuple[str, str]]:
    """Nothing happens to an order twice."""
    said = Counter(
        (event.subject, event.type) for event in view.events if isinstance(event.data, OrderEvent)
    )
    for (subject, type_), count in said.items():
        if count > 1:
            yield subject, f"{type_} was published {count} times, as different events"


def held_differs(view: View) -> Iterator[tuple[str, str]]:
    """What is held for an order is what was ordered."""
    for reservation in view.states(Reservation):
        if reservation.status is ReservationStatus.HELD:
            held, ordered = (
                dict(_units(lines))
                for lines in (reservation.lines, view.state(Order, reservation.key).lines)
            )
            if held != ordered:
                yield reservation.key, f"{held} is held, {ordered} was ordered"


def rejected_untrue(view: View) -> Iterator[tuple[str, str]]:
    """Inventory rejects an order only for what was, or was not, put on the shelf."""
    shelf = {e.data.sku: e.data for e in view.events if isinstance(e.data, StockAdded)}
    wanted = sum((_units(order.lines) for order in view.states(Order)), Counter[str]())
    for event in view.events:
        if not isinstance(event.data, StockRejected):
            continue
        reason, sku = event.data.reason, event.data.sku
        lines = [line for line in view.state(Order, event.subject).lines if line.sku == sku]
        put = shelf.get(sku)
        true = {
            RejectionReason.UNKNOWN_SKU: put is None,
            RejectionReason.PRICE_MISMATCH: put is not None
            and any(line.unit_price_cents != put.unit_price_cents for line in lines),
            RejectionReason.OUT_OF_STOCK: put is not None and put.quantity < wanted[sku],
        }
        if not true[reason]:
            yield event.subject, f"{sku} was rejected as {reason}, and on the shelf was put {put!r}"


def reason_untrue(view: View) -> Iterator[tuple[str, str]]:
    """An order is cancelled for what really happened."""
    rejected = {
        event.subject: event.data.reason.value
        for event in view.events
        if isinstance(event.data, StockRejected)
    }
    for order in view.states(Order):
        if order.status is not OrderStatus.CANCELLED:
            continue
        match order.reason:
            case None:
                yield order.key, "it was cancelled for no reason"
            case CancellationReason.CUSTOMER_REQUEST:
                pass
            case CancellationReason.DEADLINE_EXCEEDED:
                if order.ended_at != AFTER:
                    yield order.key, "it was cancelled for its deadline, before that had passed"
            case CancellationReason.PAYMENT_DECLINED:
                status = view.state(Payment, order.key).status
                if status is not PaymentStatus.DECLINED:
                    yield order.key, f"it was cancelled as not paid, and the payment is {status}"
            case reason:
                if (said := rejected.get(order.key)) != reason.value:
                    yield order.key, f"it was cancelled as {reason}, and inventory said {said}"


def not_undone(view: View) -> Iterator[tuple[str, str]]:
    """Whoever might have done something for a cancelled order has said that nothing is left."""
    for order in view.states(Order):
        if order.status is not OrderStatus.CANCELLED:
            continue
        reservation = view.state(Reservation, order.key).status
        if reservation not in (ReservationStatus.RELEASED, ReservationStatus.REJECTED):
            yield order.key, f"it is cancelled, and the reservation is {reservation}"
        payment = view.state(Payment, order.key).status
        if payment not in (
            PaymentStatus.VOIDED,
            PaymentStatus.DECLINED,
            PaymentStatus.REFUNDED,
        ):
            yield order.key, f"it is cancelled, and the payment is {payment}"


def endless(view: View) -> Iterator[tuple[str, str]]:
    """Whatever never arrives, time ends an order that is pending."""
    for order in view.states(Order):
        if order.status is OrderStatus.PENDING and order.due() is None:
            yield order.key, "it is pending, and nothing is due that would end it"


ALWAYS = (said_twice, held_differs, rejected_untrue, reason_untrue, endless)
AT_REST_ONLY = (not_undone,)
