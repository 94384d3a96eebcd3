"""`saga verify` finds reactions that do not depend on their arguments alone."""

from __future__ import annotations

import contextlib
import gc
import itertools
import logging
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Self
from uuid import UUID

import pytest

from common.events import OrderLine, OrderPlaced, PlaceOrder
from order_saga import SAGA
from order_service import domain as order
from order_service.domain import Order
from saga.choreography import Participant, State
from saga.commands.verify import print_reports, reports_as_json
from saga.declaration import Saga
from saga.envelope import wrap
from saga.message import Command, Decided, Event, Priority
from saga.purity import Calls, Impure, Sample, fresh, sampled, watched
from saga.runtime.kernel.step import StateId
from saga.simulation import Simulation
from saga.testing import NOW
from saga.verify import Model, again, verify, verify_elsewhere
from saga.verify.proof import Proof, prove
from tests.swapping import swapped
from tests.unit.impure import (
    IMPURE,
    a_cancellation_is_remembered_for_another_reaction,
    a_reaction_changes_its_message,
    an_order_is_placed_once_by_memory,
    dice_are_thrown_that_decide_on_nothing,
    lines_are_held_in_the_order_of_a_set,
)
from tests.unit.twins import one_order


@pytest.mark.parametrize(("twin", "said"), IMPURE, ids=[twin.__name__ for twin, _ in IMPURE])
def test_a_call_made_twice_shows_what_is_not_pure(twin: Callable[[], Model], said: str) -> None:
    schedule = verify(twin()).schedule

    assert schedule is not None
    assert schedule.violation.rule == "impure"
    assert said in schedule.violation.detail


def test_what_reactions_remember_of_each_other_shows_when_all_calls_are_made_again() -> None:
    report = verify(a_cancellation_is_remembered_for_another_reaction())

    assert (report.ok, report.schedule) == (False, None)
    (found, *_) = report.impure
    assert found.rule == "impure"
    assert "inventory.reserve is not pure: called after others again" in found.detail
    assert "StockReserved, then StockRejected" in found.detail


def test_the_order_of_a_set_shows_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever this one has found to be modules besides, such as another project's tests."""
    other = Path(__file__).parents[2] / "examples" / "orchestrated"
    assert (other / "tests" / "__init__.py").is_file()
    monkeypatch.setattr(sys, "path", [*sys.path, str(other)])
    report = verify(lines_are_held_in_the_order_of_a_set())
    assert report.ok

    (report,), missing = verify_elsewhere([report])

    assert not missing
    assert not report.ok
    assert "inventory.reserve is not pure: called in another process" in report.impure[0].detail
    assert "StockReserved.lines is" in report.impure[0].detail


def test_what_shows_only_afterwards_is_a_finding_of_the_command(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = verify(a_cancellation_is_remembered_for_another_reaction())

    print_reports([report])
    printed = capsys.readouterr().out
    assert "broken: impure: one order: inventory.reserve is not pure" in printed
    assert "broken: one order" in printed
    document = reports_as_json([report])
    assert document["ok"] is False
    assert "inventory.reserve is not pure" in document["models"][0]["impure"][0]


def test_a_proof_names_what_is_not_pure() -> None:
    twin = a_cancellation_is_remembered_for_another_reaction()
    (inventory,) = (p for p in twin.choreography.participants if p.name == "inventory")
    alone = replace(SAGA.with_(inventory), scenarios=(SAGA.scenario("one order"),))
    told: list[Proof] = []

    proof = prove(alone, told.append, source=twin.source).proof

    assert proof.broken
    assert not proof.ok
    assert "inventory.reserve is not pure" in proof.impure[0]
    assert told[-1].impure == proof.impure


def test_our_own_reactions_are_pure_in_another_process_too() -> None:
    reports, missing = verify_elsewhere([verify(one_order(source="order_saga:SAGA"))])

    assert [report.ok for report in reports] == [True]
    assert missing == []


def test_a_process_that_cannot_be_begun_is_no_proof() -> None:
    _, missing = verify_elsewhere([verify(one_order(source="order_saga:TEA"))])

    (line,) = missing
    assert "no reaction was called in another process as well" in line
    assert "TEA" in line


@pytest.mark.parametrize(("limit", "of"), [("PAIRS_MAX", 0), ("PROCESSES_MAX", 0)])
def test_sets_whose_order_was_the_same_everywhere_are_not_looked_at(
    limit: str, of: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = verify(one_order(source="order_saga:SAGA"))
    monkeypatch.setattr(again, limit, of)

    _, missing = verify_elsewhere([report])

    (line,) = missing
    assert "was not looked at in either order for 1 of 1 pairs of strings" in line
    assert "'mug' and 'pen'" in line


def test_the_order_of_sets_of_words_of_any_length_and_number_is_turned() -> None:
    words = [f"\ud800\0{n}" + "x" * 140_000 for n in range(5)]
    pairs = [*itertools.combinations(words, 2)]
    seeds, left = again._seeds(pairs)

    assert not left
    assert 1 <= len(seeds) <= again.PROCESSES_MAX


def test_the_first_call_that_takes_a_branch_in_a_run_is_made_twice() -> None:
    made: list[str] = []

    def place(command: PlaceOrder, state: Order, now: datetime) -> OrderPlaced | None:
        made.append(command.customer)
        return None if command.customer == "known" else order.place(command, state, now)

    sample = Sample()
    watched_participant = sampled(swapped(order.PARTICIPANT, place), sample)
    function = watched_participant.by_message[PlaceOrder].function

    def calls_of(customer: str) -> int:
        made.clear()
        line = OrderLine(sku="tea", quantity=1, unit_price_cents=300)
        command = PlaceOrder(order_id=UUID(int=1), customer=customer, currency="EUR", lines=(line,))
        function(command, Order(command.subject), NOW)
        return len(made)

    assert [calls_of(who) for who in ("one", "two", "known", "known", "one")] == [2, 1, 2, 1, 1]
    assert {branch.decides for branch in sample.took} == {("order.placed",), ()}
    sample.begin()
    assert [calls_of(who) for who in ("two", "one")] == [2, 1]
    assert not sample.impure


def test_writing_a_log_uses_no_clock() -> None:
    def place(command: PlaceOrder, state: Order, now: datetime) -> OrderPlaced | None:
        logging.getLogger("tests").warning("placed")
        return order.place(command, state, now)

    assert verify(one_order(swapped(order.PARTICIPANT, place))).ok


class PickTea(Command):
    type = "tea.pick"
    leaves: frozenset[str]

    @property
    def subject(self) -> str:
        return "tea"


class TeaPicked(Event):
    type = "tea.picked"
    leaf: str

    @property
    def subject(self) -> str:
        return "tea"


class Tea(State):
    def evolve(self, message: Decided, at: datetime) -> Self:
        return replace(self)


def picks_first(command: PickTea, tea: Tea) -> TeaPicked:
    return TeaPicked(leaf=next(iter(command.leaves)))


def picks_least(command: PickTea, tea: Tea) -> TeaPicked:
    return TeaPicked(leaf=min(command.leaves))


def _blank(state_id: StateId) -> State:
    kind, key = state_id
    return kind(key)


def _call(reaction: Callable[..., TeaPicked]) -> None:
    command = PickTea(leaves=frozenset({"a", "b"}))
    cause = wrap(
        command, id="1", source="/tests", time=NOW, priority=Priority.NORMAL, sequence=None
    )
    Calls(Participant("garden", reaction)).decide(None, cause, command, _blank, NOW)


def test_the_order_of_a_set_among_the_arguments_shows_at_once() -> None:
    _call(picks_least)
    with pytest.raises(Impure, match=r"garden.picks_first is not pure: .*TeaPicked.leaf is"):
        _call(picks_first)


def test_a_fresh_copy_is_equal_and_goes_through_sets_the_other_way_round() -> None:
    turned = 0
    for first in range(20):
        command = PickTea(leaves=frozenset(f"{leaf}" for leaf in range(first, first + 3)))

        copied = fresh(command, backwards=True)

        assert copied == command
        assert copied is not command
        turned += [*copied.leaves] == [*command.leaves][::-1]
        assert PickTea(leaves=copied.leaves) == command
    assert turned >= 3  # Where hashes collide, some stay where they are.


def found_by_simulation(saga: Saga) -> list[str]:
    with contextlib.closing(Simulation(saga=saga)) as simulation:
        return [v.detail for v in simulation.run(0).violations if v.rule == "impure"]


@pytest.mark.parametrize(
    "twin",
    [
        an_order_is_placed_once_by_memory,
        dice_are_thrown_that_decide_on_nothing,
        a_reaction_changes_its_message,
    ],
    ids=lambda twin: str(twin.__name__),
)
def test_the_simulation_sees_what_is_not_pure(twin: Callable[[], Model]) -> None:
    instead = [p for p in twin().choreography.participants if p.name in ("order", "inventory")]
    (said,) = (said for each, said in IMPURE if each is twin)

    found = found_by_simulation(SAGA.with_(*instead))

    assert found
    assert all(" ".join(said.split()[:3]) in detail for detail in found), found


def test_the_simulation_sees_a_state_that_reads_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    ours = Order.evolve

    def evolve(self: Order, message: Decided, at: datetime) -> Order:
        time.time()
        return ours(self, message, at)

    monkeypatch.setattr(Order, "evolve", evolve)

    assert any(
        "evolve reads the clock (time.time)" in detail for detail in found_by_simulation(SAGA)
    )


@pytest.mark.parametrize(
    "clock", ["time", "monotonic_ns", "perf_counter", "process_time_ns", "thread_time"]
)
def test_every_clock_is_noticed(clock: str) -> None:
    with watched() as uses:
        getattr(time, clock)()
        time.clock_gettime(time.CLOCK_MONOTONIC)

    assert [use.split("(")[1].partition(")")[0] for use in uses] == [
        f"time.{clock}",
        "time.clock_gettime",
    ]


def test_the_simulation_finds_our_own_reactions_pure() -> None:
    assert found_by_simulation(SAGA) == []


def test_collecting_garbage_uses_no_clock() -> None:
    """As with a metric of its pauses; hypothesis does that, too."""

    def note(phase: str, info: object) -> None:
        time.perf_counter()

    threshold = gc.get_threshold()
    gc.callbacks.append(note)
    gc.set_threshold(1)
    try:
        assert verify(one_order(order.PARTICIPANT)).schedule is None
        assert gc.isenabled()
    finally:
        gc.callbacks.remove(note)
        gc.set_threshold(*threshold)


def test_a_process_that_does_not_answer_is_said_not_to_have_been_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = verify(lines_are_held_in_the_order_of_a_set())
    monkeypatch.setattr("saga.verify.again.TIMEOUT_SECONDS", 0.01)

    (_,), missing = verify_elsewhere([report])

    (said,) = missing
    assert said.startswith("no reaction was called in another process as well: ")
