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
from saga.future.ends import outlook
from saga.future.present import Foresight, SharedStates, shared_keys
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

STATES_MAX: Final = 200_000
"""States that are looked at from one recorded state on."""
SCENARIO_STATES_MAX: Final = 1_000_000
"""States of one scenario that are looked at for what it comes to; `saga verify` looks at more."""
CLASSES_MAX: Final = 2_000
"""Recorded states that are explored from; the others are named."""
SHAPES_MAX: Final = 10_000

Told = Callable[[str], None]


@dataclass(slots=True)
class RecordedState:
    """A state that recorded sagas are in: how many, and one of them."""

    subject: str
    count: int = 1
    states: int = 0
    """Those that can be reached from it, and were looked at."""
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


class Onward:
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
        self._foresight = Foresight(saga)
        self._words = words_of(self._graph)
        self._classes: dict[Hashable, RecordedState] = {}
        self.pending = 0
        """Sagas that are still under way."""
        self.breaks: dict[str, PossibleBreak] = {}
        """Keyed by rule."""
        self.left_out: dict[str, NotCompared] = {}
        """Keyed by why: pending sagas that were not explored from."""
        self.remarks: dict[str, None] = {}
        """What is taken for granted, or is not judged."""
        self._shapes: dict[tuple[str, type[State], Shape], NotCompared] = {}
        self.unreached: list[UnreachedState] = []
        self.scenarios_left_out: list[str] = []
        """What scenarios come to beside what was seen, and why it was not."""

    @property
    def states(self) -> Sequence[RecordedState]:
        """The recorded states that are different but for names."""
        return list(self._classes.values())

    @property
    def ok(self) -> bool:
        """Whether nothing can go wrong, and all of it was looked at."""
        looked = all(state.whole and not state.refused for state in self._classes.values())
        return looked and not (self.breaks or self.left_out)

    # --- where they are -------------------------------------------------------------------------

    def take(self, told: RecordedSubject, reviews: Mapping[str, Review]) -> None:
        """Note the states of one subject; if it is not at rest, explore on from there."""
        for name, review in reviews.items():
            # Most states stay what they are from one event to the next.
            passed = {id(state): state for states in review.passed for state in states.values()}
            for state in passed.values():
                self._note_shape(name, state, told.subject)
        if not any(review.pending or review.dues for review in reviews.values()):
            return
        self.pending += 1
        if told.unreadable:
            self._leave_out("of which this version cannot read an event", told.subject)
            return
        facts = [Fact(e.envelope, e.envelope.to_bytes(), position=e.position) for e in told.events]
        story = tell(self._graph, told.subject, facts)
        now = self._reached.newest
        if now is None:
            return
        waits = {
            (name, message.envelope.id)
            for name, review in reviews.items()
            for message in review.pending
        }
        debts = [
            debt
            for debt in debts_of(self._graph, story, now)
            if debt.event is None or (debt.participant, debt.event.id) in waits
        ]
        coming = coming_of(self._graph, story, now)
        for among in self._parts(debts, coming):
            self._go_on(story, debts, coming, among)

    def _note_shape(self, name: str, state: State, subject: str) -> None:
        key = name, type(state), shape_of(state)
        found = self._shapes.get(key)
        if found is not None:
            found.count += 1
        elif len(self._shapes) < SHAPES_MAX:
            self._shapes[key] = NotCompared(1, subject)

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

    def _go_on(
        self, story: Story, debts: Sequence[Debt], coming: Sequence[Coming], among: Choreography
    ) -> None:
        shared = self._shared_now(story)
        key = self._likeness(story, debts, coming, shared, among)
        known = self._classes.get(key)
        if known is not None:
            known.count += 1
            return
        if len(self._classes) >= CLASSES_MAX:
            self._leave_out(f"in another than the first {CLASSES_MAX} states", story.subject)
            return
        here = self._classes[key] = RecordedState(story.subject)
        assert self._reached.newest is not None  # noqa: S101 - see `take`
        now = self._reached.newest
        try:
            present = self._foresight.present(story, debts, coming, shared, now, among=among)
            seen = outlook(
                present,
                self._foresight.judged(present),
                states_max=self._states_max,
                seconds_max=float("inf"),
            )
        except VerifyError as error:
            here.refused = str(error)
            return
        except TypeError as error:
            here.refused = f"a state cannot be put into the model: {error}"
            return
        here.states, here.whole = seen.states, seen.whole
        for rule in present.unjudged:
            self.remarks[f"{rule} is not judged: it reads more than one subject"] = None
        for type_ in present.untried:
            self.remarks[f"{type_} is not given: what it would hold is in no event"] = None
        for broken in seen.broken:
            rule = broken.violation.rule
            if rule not in self.breaks:
                self.breaks[rule] = PossibleBreak(
                    rule, broken.violation.detail, story.subject, broken.way
                )
            self.breaks[rule].from_states.append(here)

    def _shared_now(self, story: Story) -> SharedStates:
        """What the subject shares with others, as it is by the end of the history."""
        return {
            (name, (kind, key)): self._shared[name].latest((kind, key))
            for (name, kind), keys in shared_keys(self._graph, story).items()
            for key in sorted(keys)
        }

    def _likeness(
        self,
        story: Story,
        debts: Sequence[Debt],
        coming: Sequence[Coming],
        shared: SharedStates,
        among: Choreography,
    ) -> Hashable:
        """What two sagas have in common that are in the same state but for names."""
        assert self._reached.newest is not None  # noqa: S101 - see `take`
        names = {participant.name for participant in among.participants}
        renaming = Renaming(self._words, self._reached.newest)
        renaming.of(story.subject)
        told = tuple(
            (event.type, event.source, event.sequence, renaming.of(event.data))
            for event in story.events.values()
        )
        waits = tuple(
            (
                debt.participant,
                debt.event.type if debt.event else "",
                renaming.of(debt.firing.due.command)
                if debt.firing
                else renaming.of(debt.event.data if debt.event else None),
            )
            for debt in debts
            if debt.participant in names
        )
        due = tuple(
            (one.participant, renaming.of(one.at), renaming.of(one.firing.due.command))
            for one in coming
            if one.participant in names
        )
        common = tuple(
            (name, kind, renaming.of(state)) for (name, (kind, _)), state in shared.items()
        )
        return tuple(sorted(names)), told, waits, due, common, renaming.order()

    # --- what scenarios come to -----------------------------------------------------------------

    def finish(self, *, scenarios: bool = True, tell_of: Told = lambda _: None) -> None:
        """Compare the recorded states with those of the scenarios' models. Blocks."""
        if not scenarios:
            return
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
                        f"{scenario.name} beyond its first {seen.states:,} states"
                    )
            reached.update(
                (name, kind, shape_of(state))
                for name, known in machine.knowledge()
                for (kind, _), state in known.items()
            )
        self.unreached = [
            UnreachedState(name, kind.__name__, shape, seen.count, seen.subject)
            for (name, kind, shape), seen in self._shapes.items()
            if (name, kind, shape) not in reached
        ]
        self.unreached.sort(key=lambda one: (-one.count, one.participant, one.shape))
