"""Which ends a subject can still come to, the shortest way to each, and what holds on all ways."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from saga.choreography import Choreography, State
from saga.future.present import ModelledSubject
from saga.graph.flow import Flow
from saga.graph.sagas import extents_of
from saga.message import Event
from saga.runtime.kernel.fold import is_shared
from saga.runtime.kernel.step import Firing
from saga.verify.facts import Action
from saga.verify.machine import Broken, Machine
from saga.verify.schedule import StepInWords, Walk
from saga.verify.search import moved, never_rests
from saga.view import Violation

STATES_MAX: Final = 20_000
SECONDS_MAX: Final = 0.15
"""Of processor time: what is looked at should not depend on what else the machine does."""
_LOOKED_EVERY: Final = 64
"""States between two looks at the clock."""

EndName = tuple[tuple[str, str], ...]
"""The events that ended it, each with its outcome; none where it comes to rest without."""


@dataclass(frozen=True, slots=True)
class ReachableEnd:
    """One way to end. `way` leads to it.

    `always` are the types of what has been published in every state at rest with this end, and
    `never` those of what could have been and is in none of them.
    """

    name: EndName
    way: Sequence[StepInWords]
    rests: int
    """States at rest with this end that were seen."""
    always: Sequence[str]
    never: Sequence[str]
    shortest: bool = True
    """Whether `way` is; where not all was looked at, it may be one that was gone for its end."""


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """A rule that can still be broken, and a shortest way to that."""

    violation: Violation
    way: Sequence[StepInWords]


@dataclass(frozen=True, slots=True)
class Outlook:
    """What can still happen. If it is not `whole`, that is what was seen of it."""

    whole: bool
    states: int
    transitions: int
    seconds: float
    ends: Sequence[ReachableEnd]
    out_of_reach: Sequence[str]
    """Types of events that end such sagas, and that this one cannot come to any more; empty if not
    all was seen."""
    holding: Mapping[str, str]
    """Keyed by rule: what it says; those that hold in every state that was seen."""
    broken: Sequence[BrokenRule]
    cut_short: Sequence[str]
    """The outsides whose refusals were followed `ASKED_MAX` times in a row, and no further."""
    depends_on: Sequence[str]
    """The kinds of states that were read here and that others may change meanwhile, and whose they
    are: all this is so for as long as they do not change."""


@dataclass(slots=True)
class _EndSeen:
    state: int
    """Where it was seen first."""
    rests: int = 0
    always: frozenset[str] | None = None
    ever: set[str] = field(default_factory=set)


def outlook(
    present: ModelledSubject,
    rules: Mapping[str, str],
    *,
    states_max: int = STATES_MAX,
    seconds_max: float = SECONDS_MAX,
) -> Outlook:
    """Explore what can happen from here, breadth first, up to so many states or seconds of the
    processor; blocks.

    `rules` are by name those that are judged. Raises `VerifyError` where something has to be known
    that is not.
    """
    search = _Breadth(Machine(present.model, checked=False), states_max, seconds_max)
    search.run()
    return search.outlook(present, rules)


class _Breadth:
    def __init__(self, machine: Machine, states_max: int, seconds_max: float) -> None:
        self._machine = machine
        self._states_max = states_max
        self._began = time.thread_time()
        self._until = self._began + seconds_max
        self._starts = {state: name for name, state in machine.starts.items()}
        self._before: dict[int, list[int]] = {}
        """Keyed by state: those from which a step leads there; in front, a shortest way to it."""
        self._rests: list[int] = []
        self._order = list(self._starts)
        self._seen = set(self._order)
        self._judged: set[tuple[int, bool]] = set()
        self._ends: dict[EndName, _EndSeen] = {}
        self._published: set[str] = set()
        self._broken: dict[str, tuple[Violation, int, Action | None]] = {}
        """Keyed by rule: where it is broken first, and the step that breaks it there, if one
        does."""
        self._transitions = 0
        self.whole = True

    def run(self) -> None:
        for number, state in enumerate(self._order):  # It grows.
            if number % _LOOKED_EVERY == _LOOKED_EVERY - 1 and self._is_over():
                self.whole = False
                return
            self._look(state)
            self._expand(state)
        if not any(action for _, _, action in self._broken.values()):
            self._find_stuck()

    def _find_stuck(self) -> None:
        """Find the nearest state from which none at rest can be reached, if there is one."""
        can = set(self._rests)
        for state in self._rests:  # It grows.
            new = [before for before in self._before.get(state, ()) if before not in can]
            can.update(new)
            self._rests += new
        stuck = next((state for state in self._order if state not in can), None)
        if stuck is not None:
            violation = never_rests(self._machine)
            self._broken.setdefault(violation.rule, (violation, stuck, None))

    def _is_over(self) -> bool:
        return len(self._order) > self._states_max or time.thread_time() > self._until

    def _expand(self, state: int) -> None:
        at_rest = self._machine.at_rest(state)
        for action in self._machine.actions(state):
            try:
                outcomes = self._machine.outcomes(action, state)
            except Broken as broken:
                self._broken.setdefault(broken.violation.rule, (broken.violation, state, action))
                continue
            for outcome in outcomes:
                after = state & action.keep | outcome.bits
                if after == state:
                    continue
                self._transitions += 1
                if after not in self._seen:
                    self._seen.add(after)
                    self._order.append(after)
                self._before.setdefault(after, []).append(state)
                if at_rest and (violation := moved(self._machine, action, state, after)):
                    self._broken.setdefault(violation.rule, (violation, state, action))

    def _look(self, state: int) -> None:
        """What a state tells of ends and rules."""
        machine = self._machine
        at_rest = machine.at_rest(state)
        if at_rest:
            self._rests.append(state)
        told = machine.told(state)
        name = end_name(event.data for event in told)
        end = self._ends.get(name)
        if name and end is None:
            end = self._ends[name] = _EndSeen(state)
        types = {event.type for event in told}
        self._published |= types
        if at_rest and not self._waits(state):
            end = end or self._ends.setdefault(name, _EndSeen(state))
            end.rests += 1
            end.ever |= types
            end.always = frozenset(types) if end.always is None else end.always & types
        seen = state & machine.visible, at_rest
        if seen not in self._judged:
            self._judged.add(seen)
            for violation in machine.violations(state):
                self._broken.setdefault(violation.rule, (violation, state, None))

    def _waits(self, state: int) -> bool:
        """Whether time will do something yet."""
        return any(isinstance(action.about, Firing) for action in self._machine.actions(state))

    def outlook(self, present: ModelledSubject, rules: Mapping[str, str]) -> Outlook:
        graph = present.model.choreography
        ends = [
            ReachableEnd(
                name,
                self._way(seen.state),
                seen.rests,
                sorted(seen.always or ()),
                sorted(self._published - seen.ever) if seen.rests else (),
            )
            for name, seen in self._ends.items()
        ]
        reached = {type_ for end in ends for type_, _ in end.name}
        kinds = ends_of(graph, self._published) if self.whole else ()
        return Outlook(
            whole=self.whole,
            states=len(self._order),
            transitions=self._transitions,
            seconds=time.thread_time() - self._began,
            ends=sorted(ends, key=by_length),
            out_of_reach=sorted({kind.type for kind in kinds} - reached),
            holding={name: said for name, said in rules.items() if name not in self._broken},
            broken=[
                BrokenRule(violation, self._way(state, last))
                for violation, state, last in self._broken.values()
            ],
            cut_short=sorted(self._machine.cut_short),
            depends_on=sorted(self._shared_read(graph)),
        )

    def _shared_read(self, graph: Choreography) -> Iterator[str]:
        """The kinds of states about more than one subject that reactions took which were run."""
        for participant in graph.in_python:
            kinds = {
                kind
                for reaction in participant.reactions
                if (participant.name, reaction.name) in self._machine.reacted
                for _, kind, _ in reaction.parameters
                if issubclass(kind, State) and is_shared(kind)
            }
            yield from (f"{kind.__name__} of {participant.name}" for kind in kinds)

    def _way(self, state: int, last: Action | None = None) -> list[StepInWords]:
        """A shortest way to a state, in words, and the `last` step there, if one is given."""
        states = [state]
        while states[-1] not in self._starts:
            states.append(self._before[states[-1]][0])
        walk = Walk(self._machine, self._starts[states[-1]])
        steps = []
        for after in reversed(states[:-1]):
            choice = next(choice for choice in walk.choices() if choice.after == after)
            steps.append(walk.take(choice))
        if last is not None:
            choice = next(choice for choice in walk.choices() if choice.action is last)
            steps.append(walk.take(choice))
        return steps


def by_length(end: ReachableEnd) -> tuple[int, EndName]:
    """The order in which ends are listed: the nearest in front."""
    return len(end.way), end.name


def end_name(data: Iterable[object]) -> EndName:
    """What is said of an end by what was published."""
    ends = [each for each in data if isinstance(each, Event) and each.role.terminal]
    return tuple(sorted({(end.type, end.outcome) for end in ends}))


def ends_of(graph: Choreography, types: Iterable[str]) -> Sequence[type[Event]]:
    """The events that end the sagas to which events of these types belong."""
    known = {*types}
    found: dict[type[Event], None] = {}
    for extent in extents_of(Flow(graph)):
        kinds = [n for n in extent.nodes if isinstance(n, type) and issubclass(n, Event)]
        if any(kind.type in known for kind in kinds):
            found |= dict.fromkeys(kind for kind in kinds if kind.role.terminal)
    return sorted(found, key=lambda kind: kind.type)


def end_in_words(name: EndName) -> str:
    """An end, as `trip.given_up (too_late)`."""
    said = [type_ if outcome in ("", type_) else f"{type_} ({outcome})" for type_, outcome in name]
    return " and ".join(said) or "at rest, without an end"
