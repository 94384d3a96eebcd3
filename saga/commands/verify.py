"""`saga verify`: whether the choreography can go wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from saga.commands import simulating
from saga.commands.output import PROBLEM_FOUND, AsJson, print_json

if TYPE_CHECKING:
    from saga.verify import Model, Report

ORDERS_MAX: Final = 2
SEEDS_MAX: Final = 100_000
JOBS_MAX: Final = 256


def verify(
    orders: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=ORDERS_MAX,
            show_default=False,
            help="Only the model with so many orders; all of them if left out.",
        ),
    ] = None,
    max_states: Annotated[
        int | None,
        typer.Option(
            min=1,
            show_default=False,
            help="Give up beyond so many states in memory, some 200 bytes each; by default, beyond "
            "five million.",
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
            help=f"With --simulate: how many runs; {simulating.SEEDS} by default.",
        ),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(min=0, help="With --simulate: the first run's seed; 0 by default."),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            min=1, max=JOBS_MAX, help="With --simulate: processes to run them in; 1 by default."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Try everything that can happen to an order, and say whether any of it ends wrong.

    Runs the services' own reactions through every order of deliveries, with duplicates, crashes at
    every seam, dead letters that come back or never do, deadlines and cancellations at any point,
    and each answer of stock and provider: for one order, then for two that want the same last unit.

    Exit status 1 when a rule can be broken: shown are a shortest way to do it, and a test that
    fails as long as that is so.

    Examples:

    * `saga verify`
    * `saga verify --orders 1 --json`
    * `saga verify --simulate --seeds 1000`
    * `saga verify --simulate --seed 33 --seeds 1`
    """
    if simulate:
        if orders is not None or max_states is not None:
            raise typer.BadParameter(
                "--orders and --max-states are about the models; leave them out, or --simulate"
            )
        if not simulating.simulate(
            seeds or simulating.SEEDS, seed or 0, jobs or 1, as_json=as_json
        ):
            raise typer.Exit(PROBLEM_FOUND)
        return
    if seeds is not None or seed is not None or jobs is not None:
        raise typer.BadParameter("--seeds, --seed and --jobs are about runs: add --simulate")
    from saga.verify import STATES_MAX
    from saga.verify.order_saga import one_order, two_orders

    models = (one_order, two_orders)
    reports = [
        _report(make(), max_states or STATES_MAX)
        for make in (models if orders is None else models[orders - 1 : orders])
    ]
    if as_json:
        print_json(reports_as_json(reports))
    else:
        print_reports(reports)
    if not all(report.ok for report in reports):
        raise typer.Exit(PROBLEM_FOUND)


def _report(model: Model, states_max: int) -> Report:
    """Explore a model; on a terminal, say how far it has got."""
    import saga.verify
    from saga.commands.console import err

    console = err()
    if not console.is_terminal:
        return saga.verify.verify(model, states_max=states_max)
    with console.status(model.name) as status:
        return saga.verify.verify(
            model,
            states_max=states_max,
            progress=lambda depth, states: status.update(
                f"{model.name}: {states:,} states, {depth} steps deep"
            ),
        )


def reports_as_json(reports: Sequence[Report]) -> dict[str, Any]:
    """What came of the models as a JSON document."""
    return {
        "ok": all(report.ok for report in reports),
        "models": [
            {
                "model": report.model.name,
                "states": report.exploration.states,
                "states_at_rest": report.exploration.states_at_rest,
                "transitions": report.exploration.transitions,
                "repetitions": report.exploration.repetitions,
                "depth": report.exploration.depth,
                "seconds": round(report.exploration.seconds, 3),
                "violation": _violation_as_json(report),
            }
            for report in reports
        ],
    }


def _violation_as_json(report: Report) -> dict[str, Any] | None:
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


def print_reports(reports: Sequence[Report]) -> None:
    """What came of the models as a table; below it the schedules that break a rule."""
    from saga.commands.console import Table, lines_of, out, styled
    from saga.verify import as_test, diagram

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
    broken = [report.model.name for report in reports if not report.ok]
    if broken:
        console.print(styled((f"broken: {', '.join(broken)}", "red")))
    else:
        console.print(styled(("nothing is broken", "green")))
