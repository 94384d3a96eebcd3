"""What the rounds of a run did and found, as a Markdown page.

`FAULTS_REPORT` names the file. It is written again after every round, so that a run that is cut
short leaves the report of the rounds it came to.
"""

from __future__ import annotations

import os
import platform
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from order_saga.demo import DemoResult
from saga.local.system import Database
from tests.faults.load import REPLICAS

TITLES: dict[Database, str] = {"sqlite": "SQLite", "postgresql": "PostgreSQL"}


@dataclass
class Tally:
    """The rounds on one kind of database, those that failed included."""

    rounds: list[int] = field(default_factory=list)
    """Keyed by seed."""
    brokers: Counter[str] = field(default_factory=Counter)
    """Rounds by version of RabbitMQ."""
    strikes: Counter[str] = field(default_factory=Counter)
    """Keyed by kind of fault."""
    found: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    def add(self, result: DemoResult | None) -> None:
        """What came of a round; no result if it was not seen through."""
        if result is None:
            self.found["rounds not seen through"] += 1
            return
        outcomes = result.to_json()["outcomes"]
        self.found["orders"] += result.published.orders
        self.found["ended otherwise than their seed says"] += len(result.unexpected)
        self.found["deadline exceeded"] += outcomes["cancelled"]["deadline_exceeded"]
        self.found["violations found by reconcile"] += len(result.report.violations)


class Report:
    """Belongs to one run."""

    def __init__(self) -> None:
        self.tallies: dict[Database, Tally] = {}

    def of(self, database: Database) -> Tally:
        return self.tallies.setdefault(database, Tally())

    def write(self) -> None:
        if path := os.environ.get("FAULTS_REPORT"):
            Path(path).write_text(self.markdown())

    def markdown(self) -> str:
        """The page."""
        columns = list(self.tallies.items())
        lines = [
            "<!-- Written by `make faults`; do not edit. -->",
            "# What the fault suite did and found",
            "",
            f"Written by `make faults ROUNDS={max(len(t.rounds) for _, t in columns)} "
            f"FAULTS_REPORT=docs/faults.md` with Python {platform.python_version()} on "
            f"{os.cpu_count()} cores. In each round, three faults strike a system while a seeded "
            f"load runs on it, with deadlines longer than the round. Then every order must have "
            f"ended as its seed says, and `saga reconcile` must find nothing: in our books, in the "
            f"provider's ledger, in the history and in the queues.",
            "",
        ]
        titles = [f"{TITLES[name]}, replicas: {REPLICAS[name]}" for name, _ in columns]
        lines += _table(
            ["", *titles],
            [
                ["rounds", *(len(t.rounds) for _, t in columns)],
                ["seeds", *(f"{min(t.rounds)} to {max(t.rounds)}" for _, t in columns)],
                ["minutes", *(round(t.seconds / 60, 1) for _, t in columns)],
                *_rows([t.brokers for _, t in columns], "rounds on RabbitMQ "),
                *_rows([t.found for _, t in columns]),
            ],
        )
        lines += ["", "## Faults, by kind", ""]
        strikes = [t.strikes for _, t in columns]
        lines += _table(
            ["fault", *titles],
            [*_rows(strikes), ["**all**", *(strike.total() for strike in strikes)]],
        )
        return "\n".join(lines) + "\n"


def _rows(counters: list[Counter[str]], prefix: str = "") -> list[list[object]]:
    # In order of appearance; what one kind of database does not have is left blank.
    names = dict.fromkeys(name for counter in counters for name in counter)
    return [[prefix + name, *(c.get(name, "") for c in counters)] for name in names]


def _table(head: list[str], rows: Sequence[Sequence[object]]) -> list[str]:
    cells = [head, ["---", *("---:" for _ in head[1:])], *rows]
    return [f"| {' | '.join(str(cell) for cell in row)} |" for row in cells]
