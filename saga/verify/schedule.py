"""Schedules: a way through the states, told in words, and taken again."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from saga.declaration import Stimulus
from saga.envelope import source_of
from saga.runtime.kernel.step import Firing
from saga.verify.facts import Action, Answered, Asked, Fact, Sent
from saga.verify.machine import Broken, Machine
from saga.verify.model import Model, VerifyError
from saga.verify.search import Counterexample, moved, never_at_rest
from saga.view import Violation

WORLD = "world"
"""Where commands come from, in schedules."""
CLOCK = "clock"
"""Where what is due comes from."""

AGAIN = "again"
LATE = "late"
REMARKS = {
    AGAIN: "a duplicate, a retry, a redelivery after a crash, or a dead letter that is replayed",
    LATE: "overtaken by what was published after it: reordered, or dead and then replayed",
}
"""What sets a delivery off from the first one in order."""


@dataclass(frozen=True, slots=True)
class StepInWords:
    """One step in words. `text` names it among those possible at that point."""

    text: str
    sender: str
    receiver: str
    what: str
    remark: str
    results: Sequence[str]


@dataclass(frozen=True, slots=True)
class Schedule:
    """A way to a violation, step by step; `open` are the questions left without their answer."""

    model: Model
    start: str
    steps: Sequence[StepInWords]
    open: Sequence[str]
    violation: Violation

    @property
    def subject(self) -> str:
        """What the violation is about, by its short name."""
        return self.model.names.get(self.violation.subject, self.violation.subject)


def schedule_of(machine: Machine, found: Counterexample) -> Schedule:
    """The way to what was found, in words."""
    walk = Walk(machine, found.start)
    steps = []
    for after in found.states[1:]:
        choice = next(choice for choice in walk.choices() if choice.after == after)
        steps.append(walk.take(choice))
    if found.broken is not None:
        choice = next(choice for choice in walk.choices() if choice.action is found.broken)
        steps.append(walk.take(choice))
    return Schedule(machine.model, found.start, steps, walk.open(), found.violation)


def replay(model: Model, start: str, *steps: str) -> Violation | None:
    """Take these steps, and say which rule that breaks first, if any.

    It ends early where the next step is not possible: the code has changed since the schedule
    was found, and does something else now.
    """
    machine = Machine(model)
    walk = Walk(machine, start)
    for text in steps:
        choice = next((choice for choice in walk.choices() if walk.text(choice) == text), None)
        if choice is None:
            break
        before = walk.state
        walk.take(choice)
        violation = (
            choice.violation
            or machine.judge(walk.state)
            or moved(machine, choice.action, before, walk.state)
        )
        if violation:
            return violation
    return never_at_rest(machine, walk.state)


@dataclass(frozen=True, slots=True)
class Choice:
    """A step that is possible: it leads to the state `after`, or breaks a rule by itself."""

    action: Action
    after: int
    reply: str = ""
    violation: Violation | None = None


class Walk:
    """Takes one step after the other, and gives what it meets short names as it comes."""

    def __init__(self, machine: Machine, start: str) -> None:
        if start not in machine.starts:
            raise VerifyError(
                f"the model {machine.model.name!r} does not begin with {start!r}, but with one of "
                f"{', '.join(map(repr, machine.starts))}"
            )
        self._machine = machine
        self._names: dict[Fact, str] = {}
        self._used: defaultdict[str, int] = defaultdict(int)
        self._taken: defaultdict[int, list[Fact]] = defaultdict(list)
        """Keyed by participant: what it has reacted to."""
        self.state = 0
        self._move(machine.starts[start])

    def choices(self) -> Iterator[Choice]:
        """The steps that are possible now."""
        for action in self._machine.actions(self.state):
            try:
                outcomes = self._machine.outcomes(action, self.state)
            except Broken as broken:
                yield Choice(action, self.state, violation=broken.violation)
            else:
                for outcome in outcomes:
                    after = self.state & action.keep | outcome.bits
                    yield Choice(action, after, outcome.reply)

    def text(self, choice: Choice) -> str:
        """The step in a line."""
        about, now = choice.action.about, choice.action.now
        if isinstance(about, Stimulus):
            return about.name
        receiver = self._receiver(choice.action)
        if isinstance(about, Firing):
            return f"{receiver} does {self._what(about)}, at {now:%H:%M:%S}"
        if isinstance(about, Asked):
            return f"{receiver} hears {self._names[about]}: {choice.reply}"
        if isinstance(about, Answered):
            text = f"{receiver} is told of {self._names[about.question]}: {about.reply}"
        else:
            text = f"{receiver} takes {self._names[about]}"
            if choice.reply:
                text = f"{text}: {choice.reply}"
        return text if now == self._machine.model.moments[0] else f"{text}, at {now:%H:%M:%S}"

    def take(self, choice: Choice) -> StepInWords:
        """Take the step."""
        about, participant = choice.action.about, choice.action.whose
        text, remark = self.text(choice), ""
        if isinstance(about, Sent | Answered):
            taken = self._taken[participant]
            if about in taken:
                remark = AGAIN
            elif isinstance(about, Sent) and any(self._is_newer(other, about) for other in taken):
                remark = LATE
            taken.append(about)
        results = self._move(choice.after)
        if choice.violation:
            results = [choice.violation.detail]
        elif isinstance(about, Asked):
            results = [choice.reply]
        return StepInWords(
            text,
            self._sender(about),
            self._receiver(choice.action),
            self._what(about),
            remark,
            results or ["nothing new"],
        )

    def open(self) -> Sequence[str]:
        """The questions that were asked, and whose answer no participant has reacted to."""
        met = {fact for taken in self._taken.values() for fact in taken}
        told = {fact.question for fact in met if isinstance(fact, Answered)}
        return [
            name
            for fact, name in self._names.items()
            if isinstance(fact, Asked) and fact not in told
        ]

    def _move(self, state: int) -> list[str]:
        """Go there; what is new there gets its name."""
        self.state = state
        published, asked = [], []
        for fact in self._machine.facts(state):
            if fact in self._names:
                continue
            if isinstance(fact, Sent):
                name = self._name(fact, fact.envelope.type, fact.envelope.subject)
                published.append(f"publishes {name}")
            elif isinstance(fact, Asked):
                name = self._name(fact, type(fact.intent).__name__, fact.intent.subject)
                asked.append(f"asks {name}")
        return published + asked

    def _name(self, fact: Fact, message: str, subject: str) -> str:
        name = f"{message} {self._machine.model.names.get(subject, subject)}".rstrip()
        self._used[name] += 1
        if self._used[name] > 1:
            name = f"{name} #{self._used[name]}"
        self._names[fact] = name
        return name

    def _is_newer(self, other: Fact, than: Sent) -> bool:
        """Whether one message was published after another; names are given in that order."""
        names = list(self._names)
        return isinstance(other, Sent) and names.index(other) > names.index(than)

    def _receiver(self, action: Action) -> str:
        return self._machine.names[action.whose]

    def _sender(self, about: Sent | Asked | Answered | Stimulus | Firing) -> str:
        participants = self._machine.participants
        match about:
            case Sent():
                sources = {source_of(p.name): p.name for p in participants}
                return sources.get(about.envelope.source, WORLD)
            case Asked():
                return participants[about.participant].name
            case Answered():
                return self._machine.outside_asked(about.question.intent)
            case Stimulus():
                return WORLD
            case Firing():
                return CLOCK

    def _what(self, about: Sent | Asked | Answered | Stimulus | Firing) -> str:
        match about:
            case Answered():
                return f"{self._names[about.question]}: {about.reply}"
            case Stimulus():
                return about.name
            case Firing():
                subject = self._machine.model.names.get(about.key, about.key)
                return f"{about.due.command.type} {subject}".rstrip() + ", which is due"
            case _:
                return self._names[about]
