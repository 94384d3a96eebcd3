"""What is checked: participants, the world around them, and what must never be seen.

A model is data. `saga.verify.order_saga` makes those of the order saga; `machine` turns one into
states and steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, TypeVar

from common.choreography import Choreography, State
from common.envelope import Envelope
from common.kernel.step import StateId
from common.message import Answer, Command, Intent

S = TypeVar("S", bound=State)


class VerifyError(Exception):
    """A model that cannot be explored. Names what stands in the way, and the way out."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule: which, about what, and what was found."""

    rule: str
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class View:
    """One state of the whole system, for rules to look at."""

    known: Mapping[str, Mapping[StateId, State]]
    """What each participant knows, by its name; blank states are left out."""
    events: Sequence[Envelope[Any]] = ()
    """Everything that was ever published."""
    outside: Any = None
    """What the outside knows, as the model's `ask` left it."""

    def states(self, kind: type[S]) -> Iterator[S]:
        """The states of one kind, or derived from it."""
        return (
            state
            for known in self.known.values()
            for state in known.values()
            if isinstance(state, kind)
        )

    def state(self, kind: type[S], key: str) -> S:
        """One of them, blank if there is none."""
        return next((state for state in self.states(kind) if state.key == key), kind(key))


@dataclass(frozen=True, slots=True)
class Reply:
    """One way the outside may take a question: `label` says which, `outside` is what it knows
    from then on."""

    label: str
    outside: Any
    answer: Answer


def _always(_: View) -> bool:
    return True


def _anything(_: View) -> Iterable[Violation]:
    return ()


@dataclass(frozen=True, slots=True)
class Stimulus:
    """A command that may be given to a participant at any time and any number of times, or never.

    `at` is the time then. It is given only `when` the participant's own states allow it, and
    `then` says what is wrong with them afterwards.
    """

    name: str
    participant: str
    command: Command
    at: datetime
    when: Callable[[View], bool] = _always
    then: Callable[[View], Iterable[Violation]] = _anything


@dataclass(frozen=True, slots=True)
class Model:
    """A choreography and the world it is to be tried in."""

    name: str
    source: str
    """The function that makes this model, as `module.function`: for tests to be pasted."""
    choreography: Choreography
    starts: Mapping[str, Sequence[tuple[str, Command]]]
    """How it may begin, by name: the commands each participant has carried out before."""
    sent: Sequence[tuple[str, Command]]
    """The commands on their way at the beginning, each with the participant it goes to. Like
    events they may arrive twice or late; at rest they have arrived."""
    stimuli: Sequence[Stimulus]
    moments: Sequence[datetime]
    """The times an event may be reacted to by a reaction that asks for `now`; any other is called
    at the first of them."""
    judge: Callable[[View, bool], Iterable[Violation]]
    """What is wrong with a state of the system, which is at rest or not."""
    ask: Callable[[Any, Intent], Iterable[Reply]]
    """What the outside may say to a question, given what it knows. Raises what it refuses with."""
    outside: Any = None
    """What the outside knows at the beginning; hashable."""
    outside_name: str = "outside"
    names: Mapping[str, str] = field(default_factory=dict)
    """What subjects are called in schedules."""
