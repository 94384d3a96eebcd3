"""`saga verify --coverage`: what the models and the simulation took of all that there is to take,
and what production has done beyond them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from saga.commands.output import answer_to, print_json
from saga.wording import counted

if TYPE_CHECKING:
    from saga.declaration import Saga
    from saga.past.production import Production
    from saga.simulation.tried import SimulatedRuns
    from saga.verify.coverage import CoverageRow
    from saga.verify.proof import Proof

NOT_LOOKED_AT: Final = "not looked at"


def show_coverage(
    saga: Saga, proof: Proof, runs: SimulatedRuns | None, folder: Path, *, as_json: bool
) -> None:
    """Print what was taken: of branches, kinds of fault and the transitions of production."""
    from saga.verify.coverage import coverage

    rows = coverage(saga, proof.took, None if runs is None else runs.took)
    taken, why_not = _production(saga, folder)
    if as_json:
        print_json(_as_json(proof, rows, runs, taken, why_not))
    else:
        _show(proof, rows, runs, taken, why_not)


def _production(saga: Saga, folder: Path) -> tuple[Production | None, str]:
    """What the archive tells; or why it was not looked at."""
    from saga.deployment import Deployment, DeploymentError
    from saga.history import HistoryError
    from saga.history.archive import Archive
    from saga.past.production import production
    from saga.runtime.kernel.database import DatabaseError

    try:
        archive = Archive(Deployment.load(folder))
        graph = saga.choreography
        return answer_to(archive.read(lambda connection: production(connection, graph))), ""
    except (DeploymentError, HistoryError, DatabaseError) as error:
        return None, str(error)


def _as_json(
    proof: Proof,
    rows: Sequence[CoverageRow],
    runs: SimulatedRuns | None,
    taken: Production | None,
    why_not: str,
) -> dict[str, Any]:
    from saga.past.production import unmodelled

    return {
        "branches": [
            {
                "participant": row.branch.participant,
                "reaction": row.branch.reaction,
                "takes": row.takes,
                "decides": list(row.branch.decides),
                "calls": row.calls,
                "runs": row.runs,
            }
            for row in rows
        ],
        "simulated_runs": None if runs is None else runs.seeds,
        "faults": None if runs is None else runs.fault_kinds,
        "production": None
        if taken is None
        else {
            "events": taken.events,
            "of": taken.of,
            "transitions": len(taken.transitions),
            "in_no_model": [asdict(one) for one in unmodelled(taken.transitions, proof.answered)],
            "lost_causes": [asdict(one) for one in taken.lost],
        },
        "production_not_looked_at": why_not or None,
    }


def _show(
    proof: Proof,
    rows: Sequence[CoverageRow],
    runs: SimulatedRuns | None,
    taken: Production | None,
    why_not: str,
) -> None:
    from saga.commands.console import Table, out, styled
    from saga.past.production import unmodelled
    from saga.verify.coverage import untried

    console = out()
    seeds = f"of {runs.seeds:,} runs" if runs else "runs"
    table = Table("reaction", "takes", "decides", "calls in models", seeds)
    for row in rows:
        cells = (row.calls, row.runs)
        table.add_row(
            f"{row.branch.participant}.{row.branch.reaction}",
            row.takes,
            " and ".join(row.branch.decides) or "nothing",
            *(NOT_LOOKED_AT if cell is None else f"{cell:,}" for cell in cells),
        )
    console.print(table)
    missing = untried(rows)
    for branch in missing:
        console.print(f"never taken: {branch}")
    said = f"taken: {len(rows) - len(missing)} of {counted(len(rows), 'branch')}"
    console.print(styled((said, "yellow" if missing else "green")))
    if runs is None:
        console.print(f"kinds of fault: {NOT_LOOKED_AT}, as nothing was simulated")
    else:
        faults = Table("kind of fault", seeds)
        for kind, count in runs.fault_kinds.items():
            faults.add_row(kind.replace("_", " "), f"{count:,}")
        console.print(faults)
    if taken is None:
        console.print(f"production: {NOT_LOOKED_AT}: {why_not}")
        return
    beyond = unmodelled(taken.transitions, proof.answered)
    for one in beyond:
        console.print(
            f"in production and in no model: {one.participant} takes "
            f"{one.taken or 'a command, or what is due'} and publishes {one.published}, "
            f"{counted(one.count, 'time')}: saga trace {one.subject}"
        )
    for one in taken.lost:
        console.print(
            f"not looked at: what {one.participant} took when it published {one.published}, "
            f"{counted(one.count, 'time')}: the archive lacks it: saga trace {one.subject}"
        )
    console.print(
        f"production, its newest {taken.events:,} of {counted(taken.of, 'event')}: "
        f"{counted(len(taken.transitions), 'transition')}, {len(beyond) or 'none'} of them in no "
        f"model"
    )
