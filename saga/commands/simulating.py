"""`saga verify --simulate`: whole runs of the real kernel, in which everything goes wrong."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from saga.commands.output import LISTED_MAX, print_json
from saga.version import engine_version
from saga.wording import counted

if TYPE_CHECKING:
    from saga.simulation import Run
    from saga.simulation.tried import SimulatedRuns

SEEDS: Final = 200
TRACE_MAX: Final = 40
"""The last lines that are shown of a broken run, one of many; of a run by itself all are."""
SHOWN_MAX: Final = 3
"""Runs that are shown with their traces."""


@dataclass(frozen=True, slots=True)
class Summary:
    """What came of runs that took so many seconds. The same code gives the same `digest`."""

    runs: Sequence[Run]
    seconds: float
    missing: Sequence[str] = ()
    """What no run has come to, or nothing looks at."""
    began_at: datetime = field(default_factory=lambda: datetime.now(UTC))

    @property
    def digest(self) -> str:
        digests = "".join(run.digest for run in self.runs)
        return hashlib.blake2b(digests.encode(), digest_size=16).hexdigest()

    @property
    def steps(self) -> int:
        return sum(run.steps for run in self.runs)

    @property
    def simulated_seconds(self) -> int:
        return round(sum(run.simulated_seconds for run in self.runs))

    @property
    def seeds_per_minute(self) -> int:
        return round(len(self.runs) / self.seconds * 60)

    @property
    def with_doors(self) -> int:
        """How many of them seal personal data."""
        return sum(run.has_doors for run in self.runs)

    @property
    def broken(self) -> list[Run]:
        return [run for run in self.runs if run.violations]


def simulate(seeds: int, first: int, jobs: int) -> Summary:
    """Run seeds; on a terminal, say how far that has come."""
    from saga.commands.console import progress_bars
    from saga.discovery import saga
    from saga.simulation import run_seeds, uncovered

    began_at, began = datetime.now(UTC), time.monotonic()
    runs: list[Run] = []
    with progress_bars(seeds=seeds) as advance:
        for run in run_seeds(first, seeds, jobs=jobs):
            runs.append(run)
            advance["seeds"](1)
    happened = {what for run in runs for what in run.happened}
    missing = list(uncovered(saga(), happened) if seeds >= SEEDS else saga().unwatched())
    return Summary(runs, time.monotonic() - began, missing, began_at)


def tell(summary: Summary, *, as_json: bool) -> bool:
    """Print what came of runs; whether nothing was wrong."""
    if as_json:
        print_json(summary_as_json(summary))
    else:
        show(summary)
    return not summary.broken and not summary.missing


def as_document(summary: Summary) -> SimulatedRuns:
    """What is kept of runs."""
    from saga.discovery import saga
    from saga.simulation.tried import SimulatedRuns
    from saga.verify.sources import sources

    here = saga()
    return SimulatedRuns.of(
        here.name, engine_version(), summary.began_at, summary.runs, sources(here)
    )


def _again(run: Run) -> str:
    """The command that repeats a run."""
    return f"saga verify --simulate --seed {run.seed} --seeds 1"


def summary_as_json(summary: Summary) -> dict[str, Any]:
    """What came of the runs as a JSON document."""
    return {
        "ok": not summary.broken and not summary.missing,
        "not_covered": list(summary.missing),
        "first_seed": summary.runs[0].seed,
        "seeds": len(summary.runs),
        "with_doors": summary.with_doors,
        "digest": summary.digest,
        "steps": summary.steps,
        "simulated_seconds": summary.simulated_seconds,
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
    """Print what came of the runs: of the first broken ones the end of the trace, what was found,
    and the command that repeats it."""
    from saga.commands.console import lines_of, out, styled

    console = out()
    seeds, broken = len(summary.runs), summary.broken
    for run in broken[:SHOWN_MAX]:
        lines = run.trace if seeds == 1 else run.trace[-TRACE_MAX:]
        title = "what happened" if len(lines) == len(run.trace) else "the end of what happened"
        console.print(lines_of("\n".join(("", f"seed {run.seed}, {title}:", "", *lines, ""))))
        for violation in run.violations:
            about = f" {violation.subject}" if violation.subject else ""
            console.print(f"broken: {violation.rule}{about}: {violation.detail}")
        console.print(f"all of it, once more: {_again(run)}")
    console.print(
        f"{counted(seeds, 'seed')} from {summary.runs[0].seed} on, "
        f"{counted(summary.steps, 'step')}, "
        f"{summary.simulated_seconds:,} simulated s in {summary.seconds:.1f} s: "
        f"{summary.seeds_per_minute:,} seeds a minute; all traces together: {summary.digest}"
    )
    if summary.with_doors:
        console.print(f"{summary.with_doors:,} of them seal personal data, and open it outside")
    for line in summary.missing:
        console.print(f"not covered: {line}")
    if broken:
        listed = ", ".join(str(run.seed) for run in broken[:LISTED_MAX])
        more = " ..." if len(broken) > LISTED_MAX else ""
        console.print(styled((f"{len(broken)} of them are broken: {listed}{more}", "red")))
    elif summary.missing:
        console.print(styled(("nothing is broken of what was looked at", "yellow")))
    elif seeds < SEEDS:
        said = f"nothing is broken of this; what runs never come to is told from {SEEDS} seeds on"
        console.print(styled((said, "yellow")))
    else:
        console.print(styled(("nothing is broken", "green")))
