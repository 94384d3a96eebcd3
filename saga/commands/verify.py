"""`saga verify`: whether the choreography can go wrong."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from saga.commands import simulating
from saga.commands.covering import show_coverage
from saga.commands.output import (
    DATA_DIR,
    PROBLEM_FOUND,
    AsJson,
    DataDir,
    print_json,
    remark,
)
from saga.commands.past import verify_past
from saga.wording import counted

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from saga.simulation.tried import SimulatedRuns
    from saga.verify import ModelReport
    from saga.verify.proof import Proof

SEEDS_MAX: Final = 100_000
JOBS_MAX: Final = 256


def verify(
    scenario: Annotated[
        list[str] | None,
        typer.Option(
            show_default=False,
            help="Only the scenario of this name; repeat for several. All of them if left out.",
        ),
    ] = None,
    max_states: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help="End a model beyond so many states in memory, some 1,000 bytes each, and say how "
            "far that came; by default, beyond two million. With --from-history, beyond 200,000, "
            "and all models together beyond ten times as many.",
        ),
    ] = None,
    simulate: Annotated[
        bool,
        typer.Option(
            "--simulate",
            help="Instead of the models, run all services with their real kernel on a simulated "
            "clock, broker and database, with faults of every kind; a seed decides on everything.",
        ),
    ] = False,
    seeds: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=SEEDS_MAX,
            help=f"With --simulate or --coverage: how many runs; {simulating.SEEDS} by default.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="With --simulate or --coverage: the first run's seed. With --sample: what draws "
            "it. 0 by default.",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=JOBS_MAX,
            help="With --simulate, --coverage or --from-history: processes to do it in; 1 by "
            "default.",
        ),
    ] = None,
    coverage: Annotated[
        bool,
        typer.Option(
            "--coverage",
            help="Explore the models and simulate, then show what that took of all that reactions "
            "may decide on, which kinds of fault there were, and what production has done that no "
            "model has.",
        ),
    ] = False,
    from_history: Annotated[
        bool,
        typer.Option(
            "--from-history",
            help="Instead of the scenarios, decide again what recorded sagas have decided, and "
            "explore on from where those are that are under way.",
        ),
    ] = False,
    export: Annotated[
        Path | None,
        typer.Option(
            show_default=False,
            help="With --from-history: read what `saga history export` wrote, not the archive of "
            "the system in the data folder.",
        ),
    ] = None,
    sample: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help="With --from-history: so many subjects, drawn by --seed; all if left out.",
        ),
    ] = None,
    data_dir: DataDir = DATA_DIR,
    as_json: AsJson = False,
) -> None:
    """Try everything that can happen to a saga, and say whether any of it ends wrong.

    Runs the services' own reactions through every order of deliveries, with duplicates, crashes at
    every seam, dead letters that come back or never do, deadlines and cancellations at any point,
    and each answer of whom they ask: in each scenario of the saga.

    Each reaction is called twice with equal arguments, then once more after all others, and in
    another process: it must decide the same each time, and leave its arguments as they are.

    Exit status 1 when a rule can be broken: shown are a shortest way to do it, and a test that
    fails as long as that is so. Also when there is a reaction, an event, a state or an outside that
    no scenario or invariant looks at: each is named. With --scenario, only what no invariant looks
    at.

    What all scenarios came to is kept as `proof.json` in the data folder, if there is one, where
    the console shows it; what 200 seeds or more did as `simulation.json`.

    With --from-history, before a deployment: says which decisions of recorded sagas would be others
    with the reactions of this working tree, with an example each, and what can go wrong from where
    sagas are now. Exit status 1 for any of that, and for what could not be looked at. What is asked
    outside is in no event: that a reaction still asks shows in what it publishes after the answer,
    what it asks for shows nowhere.

    Examples:

    * `saga verify`
    * `saga verify --scenario "one trip" --json`
    * `saga verify --simulate --seeds 1000`
    * `saga verify --simulate --seed 33 --seeds 1`
    * `saga verify --coverage`
    * `saga verify --from-history --sample 20000 --seed 7`
    * `saga verify --from-history --export 2030-01.jsonl.gz --jobs 4 --json`
    """
    if coverage and (simulate or scenario or from_history):
        raise typer.BadParameter(
            "--coverage is about all scenarios and the simulation; leave out --simulate, "
            "--scenario and --from-history"
        )
    if from_history:
        _check_alone(scenario, simulate, seeds)
        if seed is not None and sample is None:
            raise typer.BadParameter("--seed draws a sample: add --sample")
        if not verify_past(
            data_dir, export, sample, seed or 0, max_states, jobs or 1, as_json=as_json
        ):
            raise typer.Exit(PROBLEM_FOUND)
        return
    if export is not None or sample is not None:
        raise typer.BadParameter("--export and --sample are about records: add --from-history")
    if simulate:
        if scenario or max_states is not None:
            raise typer.BadParameter(
                "--scenario and --max-states are about the models; leave them out, or --simulate"
            )
        summary = simulating.simulate(seeds or simulating.SEEDS, seed or 0, jobs or 1)
        if len(summary.runs) >= simulating.SEEDS:
            keep(simulating.as_document(summary), data_dir)
        if not simulating.tell(summary, as_json=as_json):
            raise typer.Exit(PROBLEM_FOUND)
        return
    if not coverage and (seeds is not None or seed is not None or jobs is not None):
        raise typer.BadParameter(
            "--seeds, --seed and --jobs are about runs: add --simulate, --coverage or "
            "--from-history"
        )
    from saga.declaration import SagaError
    from saga.discovery import saga, spec
    from saga.verify import STATES_MAX
    from saga.verify.proof import prove

    here = saga()
    try:
        chosen = [here.scenario(name) for name in scenario] if scenario else None
    except SagaError as error:
        raise typer.BadParameter(str(error)) from error
    with _telling() as tell:
        proven = prove(
            here, tell, scenarios=chosen, source=spec(), states_max=max_states or STATES_MAX
        )
    if chosen is None:
        keep(proven.proof, data_dir)
    reports, missing = proven.reports, proven.proof.not_covered
    if coverage:
        runs = None
        if here.load is not None:
            summary = simulating.simulate(seeds or simulating.SEEDS, seed or 0, jobs or 1)
            runs = simulating.as_document(summary)
            if runs.seeds >= simulating.SEEDS:
                keep(runs, data_dir)
        show_coverage(here, proven.proof, runs, data_dir, as_json=as_json)
        if missing or proven.proof.broken or (runs is not None and runs.broken):
            remark("something is broken or not covered: see saga verify, saga verify --simulate")
            raise typer.Exit(PROBLEM_FOUND)
        return
    if as_json:
        print_json(reports_as_json(reports, missing))
    else:
        print_reports(reports, missing, partial=bool(scenario))
    if missing or not all(report.ok for report in reports):
        raise typer.Exit(PROBLEM_FOUND)


def _check_alone(scenario: Sequence[str] | None, simulate: bool, seeds: int | None) -> None:
    """Refuse options that have nothing to do with recorded sagas."""
    if scenario or simulate or seeds is not None:
        raise typer.BadParameter(
            "--from-history is by itself: leave out --scenario, --simulate and --seeds"
        )


@contextlib.contextmanager
def _telling() -> Iterator[Callable[[Proof], None]]:
    """On a terminal, says how far a proof has got."""
    from saga.commands.console import err

    console = err()
    if not console.is_terminal:
        yield lambda _: None
        return
    with console.status("") as status:
        yield lambda proof: status.update(
            f"{proof.current}: {counted(proof.current_states, 'state')}, "
            f"{counted(proof.current_depth, 'step')} deep"
        )


def keep(found: Proof | SimulatedRuns, folder: Path) -> None:
    """Save what all scenarios or many runs came to where the console finds it, if there is a
    system's folder. One that was not named, and is only called `data`, may be anything."""
    from saga.deployment import FILE_NAME
    from saga.local.folder import is_used

    try:
        named = folder != DATA_DIR or (folder / FILE_NAME).exists() or is_used(folder)
        if named and folder.is_dir():
            found.save(folder)
    except OSError as error:
        remark(f"the console will not show this: cannot write {error.filename}: {error.strerror}")


def reports_as_json(reports: Sequence[ModelReport], missing: Sequence[str] = ()) -> dict[str, Any]:
    """What came of the models, and what none of them looked at, as a JSON document."""
    from saga.verify.proof import remarks

    return {
        "ok": not missing and all(report.ok for report in reports),
        "not_covered": list(missing),
        "remarks": list(remarks(reports)),
        "models": [
            {
                "model": report.model.name,
                "states": report.exploration.states,
                "states_at_rest": report.exploration.states_at_rest,
                "transitions": report.exploration.transitions,
                "repetitions": report.exploration.repetitions,
                "depth": report.exploration.depth,
                "whole": report.exploration.whole,
                "seconds": round(report.exploration.seconds, 3),
                "violation": _violation_as_json(report),
                "impure": [violation.detail for violation in report.impure],
            }
            for report in reports
        ],
    }


def _violation_as_json(report: ModelReport) -> dict[str, Any] | None:
    from saga.verify import as_test, diagram

    schedule = report.schedule
    if schedule is None:
        return None
    return {
        "rule": schedule.violation.rule,
        "subject": schedule.subject,
        "detail": schedule.violation.detail,
        "start": schedule.start,
        "steps": [step.text for step in schedule.steps],
        "diagram": diagram(schedule),
        "test": as_test(schedule),
    }


def print_reports(
    reports: Sequence[ModelReport], missing: Sequence[str] = (), *, partial: bool = False
) -> None:
    """What came of the models as a table; below it the schedules that break a rule, and what was
    not looked at. They are `partial` where there are other scenarios, which may come to more."""
    from saga.commands.console import Table, lines_of, out, styled
    from saga.verify import as_test, diagram
    from saga.verify.proof import remarks

    console = out()
    table = Table("model", *("states", "at rest", "steps", "repeated", "depth", "seconds"))
    for report in reports:
        seen = report.exploration
        counts = (seen.states, seen.states_at_rest, seen.transitions, seen.repetitions, seen.depth)
        table.add_row(report.model.name, *(f"{count:,}" for count in counts), f"{seen.seconds:.1f}")
    console.print(table)
    for report in reports:
        if report.schedule is not None:
            drawn, test = diagram(report.schedule), as_test(report.schedule)
            console.print(lines_of(f"\n{drawn}\n\nAs a test:\n\n{test}"))
        for violation in report.impure:
            console.print(f"broken: {violation.rule}: {report.model.name}: {violation.detail}")
    broken = [r.model.name for r in reports if r.schedule is not None or r.impure]
    for line in remarks(reports):
        console.print(f"remark: {line}")
    for line in missing:
        console.print(f"not covered: {line}")
    if broken:
        console.print(styled((f"broken: {', '.join(broken)}", "red")))
    elif missing:
        console.print(styled(("nothing is broken of what was looked at", "yellow")))
    elif partial:
        said = "nothing is broken here; what no scenario comes to is told without --scenario"
        console.print(styled((said, "yellow")))
    else:
        console.print(styled(("nothing is broken", "green")))
