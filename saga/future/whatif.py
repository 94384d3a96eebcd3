"""What if: a given way, taken by the domains and nothing else.

After the steps that were asked for, everything goes on as it usually does: messages arrive in the
order in which they were published, and the outsides say what they usually say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations, islice
from typing import Final, Self

from saga.declaration import Stimulus
from saga.errors import InputError, NotFound
from saga.future.ends import BrokenRule, EndName, Outlook, ReachableEnd, by_length, end_name
from saga.future.present import ModelledSubject
from saga.history.whereabouts import MessageLocations, Place
from saga.runtime.kernel.step import Firing
from saga.verify import VerifyError
from saga.verify.facts import Answered, Asked, Sent
from saga.verify.machine import Machine
from saga.verify.schedule import Choice, StepInWords, Walk
from saga.view import Violation

STEPS_MAX: Final = 80
"""Of one course; a saga that goes on for ever is followed no further."""
COURSES_MAX: Final = 8
"""Courses that are followed for their ends, where not all could be looked at."""
PAIRS_MAX: Final = 12
"""Pairs of messages on their way whose other order is offered."""
NAMED_MAX: Final = 12
"""Steps that are named to a user who asks about one that cannot be taken."""


@dataclass(frozen=True, slots=True)
class AskedStep:
    """A step that a user asks about: this participant takes the message of that id, or the only
    one of that type; or, without one, does the command of that type, which is due, or is given from
    outside."""

    participant: str
    message: str = ""
    command: str = ""

    def __str__(self) -> str:
        """As `read` takes it."""
        verb = "take" if self.message else "do"
        return f"{self.participant} {verb} {self.message or self.command}"

    @classmethod
    def read(cls, text: str) -> Self:
        """The step that is written so. Raises `InputError`."""
        match text.strip().split(" ", 2):
            case [participant, "take", message]:
                return cls(participant, message=message)
            case [participant, "do", command]:
                return cls(participant, command=command)
            case _:
                pass
        raise InputError(
            f"{text!r} is no step; write PARTICIPANT take MESSAGE, an id or a type, or PARTICIPANT "
            f"do COMMAND"
        )


@dataclass(frozen=True, slots=True)
class Offer:
    """A question that may be asked about what would be: its words, and the steps it begins with."""

    words: str
    steps: tuple[AskedStep, ...]


@dataclass(frozen=True, slots=True)
class Consequences:
    """What would follow. `asked` is how many of the steps were asked for."""

    steps: Sequence[StepInWords]
    asked: int
    end: EndName
    rests: bool
    """Whether nothing is left to do at its end, before something else is due or given."""
    whole: bool
    """Whether it was followed to its end; if not, it went on after `STEPS_MAX` steps."""
    broken: Sequence[Violation]
    """Every rule that is broken on the way, the first time that it is."""


def course(present: ModelledSubject, wanted: Sequence[AskedStep] = ()) -> Consequences:
    """What would follow if these steps were taken next, in this order; blocks.

    Raises `InputError` for a step that cannot be taken, and `VerifyError` where something has to be
    known that is not.
    """
    machine = Machine(present.model, checked=False)
    return _Going(machine, present.starts[0]).course(wanted)


def beside_courses(present: ModelledSubject, seen: Outlook) -> Outlook:
    """An outlook and, where not all was looked at, the ends to which the usual course leads, and
    what follows if one of the things that may come next comes first; blocks.

    What is near is seen first, and a saga's good end may be far away.
    """
    if seen.whole:
        return seen
    machine = Machine(present.model, checked=False)
    ends = {end.name: end for end in seen.ends}
    broken = {each.violation.rule: each for each in seen.broken}
    singles = [offer.steps for offer in offers_of(present, None) if len(offer.steps) == 1]
    for steps in [(), *singles[: COURSES_MAX - 1]]:
        try:
            found = _Going(machine, present.starts[0]).course(steps)
        except VerifyError:  # Something is not known on this way; what was seen was seen.
            continue
        if found.end or found.rests:
            end = ReachableEnd(found.end, found.steps, int(found.rests), (), (), shortest=False)
            ends.setdefault(found.end, end)
        for violation in found.broken:
            broken.setdefault(violation.rule, BrokenRule(violation, found.steps))
    return replace(
        seen,
        ends=sorted(ends.values(), key=by_length),
        holding={name: said for name, said in seen.holding.items() if name not in broken},
        broken=list(broken.values()),
    )


class _Going:
    def __init__(self, machine: Machine, start: str) -> None:
        self._machine = machine
        self._walk = Walk(machine, start)
        self._taken: set[tuple[object, int]] = set()
        self._steps: list[StepInWords] = []
        self._broken: dict[str, Violation] = {}
        self._judge()

    def course(self, wanted: Sequence[AskedStep]) -> Consequences:
        for step in wanted:
            self._take(self._find(step))
            # What the participant asks because of it is part of its step.
            while (more := self._question()) is not None:
                self._take(more)
        asked = len(self._steps)
        while (choice := self._usual()) is not None and len(self._steps) < STEPS_MAX:
            self._take(choice)
        state = self._walk.state
        return Consequences(
            steps=self._steps,
            asked=asked,
            end=end_name(event.data for event in self._machine.told(state)),
            rests=self._machine.at_rest(state),
            whole=choice is None,
            broken=list(self._broken.values()),
        )

    def _take(self, choice: Choice) -> None:
        self._taken.add((choice.action.about, choice.action.whose))
        self._steps.append(self._walk.take(choice))
        if choice.violation is not None:
            self._broken.setdefault(choice.violation.rule, choice.violation)
        self._judge()

    def _judge(self) -> None:
        for violation in self._machine.violations(self._walk.state):
            self._broken.setdefault(violation.rule, violation)

    def _find(self, wanted: AskedStep) -> Choice:
        """The first choice that is this step: what an outside decides on comes after it."""
        named: dict[AskedStep, Choice] = {}
        typed: dict[str, Choice] = {}
        """Keyed by the message's id: those in which the participant takes one of the type."""
        for choice, step, type_ in self._steps_possible():
            if step == wanted:
                return choice
            named.setdefault(step, choice)
            if step.participant == wanted.participant and type_ and type_ == wanted.message:
                typed.setdefault(step.message, choice)
        if len(typed) == 1:
            return next(iter(typed.values()))
        if typed:
            raise InputError(f"{wanted}: there are several; name one by its id: {_some(typed)}")
        raise NotFound(
            f"{wanted}: that is not on its way, not due, and cannot be given here; there "
            f"{f'are: {_some(named)}' if named else 'is nothing of that kind'}"
        )

    def _steps_possible(self) -> Iterator[tuple[Choice, AskedStep, str]]:
        """What may be asked for now; with each message its type, and with commands none."""
        for choice in self._walk.choices():
            about, name = choice.action.about, self._machine.names[choice.action.whose]
            match about:
                case Sent():
                    message = about.envelope
                    yield choice, AskedStep(name, message=message.id), message.type
                case Firing():
                    yield choice, AskedStep(name, command=about.due.command.type), ""
                case Stimulus():
                    yield choice, AskedStep(name, command=about.command.type), ""
                case _:
                    pass

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


def _some(named: Iterable[object]) -> str:
    said = [str(each) for each in named]
    more = [f"and {len(said) - NAMED_MAX} more"] if len(said) > NAMED_MAX else []
    return "; ".join([*said[:NAMED_MAX], *more])


def offers_of(present: ModelledSubject, whereabouts: MessageLocations | None) -> list[Offer]:
    """What may be asked about a subject: each message that is on its way taken next, two of them in
    either order, what is due done now, and what may be given from outside."""
    found: list[Offer] = []
    for name, event in present.pending:
        step = AskedStep(name, message=event.id)
        where = whereabouts.of(name, event.id) if whereabouts is not None else None
        if where is not None and where.place is Place.DEAD:
            words = f"the dead letter {event.type} is replayed at {name} now"
        else:
            words = f"{name} takes {event.type} next"
        found.append(Offer(words, (step,)))
    for pair in islice(combinations(present.pending, 2), PAIRS_MAX):
        for (first, one), (second, other) in (pair, pair[::-1]):
            steps = AskedStep(first, message=one.id), AskedStep(second, message=other.id)
            words = f"{first} takes {one.type}, and then {second} takes {other.type}"
            found.append(Offer(words, steps))
    for coming in present.coming:
        command = coming.firing.due.command.type
        words = f"its time comes now: {coming.participant} does {command}"
        found.append(Offer(words, (AskedStep(coming.participant, command=command),)))
    for stimulus in present.model.stimuli:
        step = AskedStep(stimulus.participant, command=stimulus.command.type)
        found.append(Offer(stimulus.name, (step,)))
    return found
