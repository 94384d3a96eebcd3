"""The invariants, as pure functions over the facts.

A rule yields one violation per subject that breaks it. *Always* rules hold at any moment of a
running system; *at rest* rules only for orders that have been still for the grace; *conservation*
says that no message is lost, and none is dead more often than it was sent.
"""

from __future__ import annotations

import itertools
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timedelta

from common.events import OrderCancelled, OrderConfirmed
from inventory_service.domain import PARTICIPANT as INVENTORY
from order_service.domain import PARTICIPANT as ORDER
from order_service.domain import OrderStatus
from payment_service.domain import PaymentStatus
from saga.reconcile.facts import Facts, PaymentFact, ProviderCharge
from saga.reconcile.history import Owed

_TERMINAL = {
    OrderStatus.CONFIRMED: OrderConfirmed.type,
    OrderStatus.CANCELLED: OrderCancelled.type,
}
_UNSETTLED = (PaymentStatus.CHARGING, PaymentStatus.SETTLING, PaymentStatus.REFUNDING)
MISSING_TOLD = 5
"""Missing events about one subject whose numbers are listed."""
_WITHOUT_AMOUNT = (PaymentStatus.NONE, PaymentStatus.DECLINED, PaymentStatus.VOIDED)


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken invariant: which, about what, and what was found."""

    rule: str
    subject: str
    detail: str


Rule = Callable[[Facts], Iterable[tuple[str, str]]]
"""Yields the subjects that break it, each with a detail."""


def judge(facts: Facts) -> list[Violation]:
    """Every violation in the facts, by rule and subject."""
    return sorted(
        (
            Violation(name, subject, detail)
            for name, rule in RULES.items()
            for subject, detail in rule(facts)
        ),
        key=lambda violation: (violation.rule, violation.subject),
    )


def orders_at_rest(facts: Facts) -> set[str]:
    """Orders of which neither the row nor any event is within the grace, and no message waits to
    be tried again."""
    last_event_at, latest = facts.history.last_event_at, facts.history.latest_event_at
    retried = {letter.subject for letters in facts.waiting.values() for letter in letters}
    return {
        order_id
        for order_id in facts.orders.keys() | last_event_at.keys()
        if order_id not in retried
        and _is_still(facts, last_event_at.get(order_id))
        and _is_still(facts, latest.get(order_id))
        and (order_id not in facts.orders or _is_still(facts, facts.orders[order_id].changed_at))
    }


def _is_still(facts: Facts, at: datetime | None) -> bool:
    """Whether what happened at that time is longer ago than the grace.

    A time that is further than the grace in the future was told by a clock that is wrong, or has
    been set back since. Nobody can wait for it to pass, so it counts as long ago; and without a
    grace no time counts at all.
    """
    if at is None or not facts.grace_seconds:
        return True
    grace = timedelta(seconds=facts.grace_seconds)
    return not facts.started_at - grace < at <= facts.started_at + grace


def undecided(facts: Facts) -> int:
    """Messages that may be lost or only on their way: a busy consumer may hold them."""
    count = 0
    for participant, undone in facts.undone.items():
        backlog = facts.backlogs.get(participant)
        if backlog is not None and backlog.read:
            known = _accounted_for(facts, participant)
            count += sum(
                key not in known and _on_its_way(facts, participant, key, owed)
                for key, owed in undone.items()
            )
    return count


# --- always ------------------------------------------------------------------------------------


def charged_twice(facts: Facts) -> Iterator[tuple[str, str]]:
    """At most one charge per order, as the provider and as the events tell it."""
    taken = Counter(charge.order_id for charge in facts.provider if not charge.declined)
    for order_id, count in taken.items():
        if count > 1:
            yield order_id, f"the provider took money {count} times"
    for order_id, events in facts.history.charges.items():
        if len(events) > 1 and taken[order_id] <= 1:
            yield order_id, f"{len(events)} different payment.charged were published"


def refunded_twice(facts: Facts) -> Iterator[tuple[str, str]]:
    """At most one refund per order."""
    for order_id, events in facts.history.refunds.items():
        if len(events) > 1:
            yield order_id, f"{len(events)} different payment.refunded were published"


def refund_exceeds_charge(facts: Facts) -> Iterator[tuple[str, str]]:
    """Nobody gets back more than was taken."""
    for charge in facts.provider:
        taken = 0 if charge.declined else charge.amount_cents
        if charge.refunded_cents > taken:
            yield (
                charge.order_id,
                f"the provider took {taken} cents and gave back {charge.refunded_cents}",
            )


def stock_negative(facts: Facts) -> Iterator[tuple[str, str]]:
    """There is no less than nothing on the shelf."""
    for sku, item in facts.stock.items():
        if item.free < 0 or item.held < 0:
            yield sku, f"{item.free} units are free and {item.held} are held"


def stock_not_conserved(facts: Facts) -> Iterator[tuple[str, str]]:
    """Free and held units are what was ever put on the shelf."""
    for sku, item in facts.stock.items():
        if not facts.history.complete(INVENTORY.name, sku):
            continue
        # Deliveries younger than the row that was read are not in it yet.
        deliveries = facts.history.added.get(sku, {})
        added = sum(units for number, units in deliveries.items() if number <= item.sequence)
        if item.free + item.held != added:
            yield (
                sku,
                f"{added} units were put on the shelf, but {item.free} are free and "
                f"{item.held} held: {item.free + item.held}",
            )


def held_mismatch(facts: Facts) -> Iterator[tuple[str, str]]:
    """What the shelf says is held, the reservations hold."""
    for sku in facts.stock.keys() | facts.held_units.keys():
        held = facts.stock[sku].held if sku in facts.stock else 0
        reserved = facts.held_units.get(sku, 0)
        if held != reserved:
            yield sku, f"the shelf says {held} units are held, the reservations hold {reserved}"


def confirmed_unpaid(facts: Facts) -> Iterator[tuple[str, str]]:
    """A confirmed order is charged and not refunded, in our books and in the provider's."""
    taken = _taken(facts)
    for order_id, order in facts.orders.items():
        if order.status is not OrderStatus.CONFIRMED:
            continue
        payment = facts.payments.get(order_id)
        if payment is None or payment.status is not PaymentStatus.CHARGED:
            yield order_id, f"the payment is {payment.status if payment else 'unknown'}"
        elif order_id not in taken:
            yield order_id, "the provider took no money"
        elif taken[order_id].refunded_cents:
            yield order_id, f"the provider gave back {taken[order_id].refunded_cents} cents"


def confirmed_not_held(facts: Facts) -> Iterator[tuple[str, str]]:
    """A confirmed order's stock is held."""
    for order_id, order in facts.orders.items():
        if order.status is OrderStatus.CONFIRMED and order_id not in facts.held_orders:
            yield order_id, "no stock is held for it"


def outcome_changed(facts: Facts) -> Iterator[tuple[str, str]]:
    """An order ends once."""
    for order_id, events in facts.history.outcomes.items():
        if len(events) > 1:
            yield order_id, f"these were published: {', '.join(sorted(events.values()))}"


def outcome_differs(facts: Facts) -> Iterator[tuple[str, str]]:
    """The order service says of an order what its events say."""
    at_rest = orders_at_rest(facts)
    for order_id in facts.orders.keys() | facts.history.outcomes.keys():
        published = set(facts.history.outcomes.get(order_id, {}).values())
        order = facts.orders.get(order_id)
        ending = _TERMINAL.get(order.status) if order else None
        if order and ending is None:
            # An order that has just ended may be pending in what was read a moment earlier.
            if published and order_id in at_rest:
                yield order_id, f"{_several(published)} was published, but it is {order.status}"
        elif order is not None and published:
            if ending not in published:
                yield order_id, f"{_several(published)} was published, but it is {order.status}"
        elif order is not None and facts.history.complete(ORDER.name, order_id):
            yield order_id, f"it is {order.status}, but {ending} was never published"


def order_missing(facts: Facts) -> Iterator[tuple[str, str]]:
    """Whatever was published, paid or held for an order, the order service knows the order."""
    at_rest = orders_at_rest(facts)
    for witness, order_ids in (
        ("there are events about it", facts.history.last_event_at.keys()),
        ("there is a payment for it", facts.payments.keys()),
        ("stock is held for it", facts.held_orders),
    ):
        for order_id in order_ids - facts.orders.keys():
            # Without events nothing says that it is new: an event comes before either.
            if order_id in at_rest or order_id not in facts.history.last_event_at:
                yield order_id, f"{witness}, but the order service does not know it"


def books_differ(facts: Facts) -> Iterator[tuple[str, str]]:
    """Our payments, the provider's ledger and the orders' totals agree."""
    ledger = {charge.order_id: charge for charge in facts.provider}
    for order_id in facts.payments.keys() | ledger.keys():
        payment = facts.payments.get(order_id)
        charge = ledger.get(order_id)
        if problem := _disagreement(payment, charge):
            yield order_id, problem
        elif payment is not None and payment.status not in _WITHOUT_AMOUNT:
            order = facts.orders.get(order_id)
            ours = (payment.amount_cents, payment.currency)
            if order is not None and ours != (order.total_cents, order.currency):
                yield (
                    order_id,
                    f"the payment is over {payment.amount_cents} cents {payment.currency}, the "
                    f"order over {order.total_cents} cents {order.currency}",
                )


def charge_unexplained(facts: Facts) -> Iterator[tuple[str, str]]:
    """The provider keeps money only for orders that some book of ours knows. After a backup was
    restored it may have been told of others, which nobody can tell any more."""
    known = facts.orders.keys() | facts.history.last_event_at.keys()
    for charge in facts.provider:
        kept = charge.amount_cents - charge.refunded_cents
        if not charge.declined and kept > 0 and charge.order_id not in known:
            yield (
                charge.order_id,
                f"the provider keeps {kept} cents {charge.currency}, and neither the order service "
                f"nor the history knows such an order; pay it back, unless its client sends the "
                f"order again",
            )


def _disagreement(payment: PaymentFact | None, charge: ProviderCharge | None) -> str | None:
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


_THEIRS = {
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


# --- at rest -----------------------------------------------------------------------------------
# A dead letter that waits is not lost, but an order that waits for it is not at its end either:
# such an order breaks these rules, and the detail names the letter.


def not_terminal(facts: Facts) -> Iterator[tuple[str, str]]:
    """Every order is confirmed or cancelled."""
    wait = _Waiting(facts)
    for order_id in orders_at_rest(facts) & facts.orders.keys():
        order = facts.orders[order_id]
        if order.status not in _TERMINAL:
            yield order_id, f"it is {order.status}{wait.explain(order_id)}"


def charged_not_confirmed(facts: Facts) -> Iterator[tuple[str, str]]:
    """Nobody pays for an order that is not confirmed, in our books and in the provider's."""
    wait = _Waiting(facts)
    taken = _taken(facts)
    for order_id in orders_at_rest(facts) & facts.orders.keys():
        order = facts.orders[order_id]
        if order.status is OrderStatus.CONFIRMED:
            continue
        payment = facts.payments.get(order_id)
        ours = payment is not None and payment.status is PaymentStatus.CHARGED
        theirs = order_id in taken and not taken[order_id].refunded_cents
        if ours or theirs:
            books = " and ".join(
                name for name, said in (("our books", ours), ("the provider's", theirs)) if said
            )
            yield (
                order_id,
                f"it is {order.status}, but charged in {books}{wait.explain(order_id)}",
            )


def held_not_confirmed(facts: Facts) -> Iterator[tuple[str, str]]:
    """No stock is held for an order that is not confirmed."""
    wait = _Waiting(facts)
    for order_id in orders_at_rest(facts) & facts.orders.keys() & facts.held_orders:
        order = facts.orders[order_id]
        if order.status is not OrderStatus.CONFIRMED:
            yield (
                order_id,
                f"it is {order.status}, but its stock is held{wait.explain(order_id)}",
            )


def payment_unsettled(facts: Facts) -> Iterator[tuple[str, str]]:
    """No payment is left in the middle of a question to the provider."""
    wait = _Waiting(facts)
    for order_id in orders_at_rest(facts):
        payment = facts.payments.get(order_id)
        if payment is not None and payment.status in _UNSETTLED:
            yield order_id, f"the payment is {payment.status}{wait.explain(order_id)}"


class _Waiting:
    """Says what an order waits for: its dead letters, and what nobody has dealt with."""

    def __init__(self, facts: Facts) -> None:
        self._reasons: defaultdict[str, list[str]] = defaultdict(list)
        dead: set[tuple[str, str]] = set()
        for participant, letters in facts.letters.items():
            for letter in letters:
                dead.add((participant, letter.key))
                if letter.subject is not None:
                    self._reasons[letter.subject].append(
                        f"waiting on dead letter {letter.key} of {participant} ({letter.reason})"
                    )
        for participant, undone in facts.undone.items():
            for key, owed in undone.items():
                if owed.subject is not None and (participant, key) not in dead:
                    self._reasons[owed.subject].append(
                        f"{participant} has not dealt with {owed.type} {key}"
                    )

    def explain(self, order_id: str) -> str:
        return "".join(f"; {reason}" for reason in self._reasons.get(order_id, ()))


# --- conservation ------------------------------------------------------------------------------


def unpublished(facts: Facts) -> Iterator[tuple[str, str]]:
    """What a participant has counted as said is in the history or in its outbox."""
    for participant, subjects in facts.sequences.items():
        for subject, sequence in subjects.items():
            found = facts.history.missing(participant, subject, sequence)
            missing = list(itertools.islice(found, MISSING_TOLD + 1))
            if missing:
                told = ", ".join(map(str, missing[:MISSING_TOLD]))
                yield (
                    subject,
                    f"of the {sequence} events of {participant} about it, number "
                    f"{told}{' ...' if missing[MISSING_TOLD:] else ''} is neither "
                    f"in the history nor in the outbox",
                )


def lost(facts: Facts) -> Iterator[tuple[str, str]]:
    """Every message is done by each participant it concerns, or settled by a person, or in one of
    its queues, waiting to be tried again, or dead."""
    for participant, undone in facts.undone.items():
        known = _accounted_for(facts, participant)
        for key, owed in undone.items():
            if key in known or _on_its_way(facts, participant, key, owed):
                continue
            if owed.decodable:
                what = f"{owed.type} about {owed.subject} is neither done nor in a queue"
            else:
                what = f"the message sent to {owed.type}, which it cannot read, is not dead"
            yield f"{participant}/{key}", f"{what} of {participant}"


def _on_its_way(facts: Facts, participant: str, key: str, owed: Owed) -> bool:
    """Whether an undone message may be in a work queue, or in the hands of its consumer.

    What a consumer holds cannot be seen from outside. So with a consumer at work, a message is
    only missed once nothing waits before it and it is older than the grace.
    """
    backlog = facts.backlogs.get(participant)
    if backlog is None:
        return False
    if not backlog.read:
        return key in backlog.waiting
    return backlog.ready > 0 or not _is_still(facts, owed.at)


def _accounted_for(facts: Facts, participant: str) -> Set[str]:
    """The keys of a participant's messages that are dead, waiting, or settled by a person."""
    letters = (*facts.letters.get(participant, ()), *facts.waiting.get(participant, ()))
    return {letter.key for letter in letters} | facts.settled.get(participant, frozenset())


def _taken(facts: Facts) -> Mapping[str, ProviderCharge]:
    return {charge.order_id: charge for charge in facts.provider if not charge.declined}


def _several(types: Iterable[str]) -> str:
    return " and ".join(sorted(types))


RULES: Mapping[str, Rule] = {
    rule.__name__: rule
    for rule in (
        charged_twice,
        refunded_twice,
        refund_exceeds_charge,
        stock_negative,
        stock_not_conserved,
        held_mismatch,
        confirmed_unpaid,
        confirmed_not_held,
        outcome_changed,
        outcome_differs,
        order_missing,
        books_differ,
        charge_unexplained,
        not_terminal,
        charged_not_confirmed,
        held_not_confirmed,
        payment_unsettled,
        unpublished,
        lost,
    )
}
"""Every rule by its name, which is the `rule` of the violations it finds."""
