"""One reaction to one message, with no I/O: what it decides and what becomes of the states."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from saga.choreography import Participant, Reaction, State
from saga.due import Due
from saga.envelope import (
    Envelope,
    MessageKey,
    derived_id,
    is_recorded,
    rfc3339,
    source_of,
    wrap,
)
from saga.message import Command, Decided, Event, Intent, Message

StateId = tuple[type[State], str]
Find = Callable[[StateId], State]


class OutsideSignature(TypeError):
    """A reaction returned what its signature does not allow, so nothing of it may be kept.

    `reason` is a short, bounded label: `not_its_participants` (an event or a command that no
    reaction of the participant may publish or send), `not_in_signature`, or `another_subject`.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason = reason


class NoReaction(LookupError):
    """A message its receiver has no reaction for."""


class DueStays(RuntimeError):
    """What was due is due as before once it was done: it would be done again for ever."""


@dataclass(frozen=True, slots=True)
class ForwardRequest:
    """Who wants what is due done now, and why; for the audit record."""

    who: str
    reason: str


@dataclass(frozen=True, slots=True)
class Firing:
    """What is due about one state, to be done once.

    `sequence` is the state's at that time: what is due again later, for the same time, is another
    firing. One that is `brought_forward` does not wait for its time.
    """

    kind: type[State]
    key: str
    sequence: int
    due: Due[Any]
    brought_forward: ForwardRequest | None = None

    @classmethod
    def of(cls, state: State, *, brought_forward: ForwardRequest | None = None) -> Firing | None:
        """What is due about a state, now or later; None if nothing is."""
        due = state.due()
        if due is None:
            return None
        return cls(type(state), state.key, state.sequence, due, brought_forward)

    def may_be_done(self, state: State, now: datetime) -> bool:
        """Whether it is due about a state as it is by now, and its time has come."""
        if state.due() != self.due:
            return False
        return self.brought_forward is not None or self.due.at <= now

    def envelope(self, participant: str, now: datetime) -> Envelope[Any]:
        """The command, with the same id whichever replica gives it: its events' ids follow."""
        return wrap(
            self.due.command,
            id=self.id(participant),
            source=due_source_of(participant, brought_forward=self.brought_forward is not None),
            time=now,
            priority=self.due.priority,
        )

    def id(self, participant: str) -> str:
        """The id of the command."""
        about = f"{participant}/{self.kind.__name__}/{self.key}"
        return derived_id(about, f"{self.sequence}/{rfc3339(self.due.at)}/{self.due.command.type}")


def done_before(participant: str, firing: Firing) -> DueStays:
    """Why it is not done: its id says that it was, and what came of it would have the ids of what
    came of that."""
    what = f"{firing.kind.__name__} {firing.key!r}"
    return DueStays(
        f"{firing.due.command.type} is due about {what}, at {rfc3339(firing.due.at)}, and "
        f"{participant} did that before, at the same sequence {firing.sequence}: its row was put "
        f"back. Correct the row, or rebuild the states of {participant}"
    )


def due_source_of(participant: str, *, brought_forward: bool = False) -> str:
    """The CloudEvents `source` of the commands that a participant's states have due."""
    return f"{source_of(participant)}/{'brought-forward' if brought_forward else 'due'}"


@dataclass(frozen=True, slots=True)
class Decision:
    """What a reaction decided.

    `events` are to be published, in this order; commands to other participants are among them, and
    are numbered, kept and published like events. `intent` is to be asked once this is committed,
    after which the reaction to its answer goes on where this one stopped. `changes` are the new
    states, by kind and key; `own` is the new state of the message's subject, and `before` the one
    that was decided on.
    """

    events: tuple[Envelope[Any], ...]
    intent: Intent | None
    changes: Mapping[StateId, State]
    own: State
    before: State


def reaction_to(participant: Participant, message: Message) -> Reaction:
    """The participant's reaction to `message`; `NoReaction` if it has none."""
    try:
        return participant.by_message[type(message)]
    except KeyError:
        raise NoReaction(
            f"{participant.name} has no reaction to {type(message).__name__}"
        ) from None


def react(
    participant: Participant,
    cause: Envelope[Any],
    message: Message,
    find: Find,
    now: datetime,
    traceparent: str | None = None,
    *,
    taken_at: datetime | None = None,
    attempt: int = 1,
) -> Decision:
    """Run the reaction to `message`, which is `cause`'s data or the answer to what it led to.

    Both have one subject. `find` gives a state as it is now, blank if there is none; `traceparent`
    is for the events, by default that of what caused them, unless that came from outside: its trace
    may be another. The events say when `cause` was taken and at which try, if that is given. Raises
    what the reaction raises, `NoReaction` and `OutsideSignature`.
    """
    if traceparent is None and is_recorded(cause):
        traceparent = cause.traceparent
    reaction = reaction_to(participant, message)
    results = results_of(participant, reaction, message, cause.subject, find, now)
    return decided(
        participant,
        reaction,
        cause,
        results,
        find,
        now,
        traceparent,
        taken_at=taken_at,
        attempt=attempt,
    )


def results_of(
    participant: Participant,
    reaction: Reaction,
    message: Message,
    subject: str,
    find: Find,
    now: datetime,
) -> tuple[Decided, ...]:
    """What the reaction returns for a message about that subject. Raises what it raises, and
    `OutsideSignature`."""
    own = find((reaction.own, subject))
    results = _as_tuple(
        reaction.function(message, *arguments_of(reaction, message, own, find, now))
    )
    _check(participant, reaction, message, subject, results)
    return results


def decided(
    participant: Participant,
    reaction: Reaction,
    cause: Envelope[Any],
    results: tuple[Any, ...],
    find: Find,
    now: datetime,
    traceparent: str | None = None,
    *,
    taken_at: datetime | None = None,
    attempt: int = 1,
) -> Decision:
    """What becomes of a reaction's results, all of which have the subject of `cause`; see
    `react`."""
    own_id: StateId = (reaction.own, cause.subject)
    before = find(own_id)
    cause_id = id_among_causes(type(cause.data), cause.key)
    events: list[Envelope[Any]] = []
    intent: Intent | None = None
    changes: dict[StateId, State] = {}

    def current(state_id: StateId) -> State:
        return changes.get(state_id) or find(state_id)

    for result in results:
        own = current(own_id)
        changes.update(evolved(participant, own_id, result, current, now))
        if isinstance(result, Event | Command):
            own = replace(current(own_id), sequence=own.sequence + 1)
            changes[own_id] = own
            events.append(
                wrap(
                    result,
                    id=derived_id(cause_id, f"{participant.name}.{reaction.name}.{result.type}"),
                    source=source_of(participant.name),
                    time=now,
                    priority=cause.priority,
                    causation=cause.id,
                    sequence=own.sequence,
                    traceparent=traceparent,
                    taken_at=taken_at,
                    attempt=attempt,
                    subject=cause.subject,
                )
            )
        else:
            intent = result
    return Decision(tuple(events), intent, changes, current(own_id), before)


def react_to_due(
    participant: Participant,
    firing: Firing,
    cause: Envelope[Any],
    find: Find,
    now: datetime,
    traceparent: str | None = None,
    *,
    taken_at: datetime | None = None,
) -> Decision | None:
    """Run the reaction to what is due; `cause` is the firing's envelope.

    None if it is not, because its time has not come by now, or something has happened before.
    Raises `DueStays`, and what `react` raises.
    """
    state = find((firing.kind, firing.key))
    if not firing.may_be_done(state, now):
        return None
    decision = react(participant, cause, cause.data, find, now, traceparent, taken_at=taken_at)
    after = decision.changes.get((firing.kind, firing.key), state)
    if after.due() == firing.due:
        reaction = reaction_to(participant, cause.data)
        raise DueStays(
            f"{participant.name}.{reaction.name} leaves {cause.type} due about "
            f"{firing.kind.__name__} {firing.key!r}, at {rfc3339(firing.due.at)} as before; let it "
            f"decide on something after which {firing.kind.__name__}.due says nothing, or another "
            f"time"
        )
    return decision


def cause_among_commands(id: str, source: str) -> str:
    """What the ids of the events that a command leads to are derived from."""
    return f"{id}\t{source}"


def id_among_causes(kind: type[Message], cause: MessageKey) -> str:
    """What tells a cause of this kind from all others that the same reaction may have.

    An event's id is enough where its type has one publisher; commands may come from many sources,
    each with its own ids.
    """
    if issubclass(kind, Event) and kind.publisher is not None:
        return cause.id
    return cause_among_commands(cause.id, cause.source)


def evolved(
    participant: Participant,
    own_id: StateId,
    message: Decided,
    find: Find,
    at: datetime,
) -> dict[StateId, State]:
    """What becomes of the participant's states by a message of its own that came about at `at`,
    and is numbered by the state under this id; without what stays as it is."""
    own_kind, _ = own_id
    own = find(own_id)
    # States know messages as they are read: in their newest version, whichever is published.
    fact = message if isinstance(message, Intent) else message.newest()
    changes: dict[StateId, State] = {}
    for kind in participant.states:
        for key in (own.key,) if kind is own_kind else kind.keys(fact, own):
            before = changes.get((kind, key)) or find((kind, key))
            after = before.evolve(fact, at)
            if after is not before:
                changes[kind, key] = after
    return changes


def _check(
    participant: Participant,
    reaction: Reaction,
    message: Message,
    subject: str,
    results: tuple[Any, ...],
) -> None:
    """Raise `OutsideSignature` for results that the reaction's signature does not allow."""
    kinds = tuple(map(type, results))
    if reaction.allows(kinds) and all(result.subject == subject for result in results):
        return
    said = (
        f"{participant.name}.{reaction.name} returned {_list(kinds)} in reaction to "
        f"{type(message).__name__} about {subject!r}"
    )
    emitted = [kind for kind in kinds if issubclass(kind, Event | Command)]
    if strange := [kind for kind in emitted if kind not in participant.emits]:
        raise OutsideSignature(
            "not_its_participants",
            f"{said}; no reaction of {participant.name} may publish {_list(strange)}",
        )
    if not reaction.allows(kinds):
        raise OutsideSignature("not_in_signature", f"{said}; its signature does not allow that")
    raise OutsideSignature(
        "another_subject",
        f"{said}, but about {' and '.join(repr(result.subject) for result in results)}",
    )


def _list(kinds: Iterable[type]) -> str:
    return " and ".join(kind.__name__ for kind in kinds) or "nothing"


def arguments_of(
    reaction: Reaction, message: Message, own: State, find: Find, now: datetime
) -> list[Any]:
    arguments: list[Any] = []
    for _, kind, many in reaction.parameters:
        if not issubclass(kind, State):
            arguments.append(now)
        elif many:
            arguments.append({key: find((kind, key)) for key in kind.keys(message, own)})
        else:
            arguments.append(own if kind is reaction.own else find((kind, own.key)))
    return arguments


def _as_tuple(results: Any) -> tuple[Any, ...]:
    if results is None:
        return ()
    return results if isinstance(results, tuple) else (results,)
