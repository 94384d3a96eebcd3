"""`saga verify --simulate`: whole runs of the real kernel, in which everything goes wrong."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final

from saga.commands.output import out, print_json, progress_bars

if TYPE_CHECKING:
    from saga.simulation import Run

SEEDS: Final = 200
TRACE_MAX: Final = 40
"""The last lines that are shown of a broken run, one of many; of a run by itself all are."""
SHOWN_MAX: Final = 3
"""Runs that are shown with their traces."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of the seeds from `first` on. The same code gives the same `digest`."""

    first: int
    seeds: int
    digest: str
    steps: int
    simulated_seconds: float
    seconds: float
    broken: Sequence[Run]

    @property
    def seeds_per_minute(self) -> int:
        return round(self.seeds / self.seconds * 60)


def simulate(seeds: int, first: int, jobs: int, *, as_json: bool) -> bool:
    """Run seeds and print what came of them; whether nothing was wrong."""
    summary = _run(seeds, first, jobs)
    if as_json:
        print_json(_as_json(summary))
    else:
        show(summary)
    return not summary.broken


def _run(seeds: int, first: int, jobs: int) -> Summary:
    from saga.simulation import run_seeds

    began = time.monotonic()
    digest = hashlib.blake2b(digest_size=16)
    broken: list[Run] = []
    steps, simulated_seconds = 0, 0.0
    with progress_bars(seeds=seeds) as advance:
        for run in run_seeds(first, seeds, jobs=jobs):
            digest.update(run.digest.encode())
            steps += run.steps
            simulated_seconds += run.simulated_seconds
            if run.violations:
                broken.append(run)
            advance["seeds"](1)
    return Summary(
        first,
        seeds,
        digest.hexdigest(),
        steps,
        simulated_seconds,
        time.monotonic() - began,
        broken,
    )


def _again(run: Run) -> str:
    """The command that repeats a run."""
    return f"saga verify --simulate --seed {run.seed} --seeds 1"


def _as_json(summary: Summary) -> dict[str, Any]:
    return {
        "ok": not summary.broken,
        "first_seed": summary.first,
        "seeds": summary.seeds,
        "digest": summary.digest,
        "steps": summary.steps,
        "simulated_seconds": round(summary.simulated_seconds),
        "seconds": round(summary.seconds, 3),
        "seeds_per_minute": summary.seeds_per_minute,
        "broken": [
            {
                "seed": run.seed,
                "violations": [asdict(violation) for violation in run.violations],
                "trace": run.trace,
                "again": _again(run),
            }
            for run in summary.broken
        ],
    }


def show(summary: Summary) -> None:
    """Print what came of the seeds: of those that broke something the end of the trace, what was
    found, and the command that repeats it."""
    console = out()
    for run in summary.broken[:SHOWN_MAX]:
        lines = run.trace if summary.seeds == 1 else run.trace[-TRACE_MAX:]
        what = "what happened" if len(lines) == len(run.trace) else "the end of what happened"
        console.print(f"\nseed {run.seed}, {what}:\n", markup=False)
        for line in lines:
            console.print(line, markup=False)
        console.print()
        for violation in run.violations:
            about = f" {violation.subject}" if violation.subject else ""
            console.print(f"{violation.rule}{about}: {violation.detail}", markup=False)
        console.print(f"all of it, once more: {_again(run)}", markup=False)
    console.print(
        f"{summary.seeds:,} seeds from {summary.first} on, {summary.steps:,} steps, "
        f"{summary.simulated_seconds:,.0f} simulated s in {summary.seconds:.1f} s: "
        f"{summary.seeds_per_minute:,} seeds a minute; all traces together: {summary.digest}"
    )
    if summary.broken:
        listed = ", ".join(str(run.seed) for run in summary.broken[:20])
        more = " ..." if len(summary.broken) > 20 else ""
        console.print(f"[red]broken by {len(summary.broken)} seeds: {listed}{more}[/]")
    else:
        console.print("[green]nothing is broken[/]")
