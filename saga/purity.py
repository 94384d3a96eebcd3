"""Whether reactions, and what states become by them, depend on their arguments alone.

The kernel decides on the same message again after a conflict, a crash, or a rebuild, and counts on
the same decision. So whatever a reaction may use besides its arguments is looked for: memory of its
module, chance, the clock, the order of a set. It must not change its arguments either.

A call is made twice, each time on fresh copies: in the second, sets that came as arguments are gone
through in the opposite order, and calls of the clock and of chance are noticed. What a reaction
remembers of *other* calls shows when all calls are made again, in the opposite order (`Calls`); the
order of a set that it has made itself, in a process that hashes otherwise (`saga.verify.again`).
"""

from __future__ import annotations

import copy
import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from datetime import UTC, date, datetime
from enum import Enum
from functools import lru_cache, wraps
from types import FrameType
from typing import Any, Final, TypeVar, cast
from uuid import UUID

from pydantic import BaseModel

from saga.branches import Branch, branches_in
from saga.choreography import Participant, Reaction, State
from saga.envelope import Envelope
from saga.message import Decided, Intent, Message
from saga.runtime.kernel.step import (
    Decision,
    Find,
    Firing,
    StateId,
    arguments_of,
    react,
    react_to_due,
    reaction_to,
)
from saga.surroundings import UNDECIDING, WATCHED_CODE, used_by_builtin

T = TypeVar("T")

SHOWN_MAX: Final = 160
"""Characters of a value that a finding shows."""
REASON: Final = "memory of the module, chance, the clock or the order of a set"
"""What a reaction must not use."""

_ATOMS: Final = (str, bytes, int, float, bool, type(None), UUID, datetime, date, Enum, type)
"""What cannot be changed."""
_SOME_TIME: Final = datetime(2030, 1, 1, tzinfo=UTC)


class Impure(Exception):
    """A call depended on something besides its arguments, or changed them. Says what, and the way
    out."""


class _Backwards(frozenset[Any]):
    """A set whose members come in the opposite order."""

    def __iter__(self) -> Iterator[Any]:
        return iter([*super().__iter__()][::-1])


@dataclass(frozen=True, slots=True)
class Call:
    """A reaction's call, with all that it got."""

    firing: Firing | None
    cause: Envelope[Any]
    message: Message
    states: Mapping[StateId, State]
    now: datetime

    def find(self, state_id: StateId) -> State:
        """A state as it was then."""
        kind, key = state_id
        return self.states.get(state_id) or kind(key)

    def make(self, participant: Participant, find: Find, message: Message) -> Decision | None:
        """Make it, on these states and this message, which equal its own."""
        if self.firing is not None:
            return react_to_due(participant, self.firing, self.cause, find, self.now)
        return react(participant, self.cause, message, find, self.now)


@dataclass(frozen=True, slots=True)
class CallOutcome:
    """What came of a call: what was decided, and the states after it; or an error's type."""

    results: tuple[Any, ...] = ()
    changes: Mapping[StateId, State] | None = None
    error: str = ""

    @classmethod
    def of(cls, decision: Decision | None, error: Exception | None = None) -> CallOutcome:
        if error is not None:
            return cls(error=type(error).__name__)
        if decision is None:
            return cls()
        results = [event.data for event in decision.events]
        if decision.intent is not None:
            results.append(decision.intent)
        return cls(tuple(results), decision.changes)


class Calls:
    """The calls of one participant's reactions: each is made twice, and can be made again; once,
    and kept nowhere, where they are not `checked`."""

    def __init__(self, participant: Participant, *, checked: bool = True) -> None:
        self.participant = participant
        self._checked = checked
        self.made: list[tuple[Call, CallOutcome]] = []

    def decide(
        self,
        firing: Firing | None,
        cause: Envelope[Any],
        message: Message,
        find: Find,
        now: datetime,
    ) -> Decision | None:
        """The kernel's step. Raises what it raises, and `Impure`."""
        states: dict[StateId, State] = {}

        def found(state_id: StateId) -> State:
            if state_id not in states:
                states[state_id] = find(state_id)
            return states[state_id]

        call = Call(firing, cause, message, states, now)
        if not self._checked:
            return call.make(self.participant, find, message)
        decision, error = self._make(call, found)
        first = CallOutcome.of(decision, error)
        self.made.append((call, first))
        with watched() as uses:
            second = CallOutcome.of(*self._make(call, found, backwards=True))
        if uses:
            raise Impure(f"{self._name(call)} is not pure: {uses[0]}")
        if difference := self.difference(call, first, second):
            raise Impure(difference)
        if error is not None:
            raise error
        return decision

    def again(self, when: str = "after others", reason: str = REASON) -> Iterator[tuple[str, str]]:
        """Make all calls again, the last one first: what a reaction remembers is another thing
        then. Yields subjects, with what came out otherwise."""
        for call, before in reversed(self.made):
            try:
                after = CallOutcome.of(*self._make(call, call.find))
            except Impure as impure:
                yield call.message.subject, str(impure)
                continue
            if difference := self.difference(call, before, after, when, reason):
                yield call.message.subject, difference

    def difference(
        self,
        call: Call,
        first: CallOutcome,
        second: CallOutcome,
        when: str = "at once",
        reason: str = REASON,
    ) -> str:
        """What came out otherwise the second time; empty if nothing did."""
        if first == second:
            return ""
        name = self._name(call)
        if (first.results, first.error) == (second.results, second.error):
            ours, theirs = first.changes or {}, second.changes or {}
            for state_id in ours.keys() | theirs.keys():
                before, after = ours.get(state_id), theirs.get(state_id)
                if before != after:
                    kind, key = state_id
                    return (
                        f"{kind.__name__}.evolve, by what {name} decided, is not pure: called "
                        f"{when} again with equal arguments, it made another {kind.__name__} "
                        f"{key!r}: {_shown(before, after)}; let it use its arguments alone, not "
                        f"{reason}"
                    )
        return (
            f"{name} is not pure: called {when} again with equal arguments, it decided otherwise: "
            f"{_shown(first.results or first.error, second.results or second.error)}; let it use "
            f"its arguments alone, not {reason}"
        )

    def _name(self, call: Call) -> str:
        return f"{self.participant.name}.{self._reaction(call).name}"

    def _reaction(self, call: Call) -> Reaction:
        return reaction_to(self.participant, call.message)

    def _make(
        self, call: Call, find: Find, *, backwards: bool = False
    ) -> tuple[Decision | None, Exception | None]:
        """Make a call on fresh copies. Raises `Impure` if it changed them."""
        copies: dict[StateId, tuple[State, State]] = {}

        def copied(state_id: StateId) -> State:
            if state_id not in copies:
                state = find(state_id)
                copies[state_id] = state, fresh(state, backwards=backwards)
            return copies[state_id][1]

        message = fresh(call.message, backwards=backwards)
        decision: Decision | None = None
        raised: Exception | None = None
        try:
            decision = call.make(self.participant, copied, message)
        except Exception as error:  # Whatever a domain raises, twice the same.
            raised = error
        if message != call.message:
            raise Impure(
                f"{self._name(call)} changes its {type(message).__name__} in place: "
                f"{_shown(call.message, message)}; let it leave its arguments as they are"
            )
        for (kind, key), (state, after) in copies.items():
            if state != after:
                raise Impure(self._changed(call, find, kind, key, state, after))
        return decision, raised

    def _changed(
        self, call: Call, find: Find, kind: type[State], key: str, state: State, after: State
    ) -> str:
        """Who changed a state: the reaction by itself, or what states become by its decision."""
        reaction, copies = self._reaction(call), dict[StateId, State]()

        def copied(state_id: StateId) -> State:
            return copies.setdefault(state_id, fresh(find(state_id)))

        who = f"{kind.__name__}.evolve, by what {self._name(call)} decided,"
        message = fresh(call.message)
        own = copied((reaction.own, call.cause.subject))
        try:
            reaction.function(message, *arguments_of(reaction, message, own, copied, call.now))
        except Exception:
            who = self._name(call)
        if any(copy != find(state_id) for state_id, copy in copies.items()):
            who = self._name(call)
        return (
            f"{who} changes the {kind.__name__} {key!r} in place: {_shown(state, after)}; let it "
            f"return a new one"
        )


class Sample:
    """What was seen in one run, in which the first call that takes each branch is made twice."""

    def __init__(self) -> None:
        self.impure: dict[str, None] = {}
        """In words."""
        self.took: set[Branch] = set()
        """What the reactions decided on, whatever became of it."""
        self._twice: set[tuple[str, tuple[type, ...]]] = set()

    def begin(self) -> None:
        """Another run begins."""
        self.impure.clear()
        self.took.clear()
        self._twice.clear()

    def note(self, what: str) -> None:
        self.impure[what] = None

    def wants(self, reaction: str, came: tuple[type, ...]) -> bool:
        """Whether a call of which this came, results or an error, is to be made again."""
        if (reaction, came) in self._twice:
            return False
        self._twice.add((reaction, came))
        return True


def sampled(participant: Participant, sample: Sample) -> Participant:
    """The participant, whose reactions are called twice where the sample wants that, as are the
    `evolve` of the states that they were given. What is kept is what came of the first call."""
    other = copy.copy(participant)
    other.reactions = tuple(
        replace(one, function=_twice(one, participant.name, sample))
        for one in participant.reactions
    )
    other.by_message = {reaction.consumes: reaction for reaction in other.reactions}
    instead = {
        old.function: new.function
        for old, new in zip(participant.reactions, other.reactions, strict=True)
    }
    other.retries = {instead[function]: retry for function, retry in participant.retries.items()}
    return other


def _twice(reaction: Reaction, of: str, sample: Sample) -> Callable[..., Any]:
    """The reaction's function, which says what is not pure about it, and does the same."""
    name, function, found = f"{of}.{reaction.name}", reaction.function, sample.note

    @wraps(function)
    def called(message: Message, *arguments: Any) -> Any:
        before = fresh((message, arguments))
        result, error = _result(function, message, arguments)
        if (message, arguments) != before:
            found(
                f"{name} changes its arguments in place: "
                f"{_shown((before[0], *before[1]), (message, *arguments))}; let it leave them as "
                f"they are"
            )
        decided = result if isinstance(result, tuple) else () if result is None else (result,)
        kinds = tuple(map(type, decided))
        if sample.wants(name, kinds if error is None else (type(error),)):
            again(before, decided, result, error)
            if error is None:
                sample.took |= branches_in(of, reaction, kinds)
        if error is not None:
            raise error
        return result

    def again(
        before: tuple[Message, tuple[Any, ...]],
        decided: Sequence[Decided],
        result: Any,
        error: Exception | None,
    ) -> None:
        message, arguments = fresh(before, backwards=True)
        with watched() as uses:
            other, other_error = _result(function, message, arguments)
            for state in _states_in(before[1]):
                for one in decided:
                    _evolve_twice(state, one, name, found)
        if uses:
            found(f"{name} is not pure: {uses[0]}")
        elif result != other or type(error) is not type(other_error):
            found(
                f"{name} is not pure: called at once again with equal arguments, it decided "
                f"otherwise: {_shown(error or result, other_error or other)}; let it use its "
                f"arguments alone, not {REASON}"
            )

    return called


def _result(
    function: Callable[..., Any], message: Message, arguments: Sequence[Any]
) -> tuple[Any, Exception | None]:
    try:
        return function(message, *arguments), None
    except Exception as error:  # Whatever a domain raises.
        return None, error


def _states_in(arguments: Sequence[Any]) -> Iterator[State]:
    for each in arguments:
        if isinstance(each, State):
            yield each
        elif isinstance(each, Mapping):
            yield from each.values()


def _evolve_twice(state: State, decided: Decided, name: str, found: Callable[[str], None]) -> None:
    fact = decided if isinstance(decided, Intent) else decided.newest()
    first, second = fresh(state), fresh(state, backwards=True)
    one, other = first.evolve(fact, _SOME_TIME), second.evolve(fact, _SOME_TIME)
    who = f"{type(state).__name__}.evolve, by what {name} decided,"
    if (first, second) != (state, state):
        found(f"{who} changes the {type(state).__name__} in place: {_shown(state, first)}")
    elif one != other:
        found(f"{who} is not pure: {_shown(one, other)}; let it use its arguments alone")


def repeated(call: Callable[[], T], who: str) -> T:
    """What comes of a call that is made twice. Raises what it raises, and `Impure`."""
    first, second = call(), call()
    if first != second:
        raise Impure(
            f"{who} is not pure: asked at once again, it did otherwise: {_shown(first, second)}; "
            f"let it use its books and what is decided alone, not {REASON}"
        )
    return first


def fresh(value: T, *, backwards: bool = False) -> T:
    """An equal copy that shares nothing that can be changed; `backwards`, with sets whose members
    come in the opposite order."""
    return cast("T", _fresh(value, backwards))


def _fresh(value: Any, backwards: bool) -> Any:
    if isinstance(value, _ATOMS):
        return value
    kind = type(value)
    if kind is tuple or kind is list or kind is set:
        return kind(_fresh(each, backwards) for each in value)
    if kind is frozenset:
        members = (_fresh(each, backwards) for each in value)
        return _Backwards(members) if backwards else frozenset(members)
    if kind is dict:
        return {key: _fresh(each, backwards) for key, each in value.items()}
    if isinstance(value, BaseModel):
        copied = value.model_copy()
        inside = vars(copied)
        for name, inner in inside.items():
            if not isinstance(inner, _ATOMS):
                inside[name] = _fresh(inner, backwards)
        return copied
    if is_dataclass(value):
        other = _copied(value)
        for name in _fields_of(cast("Any", kind)):
            inner = getattr(value, name)
            if not isinstance(inner, _ATOMS):
                object.__setattr__(other, name, _fresh(inner, backwards))
        return other
    return copy.deepcopy(value)


def _copied(value: Any) -> Any:
    """What `copy.copy` makes of a dataclass, which asks it again how it wants to be copied."""
    kind: Any = type(value)
    if kind.__new__ is not object.__new__:
        return copy.copy(value)
    other = object.__new__(kind)
    inside = getattr(value, "__dict__", {})
    if inside:
        other.__dict__.update(inside)
    for name in _fields_of(kind):
        if name not in inside:  # It has a slot.
            object.__setattr__(other, name, getattr(value, name))
    return other


@lru_cache(maxsize=1_024)
def _fields_of(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


@contextmanager
def watched() -> Iterator[list[str]]:
    """Gives what is used of the clock and of chance by what is called meanwhile, in words."""
    uses: list[str] = []

    def notice(frame: FrameType, event: str, function: Any) -> None:
        if event == "c_call":
            what = used_by_builtin(function, frame)
        elif event == "call" and frame.f_code in WATCHED_CODE:
            what = WATCHED_CODE[frame.f_code](frame)
        else:
            return
        if what and (place := _place(frame)):
            uses.append(f"{place} {what}")

    # Garbage of others is none of this: finalizers and `gc.callbacks` may well use the clock.
    before, collects = sys.getprofile(), gc.isenabled()
    gc.disable()
    sys.setprofile(notice)
    try:
        yield uses
    finally:
        sys.setprofile(before)
        if collects:
            gc.enable()


def _place(frame: FrameType | None) -> str:
    """The function outside the standard library from which one is called; empty where nothing can
    be decided by what is called: it only writes a log, for instance."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__", "")).partition(".")[0]
        if module in UNDECIDING:
            return ""
        if module not in sys.stdlib_module_names or module == "__main__":
            return frame.f_code.co_qualname
        frame = frame.f_back
    return ""


def _shown(first: Any, second: Any) -> str:
    """How two values differ, in words."""
    if isinstance(first, tuple) and isinstance(second, tuple):
        if [*map(type, first)] != [*map(type, second)]:
            return f"{_kinds(first)}, then {_kinds(second)}"
        for one, other in zip(first, second, strict=True):
            if one != other:
                return _shown(one, other)
    if type(first) is type(second) and not isinstance(first, str | tuple):
        for name in names_in(first):
            before, after = getattr(first, name), getattr(second, name)
            if before != after:
                what = f"{type(first).__name__}.{name}"
                return f"{what} is {_cut(before)}, then {_cut(after)}"
    return f"{_cut(first)}, then {_cut(second)}"


def names_in(value: Any) -> Sequence[str]:
    """The fields of a message, a part of one, or a state."""
    if isinstance(value, BaseModel):
        return [*type(value).model_fields]
    if is_dataclass(value) and not isinstance(value, type):
        return [field.name for field in fields(value)]
    return []


def _kinds(values: Sequence[Any]) -> str:
    return " and ".join(type(each).__name__ for each in values) or "nothing"


def _cut(value: Any) -> str:
    said = repr(value)
    return said if len(said) <= SHOWN_MAX else f"{said[:SHOWN_MAX]}..."
