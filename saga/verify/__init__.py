"""`saga verify`: every state the choreography can come into, and what is wrong there.

An explicit-state model checker over the real reactions, run by the kernel's real step and routed by
the real signatures. `model` says what is to be checked: a saga, in one of its scenarios. `facts`
and `machine` turn that into states and steps, `search` visits them all, `schedule` and `drawing`
tell how a violation comes about. `coverage` says what no scenario has come to.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Final

from saga.purity import Calls
from saga.verify.again import differences
from saga.verify.coverage import uncovered
from saga.verify.drawing import as_test, diagram
from saga.verify.machine import ASKED_MAX, Machine
from saga.verify.model import Model, VerifyError, model_of
from saga.verify.schedule import Schedule, replay, schedule_of
from saga.verify.search import STATES_MAX, Exploration, Progress, explore
from saga.view import Violation

__all__ = [
    "ASKED_MAX",
    "STATES_MAX",
    "Exploration",
    "Model",
    "ModelReport",
    "Progress",
    "Schedule",
    "VerifyError",
    "as_test",
    "diagram",
    "model_of",
    "replay",
    "uncovered",
    "verify",
    "verify_elsewhere",
]

IMPURE_MAX: Final = 3
"""Differences that a finding about one participant names."""


@dataclass(frozen=True, slots=True)
class ModelReport:
    """What came of a model. With a `schedule`, which breaks a rule, the exploration ended there."""

    model: Model
    exploration: Exploration
    schedule: Schedule | None
    reacted: frozenset[tuple[str, str]] = field(default=frozenset())
    """Participants and their reactions that were run."""
    published: frozenset[str] = field(default=frozenset())
    """The types of the events that were published."""
    asked: frozenset[tuple[str, str]] = field(default=frozenset())
    """Participants and the names of the intents that they committed."""
    cut_short: frozenset[str] = field(default=frozenset())
    """The outsides of which not every chain of refusals was followed to its end."""
    answered: frozenset[tuple[str, str | None, str]] = field(default=frozenset())
    """Participants, the types of what they took, and of what they published because of it; see
    `Machine.answered`."""
    ends: frozenset[tuple[str, str]] = field(default=frozenset())
    """The types of the events that ended a saga, each with an outcome."""
    calls: Sequence[Calls] = field(default=(), repr=False)
    """What the reactions were called with."""
    impure: tuple[Violation, ...] = ()
    """What came out otherwise when all calls were made again, in the opposite order."""

    @property
    def ok(self) -> bool:
        """Whether every state was seen, none breaks a rule, and no reaction is impure."""
        return self.schedule is None and self.exploration.whole and not self.impure


def verify(
    model: Model, *, states_max: int = STATES_MAX, progress: Progress | None = None
) -> ModelReport:
    """Explore a model to its end, to the first violation, or until `states_max` states are in
    memory. Raises `VerifyError`."""
    machine = Machine(model)
    exploration = explore(machine, states_max=states_max, progress=progress)
    found = exploration.found
    schedule = schedule_of(machine, found) if found else None
    return ModelReport(
        model,
        exploration,
        schedule,
        reacted=frozenset(machine.reacted),
        published=frozenset(machine.published),
        asked=frozenset(machine.asked),
        cut_short=frozenset(machine.cut_short),
        answered=frozenset(machine.answered),
        ends=frozenset(machine.ends()),
        calls=machine.calls,
        impure=() if found else _different(machine),
    )


def _different(machine: Machine) -> tuple[Violation, ...]:
    """The first difference of each reaction."""
    found = [
        Violation("impure", subject, detail)
        for calls in machine.calls
        for subject, detail in itertools.islice(calls.again(), IMPURE_MAX)
    ]
    return tuple(dict.fromkeys(found))


def verify_elsewhere(
    reports: Sequence[ModelReport],
) -> tuple[list[ModelReport], list[str]]:
    """Make the calls of these models again in processes that hash otherwise; lines for people say
    what could not be looked at there."""
    by_source: dict[str, list[ModelReport]] = {}
    for report in reports:
        if report.schedule is None:
            by_source.setdefault(report.model.source, []).append(report)
    found: dict[str, list[Violation]] = {}
    missing: list[str] = []
    for source, ours in by_source.items():
        different, unseen = differences(source, {each.model.name: each.calls for each in ours})
        for model, violation in different:
            found.setdefault(model, []).append(violation)
        missing += unseen
    return [
        replace(report, impure=(*report.impure, *found.get(report.model.name, ())))
        for report in reports
    ], missing
