"""Facts about the network, of which a state consists besides knowledge; what they make possible.

A fact never becomes untrue. What was sent once may arrive at any time from then on, any number of
times and in any order, or never; a question that was asked may be heard at any time, and its answer
be told. The decision record on the model's abstractions says, seam by seam, why that covers what
the production kernel, the broker and crashes can do.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from saga.declaration import Stimulus
from saga.envelope import Envelope
from saga.message import Answer, Intent
from saga.runtime.kernel.step import Firing

FIELD_BITS = 20
"""The width of a field of a state, which holds the number of what a participant knows."""
FIELD = (1 << FIELD_BITS) - 1


@dataclass(frozen=True, slots=True)
class Sent:
    """The message was committed to be published, or was on its way at the beginning."""

    envelope: Envelope[Any] = field(compare=False)
    identity: tuple[Hashable, ...]
    """All that readers may go by. Two messages that differ in nothing else are the same."""
    receivers: tuple[int, ...]
    """The participants it goes to."""


@dataclass(frozen=True, slots=True)
class Handled:
    """The participant has reacted to the message to the end, at least once: there is, or was, its
    inbox row."""

    message: Sent
    participant: int


@dataclass(frozen=True, slots=True)
class Asked:
    """Because of the message, the participant has committed the intent."""

    message: Sent
    participant: int
    intent: Intent
    number: int = 0
    """Which time it asks that, where asking again may have a second effect."""


@dataclass(frozen=True, slots=True)
class Answered:
    """The question has had its effect outside, and this is the answer."""

    question: Asked
    reply: str
    answer: Answer


Fact = Sent | Handled | Asked | Answered


@dataclass(frozen=True, slots=True)
class ActionOutcome:
    """What an action may lead to: these bits of the state, in its field and among the facts."""

    bits: int
    reply: str = ""


@dataclass(slots=True, eq=False)
class Action:
    """Something that may happen: it reads one field of a state, changes it, and adds facts.

    About a message or an answer, a participant reacts to it; about a question, the outside hears
    it; about a stimulus, a participant is given its command; about a firing, it does what is due.
    """

    whose: int
    """Whose field it is: a participant's, or, after the last of them, an outside's."""
    about: Sent | Asked | Answered | Stimulus | Firing
    now: datetime
    shift: int = field(init=False)
    """Where the field is in a state."""
    keep: int = field(init=False)
    """Everything of a state but the field."""
    outcomes: dict[int, tuple[ActionOutcome, ...]] = field(init=False, default_factory=dict)
    """Keyed by the field's value; kept, since they depend on nothing else."""
    quiet: dict[int, tuple[int, ...]] = field(init=False, default_factory=dict)
    """Of those, by the field's value: the facts that come without a change of the field."""

    def __post_init__(self) -> None:
        self.shift = self.whose * FIELD_BITS
        self.keep = ~(FIELD << self.shift)
