"""What runs of the simulation came to, as a document that is kept in a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from saga.branches import Branch
from saga.document import SavedDocument
from saga.limits import Moment
from saga.simulation.weather import Rates

if TYPE_CHECKING:
    from saga.simulation import Run


class SimulatedRuns(SavedDocument):
    """So many seeds, from the first on; in how many of them a branch was taken, and a kind of fault
    (one of `saga.simulation.weather.Rates`) happened."""

    file_name = "simulation.json"
    written_by = "saga verify --simulate"

    first_seed: int
    seeds: int
    broken: list[int]
    """The seeds of runs that ended wrong."""
    took: list[tuple[Branch, int]]
    faults: dict[str, int]
    code: dict[str, str]
    """See `saga.verify.sources`."""

    @property
    def fault_kinds(self) -> dict[str, int]:
        """All kinds of fault that the simulation has, each with the runs in which it happened."""
        return {field.name: self.faults.get(field.name, 0) for field in fields(Rates)}

    @classmethod
    def of(
        cls, saga: str, version: str, began_at: Moment, runs: Sequence[Run], code: dict[str, str]
    ) -> SimulatedRuns:
        took = Counter(branch for run in runs for branch in run.took)
        faults = Counter(kind for run in runs for kind in run.faults)
        return cls(
            saga=saga,
            version=version,
            began_at=began_at,
            first_seed=runs[0].seed,
            seeds=len(runs),
            broken=[run.seed for run in runs if run.violations],
            took=sorted(took.items()),
            faults=dict(sorted(faults.items())),
            code=code,
        )
