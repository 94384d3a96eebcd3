"""The order saga cannot go wrong, and `saga verify` would notice if it could."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Self

import pytest
from typer.testing import CliRunner

from common.events import CancellationReason, OrderConfirmed, PaymentVoided
from inventory_service.domain import Reservation, ReservationStatus
from order_saga import SAGA
from order_service.domain import Order, OrderStatus
from payment_service.domain import Payment, PaymentStatus
from saga.choreography import Participant, State
from saga.cli import app
from saga.commands.verify import keep, print_reports, reports_as_json
from saga.message import Decided
from saga.testing import NOW
from saga.verify import Model, Schedule, VerifyError, as_test, diagram, model_of, replay, verify
from saga.verify.proof import Proof, unfinished
from saga.view import View, Violation
from tests.unit.twins import (
    TWINS,
    Twin,
    a_charge_is_forgotten_after_a_crash,
    a_question_on_its_way_is_taken_for_paid,
    a_refund_is_forgotten,
    a_released_order_is_rejected_as_well,
    one_order,
    stock_has_no_marker_for_an_overtaking_cancellation,
    stock_is_released_twice,
    two_orders,
)

ROOT = Path(__file__).parents[2]


def schedule_of(model: Model) -> Schedule:
    schedule = verify(model).schedule
    assert schedule is not None
    return schedule


@functools.cache
def schedule_to(twin: Twin) -> Schedule:
    """Where a mistake leads to. It is not looked for again."""
    return schedule_of(twin.model())


def steps_of(schedule: Schedule) -> list[str]:
    return [step.text for step in schedule.steps]


def test_one_order_cannot_end_wrong_whatever_happens() -> None:
    report = verify(one_order())

    assert report.schedule is None
    assert report.exploration.repetitions > report.exploration.transitions > 0


def test_two_orders_for_the_last_unit_cannot_end_wrong_whatever_happens() -> None:
    report = verify(two_orders())

    assert report.schedule is None
    assert report.exploration.states > 10_000


def test_one_order_goes_every_way_an_order_can_go() -> None:
    model = one_order()
    seen: set[object] = set()

    def look(view: View, at_rest: bool) -> Iterable[Violation]:
        seen.update(order.status for order in view.states(Order).values())
        seen.update(order.reason for order in view.states(Order).values())
        seen.update(reservation.status for reservation in view.states(Reservation).values())
        seen.update(payment.status for payment in view.states(Payment).values())
        seen.update(event.type for event in view.events(*model.choreography.events))
        return ()

    assert verify(replace(model, judge=look)).ok
    blank = {OrderStatus.UNKNOWN, ReservationStatus.NONE, PaymentStatus.NONE}
    statuses = {*OrderStatus, *CancellationReason, *ReservationStatus, *PaymentStatus} - blank
    assert seen - {None} == statuses | {event.type for event in model.choreography.events}


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_a_mistake_is_found_by_a_shortest_schedule(twin: Twin) -> None:
    schedule = schedule_to(twin)

    assert (schedule.violation.rule, len(schedule.steps)) == (twin.rule, twin.steps)


@pytest.mark.parametrize(
    ("twin", "rule"),
    [
        (stock_is_released_twice, "id_reused"),
        (a_released_order_is_rejected_as_well, "moved_at_rest"),
    ],
    ids=["id_reused", "moved_at_rest"],
)
def test_some_mistakes_are_found_without_a_rule_of_the_saga(
    twin: Callable[[], Model], rule: str
) -> None:
    schedule = schedule_of(replace(twin(), judge=lambda view, at_rest: ()))

    assert schedule.violation.rule == rule


DOMAINS_OWN = {
    "the_deadline_passes_at_once",
    "a_rejected_order_is_cancelled_for_another_reason",
    "a_line_is_forgotten_in_the_release",
    "the_last_one_is_never_sold",
    "more_is_sold_than_there_is",
    "the_last_mug_is_sold_to_both",
    "what_is_there_of_an_order_is_held",
}
"""Mistakes about amounts, reasons and time, which no role tells of."""


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_what_follows_from_roles_finds_every_mistake_but_those_about_amounts_and_reasons(
    twin: Twin, monkeypatch: pytest.MonkeyPatch
) -> None:
    scenarios = [replace(one, always=(), at_rest=()) for one in SAGA.scenarios]
    bare = replace(SAGA, always=(), at_rest=(), scenarios=tuple(scenarios))
    monkeypatch.setattr("tests.unit.twins.SAGA", bare)

    assert verify(twin.model()).ok is (twin.name in DOMAINS_OWN)


@pytest.mark.parametrize("twin", TWINS, ids=lambda twin: twin.name)
def test_a_schedule_taken_again_breaks_the_same_rule(twin: Twin) -> None:
    schedule = schedule_to(twin)

    assert replay(twin.model(), schedule.start, *steps_of(schedule)) == schedule.violation


def test_a_schedule_breaks_nothing_once_the_mistake_is_mended() -> None:
    schedule = schedule_of(a_refund_is_forgotten())

    assert replay(one_order(), schedule.start, *steps_of(schedule)) is None


def test_a_schedule_is_taken_as_far_as_it_is_possible() -> None:
    schedule = schedule_of(a_refund_is_forgotten())
    steps = ["order takes an order for tea", *steps_of(schedule)]

    assert replay(a_refund_is_forgotten(), schedule.start, *steps) is None


def test_a_schedule_that_ends_long_before_the_mistake_breaks_nothing() -> None:
    twin = a_question_on_its_way_is_taken_for_paid
    schedule = schedule_of(twin())

    assert replay(twin(), schedule.start, *steps_of(schedule)[:3]) is None


def test_a_schedule_begins_where_the_model_does() -> None:
    with pytest.raises(
        VerifyError, match=r"does not begin with 'tea', but with .*'all is in stock'"
    ):
        replay(one_order(), "tea")


def test_a_schedule_is_drawn_with_who_takes_what_from_whom() -> None:
    drawn = diagram(schedule_of(stock_has_no_marker_for_an_overtaking_cancellation()))

    assert (
        drawn
        == """\
one order: all is in stock

       world       order     inventory    payment
  1      ├──────────▶│           │           │        order.place A
         │           │           │           │          order: publishes order.placed A
  2      ├──────────▶│           │           │        the customer cancels A
         │           │           │           │          order: publishes order.cancelled A
  3      │           ├──────────▶│           │        order.cancelled A
         │           │           │           │          inventory: nothing new
  4      │           ├──────────▶│           │        order.placed A  (late)
         │           │           │           │          inventory: publishes stock.reserved A
  5      │           ├──────────────────────▶│        order.cancelled A
         │           │           │           │          payment: publishes payment.voided A
  6      │           │           ├──────────▶│        stock.reserved A
         │           │           │           │          payment: nothing new

broken: held_not_confirmed: A: it is cancelled, but its stock is held
late: overtaken by what was published after it: reordered, or dead and then replayed"""
    )


def test_a_schedule_tells_what_came_again_and_what_was_never_answered() -> None:
    drawn = diagram(schedule_of(a_charge_is_forgotten_after_a_crash()))

    assert "stock.reserved A  (again)" in drawn
    assert "open: Charge A: the participant that asked has died, or is slow to go on" in drawn


def test_a_pasted_test_fails_as_long_as_the_mistake_is_there(tmp_path: Path) -> None:
    schedule = schedule_of(a_refund_is_forgotten())
    pasted = tmp_path / "test_pasted.py"
    pasted.write_text(as_test(schedule))

    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(pasted)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 1, run.stdout
    assert "test_charged_not_confirmed" in run.stdout
    assert schedule.violation.detail in run.stdout


def test_a_pasted_test_passes_once_the_mistake_is_mended() -> None:
    fixed = one_order(source="tests.unit.twins:one_order()")
    schedule = replace(schedule_of(a_refund_is_forgotten()), model=fixed)
    names: dict[str, Callable[[], None]] = {}
    exec(as_test(schedule), names)  # noqa: S102 - our own text

    names["test_charged_not_confirmed"]()


@dataclass(frozen=True, slots=True)
class Advice(State):
    given: int = 0

    def evolve(self, message: Decided, at: object) -> Self:
        return replace(self, given=self.given + 1)


def advise(event: OrderConfirmed, advice: Advice) -> PaymentVoided | None:
    return None if advice.given else PaymentVoided(order_id=event.order_id)


def advise_again(event: OrderConfirmed, advice: Advice) -> PaymentVoided:
    return PaymentVoided(order_id=event.order_id)


def test_a_participant_that_joins_is_checked_too() -> None:
    assert verify(one_order(Participant("recommendation", advise))).ok
    schedule = schedule_of(one_order(Participant("recommendation", advise_again)))

    assert schedule.violation.rule == "said_twice"
    assert schedule.steps[-1].receiver == "recommendation"


def test_whoever_nobody_listens_to_is_left_out_of_two_orders() -> None:
    choreography = two_orders(Participant("recommendation", advise)).choreography

    assert [p.name for p in choreography.participants] == ["inventory", "order", "payment"]


def test_a_model_that_does_not_fit_is_never_fine() -> None:
    report = verify(two_orders(), states_max=500)

    assert report.schedule is None
    assert not report.ok
    document = reports_as_json([report], [*unfinished([report])])
    assert document["ok"] is False
    (line,) = document["not_covered"]
    depth = report.exploration.depth
    assert line.startswith(f"two orders was not explored to its end: all of up to {depth} steps")
    assert "--max-states" in line


def test_the_command_says_how_far_it_came() -> None:
    result = CliRunner().invoke(app, ["verify", "--scenario", "one order", "--max-states", "99"])

    assert result.exit_code == 1
    assert "one order was not explored to its end" in " ".join(result.output.split())
    assert "nothing is broken of what was looked at" in result.output


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    model = model_of(SAGA, "an order and its mail")
    verify(model, progress=lambda depth, states: told.append((depth, states)))

    assert told == sorted(told)
    assert told


def test_the_command_prints_what_it_has_seen() -> None:
    result = CliRunner().invoke(app, ["verify", "--scenario", "one order"])

    assert result.exit_code == 0
    assert "one order" in result.output
    assert "nothing is broken" in result.output


def test_the_command_prints_json() -> None:
    result = CliRunner().invoke(app, ["verify", "--scenario", "one order", "--json"])

    document = json.loads(result.output)
    assert document["ok"] is True
    (model,) = document["models"]
    assert model["violation"] is None
    assert all(model[count] > 0 for count in ("states", "states_at_rest", "transitions", "depth"))


def test_a_violation_is_reported_with_its_schedule_and_its_test(
    capsys: pytest.CaptureFixture[str],
) -> None:
    report = verify(a_refund_is_forgotten())
    assert report.schedule is not None

    document = reports_as_json([report])
    assert document["ok"] is False
    violation = document["models"][0]["violation"]
    assert (violation["rule"], violation["subject"]) == ("charged_not_confirmed", "A")
    assert violation["steps"] == steps_of(report.schedule)
    print_reports([report])
    printed = capsys.readouterr().out
    assert diagram(report.schedule) in printed
    assert as_test(report.schedule) in printed


def test_refusals_that_were_not_followed_to_the_end_are_a_remark() -> None:
    report = verify(model_of(SAGA, "a mail of a confirmation"))

    document = reports_as_json([report])
    assert document["ok"] is True
    (remark,) = document["remarks"]
    assert "mail server refuses again and again was followed up to 3 refusals only" in remark


JOINING = """
from dataclasses import replace

from saga.choreography import Participant, State
from common.events import OrderConfirmed, PaymentVoided
from order_saga import SAGA

def advise(event: OrderConfirmed, advice: State) -> PaymentVoided:
    return PaymentVoided(order_id=event.order_id)

JOINED = SAGA.with_(Participant("recommendation", advise))
"""


def test_the_command_ends_with_status_1_when_a_service_joins_that_has_a_mistake(
    tmp_path: Path,
) -> None:
    (tmp_path / "joined.py").write_text(JOINING)

    run = subprocess.run(
        [sys.executable, "-m", "saga.cli", "verify", "--scenario", "one order"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path), "SAGA": "joined:JOINED"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert run.returncode == 1, run.stderr
    assert "broken: said_twice: A: payment.voided was published 2 times" in run.stdout
    assert "def test_said_twice() -> None:" in run.stdout


def test_a_scenario_that_there_is_none_of_is_wrong_usage() -> None:
    result = CliRunner().invoke(app, ["verify", "--scenario", "three orders"])

    assert result.exit_code == 2
    assert "three orders" in result.output


def test_a_proof_is_kept_where_a_system_is_and_in_no_folder_that_only_happens_to_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    proof = Proof(saga="orders", version="0", began_at=NOW, finished_at=NOW, names=[])
    monkeypatch.chdir(tmp_path)
    unnamed, named = Path("data"), tmp_path / "named"

    keep(proof, unnamed)
    keep(proof, named)
    assert not unnamed.exists()
    assert not named.exists()  # No folder is made for it.

    unnamed.mkdir()
    named.mkdir()
    keep(proof, unnamed)
    keep(proof, named)
    assert Proof.load(unnamed) is None
    assert Proof.load(named) == proof

    (unnamed / "saga.json").touch()
    keep(proof, unnamed)
    assert Proof.load(unnamed) == proof

    keep(proof.model_copy(update={"began_at": NOW - timedelta(days=1)}), named)
    assert Proof.load(named) == proof  # The one that was begun last counts.

    (named / "proof.json").unlink()
    (named / "proof.json").mkdir()
    keep(proof, named)
    assert "cannot write" in capsys.readouterr().err
