"""Every state of a model, breadth first, so that the first violation has a shortest schedule."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from saga.declaration import Stimulus
from saga.runtime.kernel.step import Firing
from saga.verify.facts import FIELD, Action
from saga.verify.machine import Broken, Machine
from saga.verify.model import VerifyError
from saga.verify.reduction import Reduction, Settled, reduction_of
from saga.verify.symmetry import NotInterchangeable
from saga.view import Violation

STATES_MAX = 2_000_000
"""States of one model that are kept in memory."""
STATE_BYTES = 1_000
"""What one takes there, roughly, with its transitions."""
STEP_BY_STEP_MAX = 200_000
"""States that are kept to find a shortest way to a violation."""
PROGRESS_SECONDS = 1.0

Progress = Callable[[int, int], None]
"""Told the depth and the number of states, every second or so."""


@dataclass(frozen=True, slots=True)
class Counterexample:
    """A violation and a shortest way to it.

    `states` begins with the one of `start`. `broken` is the step that broke a rule by itself, in
    the last of them.
    """

    violation: Violation
    start: str
    states: Sequence[int]
    broken: Action | None = None


@dataclass(frozen=True, slots=True)
class Exploration:
    """What was seen: every state there is, unless something was `found` or it is not `whole`.

    `transitions` lead to another state; `repetitions` back to the same, as most of the deliveries
    that come twice. Where states are settled, those are counted.
    """

    states: int
    states_at_rest: int
    transitions: int
    repetitions: int
    depth: int
    """Steps up to which everything was tried."""
    seconds: float
    found: Counterexample | None
    whole: bool = True
    """Whether that is all, rather than what fitted into memory."""


def explore(
    machine: Machine,
    *,
    states_max: int = STATES_MAX,
    progress: Progress | None = None,
    reduce: Callable[[Machine], Reduction] = reduction_of,
) -> Exploration:
    """Visit every state, or stop at the first violation, or at `states_max` states in memory.

    One state may stand for many, of which rules say the same; see `reduction`. Raises
    `VerifyError`.
    """
    try:
        return _explore(machine, reduce(machine), states_max, progress)
    except NotInterchangeable:
        machine.on_outcomes = None
        return _explore(machine, Settled(machine), states_max, progress)
    finally:
        machine.on_outcomes = None


def _explore(
    machine: Machine, reduction: Reduction, states_max: int, progress: Progress | None
) -> Exploration:
    started = time.monotonic()
    search = _Search(machine, states_max, progress, reduction)
    found = search.run()
    if found is None and search.whole:
        found = search.stuck()
    if found is not None:
        found = step_by_step(machine, found, reduction, states_max)
    return Exploration(
        states=len(search.states),
        states_at_rest=sum(search.at_rest),
        transitions=len(search.targets),
        repetitions=search.repetitions,
        depth=search.depth,
        seconds=time.monotonic() - started,
        found=found,
        whole=search.whole,
    )


def step_by_step(
    machine: Machine, found: Counterexample, reduction: Reduction, states_max: int
) -> Counterexample:
    """A shortest way to a violation that takes each step by itself.

    One violation is known, so few states are in the way of the first one, usually; if they are too
    many, it is the shortest of those for which the same states stand as on the way that was found.
    """
    search = _Search(machine, min(states_max, STEP_BY_STEP_MAX), None, Reduction(machine))
    if shortest := search.run():
        return shortest
    if search.whole and (shortest := search.stuck()):
        return shortest
    way = {reduction.stands_for(state) for state in found.states}
    search = _Search(
        machine,
        states_max,
        None,
        Reduction(machine),
        lambda state: reduction.stands_for(state) in way,
    )
    if along := search.run():
        return along
    last = reduction.stands_for(found.states[-1])
    for number, state in enumerate(search.states):
        if reduction.stands_for(state) == last:
            return search.found(found.violation, number)
    violation = found.violation
    raise VerifyError(
        f"{machine.model.name}: {violation.rule} can be broken: {violation.subject}: "
        f"{violation.detail}; to tell how takes more than {states_max} states: allow more with "
        f"--max-states (some {STATE_BYTES} bytes each)"
    )


def moved(machine: Machine, action: Action, before: int, after: int) -> Violation | None:
    """The violation, if anything to be seen changed in a step from a state at rest. What is due is
    done at rest as well, and so is what a client may want then."""
    if not machine.at_rest(before) or not (after ^ before) & machine.visible:
        return None
    about = action.about
    wanted = isinstance(about, Stimulus) and about.at_rest
    if wanted or isinstance(about, Firing) or machine.may_come_late(action):
        return None
    return Violation(
        "moved_at_rest",
        machine.model.name,
        "whatever was sent had been done, and then something changed nevertheless",
    )


def never_at_rest(
    machine: Machine, state: int, *, states_max: int = STATES_MAX
) -> Violation | None:
    """The violation, if no state at rest can be reached from this one. Raises `VerifyError` if
    that takes more than `states_max` states to say."""
    seen, waiting = {state}, [state]
    for waiting_state in waiting:
        if machine.at_rest(waiting_state):
            return None
        for action in machine.actions(waiting_state):
            try:
                outcomes = machine.outcomes(action, waiting_state)
            except Broken:  # leads nowhere; whether it may be taken is not the question here
                continue
            for outcome in outcomes:
                after = waiting_state & action.keep | outcome.bits
                if after not in seen:
                    seen.add(after)
                    waiting.append(after)
        if len(seen) > states_max:
            raise _too_many(machine, states_max)
    return never_rests(machine)


def never_rests(machine: Machine) -> Violation:
    """The violation where no state at rest can be reached."""
    return Violation(
        "never_at_rest",
        machine.model.name,
        "whatever happens from here on, something that was sent is never done",
    )


def _too_many(machine: Machine, states_max: int) -> VerifyError:
    return VerifyError(
        f"{machine.model.name}: more than {states_max} states; allow more with --max-states (some "
        f"{STATE_BYTES} bytes each), or look for a reaction that says something new each time"
    )


class _Search:
    """Visits the states that stand for others, if they are `wanted`."""

    def __init__(
        self,
        machine: Machine,
        states_max: int,
        progress: Progress | None,
        reduction: Reduction,
        wanted: Callable[[int], bool] = lambda state: True,
    ) -> None:
        self._machine = machine
        self._states_max = states_max
        self._progress = progress
        self._reduction = reduction
        self._wanted = wanted
        self.whole = True
        self._starts: dict[int, str] = {}
        self._numbers: dict[int, int] = {}
        """Keyed by state: the number of the one that stands for it."""
        self._judged: tuple[set[int], set[int]] = set(), set()
        """What rules have seen, in motion and at rest."""
        # Keyed by the number of a state: which is its place in the breadth-first order:
        self.states: list[int] = []
        self.at_rest = bytearray()
        self._parents = array("I")
        self._offsets = array("I")
        """Where its successors begin in `targets`."""
        self.targets = array("I")
        self.repetitions = 0
        self.depth = 0

    def run(self) -> Counterexample | None:
        """Visit all states; the first violation ends it."""
        for name, state in self._machine.starts.items():
            number = self._number(state, 0)
            if number is not None and number not in self._starts:
                self._starts[number] = name
                if found := self._judge(number):
                    return found
        told_at = time.monotonic()
        level_end = len(self.states)
        number = 0
        while number < len(self.states):
            if number == level_end:
                self.depth += 1
                level_end = len(self.states)
            if len(self.states) >= self._states_max:
                self.whole = False
                return None
            if found := self._expand(number):
                return found
            number += 1
            if self._progress and number % 1024 == 0 and time.monotonic() > told_at:
                told_at = time.monotonic() + PROGRESS_SECONDS
                self._progress(self.depth, len(self.states))
        self._offsets.append(len(self.targets))
        return None

    def _expand(self, number: int) -> Counterexample | None:
        """Take every step from a state."""
        machine, numbers, targets = self._machine, self._numbers, self.targets
        state, at_rest = self.states[number], self.at_rest[number]
        self._offsets.append(len(targets))
        for action in machine.actions(state):
            # What `machine.outcomes` would do, without the call, which millions of times over takes
            # a third of all the time.
            outcomes = action.outcomes.get(state >> action.shift & FIELD)
            if outcomes is None:
                try:
                    outcomes = machine.outcomes(action, state)
                except Broken as broken:
                    return self.found(broken.violation, number, action)
            for outcome in outcomes:
                after = state & action.keep | outcome.bits
                if after == state:
                    self.repetitions += 1
                    continue
                known = numbers.get(after)
                if known is None:
                    seen = len(self.states)
                    known = self._number(after, number)
                    if known is None:
                        continue
                    if known == seen and (found := self._judge(known)):
                        return found
                if known == number:
                    self.repetitions += 1
                else:
                    targets.append(known)
                if at_rest and (violation := moved(machine, action, state, after)):
                    found = self.found(violation, number)
                    return replace(found, states=[*found.states, after])
        return None

    def _number(self, state: int, parent: int) -> int | None:
        """The number of the state that stands for this; None if it is not wanted."""
        if not self._wanted(state):
            return None
        standing = self._reduction.stands_for(state)
        number = self._numbers.get(standing)
        if number is None:
            number = self._numbers[standing] = len(self.states)
            self.states.append(standing)
            self.at_rest.append(self._machine.at_rest(standing))
            self._parents.append(parent)
        self._numbers[state] = number
        return number

    def _judge(self, number: int) -> Counterexample | None:
        judged = self._judged[self.at_rest[number]]
        for state in self._reduction.images(self.states[number]):
            visible = state & self._machine.visible
            if visible not in judged:
                judged.add(visible)
                if violation := self._machine.judge(state):
                    return self.found(violation, number)
        return None

    def stuck(self) -> Counterexample | None:
        """The first state from which no state at rest can be reached.

        A state can if one of its successors can. Successors mostly come later in the breadth-first
        order, so that going backwards through it a few times settles all of them.
        """
        can = bytearray(self.at_rest)
        changed = True
        while changed:
            changed = False
            for number in range(len(can) - 1, -1, -1):
                if not can[number] and any(
                    can[target]
                    for target in self.targets[self._offsets[number] : self._offsets[number + 1]]
                ):
                    can[number] = changed = True
        number = can.find(0)
        if number < 0:
            return None
        return self.found(never_rests(self._machine), number)

    def found(
        self, violation: Violation, number: int, broken: Action | None = None
    ) -> Counterexample:
        states = [self.states[number]]
        while number not in self._starts:
            number = self._parents[number]
            states.append(self.states[number])
        return Counterexample(violation, self._starts[number], states[::-1], broken)
