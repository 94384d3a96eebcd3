"""`saga verify`: every state the choreography can come into, and what is wrong there.

An explicit-state model checker over the real reactions, run by the kernel's real step and routed by
the real signatures. `model` says what is to be checked, `order_saga` what that is for the order
saga; `facts` and `machine` turn a model into states and steps, `search` visits them all, `schedule`
and `drawing` tell how a violation comes about.
"""

from __future__ import annotations

from dataclasses import dataclass

from saga.verify.drawing import as_test, diagram
from saga.verify.machine import Machine
from saga.verify.model import Model, Reply, Stimulus, VerifyError, View, Violation
from saga.verify.schedule import Schedule, replay, schedule_of
from saga.verify.search import STATES_MAX, Exploration, Progress, explore

__all__ = [
    "STATES_MAX",
    "Exploration",
    "Model",
    "Progress",
    "Reply",
    "Report",
    "Schedule",
    "Stimulus",
    "VerifyError",
    "View",
    "Violation",
    "as_test",
    "diagram",
    "replay",
    "verify",
]


@dataclass(frozen=True, slots=True)
class Report:
    """What came of a model. With a `schedule`, which breaks a rule, the exploration ended there."""

    model: Model
    exploration: Exploration
    schedule: Schedule | None

    @property
    def ok(self) -> bool:
        return self.schedule is None


def verify(
    model: Model, *, states_max: int = STATES_MAX, progress: Progress | None = None
) -> Report:
    """Explore a model to its end, or to the first violation. Raises `VerifyError`."""
    machine = Machine(model)
    exploration = explore(machine, states_max=states_max, progress=progress)
    found = exploration.found
    return Report(model, exploration, schedule_of(machine, found) if found else None)
