"""What if: a way that somebody asks about, taken by the domains and by nobody else.

After the steps that were asked for, everything goes on as it usually does: messages arrive in the
order in which they were published, and the outsides say what they usually say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from saga.declaration import Stimulus
from saga.errors import InputError
from saga.future.ends import EndName, end_name
from saga.future.present import ModelledSubject
from saga.runtime.kernel.step import Firing
from saga.verify.facts import Answered, Asked, Sent
from saga.verify.machine import Machine
from saga.verify.schedule import Choice, StepInWords, Walk
from saga.view import Violation

STEPS_MAX: Final = 80
"""Of one course; a saga that goes on for ever is followed no further."""


@dataclass(frozen=True, slots=True)
class AskedStep:
    """A step that somebody asks about: this participant takes the message of that id; or, without
    one, the command of that type, which is due, or is given from outside."""

    participant: str
    message: str = ""
    command: str = ""

    def __str__(self) -> str:
        return f"{self.participant} {self.message or self.command}"


@dataclass(frozen=True, slots=True)
class Consequences:
    """What would follow. `asked` is how many of the steps were asked for."""

    steps: Sequence[StepInWords]
    asked: int
    end: EndName
    rests: bool
    """Whether nothing is left to do at its end, before something else is due or given."""
    broken: Sequence[Violation]


def course(present: ModelledSubject, wanted: Sequence[AskedStep] = ()) -> Consequences:
    """What would follow if these steps were taken next, in this order; blocks.

    Raises `InputError` for a step that cannot be taken, and `VerifyError` where something has to be
    known that is not.
    """
    machine = Machine(present.model, checked=False)
    return _Going(machine, present.starts[0]).course(wanted)


class _Going:
    def __init__(self, machine: Machine, start: str) -> None:
        self._machine = machine
        self._walk = Walk(machine, start)
        self._taken: set[tuple[object, int]] = set()
        self._steps: list[StepInWords] = []

    def course(self, wanted: Sequence[AskedStep]) -> Consequences:
        for step in wanted:
            self._take(self._find(step))
            # What the participant asks because of it is part of its step.
            while (more := self._question()) is not None:
                self._take(more)
        asked = len(self._steps)
        while len(self._steps) < STEPS_MAX and (choice := self._usual()) is not None:
            self._take(choice)
        state = self._walk.state
        return Consequences(
            steps=self._steps,
            asked=asked,
            end=end_name(event.data for event in self._machine.told(state)),
            rests=self._machine.at_rest(state),
            broken=list(self._machine.violations(state)),
        )

    def _take(self, choice: Choice) -> None:
        self._taken.add((choice.action.about, choice.action.whose))
        self._steps.append(self._walk.take(choice))

    def _find(self, wanted: AskedStep) -> Choice:
        for choice in self._walk.choices():
            about = choice.action.about
            if self._machine.names[choice.action.whose] != wanted.participant:
                continue
            if isinstance(about, Sent) and about.envelope.id == wanted.message:
                return choice
            if isinstance(about, Firing) and about.due.command.type == wanted.command:
                return choice
            if isinstance(about, Stimulus) and about.command.type == wanted.command:
                return choice
        raise InputError(
            f"{wanted}: that is not on its way, not due, and cannot be given here; follow a link "
            f"of the page"
        )

    def _question(self) -> Choice | None:
        """The next step of what is being asked: the outside hears, or is heard."""
        return self._first(Asked, Answered)

    def _usual(self) -> Choice | None:
        return self._question() or self._first(Sent)

    def _first(self, *kinds: type[object]) -> Choice | None:
        for choice in self._walk.choices():
            action = choice.action
            if isinstance(action.about, kinds) and (action.about, action.whose) not in self._taken:
                return choice
        return None
