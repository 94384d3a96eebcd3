"""One reaction to one message, with no I/O."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Self
from uuid import UUID

import pytest

from common.events import OrderCancelled, OrderConfirmed, PaymentVoided, StockReleased
from saga.choreography import Participant, State
from saga.envelope import Envelope, wrap
from saga.message import Decided, Priority
from saga.runtime.kernel.step import NoReaction, OutsideSignature, StateId, react

NOW = datetime(2030, 1, 1, tzinfo=UTC)
ORDER = UUID(int=1)


@dataclass(frozen=True, slots=True)
class Tally(State):
    seen: int = 0

    def evolve(self, message: Decided, at: datetime) -> Self:
        return replace(self, seen=self.seen + 1)


def twice(
    event: OrderCancelled, tally: Tally
) -> tuple[StockReleased, PaymentVoided] | StockReleased | None:
    if event.customer == "nobody":
        return None
    released, voided = StockReleased(order_id=ORDER, lines=()), PaymentVoided(order_id=ORDER)
    wrong: dict[str, Any] = {  # what the type checker would refuse
        "outside": OrderConfirmed(order_id=ORDER, customer="x", currency="EUR", total_cents=1),
        "alone": voided,
        "other order": (voided, released),
        "a list": [released, voided],
        "elsewhere": StockReleased(order_id=UUID(int=2), lines=()),
    }
    if event.customer in wrong:
        return wrong[event.customer]  # type: ignore[no-any-return]  # on purpose
    return released, voided


PARTICIPANT = Participant("tally", twice)


def cause(customer: str, id: str = "cause") -> Envelope[Any]:
    return wrap(
        OrderCancelled.model_validate_json(
            f'{{"order_id": "{ORDER}", "customer": "{customer}", "reason": "customer_request"}}'
        ),
        id=id,
        source="/services/order",
        time=NOW,
        priority=Priority.HIGH,
    )


def blank(state_id: StateId) -> State:
    return state_id[0](state_id[1])


def test_events_are_numbered_and_inherit_from_their_cause() -> None:
    decision = react(PARTICIPANT, cause("a"), cause("a").data, blank, NOW)

    released, voided = decision.events
    assert (released.sequence, voided.sequence) == (1, 2)
    assert released.causationid == voided.causationid == "cause"
    assert released.priority is Priority.HIGH
    assert released.correlationid == released.subject == str(ORDER)
    assert released.traceparent == cause("a").traceparent
    assert decision.own == Tally(str(ORDER), sequence=2, seen=2)
    assert decision.changes == {(Tally, str(ORDER)): decision.own}


def test_the_same_step_done_again_gives_the_same_ids() -> None:
    first = react(PARTICIPANT, cause("a"), cause("a").data, blank, NOW)
    again = react(PARTICIPANT, cause("a"), cause("a").data, blank, NOW)
    other = react(PARTICIPANT, cause("a", "other"), cause("a").data, blank, NOW)

    assert [e.id for e in first.events] == [e.id for e in again.events]
    assert {e.id for e in first.events}.isdisjoint(e.id for e in other.events)
    assert len({e.id for e in first.events}) == 2


def test_events_say_when_their_cause_was_taken_and_at_which_try() -> None:
    taken = NOW - timedelta(seconds=2)
    first = react(PARTICIPANT, cause("a"), cause("a").data, blank, NOW, taken_at=taken)
    third = react(PARTICIPANT, cause("a"), cause("a").data, blank, NOW, taken_at=taken, attempt=3)

    assert [(e.takenat, e.attempt) for e in first.events] == [(taken, None)] * 2
    assert [(e.takenat, e.attempt) for e in third.events] == [(taken, 3)] * 2


def test_no_event_no_change() -> None:
    decision = react(PARTICIPANT, cause("nobody"), cause("nobody").data, blank, NOW)

    assert decision.events == ()
    assert decision.changes == {}


REFUSED = {
    "outside": ("not_its_participants", "no reaction of tally may publish OrderConfirmed"),
    "alone": ("not_in_signature", "returned PaymentVoided .* does not allow that"),
    "other order": ("not_in_signature", "returned PaymentVoided and StockReleased"),
    "a list": ("not_in_signature", "returned list"),
    "elsewhere": ("another_subject", f"about '{ORDER}', but about '{UUID(int=2)}'"),
}


@pytest.mark.parametrize("customer", REFUSED)
def test_what_a_signature_does_not_allow_is_refused(customer: str) -> None:
    reason, said = REFUSED[customer]
    with pytest.raises(OutsideSignature, match=r"tally\.twice returned") as refused:
        react(PARTICIPANT, cause(customer), cause(customer).data, blank, NOW)

    assert refused.value.reason == reason
    assert re.search(said, str(refused.value))


def always(event: OrderCancelled, tally: Tally) -> StockReleased:
    return None  # type: ignore[return-value]  # on purpose


def test_nothing_is_refused_where_the_signature_promises_something() -> None:
    with pytest.raises(OutsideSignature, match="returned nothing"):
        react(Participant("tally", always), cause("a"), cause("a").data, blank, NOW)


def test_a_message_without_reaction_is_refused() -> None:
    voided = PaymentVoided(order_id=ORDER)
    with pytest.raises(NoReaction, match="tally has no reaction to PaymentVoided"):
        react(PARTICIPANT, cause("a"), voided, blank, NOW)
