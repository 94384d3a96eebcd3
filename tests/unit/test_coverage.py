"""What was tried of all that a saga may do is told, and what was not is never left out."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from order_saga import SAGA
from saga.branches import Branch, branches_of, name_of
from saga.cli import app
from saga.commands.verify import keep
from saga.graph.flow import Flow, Step
from saga.simulation import Run, Simulation
from saga.simulation.tried import SimulatedRuns
from saga.verify import model_of, verify
from saga.verify.coverage import branches_taken, coverage, tried_on, untried
from saga.verify.proof import Proof
from tests.moving import SAGA as MOVING
from tests.parcels import SAGA as PARCELS

EXPIRE_NOTHING = Branch("order", "expire", ())


def calls_of(*scenarios: str) -> list[tuple[Branch, int]]:
    reports = [verify(model_of(SAGA, name)) for name in scenarios]
    return [*branches_taken(calls for report in reports for calls in report.calls).items()]


def runs_of(*runs: Run) -> SimulatedRuns:
    return SimulatedRuns.of(SAGA.name, "0", datetime(2030, 1, 1, tzinfo=UTC), runs, {})


def test_each_alternative_of_a_signature_is_a_branch() -> None:
    branches = {b.decides for b in branches_of(SAGA.participants) if b.reaction == "record_charge"}

    assert branches == {
        (),
        ("Refund",),
        ("payment.charged",),
        ("payment.charged", "Refund"),
        ("payment.declined",),
        ("payment.voided",),
    }


def test_whatever_is_decided_is_among_the_branches() -> None:
    for saga, names in ((SAGA, ["one order", "an order and its mail"]), (MOVING, ["one move"])):
        known = {*branches_of(saga.participants)}
        reports = [verify(model_of(saga, name)) for name in names]
        taken = branches_taken(calls for report in reports for calls in report.calls)
        assert taken.keys() <= known


def test_participants_in_other_languages_have_no_branches_of_ours() -> None:
    foreign = {each.name for each in PARCELS.choreography.foreign}

    assert foreign
    assert foreign.isdisjoint(branch.participant for branch in branches_of(PARCELS.participants))


def test_what_no_model_takes_is_told() -> None:
    rows = coverage(SAGA, calls_of("one order"), None)

    missing = untried(rows)
    assert EXPIRE_NOTHING in missing
    assert {branch.reaction for branch in missing} >= {"tell_confirmed", "tell_cancelled"}
    assert all(row.runs is None for row in rows)


def test_a_branch_that_only_the_simulation_takes_was_tried() -> None:
    run = Run(0, "", (), (), 0.0, 0, took=frozenset({EXPIRE_NOTHING}))

    rows = coverage(SAGA, [], runs_of(run, replace(run, took=frozenset())).took)
    (row,) = (row for row in rows if row.branch == EXPIRE_NOTHING)
    assert (row.calls, row.runs, row.tried) == (0, 1, True)
    assert len(untried(rows)) == len(rows) - 1


def test_a_run_tells_what_it_took_and_which_faults_there_were() -> None:
    simulation = Simulation()
    try:
        runs = [simulation.run(seed) for seed in range(10)]
    finally:
        simulation.close()
    document = runs_of(*runs)

    taken = {branch for branch, _ in document.took}
    assert Branch("order", "place", ("order.placed",)) in taken
    assert taken <= {*branches_of(SAGA.participants)}
    assert document.faults.keys() <= document.fault_kinds.keys()
    assert {"crash", "duplicate", "conflict"} <= document.faults.keys()
    assert max(document.faults.values()) <= len(runs)
    assert all(bool(run.faults) for run in runs if any("is killed" in line for line in run.trace))


def test_the_map_says_at_each_reaction_what_was_tried() -> None:
    flow = Flow(SAGA.choreography)
    overlay = tried_on(flow, coverage(SAGA, calls_of("one order"), None))

    said = {step.name: overlay.nodes[step][0].text for step in flow.steps}
    assert said["order.expire"] == "1 of 2 tried"
    assert said["payment.record_charge"] == "6 of 6 tried"
    assert {step.name for step in flow.steps if step in overlay.marked} >= {"order.expire"}
    never = {
        (step.name, name_of(kind))
        for step, kind in overlay.edges
        if isinstance(step, Step) and not isinstance(kind, Step)
    }
    assert ("notification.tell_confirmed", "notification.begun") in never
    assert not any(name.startswith("payment.") for name, _ in never)


def test_nothing_is_fine_where_nothing_was_looked_at() -> None:
    rows = coverage(SAGA, None, None)

    assert untried(rows) == [row.branch for row in rows]
    assert not any(row.tried for row in rows)


def test_what_runs_came_to_is_kept(tmp_path: Path) -> None:
    document = runs_of(Run(3, "", (), (), 0.0, 0, took=frozenset({EXPIRE_NOTHING})))
    keep(document, tmp_path)

    assert SimulatedRuns.load(tmp_path) == document
    keep(document.model_copy(update={"began_at": document.began_at - timedelta(days=1)}), tmp_path)
    assert SimulatedRuns.load(tmp_path) == document  # Those that were begun last count.
    (tmp_path / "simulation.json").write_text("{")
    assert SimulatedRuns.load(tmp_path) is None


def test_a_proof_of_before_is_still_read(tmp_path: Path) -> None:
    proof = Proof(saga="moves", version="0", began_at=datetime(2030, 1, 1, tzinfo=UTC), names=[])
    before = json.loads(proof.model_dump_json())
    del before["took"]
    (tmp_path / "proof.json").write_text(json.dumps(before))

    assert Proof.load(tmp_path) == proof


@pytest.mark.parametrize("beside", ["--simulate", "--scenario=one order"])
def test_coverage_is_of_everything(beside: str) -> None:
    result = CliRunner().invoke(app, ["verify", "--coverage", beside])

    assert result.exit_code == 2
    assert "--coverage is about all scenarios" in " ".join(result.output.split())


def test_the_command_shows_branches_faults_and_that_production_was_not_looked_at(
    tmp_path: Path,
) -> None:
    few = ["--seeds", "3", "--max-states", "200"]
    command = ["verify", "--coverage", *few, "--json", "--data-dir", str(tmp_path)]
    result = CliRunner().invoke(app, command)

    document = json.loads(result.stdout)
    assert len(document["branches"]) == len(branches_of(SAGA.participants))
    assert document["simulated_runs"] == 3
    assert "crash" in document["faults"]
    assert document["production"] is None
    assert "no running system" in document["production_not_looked_at"]
    assert result.exit_code == 1  # Not all was explored.
