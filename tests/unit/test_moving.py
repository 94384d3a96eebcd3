"""A saga that no tool has a line for: it is proved by its declaration, or what is not is named."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import replace

import pytest
from typer.testing import CliRunner

from saga.choreography import ChoreographyError
from saga.cli import app
from saga.commands import simulating
from saga.declaration import Saga, Scenario
from saga.envelope import wrap
from saga.graph.check import check
from saga.history import HistoryError
from saga.history.outside import memory_of
from saga.message import Event, Priority
from saga.reconcile import rule_names
from saga.rules import Rules
from saga.runtime.messaging.definitions import definitions
from saga.runtime.messaging.permissions import users_of
from saga.runtime.messaging.topology import topology_of
from saga.simulation import Simulation, uncovered
from saga.simulation.verdict import wrong_endings
from saga.verify import VerifyError, model_of, verify
from saga.verify import uncovered as uncovered_by_models
from saga.view import EventsInMemory, View
from tests.moving import NOW, ONE_MOVE, RENTAL, SAGA, A
from tests.moving.agency import Choice
from tests.moving.language import MoveArranged, MoveGivenUp, MoveRequested, Size, Why
from tests.moving.planted import (
    BOOKS_UNREAD,
    LATE,
    LATE_SECONDS,
    NOBODY_ANSWERS,
    PLANTED,
)
from tests.moving.van.domain import PARTICIPANT as VAN
from tests.swapping import without

SEEDS = 20


def findings(saga: Saga) -> list[str]:
    graph = saga.choreography
    asked_for = definitions(topology_of(graph), users_of(graph))
    return [finding.rule for finding in check(graph, asked_for)]


def said(monkeypatch: pytest.MonkeyPatch, name: str, *arguments: str) -> tuple[int, str]:
    """What `saga` says of a planted saga."""
    monkeypatch.setenv("SAGA", f"tests.moving.planted:{name}")
    result = CliRunner().invoke(app, arguments)
    return result.exit_code, result.output


def test_its_signatures_have_no_mistake() -> None:
    assert findings(SAGA) == []


def test_every_way_that_it_can_go_ends_well_and_all_of_it_is_looked_at(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SAGA", "tests.moving:SAGA")

    result = CliRunner().invoke(app, ["verify", "--json"])

    document = json.loads(result.output)
    assert (result.exit_code, document["ok"], document["not_covered"]) == (0, True, [])
    assert document["models"][0]["states"] > 1_000


def test_it_is_simulated_with_its_outsides_its_timers_and_its_commands() -> None:
    happened: set[str] = set()
    with closing(Simulation(saga=SAGA)) as simulation:
        for seed in range(SEEDS):
            run = simulation.run(seed)
            assert not run.violations, f"seed {seed}"
            happened |= run.happened

    assert {"move.has_van", "move.has_crew", "van.send", "BookCrew", "ReturnVan"} <= happened
    assert not [line for line in uncovered(SAGA, happened) if "invariant" in line]


def test_what_is_due_in_hours_is_simulated_as_well() -> None:
    with closing(Simulation(saga=LATE)) as simulation:
        runs = [simulation.run(seed) for seed in range(SEEDS)]

    assert [run.seed for run in runs if run.violations] == []
    # In some an operator brings it forward.
    assert sum(run.simulated_seconds > LATE_SECONDS for run in runs) > SEEDS / 2


@pytest.mark.parametrize(
    ("end", "excused"),
    [(MoveGivenUp(move=A, why=Why.TOO_LATE), True), (MoveArranged(move=A), False)],
)
def test_what_was_done_early_excuses_only_ends_that_come_of_it(
    end: Event, *, excused: bool
) -> None:
    envelope = wrap(end, id="1", source="/services/move", time=NOW, priority=Priority.NORMAL)
    view = View({}, EventsInMemory([envelope]), (), rests=lambda _: True)
    with closing(Simulation(saga=SAGA)) as simulation:
        early = simulation._scene.ends_of_dues

    found = wrong_endings(
        view,
        [MoveArranged, MoveGivenUp],
        planned={A: {Why.NO_VAN}},
        told={},
        brought_forward={A: early["move.give_up"]},
    )

    assert [violation.rule for violation in found] == ([] if excused else ["wrong_ending"])


@pytest.mark.parametrize("name", PLANTED)
def test_a_mistake_is_found_by_the_checker(name: str) -> None:
    report = verify(model_of(PLANTED[name](), "one move"))

    assert report.schedule is not None


DOMAINS_OWN = {"a_join_takes_one_leg_for_both", "a_join_counts_deliveries"}
"""That a move needs both is the domain's to say."""


@pytest.mark.parametrize("name", PLANTED)
def test_what_follows_from_roles_finds_all_others_without_an_invariant(name: str) -> None:
    bare = replace(PLANTED[name](), always=(), at_rest=())

    assert verify(model_of(bare, "one move")).ok is (name in DOMAINS_OWN)


def test_a_compensation_that_is_forgotten_in_the_signature_is_found_by_check() -> None:
    assert "effect" in findings(SAGA.with_(without(VAN, "give_back")))


def test_a_command_that_nobody_takes_is_no_choreography() -> None:
    with pytest.raises(ChoreographyError, match=r"van\.send"):
        _ = SAGA.with_(without(VAN, "send")).choreography


def test_without_a_scenario_nothing_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    status, text = said(monkeypatch, "NO_SCENARIO", "verify")

    assert status == 1
    assert "moving has no scenario: nothing was tried" in text
    assert "nothing is broken\n" not in text


def test_without_a_load_nothing_is_simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in (["verify", "--simulate", "--seeds", "1"], ["demo", "--sagas", "1"]):
        monkeypatch.setenv("SAGA", "tests.moving.planted:NO_LOAD")
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code != 0
        assert "moving has no load" in str(result.exception or result.output)


@pytest.mark.parametrize(
    "tool",
    [
        ["verify"],
        ["verify", "--scenario", "one move"],
        ["verify", "--simulate", "--seeds", "1"],
    ],
)
def test_what_no_invariant_reads_is_named(tool: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    status, text = said(monkeypatch, "NO_INVARIANT", *tool)

    assert status == 1
    for what in ("Move of move", "Van of van", "the books of rental", "the books of agency"):
        assert f"no invariant reads {what}" in text


@pytest.mark.parametrize(
    ("tool", "sentence"),
    [
        (["--scenario", "one move"], "is told without --scenario"),
        (["--simulate", "--seeds", "1"], f"is told from {simulating.SEEDS} seeds on"),
    ],
)
def test_what_is_not_looked_at_here_is_said_to_be_told_elsewhere(
    tool: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SAGA", "tests.moving:SAGA")

    result = CliRunner().invoke(app, ["verify", *tool])

    assert result.exit_code == 0
    assert sentence in result.output
    assert "nothing is broken\n" not in result.output


def test_a_load_that_never_comes_to_a_command_is_said_to() -> None:
    missing = [*uncovered(SAGA, ())]

    assert "the load never comes to van.send" in missing


def test_an_invariant_that_no_scenario_has_all_for_is_named() -> None:
    alone = replace(
        ONE_MOVE,
        only={"crew"},
        sent=[("crew", MoveRequested(move=A, size=Size.SMALL, deadline=NOW))],
        stimuli=(),
    )
    saga = replace(SAGA, scenarios=(alone,))
    report = verify(model_of(saga, "one move"))

    assert report.ok
    assert "arranged_without is judged in no scenario: none has all that it reads" in list(
        uncovered_by_models(saga, report.reacted, report.published, report.asked)
    )


def test_an_outside_decides_only_what_a_scenario_lets_it() -> None:
    kind = replace(ONE_MOVE, decisions={RENTAL.name: (Choice.KEEPS,)})
    report = verify(model_of(replace(SAGA, scenarios=(kind,)), "one move"))

    assert report.ok
    assert "crew.refused" in report.published
    assert "van.refused" not in report.published


def test_decisions_of_an_outside_that_nobody_asks_are_an_error_that_names_it() -> None:
    strange = replace(ONE_MOVE, decisions={"bank": ("pays",)})

    with pytest.raises(
        VerifyError, match=r"bank, which is not asked here; there are rental, agency"
    ):
        model_of(replace(SAGA, scenarios=(strange,)), "one move")


def test_where_timers_come_last_nothing_is_late_before_all_else_is_done() -> None:
    last = replace(ONE_MOVE, stimuli=(), timers_last=True)
    report = verify(model_of(replace(SAGA, scenarios=(last,)), "one move"))
    lost = model_of(replace(PLANTED["an_answer_is_dropped"](), scenarios=(last,)), "one move")
    unjudged = replace(lost, judge=lambda view, at_rest: ())

    assert report.ok
    assert ("move", "give_up_late") not in report.reacted
    assert ("move", "give_up_late") in verify(unjudged).reacted


def test_what_a_scenario_begins_with_counts_as_published_by_nobody() -> None:
    requested = MoveRequested(move=A, size=Size.SMALL, deadline=NOW)
    one_van = Scenario("a van", [(VAN.name, requested)], (NOW,), only={"van"})
    alone = replace(SAGA, scenarios=(one_van,))
    report = verify(model_of(alone, "a van"))

    missing = [*uncovered_by_models(alone, report.reacted, report.published, report.asked)]
    assert "move.requested is published in no scenario" in missing
    assert "van.booked is published in no scenario" not in missing
    assert "no scenario has crew ask BookCrew" in missing
    assert "no scenario has van ask BookVan" not in missing


def test_what_is_sent_to_who_takes_no_part_in_a_scenario_goes_to_nobody() -> None:
    alone = replace(ONE_MOVE, without={"van", "crew"})
    model = model_of(replace(SAGA, scenarios=(alone,)), "one move")

    assert model.choreography.reacting_to("van.send") == ()
    assert "move.requested" in verify(model).published


def test_a_scenario_in_which_nobody_answers_cannot_be_explored() -> None:
    with pytest.raises(VerifyError, match="crew asks BookCrew, and no outside is said to take"):
        model_of(NOBODY_ANSWERS, "one move")


def test_reconcile_names_books_that_nothing_reads() -> None:
    assert list(BOOKS_UNREAD.unread()) == [
        "the books of rental cannot be read: its declaration has no `read`"
    ]
    assert list(SAGA.unread()) == []


@pytest.mark.parametrize("saga", [BOOKS_UNREAD, NOBODY_ANSWERS], ids=["unread", "nobody"])
def test_who_asks_somebody_whose_books_cannot_be_read_is_not_rebuilt(saga: Saga) -> None:
    asking = "van" if saga is BOOKS_UNREAD else "crew"

    with pytest.raises(HistoryError, match=rf"{asking} asks"):
        memory_of(saga, asking, {"rental": "sqlite:///nowhere", "agency": "sqlite:///nowhere"})


def test_the_rules_are_those_of_the_saga_and_of_roles() -> None:
    assert {"arranged_without", "kept_in_vain", "effect_standing", "lost"} <= {*rule_names(SAGA)}
    assert len(Rules(SAGA).always) == len(SAGA.always)
