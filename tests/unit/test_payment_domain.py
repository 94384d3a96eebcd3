"""A payment: asked for once, and given back if the order was cancelled."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import pytest
from hypothesis import given as for_all
from hypothesis import strategies as st

from common.events import (
    CancellationReason,
    DeclineReason,
    HeldLine,
    OrderCancelled,
    PaymentCharged,
    PaymentDeclined,
    PaymentRefunded,
    PaymentVoided,
    StockReserved,
)
from payment_service.domain import (
    PARTICIPANT,
    Charge,
    ChargeAnswered,
    Payment,
    PaymentStatus,
    Refund,
    RefundAnswered,
    SettleCharge,
)
from saga.message import Decided, Event, Intent, Message
from saga.testing import GivenParticipant, assert_once, given
from tests.unit.strategies import events, moments

ORDER = UUID(int=1)

reserved = StockReserved(
    order_id=ORDER,
    customer="ada",
    currency="EUR",
    total_cents=500,
    lines=(HeldLine(sku="pen", quantity=1),),
)
cancelled = OrderCancelled(
    order_id=ORDER, customer="ada", reason=CancellationReason.CUSTOMER_REQUEST
)
charge = Charge(order_id=ORDER, customer="ada", currency="EUR", amount_cents=500)
settle = SettleCharge(order_id=ORDER, customer="ada", currency="EUR", amount_cents=500)
refund = Refund(order_id=ORDER, currency="EUR", amount_cents=500)
paid = ChargeAnswered(order_id=ORDER, declined=None, reference="r-1")
unpaid = ChargeAnswered(order_id=ORDER, declined=DeclineReason.CARD_DECLINED, reference="")
given_back = RefundAnswered(order_id=ORDER)
charged = PaymentCharged(order_id=ORDER, currency="EUR", amount_cents=500, reference="r-1")
declined = PaymentDeclined(order_id=ORDER, reason=DeclineReason.CARD_DECLINED)
refunded = PaymentRefunded(order_id=ORDER, currency="EUR", amount_cents=500)
voided = PaymentVoided(order_id=ORDER)

Own = Sequence[Event | Intent]

HISTORY: dict[PaymentStatus, Own] = {
    PaymentStatus.NONE: (),
    PaymentStatus.CHARGING: (charge,),
    PaymentStatus.SETTLING: (charge, settle),
    PaymentStatus.CHARGED: (charge, charged),
    PaymentStatus.DECLINED: (charge, declined),
    PaymentStatus.REFUNDING: (charge, charged, refund),
    PaymentStatus.REFUNDED: (charge, charged, refund, refunded),
    PaymentStatus.VOIDED: (voided,),
}
MESSAGES: dict[str, Message] = {
    "reserved": reserved,
    "cancelled": cancelled,
    "paid": paid,
    "unpaid": unpaid,
    "given_back": given_back,
}


def after(status: PaymentStatus) -> GivenParticipant:
    return given(PARTICIPANT, *HISTORY[status])


@pytest.mark.parametrize("status", PaymentStatus)
def test_a_payment_stands_where_its_own_messages_put_it(status: PaymentStatus) -> None:
    payment = after(status).state(Payment, ORDER)

    assert payment.status is status
    asking = status in (PaymentStatus.CHARGING, PaymentStatus.SETTLING)
    nothing_taken = (PaymentStatus.NONE, PaymentStatus.DECLINED, PaymentStatus.VOIDED)
    assert payment.customer == ("ada" if asking else "")
    assert payment.amount_cents == (0 if status in nothing_taken else 500)


def test_a_payment_is_over_what_was_asked_for() -> None:
    in_francs = charge.model_copy(update={"currency": "CHF"})
    payment = given(PARTICIPANT, in_francs).state(Payment, ORDER)

    assert (payment.currency, payment.amount_cents) == ("CHF", 500)


def test_a_payment_folded_of_its_events_alone_is_over_what_was_charged() -> None:
    in_francs = charged.model_copy(update={"currency": "CHF", "amount_cents": 700})
    payment = given(PARTICIPANT, in_francs).state(Payment, ORDER)

    assert (payment.status, payment.currency, payment.amount_cents) == (
        PaymentStatus.CHARGED,
        "CHF",
        700,
    )


def test_reserved_stock_is_to_be_paid_for() -> None:
    assert after(PaymentStatus.NONE).when(reserved) == (charge,)


def test_a_charge_a_crash_left_open_is_asked_again() -> None:
    assert after(PaymentStatus.CHARGING).when(reserved) == (charge,)


def test_a_paid_charge_is_published() -> None:
    assert after(PaymentStatus.CHARGING).when(paid) == (charged,)


@pytest.mark.parametrize("reason", DeclineReason)
def test_a_declined_charge_is_published_with_its_reason(reason: DeclineReason) -> None:
    answer = ChargeAnswered(order_id=ORDER, declined=reason, reference="")

    assert after(PaymentStatus.CHARGING).when(answer) == (
        PaymentDeclined(order_id=ORDER, reason=reason),
    )


def test_a_cancellation_that_comes_first_leaves_a_marker() -> None:
    assert after(PaymentStatus.NONE).when(cancelled) == (voided,)


def test_stock_reserved_after_the_cancellation_is_never_charged() -> None:
    assert after(PaymentStatus.VOIDED).when(reserved) == ()


@pytest.mark.parametrize("status", [PaymentStatus.CHARGING, PaymentStatus.SETTLING])
def test_a_cancellation_settles_what_is_being_asked(status: PaymentStatus) -> None:
    assert after(status).when(cancelled) == (settle,)


def test_stock_reserved_again_leaves_the_settling_to_the_cancellation() -> None:
    assert after(PaymentStatus.SETTLING).when(reserved) == ()


def test_a_settled_charge_that_was_paid_is_published_and_refunded() -> None:
    assert after(PaymentStatus.SETTLING).when(paid) == (charged, refund)


def test_a_settled_charge_that_was_declined_is_void() -> None:
    assert after(PaymentStatus.SETTLING).when(unpaid) == (voided,)


@pytest.mark.parametrize("status", [PaymentStatus.CHARGED, PaymentStatus.REFUNDING])
def test_a_cancellation_after_the_charge_asks_for_a_refund(status: PaymentStatus) -> None:
    assert after(status).when(cancelled) == (refund,)


def test_a_second_answer_to_a_settled_charge_asks_for_the_refund_again() -> None:
    assert after(PaymentStatus.REFUNDING).when(paid) == (refund,)


def test_a_refund_is_published() -> None:
    assert after(PaymentStatus.REFUNDING).when(given_back) == (refunded,)


@pytest.mark.parametrize(
    ("status", "message"),
    [
        *((status, "reserved") for status in (PaymentStatus.CHARGED, PaymentStatus.DECLINED)),
        *((status, "reserved") for status in (PaymentStatus.REFUNDING, PaymentStatus.REFUNDED)),
        *(
            (status, message)
            for status in (PaymentStatus.DECLINED, PaymentStatus.REFUNDED, PaymentStatus.VOIDED)
            for message in ("cancelled", "paid", "unpaid")
        ),
        *((PaymentStatus.CHARGED, message) for message in ("paid", "unpaid")),
        *((PaymentStatus.NONE, message) for message in ("paid", "unpaid")),
        *(
            (status, "given_back")
            for status in PaymentStatus
            if status is not PaymentStatus.REFUNDING
        ),
    ],
)
def test_what_has_been_settled_stays_so(status: PaymentStatus, message: str) -> None:
    assert after(status).when(MESSAGES[message]) == ()


def test_no_second_charge_refund_or_marker_follows_the_end() -> None:
    for status in (PaymentStatus.DECLINED, PaymentStatus.REFUNDED, PaymentStatus.VOIDED):
        world = after(status)
        for message in MESSAGES.values():
            assert world.live(message) == ()


class Provider:
    """Answers each intent; a key's first answer is its answer for ever."""

    def __init__(self, declined: DeclineReason | None) -> None:
        self.declined = declined
        self.charged = False
        self.refunded = False

    def answer(self, intent: Intent) -> ChargeAnswered | RefundAnswered:
        if isinstance(intent, Charge):
            self.charged = self.declined is None
            reference = "r-1" if self.charged else ""
            return ChargeAnswered(order_id=ORDER, declined=self.declined, reference=reference)
        assert intent == refund
        assert self.charged, "a refund of what was never charged"
        self.refunded = True
        return RefundAnswered(order_id=ORDER)


@for_all(
    declined=st.none() | st.sampled_from(DeclineReason),
    deliveries=st.lists(st.sampled_from([reserved, cancelled]), min_size=1, max_size=5),
    data=st.data(),
)
def test_whatever_overtakes_whatever_money_stays_only_for_orders_not_cancelled(
    declined: DeclineReason | None, deliveries: list[Event], data: st.DataObject
) -> None:
    """Events come in any order and more than once; answers come late, in any order, and each
    question may be put to the provider long before its answer is heard."""
    world, provider = GivenParticipant(PARTICIPANT), Provider(declined)
    waiting: list[Message] = list(deliveries)
    asked: list[Intent] = []
    published: list[Decided] = []

    while waiting or asked:
        step = data.draw(st.integers(0, len(waiting) + len(asked) - 1))
        if step >= len(waiting):
            waiting.append(provider.answer(asked.pop(step - len(waiting))))
            continue
        for result in world.live(waiting.pop(step)):
            if isinstance(result, Intent):
                asked.append(result)
            else:
                published.append(result)

    is_cancelled = cancelled in deliveries
    status = world.state(Payment, ORDER).status
    assert provider.refunded == (provider.charged and is_cancelled)
    assert len(published) == len(set(map(type, published)))
    if provider.charged:
        assert published == ([charged, refunded] if is_cancelled else [charged])
        assert status is (PaymentStatus.REFUNDED if is_cancelled else PaymentStatus.CHARGED)
    elif is_cancelled:
        assert status in (PaymentStatus.VOIDED, PaymentStatus.DECLINED)
    else:
        assert status is PaymentStatus.DECLINED
    # No question is left, so its events alone tell all there is to know.
    assert world.state(Payment, ORDER) == given(PARTICIPANT, *published).state(Payment, ORDER)


@pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES.keys())
@pytest.mark.parametrize("status", PaymentStatus)
def test_a_message_that_comes_twice_at_most_asks_the_same_again(
    status: PaymentStatus, message: Message
) -> None:
    assert_once(after(status), message)


payments = st.builds(
    Payment,
    key=st.just(str(ORDER)),
    status=st.sampled_from(PaymentStatus),
    customer=st.sampled_from(["", "ada"]),
    currency=st.sampled_from(["", "EUR"]),
    amount_cents=st.integers(0),
)


@for_all(payment=payments, message=events | st.sampled_from([charge, settle, refund]), at=moments)
def test_a_payment_evolves_by_its_own_events_and_intents_and_no_others(
    payment: Payment, message: Event | Intent, at: datetime
) -> None:
    evolved = payment.evolve(message, at)

    if isinstance(message, Event) and type(message) not in PARTICIPANT.publishes:
        assert evolved is payment
    assert (evolved.key, evolved.sequence) == (payment.key, payment.sequence)
