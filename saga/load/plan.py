"""A load of sagas with predicted ends: for the simulation, and for a running system."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from saga.message import Command, Intent, Priority

NO_END: Final = "no end"
"""What is said of the outcome of a saga that no event has ended, and none has to."""


@dataclass(frozen=True, slots=True)
class Given:
    """A command that a client gives to a participant, until it is taken."""

    participant: str
    command: Command
    key: str
    """Its idempotency key: given again, it is carried out once."""
    after_seconds: float = 0.0
    over_broker: bool = False
    """Through the intake queue, and else over HTTP."""
    priority: Priority = Priority.NORMAL


@dataclass(frozen=True)
class Plan:
    """What is to happen, faults apart, and what has to come of it."""

    given: Sequence[Given]
    ends: Mapping[str, frozenset[str]]
    """Keyed by subject: how it may end: the `outcome` of an event that ends the saga. None at all
    if it goes well without an event that says so: then no event may end it."""
    before: Sequence[Given] = ()
    """What has to be there first."""
    decisions: Mapping[str, Callable[[Intent], Any]] = field(default_factory=dict)
    """Keyed by outside: what it decides on something new; without one, the usual, or anything in a
    storm."""


Load = Callable[[random.Random, int], Plan]
"""Draws a plan for so many sagas. The same chance gives the same plan."""
