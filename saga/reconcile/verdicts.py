"""A report by rule: of each, whether it holds, was broken, or could not be judged."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from saga.choreography import State
from saga.declaration import Saga
from saga.discovery import tables_in
from saga.reconcile import Report, conservation
from saga.rules import RULES
from saga.text import first_line
from saga.view import Invariant, Violation


class RuleStanding(StrEnum):
    """What can be said of a rule."""

    BROKEN = "broken"
    UNREAD = "could not be read"
    UNKNOWN = "not looked at yet"
    HOLDS = "holds"

    @property
    def rank(self) -> int:
        """What an operator should look at comes first."""
        return list(RuleStanding).index(self)


@dataclass(frozen=True, slots=True)
class RuleVerdict:
    """A rule, and what a report says of it. `reads` is what it looks at."""

    name: str
    said: str
    reads: Sequence[str]
    standing: RuleStanding
    violations: Sequence[Violation] = ()
    checked: int | None = None
    """Rows of states, or events, that it was held against; None if that is not counted."""


def verdicts(saga: Saga, report: Report | None) -> list[RuleVerdict]:
    """Every rule of a running system, those first that are broken; without a report, nothing is
    known of any."""
    judged = {invariant.name for invariant in saga.judged(really=True)}
    rules = [
        (invariant.name, first_line(invariant.function), _reads(invariant))
        for invariant in saga.invariants
    ]
    rules += [(name, said, ["events"]) for name, said in RULES.items()]
    rules += [(name, first_line(rule), ["events"]) for name, rule in conservation.RULES.items()]
    rows = _rows(saga, report) if report is not None else {}
    broken: defaultdict[str, list[Violation]] = defaultdict(list)
    for violation in report.violations if report is not None else ():
        broken[violation.rule].append(violation)
    own = {invariant.name for invariant in saga.invariants}
    found = []
    for name, said, reads in rules:
        if report is None:
            standing = RuleStanding.UNKNOWN
        elif name in own and name not in judged:
            standing = RuleStanding.UNREAD
        else:
            standing = RuleStanding.BROKEN if broken[name] else RuleStanding.HOLDS
        counts = [rows[name] for name in reads if name in rows]
        checked = sum(counts) if counts and standing is not RuleStanding.UNREAD else None
        found.append(RuleVerdict(name, said, reads, standing, broken[name], checked))
    return sorted(found, key=lambda verdict: verdict.standing.rank)


def _rows(saga: Saga, report: Report) -> dict[str, int]:
    """How much was looked at, by the name of what a rule reads."""
    rows = {"events": report.checked["events"]}
    for participant in saga.choreography.in_python:
        kinds: dict[type[State], str] = {
            kind: table.table.name for kind, table in tables_in(participant.package).states.items()
        }
        for kind, table in kinds.items():
            named = f"{participant.name}.{table}"
            count = report.checked.get(named, report.checked.get(table))
            if count is not None:
                rows[kind.__name__] = count
    return rows


def _reads(invariant: Invariant) -> list[str]:
    names = [kind.__name__ for kind in (*invariant.states, *invariant.books)]
    return [*names, *(kind.type for kind in invariant.events)]
