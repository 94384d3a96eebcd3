"""What is left out of a search tells of no model, and of no mistake, anything else."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import replace
from uuid import UUID

import pytest

from common.events import (
    OrderLine,
    OrderPlaced,
    PaymentRefunded,
    PlaceOrder,
    RejectionReason,
    StockRejected,
    StockReserved,
)
from inventory_service import domain as inventory
from inventory_service.domain import Reservation, StockItem
from order_saga import SAGA
from order_saga.scenarios import CURRENCY, TWO_ORDERS
from order_service.domain import PARTICIPANT as ORDER
from order_service.domain import Order, OrderStatus
from payment_service import domain as payment
from payment_service.domain import Payment, RefundAnswered
from saga.choreography import Participant
from saga.declaration import Scenario
from saga.verify import Model, VerifyError, model_of, verify
from saga.verify.machine import Machine
from saga.verify.reduction import Reduction, Settled, reduction_of
from saga.verify.search import explore, step_by_step
from saga.verify.symmetry import Symmetry
from saga.view import View, Violation
from tests.errands import SAGA as ERRANDS
from tests.moving import SAGA as MOVING
from tests.swapping import swapped
from tests.unit.twins import TWINS, Twin

Reduce = Callable[[Machine], Reduction]

LARGE = {"two orders"}
"""Too large for the short run, state by state."""


def seen_by_rules(model: Model, reduce: Reduce) -> set[Hashable]:
    """What rules look at in any state of a model; apart from that, what they do at rest, where all
    of them apply."""
    seen: set[Hashable] = set()

    def look(view: View, at_rest: bool) -> Iterable[Violation]:
        known = frozenset((name, frozenset(known.items())) for name, known in view.known.items())
        told = frozenset(
            mark.id for about in view.told.subjects() for mark in view.told.about(about)
        )
        books = tuple(view.books(type(outside.blank)) for outside in model.outside)
        seen.add((known, told, books))
        if at_rest:
            seen.add(("at rest", known, told, books))
        return ()

    exploration = explore(Machine(replace(model, judge=look)), reduce=reduce)
    assert exploration.found is None
    assert exploration.whole
    return seen


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(
            model_of(saga, one.name),
            id=f"{saga.name}-{one.name}",
            marks=[pytest.mark.long] if one.name in LARGE else [],
        )
        for saga in (SAGA, MOVING, ERRANDS)
        for one in saga.scenarios
    ],
)
def test_rules_look_at_the_same(model: Model) -> None:
    assert seen_by_rules(model, reduction_of) == seen_by_rules(model, Reduction)


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_a_mistake_is_found_either_way(twin: Twin) -> None:
    fewer, all_ = (
        explore(Machine(twin.model()), reduce=reduce).found for reduce in (reduction_of, Reduction)
    )
    assert fewer is not None
    assert all_ is not None
    assert (fewer.violation, len(fewer.states)) == (all_.violation, len(all_.states))


def alike(*subjects: str) -> Scenario:
    """Orders of the same customer for the last four mugs."""
    ids = {label: UUID(int=number) for number, label in enumerate(subjects, 1)}
    return replace(
        TWO_ORDERS,
        name="alike",
        starts={start: mugs[:1] for start, (*mugs, _) in TWO_ORDERS.starts.items()},
        sent=[
            (
                ORDER.name,
                PlaceOrder(
                    order_id=order_id,
                    customer="ada",
                    currency=CURRENCY,
                    lines=(OrderLine(sku="mug", quantity=4, unit_price_cents=1250),),
                    time_limit_seconds=300,
                ),
            )
            for order_id in ids.values()
        ],
        stimuli=(),
        names={str(order_id): label for label, order_id in ids.items()},
    )


def model_with(scenario: Scenario, *participants: Participant) -> Model:
    return model_of(replace(SAGA.with_(*participants), scenarios=(scenario,)), scenario.name)


def states_of(model: Model) -> tuple[int, int]:
    """How many there are once they have settled, and how many stand for those."""
    settled, looked_at = (
        explore(Machine(model), reduce=reduce).states for reduce in (Settled, reduction_of)
    )
    return settled, looked_at


def test_of_two_subjects_that_are_alike_half_the_states_are_looked_at() -> None:
    model = model_with(alike("A", "B"))

    assert seen_by_rules(model, reduction_of) == seen_by_rules(model, Reduction)
    settled, looked_at = states_of(model)
    assert settled / 2 <= looked_at < 0.6 * settled


@pytest.mark.long
def test_of_three_subjects_that_are_alike_a_sixth_is() -> None:
    settled, looked_at = states_of(model_with(alike("A", "B", "C")))

    assert settled / 6 <= looked_at < settled / 5


def test_subjects_that_differ_are_not_taken_for_one_another() -> None:
    machine = Machine(model_of(SAGA, "two orders"))

    assert Symmetry(machine).alike == 1


def test_a_rule_that_tells_them_apart_is_broken_for_the_other_one_too() -> None:
    model = model_with(alike("A", "B"))
    found = set()
    for label, name in (("A", str(UUID(int=1))), ("B", str(UUID(int=2)))):

        def judge(view: View, at_rest: bool, name: str = name) -> Iterable[Violation]:
            if view.states(Order).of(name).status is OrderStatus.CONFIRMED:
                yield Violation("confirmed", name, "it must not be")

        report = verify(replace(model, judge=judge))
        assert report.schedule is not None
        found.add((label, report.schedule.subject))

    assert found == {("A", "A"), ("B", "B")}


def test_a_reaction_that_tells_them_apart_is_noticed() -> None:
    def reserve(
        event: OrderPlaced, state: Reservation, shelf: Mapping[str, StockItem]
    ) -> StockReserved | StockRejected | None:
        reserved = inventory.reserve(event, state, shelf)
        if isinstance(reserved, StockReserved) and event.order_id == UUID(int=2):
            return StockRejected(
                order_id=event.order_id, reason=RejectionReason.OUT_OF_STOCK, sku="mug"
            )
        return reserved

    scenario = replace(alike("A", "B"), always=(), at_rest=())
    model = model_with(scenario, swapped(inventory.PARTICIPANT, reserve))

    settled, looked_at = states_of(model)
    assert looked_at == settled


def test_a_way_is_told_though_a_reaction_on_it_tells_them_apart() -> None:
    def record_refund(answer: RefundAnswered, state: Payment) -> PaymentRefunded | None:
        return None if answer.order_id == UUID(int=2) else payment.record_refund(answer, state)

    scenario = replace(alike("A", "B"), always=(), at_rest=(), stimuli=TWO_ORDERS.stimuli)
    model = model_with(scenario, swapped(payment.PARTICIPANT, record_refund))

    report = verify(replace(model, judge=cancelled_at_rest))
    assert report.schedule is not None
    assert report.schedule.violation.rule == "kept"


def test_a_way_that_does_not_fit_is_said_to_be_there() -> None:
    machine = Machine(replace(model_of(SAGA, "one order"), judge=cancelled_at_rest))
    found = explore(machine).found
    assert found is not None

    with pytest.raises(VerifyError, match=r"kept can be broken: .*; to tell how .*--max-states"):
        step_by_step(machine, found, Settled(machine), 2)


def cancelled_at_rest(view: View, at_rest: bool) -> Iterable[Violation]:
    for key, order in view.states(Order).items():
        if at_rest and order.status is OrderStatus.CANCELLED:
            yield Violation("kept", key, "it was cancelled")
