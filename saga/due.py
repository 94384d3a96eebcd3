"""Timers as functions of states: what is to be done about a state, and when.

A state says what is due about it (`saga.choreography.State.due`), and nothing else is noted: a
timer survives a restart and a rebuild as its state does, and ends with what made it needless. The
kernel keeps the time beside the state's row and gives the command once it has come, whichever
replica looks first (`saga.runtime.kernel.timer`).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Final, Generic, TypeVar

from saga.message import Command, Priority

OVERDUE_SECONDS: Final = 5.0
"""How long after its time what is due may be done, until it counts as overdue: services look twice
a second."""

C = TypeVar("C", bound=Command, covariant=True)


@dataclass(frozen=True, slots=True)
class Due(Generic[C]):
    """A command that is given at a time, unless the state says something else before.

    `at` is aware. `command` is about the state that says so, and its reaction takes that state
    first. The reaction has to lead to a state about which something else is due, or nothing.

    `expected` says that this is how it goes on, as with a reminder, or a hold that lapses: until
    then it is right that nothing happens. A deadline is not: what waits for it at rest has lost
    something.
    """

    at: datetime
    command: C
    priority: Priority = Priority.NORMAL
    expected: bool = False
