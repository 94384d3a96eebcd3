"""From where recorded sagas are now: what can go wrong, by the reactions of this working tree.

Sagas that are in the same state but for names are explored once. Beside that: the states that were
recorded and that no scenario's model comes to.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from saga.archive.store import Fact
from saga.choreography import Choreography, State
from saga.declaration import Saga
from saga.envelope import source_of
from saga.future.ends import outlook
from saga.future.present import SharedStates, SubjectModels, shared_keys
from saga.history.debts import Coming, Debt, coming_of, debts_of
from saga.history.story import Story, tell
from saga.past.again import Review
from saga.past.findings import NotCompared
from saga.past.likeness import Renaming, Shape, shape_of, words_of
from saga.past.recorded import Reached, RecordedSubject
from saga.past.shared import SharedPast
from saga.verify import VerifyError, model_of
from saga.verify.machine import Machine
from saga.verify.schedule import StepInWords
from saga.verify.search import explore
from saga.wording import counted

STATES_MAX: Final = 200_000
"""States that are looked at from one recorded state on."""
STATES_IN_ALL: Final = 10
"""So many times that are looked at from all of them."""
SCENARIO_STATES_MAX: Final = 1_000_000
"""States of one scenario that are looked at for what it comes to; `saga verify` looks at more."""
CLASSES_MAX: Final = 2_000
"""Recorded states that are explored from; the others are named."""
SHAPES_MAX: Final = 10_000

Told = Callable[[str], None]
Waiting = tuple[str, str]
"""A participant, and the id of a message that it has to deal with."""


@dataclass(frozen=True, slots=True)
class UnderWay:
    """A subject that has not come to rest: what `waits` for whom, and the messages because of which
    a participant is `asking` the outside."""

    subject: str
    waits: frozenset[Waiting]
    asking: frozenset[Waiting]


def under_way(
    graph: Choreography, told: RecordedSubject, reviews: Mapping[str, Review]
) -> UnderWay | None:
    """What a subject waits for; None if it is at rest."""
    waits = {(name, m.envelope.id) for name, review in reviews.items() for m in review.pending}
    waits.update(_elsewhere(graph, told))
    asking = {(name, cause) for name, review in reviews.items() for cause in review.asking}
    if not waits and not asking and not any(review.dues for review in reviews.values()):
        return None
    return UnderWay(told.subject, frozenset(waits), frozenset(asking))


def _elsewhere(graph: Choreography, told: RecordedSubject) -> Iterator[Waiting]:
    """What participants in other languages have to answer, by their signatures."""
    foreign = [participant for participant in graph.participants if participant.foreign]
    if not foreign:
        return
    begun = {(event.envelope.source, event.envelope.causationid) for event in told.events}
    for event in told.events:
        for participant in foreign:
            reaction = participant.by_message.get(type(event.envelope.data))
            if reaction is None or reaction.may_do_nothing:
                continue
            if (source_of(participant.name), event.envelope.id) not in begun:
                yield participant.name, event.envelope.id


class Shapes:
    """What recorded states are, apart from their values: how often, and of which subject."""

    def __init__(self) -> None:
        self.seen: dict[tuple[str, type[State], Shape], NotCompared] = {}

    def take(self, subject: str, reviews: Mapping[str, Review]) -> None:
        for name, review in reviews.items():
            # Most states stay what they are from one event to the next.
            passed = {id(state): state for states in review.passed for state in states.values()}
            for state in passed.values():
                self._note((name, type(state), shape_of(state)), NotCompared(1, subject))

    def add(self, other: Shapes) -> None:
        for key, seen in other.seen.items():
            self._note(key, seen)

    def _note(self, key: tuple[str, type[State], Shape], seen: NotCompared) -> None:
        if (found := self.seen.get(key)) is not None:
            found.count += seen.count
        elif len(self.seen) < SHAPES_MAX:
            self.seen[key] = seen


@dataclass(slots=True)
class RecordedState:
    """A state that recorded sagas are in: how many, and one of them."""

    subject: str
    count: int = 1
    states: int = 0
    """Those that can be reached from it, and were looked at; what is known of another one is not
    looked at again."""
    whole: bool = True
    """Whether that was all."""
    refused: str = ""
    """Why it could not be explored from."""


@dataclass(slots=True)
class PossibleBreak:
    """A rule that can be broken from here: from so many recorded states, and a shortest way from
    the first of them."""

    rule: str
    detail: str
    subject: str
    way: Sequence[StepInWords]
    from_states: list[RecordedState] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The sagas that are in one of these states."""
        return sum(state.count for state in self.from_states)


@dataclass(frozen=True, slots=True)
class UnreachedState:
    """A state of one participant that was recorded, and that no model comes to."""

    participant: str
    kind: str
    shape: Shape
    count: int
    subject: str


@dataclass(frozen=True, slots=True)
class _Beginning:
    """From where some participants go on, together."""

    story: Story
    debts: Sequence[Debt]
    coming: Sequence[Coming]
    shared: SharedStates
    among: Choreography


@dataclass
class _Explored:
    """What was seen from one beginning: so many states, and the rules that can be broken."""

    states: int = 0
    whole: bool = True
    refused: str = ""
    breaks: list[PossibleBreak] = field(default_factory=list)


class OpenSagaExplorer:
    """Explores on from recorded sagas that have not come to rest."""

    def __init__(
        self,
        saga: Saga,
        shared: Mapping[str, SharedPast],
        reached: Reached,
        *,
        states_max: int | None = None,
    ) -> None:
        self._saga = saga
        self._graph = saga.choreography
        self._shared = shared
        self._reached = reached
        self._states_max = states_max or STATES_MAX
        self.budget = self.left = self._states_max * STATES_IN_ALL
        """States that may be looked at in all, and those of them that are left."""
        self._foresight = SubjectModels(saga)
        self._words = words_of(saga)
        self._explored: dict[Hashable, _Explored] = {}
        self._classes: dict[Hashable, RecordedState] = {}
        self.pending = 0
        """Sagas that are still under way."""
        self.breaks: dict[str, PossibleBreak] = {}
        """Keyed by rule."""
        self.left_out: dict[str, NotCompared] = {}
        """Keyed by why: pending sagas that were not explored from."""
        self._remarks: dict[str, None] = {}
        self.unreached: list[UnreachedState] = []
        self.scenarios_left_out: list[str] = []
        """What scenarios come to beside what was seen, and why it was not."""

    @property
    def states(self) -> Sequence[RecordedState]:
        """The recorded states that are different but for names."""
        return list(self._classes.values())

    @property
    def remarks(self) -> Sequence[str]:
        """What is taken for granted, or is not judged."""
        alike = sum(state.count - 1 for state in self.states)
        if not alike:
            return list(self._remarks)
        return [
            *self._remarks,
            f"for {counted(alike, 'subject')}, another one was explored that differs in ids, "
            f"times, and "
            f"texts that no code names: a reaction that decides by what else there is to a text, "
            f"or by how much time has passed, may tell them apart",
        ]

    @property
    def ok(self) -> bool:
        """Whether nothing can go wrong, and all of it was looked at."""
        looked = all(state.whole and not state.refused for state in self._classes.values())
        return looked and not (self.breaks or self.left_out)

    # --- where they are -------------------------------------------------------------------------

    def take(self, told: RecordedSubject, waiting: UnderWay) -> None:
        """Explore on from a subject that is under way."""
        self.pending += 1
        now = self._reached.newest
        if told.unreadable or now is None:
            self._leave_out("of which this version cannot read an event", told.subject)
            return
        facts = [Fact(e.envelope, e.envelope.to_bytes(), position=e.position) for e in told.events]
        story = tell(self._graph, told.subject, facts)
        owed = waiting.waits | waiting.asking
        debts = [
            debt
            for debt in debts_of(self._graph, story, now)
            if debt.event is None or (debt.participant, debt.event.id) in owed
        ]
        known = {(debt.participant, debt.event.id) for debt in debts if debt.event is not None}
        if unknown := sorted({name for name, _ in waiting.asking - known}):
            asks = f"about which {' and '.join(unknown)} is asking the outside: no event tells what"
            self._leave_out(asks, told.subject)
            return
        coming = coming_of(self._graph, story, now)
        shared = self._shared_now(story)
        parts: dict[Hashable, _Beginning] = {}
        for among in self._parts(debts, coming):
            part = _Beginning(story, debts, coming, shared, among)
            parts[self._likeness(part)] = part
        if not parts:
            waits = " and ".join(sorted({name for name, _ in owed}))
            self._leave_out(f"which wait for {waits}: the events tell too little", told.subject)
            return
        if (same := self._classes.get(tuple(parts))) is not None:
            same.count += 1
            return
        if len(self._classes) >= CLASSES_MAX:
            self._leave_out(f"in another than the first {CLASSES_MAX:,} states", told.subject)
            return
        if self.left <= 0:
            self._leave_out(
                f"in states that were met once {self.budget:,} had been looked at in all; allow "
                f"more with --max-states",
                told.subject,
            )
            return
        here = self._classes[tuple(parts)] = RecordedState(told.subject)
        for key, part in parts.items():
            new = key not in self._explored
            if new:
                self._explored[key] = self._explore(part)
            self._note(here, self._explored[key], new=new)

    def _note(self, here: RecordedState, seen: _Explored, *, new: bool) -> None:
        """Note what was seen from a part of a subject."""
        here.states += seen.states if new else 0
        here.whole &= seen.whole
        here.refused = here.refused or seen.refused
        for one in seen.breaks:
            known = self.breaks.setdefault(one.rule, one)
            if here not in known.from_states:
                known.from_states.append(here)

    def _leave_out(self, why: str, subject: str) -> None:
        found = self.left_out.setdefault(why, NotCompared(0, subject))
        found.count += 1

    def _parts(self, debts: Sequence[Debt], coming: Sequence[Coming]) -> Iterator[Choreography]:
        """Who goes on together: those who can change how it ends, and each of the others."""
        names = {debt.participant for debt in debts} | {one.participant for one in coming}
        influential = self._foresight.influential
        inside = {participant.name for participant in influential.participants}
        if names & inside:
            yield influential
        for participant in self._graph.participants:
            if participant.name in names - inside:
                yield Choreography((participant,), partial=True)

    def _explore(self, part: _Beginning) -> _Explored:
        """What can be reached from there."""
        story, now = part.story, self._reached.newest
        assert now is not None  # noqa: S101 - see `take`
        try:
            present = self._foresight.present(
                story, part.debts, part.coming, part.shared, now, among=part.among
            )
            seen = outlook(
                present,
                self._foresight.judged(present),
                states_max=min(self._states_max, self.left),
                seconds_max=float("inf"),
            )
        except VerifyError as error:
            return _Explored(refused=str(error))
        except TypeError as error:
            return _Explored(refused=f"a state cannot be put into the model: {error}")
        self.left -= seen.states
        remarks = [
            *(f"{rule} is not judged: it reads more than one subject" for rule in present.unjudged),
            *(f"{t} is not given: what it would hold is in no event" for t in present.untried),
            *present.remarks,
            *(f"{each}: its refusals were not followed to their end" for each in seen.cut_short),
            *(f"all this is so as long as nothing else changes {each}" for each in seen.depends_on),
        ]
        self._remarks |= dict.fromkeys(remarks)
        breaks = [
            PossibleBreak(each.violation.rule, each.violation.detail, story.subject, each.way)
            for each in seen.broken
        ]
        return _Explored(seen.states, seen.whole, breaks=breaks)

    def _shared_now(self, story: Story) -> SharedStates:
        """What the subject shares with others, as it is by the end of the history."""
        return {
            (name, (kind, key)): self._shared[name].latest((kind, key))
            for (name, kind), keys in shared_keys(self._graph, story).items()
            for key in sorted(keys)
        }

    def _likeness(self, part: _Beginning) -> Hashable:
        """What two sagas have in common that are in the same state but for names."""
        assert self._reached.newest is not None  # noqa: S101 - see `take`
        names = {participant.name for participant in part.among.participants}
        renaming = Renaming(self._words, self._reached.newest)
        renaming.of(part.story.subject)
        told = tuple(
            (event.type, event.source, event.sequence, renaming.of(event.data))
            for event in part.story.events.values()
        )
        waits = tuple(
            (
                debt.participant,
                debt.event.type if debt.event else "",
                renaming.of(debt.firing.due.command)
                if debt.firing
                else renaming.of(debt.event.data if debt.event else None),
            )
            for debt in part.debts
            if debt.participant in names
        )
        due = tuple(
            (one.participant, renaming.of(one.at), renaming.of(one.firing.due.command))
            for one in part.coming
            if one.participant in names
        )
        common = tuple(
            (name, kind, renaming.of(state)) for (name, (kind, _)), state in part.shared.items()
        )
        return tuple(sorted(names)), told, waits, due, common, renaming.order()

    # --- what scenarios come to -----------------------------------------------------------------

    def compare_scenarios(self, shapes: Shapes, tell_of: Told = lambda _: None) -> None:
        """Compare recorded states with those of the scenarios' models. Blocks."""
        reached: set[tuple[str, type[State], Shape]] = set()
        for scenario in self._saga.scenarios:
            tell_of(scenario.name)
            try:
                machine = Machine(model_of(self._saga, scenario.name))
            except VerifyError as error:
                self.scenarios_left_out.append(f"{scenario.name}: {error}")
                continue
            try:
                seen = explore(machine, states_max=SCENARIO_STATES_MAX)
            except VerifyError as error:
                self.scenarios_left_out.append(f"all of {scenario.name}: {error}")
            else:
                if seen.found is not None:
                    self.scenarios_left_out.append(
                        f"all of {scenario.name}: it breaks {seen.found.violation.rule}; `saga "
                        f"verify` shows how"
                    )
                elif not seen.whole:
                    self.scenarios_left_out.append(
                        f"{scenario.name} beyond its first {counted(seen.states, 'state')}"
                    )
            reached.update(
                (name, kind, shape_of(state))
                for name, known in machine.knowledge()
                for (kind, _), state in known.items()
            )
        self.unreached = [
            UnreachedState(name, kind.__name__, shape, seen.count, seen.subject)
            for (name, kind, shape), seen in shapes.seen.items()
            if (name, kind, shape) not in reached
        ]
        self.unreached.sort(key=lambda one: (-one.count, one.participant, one.shape))
