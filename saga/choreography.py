"""The choreography as data, read from the reactions' type signatures.

A reaction is a pure function. Its first parameter's annotation says what is consumed; its return
annotation, what may be published; nothing else declares a route:

    def hold(
        event: TripBooked, room: Room, floors: Mapping[str, Floor]
    ) -> RoomHeld | RoomRefused | None: ...

Further parameters are the participant's states, given as they are at that moment, and `now`, the
time. A state is looked up by the message's subject; a mapping of states holds those that
`State.keys` names for the message. None or an empty tuple means: nothing happens.

What a state says is due about it is a route as well, by the return annotation of `State.due`:

    def due(self) -> Due[ExpireTrip] | None: ...
"""

from __future__ import annotations

import inspect
import itertools
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, ClassVar, Final, Self

from saga.due import Due
from saga.envelope import Decoder, believed_of
from saga.errors import Explained
from saga.message import (
    AmbiguousMessage,
    Answer,
    Command,
    Decided,
    E,
    Event,
    Intent,
    Message,
    check_distinct,
)
from saga.retry import Retry

PARTITIONS_MAX: Final = 128
"""Partitions of one queue. Each is a process and a log of its own on three nodes."""

_Shape = tuple[type[Decided], ...]


class ChoreographyError(Explained, TypeError):
    """A participant whose signatures do not make a choreography. Names the function."""


@dataclass(frozen=True, slots=True)
class State:
    """Base of a participant's states: immutable, blank at first, the fold of its own events.

    `key` is what the state is about; `sequence` counts what the participant has published about it.
    """

    key: str
    sequence: int = 0

    @classmethod
    def keys(cls, message: Message, own: State) -> Iterable[str]:
        """The keys of the states of this kind that `message` concerns.

        `own` is the state of the message's own subject, as a reaction would get it. By default
        only that one is concerned.
        """
        return (message.subject,) if isinstance(own, cls) else ()

    def evolve(self, message: Decided, at: datetime) -> Self:
        """The state after one of the participant's own events (or a command it has sent, or an
        intent), which came about at `at`. Never raises; a message that changes nothing returns
        self."""
        return self

    def due(self) -> Due[Any] | None:
        """What is to be done about it, and when, unless something happens before. Never raises.

        The return annotation of a kind's own `due` names the commands, as `Due[A] | Due[B] | None`.
        A kind that has one needs a column `due_at` in its table.
        """
        return None


def has_due(kind: type[State]) -> bool:
    """Whether something may be due about states of this kind."""
    return kind.due is not State.due


def due_commands(kind: type[State]) -> tuple[type[Command], ...]:
    """The commands that may be due about states of this kind, as the annotation says.

    Raises `ChoreographyError` for an annotation that does not say it.
    """
    if not has_due(kind):
        return ()
    where = place_of(kind.due)
    try:
        annotation = typing.get_type_hints(kind.due).get("return")
    except NameError as error:
        raise ChoreographyError(
            f"{where}: {error}; import it in that module, outside `if TYPE_CHECKING`"
        ) from error
    commands: list[type[Command]] = []
    for choice in _choices(annotation):
        if choice is types.NoneType and annotation is not choice:
            continue
        given = _choices(typing.get_args(choice)[0]) if typing.get_origin(choice) is Due else ()
        if not given or not all(isinstance(c, type) and issubclass(c, Command) for c in given):
            raise ChoreographyError(
                f"{where}: annotate what it returns as `Due[...] | None`, with the command that is "
                f"given, not {annotation}"
            )
        commands += given
    return tuple(dict.fromkeys(commands))


@dataclass(frozen=True)
class Reaction:
    """One reaction, as its signature tells it."""

    function: Callable[..., Any]
    consumes: type[Event | Command | Answer]
    returns: tuple[type[Decided], ...]
    parameters: tuple[tuple[str, type[State] | type[datetime], bool], ...]
    """Name, type, and whether a mapping of them is asked for."""
    shapes: frozenset[_Shape]
    """What may be returned together, in which order; the empty one is nothing."""
    repeats: frozenset[type[Decided]]
    """What may be returned together in any choice and order, as by `tuple[A | B, ...]`."""

    @property
    def name(self) -> str:
        return self.function.__name__

    @cached_property
    def own(self) -> type[State]:
        """The state that numbers what the reaction publishes: its first."""
        for _, kind, many in self.parameters:
            if issubclass(kind, State) and not many:
                return kind
        raise ChoreographyError(
            f"{place_of(self.function)}: take the state of the message's subject as a parameter; "
            f"events are numbered by it"
        )

    @property
    def publishes(self) -> tuple[type[Event], ...]:
        return tuple(kind for kind in self.returns if issubclass(kind, Event))

    @property
    def sends(self) -> tuple[type[Command], ...]:
        """The commands that the reaction may send to other participants."""
        return tuple(kind for kind in self.returns if issubclass(kind, Command))

    @property
    def emits(self) -> tuple[type[Event | Command], ...]:
        """All that goes to the broker: what it publishes, and what it sends."""
        return tuple(kind for kind in self.returns if issubclass(kind, Event | Command))

    @property
    def intends(self) -> tuple[type[Intent], ...]:
        return tuple(kind for kind in self.returns if issubclass(kind, Intent))

    @property
    def may_do_nothing(self) -> bool:
        """Whether the signature leaves it open to decide on nothing."""
        return () in self.shapes or bool(self.repeats)

    def allows(self, kinds: _Shape) -> bool:
        """Whether results of these types, in this order, are within the signature."""
        return kinds in self.shapes or (
            self.repeats.issuperset(kinds) and _conflict(kinds) is None and bool(self.repeats)
        )

    @classmethod
    def of(cls, function: Callable[..., Any]) -> Reaction:
        """Read a reaction from its signature; `ChoreographyError` says what it lacks."""
        reaction = cls.read(function)
        if not reaction.returns:
            raise ChoreographyError(
                f"{place_of(function)}: returns nothing, so nothing of what it takes can be kept; "
                f"return an event (a `final` one needs no participant to react to it), or leave "
                f"the reaction out"
            )
        _ = reaction.own
        return reaction

    @classmethod
    def read(cls, function: Callable[..., Any]) -> Reaction:
        """The same of a signature that may name no state, and may return nothing."""
        where = place_of(function)
        try:
            hints = typing.get_type_hints(function)
        except NameError as error:
            raise ChoreographyError(
                f"{where}: {error}; import it in that module, outside `if TYPE_CHECKING`"
            ) from error
        names = list(inspect.signature(function).parameters)
        if "return" not in hints or not names or any(name not in hints for name in names):
            raise ChoreographyError(f"{where}: annotate every parameter and the return type")
        consumes = hints[names[0]]
        if not (isinstance(consumes, type) and issubclass(consumes, Event | Command | Answer)):
            raise ChoreographyError(
                f"{where}: the first parameter must be an event, a command or an answer, "
                f"not {consumes}"
            )
        if issubclass(consumes, Event) and consumes.private:
            raise ChoreographyError(
                f"{where}: {consumes.__name__} is private, so no participant reacts to it; its "
                f"participant has it in its state, and for others let it be an event that is not"
            )
        returns = tuple(dict.fromkeys(_flatten(hints["return"])))
        for kind in returns:
            if not (isinstance(kind, type) and issubclass(kind, Decided)):
                raise ChoreographyError(
                    f"{where}: may return events, commands and intents, not {kind}"
                )
        for kind in (consumes, *returns):
            if issubclass(kind, Event | Command) and not hasattr(kind, "type"):
                raise ChoreographyError(
                    f"{where}: {kind.__name__} has no `type`; name one that has"
                )
        shapes, repeats = _shapes(hints["return"])
        for shape in shapes:
            if conflict := _conflict(shape):
                raise ChoreographyError(f"{where}: {conflict}")
        parameters = tuple((name, *_state(where, name, hints[name])) for name in names[1:])
        return cls(function, consumes, returns, parameters, shapes, repeats)


def place_of(function: Callable[..., Any]) -> str:
    """What a function is called in errors: its module and its name."""
    return f"{function.__module__}.{function.__qualname__}"


def _flatten(annotation: Any) -> Iterable[Any]:
    """The message types in a return annotation: None, types, tuples and unions of them."""
    for choice in _choices(annotation):
        if typing.get_origin(choice) is tuple:
            for place in typing.get_args(choice):
                yield from (kind for kind in _choices(place) if kind is not Ellipsis)
        elif choice is not types.NoneType:
            yield choice


def _shapes(annotation: Any) -> tuple[frozenset[_Shape], frozenset[Any]]:
    """What may be returned together, and what in any number."""
    shapes: set[_Shape] = set()
    repeats: set[Any] = set()
    for choice in _choices(annotation):
        places = [_choices(place) for place in typing.get_args(choice)]
        if choice is types.NoneType:
            shapes.add(())
        elif typing.get_origin(choice) is not tuple:
            shapes.add((choice,))
        elif places and places[-1] == (Ellipsis,):
            repeats.update(places[0])
        else:
            shapes.update(itertools.product(*places))
    return frozenset(shapes), frozenset(repeats)


def _choices(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _conflict(kinds: _Shape) -> str | None:
    """Why these cannot come from one call."""
    intents = [kind for kind in kinds if issubclass(kind, Intent)]
    if len(intents) > 1:
        return f"a reaction asks one thing at a time, not {' and '.join(_names(intents))}"
    if twice := {kind for kind in kinds if kinds.count(kind) > 1}:
        return (
            f"a reaction returns {', '.join(_names(twice))} once at most, "
            f"since an id is derived from the cause and the type"
        )
    return None


def _names(kinds: Iterable[type[Message]]) -> list[str]:
    return sorted(kind.__name__ for kind in kinds)


def _state(where: str, name: str, annotation: Any) -> tuple[Any, bool]:
    if annotation is datetime:
        return datetime, False
    many = typing.get_origin(annotation) is Mapping
    kind = typing.get_args(annotation)[1] if many else annotation
    if isinstance(kind, type) and issubclass(kind, State):
        return kind, many
    raise ChoreographyError(
        f"{where}: parameter {name} must be a State, a Mapping[str, State] or a datetime"
    )


class Participant:
    """One service's part in the choreography: its name and its reactions.

    `retry` is the policy for what fails; `retries` holds those of single reactions, by function.
    `package` is the one with its `store` and `app`; by default, the one its reactions are in.
    """

    foreign: ClassVar[bool] = False
    """Whether it is written in another language; see `saga.foreign.Foreign`."""

    def __init__(
        self,
        name: str,
        *functions: Callable[..., Any],
        retry: Retry | None = None,
        retries: Mapping[Callable[..., Any], Retry] | None = None,
        package: str | None = None,
    ) -> None:
        self.name = name
        module = functions[0].__module__ if functions else ""
        self.package = package or module.rpartition(".")[0] or module
        self._retry = retry or Retry()
        self.retries = dict(retries or {})
        """Keyed by function: the policies of single reactions."""
        if strangers := [f for f in self.retries if f not in functions]:
            raise ChoreographyError(
                f"{name}: {place_of(strangers[0])} has a retry policy, but is no reaction of it"
            )
        self.reactions = tuple(map(self._read, functions))
        self.by_message: dict[type[Message], Reaction] = {}
        for reaction in self.reactions:
            if reaction.consumes in self.by_message:
                raise ChoreographyError(
                    f"{name}: both {self.by_message[reaction.consumes].name} and {reaction.name} "
                    f"take {reaction.consumes.__name__}; a participant reacts once to a message"
                )
            self.by_message[reaction.consumes] = reaction
        self.dues: dict[type[State], tuple[type[Command], ...]] = {
            kind: self._due_about(kind) for kind in self.states if has_due(kind)
        }
        """Keyed by kind of state: the commands that may be due about one."""

    def _read(self, function: Callable[..., Any]) -> Reaction:
        return Reaction.of(function)

    def _due_about(self, kind: type[State]) -> tuple[type[Command], ...]:
        commands = due_commands(kind)
        for command in commands:
            said = f"{self.name}: {kind.__qualname__}.due gives {command.__name__}"
            reaction = self.by_message.get(command)
            if reaction is None:
                raise ChoreographyError(f"{said}, which no reaction of {self.name} takes")
            if reaction.own is not kind:
                raise ChoreographyError(
                    f"{said}, but {reaction.name} takes {reaction.own.__name__} first; let it take "
                    f"the {kind.__name__} that the command is due about"
                )
            if reaction.intends:
                asked = " or ".join(intent.__name__ for intent in reaction.intends)
                raise ChoreographyError(
                    f"{said}, and {reaction.name} may return the intent {asked}, which would "
                    f"not be taken up again after a crash; let it publish an event, and let a "
                    f"reaction to an event ask"
                )
        return commands

    def retry_of(self, message: type[Message] | None) -> Retry:
        """The policy for messages of this type; without one, the participant's own."""
        reaction = self.by_message.get(message) if message is not None else None
        return self.retries.get(reaction.function, self._retry) if reaction else self._retry

    @cached_property
    def states(self) -> tuple[type[State], ...]:
        """Every kind of state the reactions take."""
        return tuple(
            dict.fromkeys(
                kind
                for reaction in self.reactions
                for _, kind, _ in reaction.parameters
                if issubclass(kind, State)
            )
        )

    @cached_property
    def consumes(self) -> tuple[type[Event], ...]:
        """The events the participant reacts to."""
        return tuple(r.consumes for r in self.reactions if issubclass(r.consumes, Event))

    @cached_property
    def publishes(self) -> tuple[type[Event], ...]:
        """The events the participant may publish."""
        return tuple(dict.fromkeys(kind for r in self.reactions for kind in r.publishes))

    def check_asks(self, asked: Iterable[type[Intent]]) -> None:
        """Raise `ChoreographyError` unless these are just the intents that the reactions may
        return, and each one's answer is taken by a reaction."""
        known = set(asked)
        for reaction in self.reactions:
            for intent in reaction.intends:
                said = f"{place_of(reaction.function)} may return {intent.__name__}"
                if intent not in known:
                    raise ChoreographyError(
                        f"{said}, which {self.name} puts to no outside; say in its `ask` how"
                    )
                answer = getattr(intent, "answer", None)
                if answer not in self.by_message:
                    what = answer.__name__ if answer is not None else "which it does not name"
                    raise ChoreographyError(
                        f"{said}, but {self.name} has no reaction to its answer, {what}"
                    )
        returned = {intent for reaction in self.reactions for intent in reaction.intends}
        for intent in sorted(known - returned, key=lambda kind: kind.__name__):
            raise ChoreographyError(
                f"{self.name} would ask {intent.__name__}, but none of its reactions returns that; "
                f"name it in the return type of one, or leave it out of its `ask`"
            )

    @property
    def messages(self) -> tuple[type[Event] | type[Command], ...]:
        """The events and commands of its signatures."""
        commands = (r.consumes for r in self.reactions if issubclass(r.consumes, Command))
        return tuple(dict.fromkeys((*self.consumes, *self.emits, *commands)))

    @cached_property
    def sends(self) -> tuple[type[Command], ...]:
        """The commands the participant may send to others."""
        return tuple(dict.fromkeys(kind for r in self.reactions for kind in r.sends))

    @cached_property
    def emits(self) -> tuple[type[Event | Command], ...]:
        """All that the participant may give to the broker: what it publishes, and what it sends."""
        return (*self.publishes, *self.sends)

    @cached_property
    def intake(self) -> tuple[type[Command], ...]:
        """The commands the participant takes over the broker."""
        return tuple(
            r.consumes
            for r in self.reactions
            if issubclass(r.consumes, Command) and r.consumes.intake
        )


@dataclass(frozen=True, slots=True)
class Observer:
    """A service that follows the history: it may read every event, reacts to none of them and
    publishes nothing, so that it is no part of any saga."""

    name: str
    package: str


class Choreography:
    """All participants together, and who observes them.

    It is `partial` where only some take part, as in a model: what these send to others goes
    nowhere.
    """

    def __init__(
        self,
        participants: Iterable[Participant],
        observers: Iterable[Observer] = (),
        *,
        partial: bool = False,
    ) -> None:
        self.participants = tuple(sorted(participants, key=lambda p: p.name))
        self.observers = tuple(sorted(observers, key=lambda o: o.name))
        names = [service.name for service in self.services]
        if duplicates := {name for name in names if names.count(name) > 1}:
            raise ChoreographyError(f"two services are called {', '.join(sorted(duplicates))}")
        for participant in self.participants:
            for reaction in participant.reactions:
                for command in reaction.sends:
                    self._check_receiver(participant, reaction, command, partial=partial)
                for event in reaction.publishes:
                    self._check_private(participant, reaction, event)
        try:
            check_distinct(kind for p in self.participants for kind in p.messages)
        except AmbiguousMessage as error:
            raise ChoreographyError(str(error)) from error

    @property
    def services(self) -> tuple[Participant | Observer, ...]:
        """Participants and observers."""
        return (*self.participants, *self.observers)

    @property
    def own_services(self) -> tuple[Participant | Observer, ...]:
        """Those of them that are in Python, so that their packages are known here."""
        return (*self.in_python, *self.observers)

    @cached_property
    def in_python(self) -> tuple[Participant, ...]:
        """The participants whose code and databases are known here."""
        return tuple(p for p in self.participants if not p.foreign)

    @cached_property
    def foreign(self) -> tuple[Participant, ...]:
        """The participants in other languages, of which only the signatures are known."""
        return tuple(p for p in self.participants if p.foreign)

    @cached_property
    def events(self) -> tuple[type[Event], ...]:
        """Every event that a participant publishes or reacts to, by type; of several versions the
        newest."""
        kinds = {kind for p in self.participants for kind in (*p.consumes, *p.publishes)}
        return _newest(kinds)

    @cached_property
    def commands(self) -> tuple[type[Command], ...]:
        """Every command that participants send each other, by type; of several versions the newest.
        What only comes from outside is none of them."""
        sent = {kind for p in self.participants for kind in p.sends}
        types = {kind.type for kind in sent}
        taken = {kind for p in self.participants for kind in p.intake if kind.type in types}
        return _newest(sent | taken)

    @property
    def recorded(self) -> tuple[type[Event | Command], ...]:
        """All that comes into the history: events, and the commands that participants send."""
        return (*self.events, *self.commands)

    def reacting_to(self, type_: str) -> tuple[Participant, ...]:
        """The participants that consume events of this type; or the one that takes a command of
        this type, if participants send it."""
        if type_ in self._receivers:
            return (self._receivers[type_],)
        return tuple(p for p in self.participants if any(kind.type == type_ for kind in p.consumes))

    def sent_to(self, participant: Participant) -> tuple[type[Command], ...]:
        """Of the commands that a participant takes over the broker, those that others send."""
        sent = {command.type for command in self.commands}
        return tuple(command for command in participant.intake if command.type in sent)

    def given_to(self, participant: Participant) -> tuple[type[Command], ...]:
        """Of the commands that a participant takes over the broker, those that only come from
        outside, so that no book of the saga's has them before they are taken."""
        sent = self.sent_to(participant)
        return tuple(command for command in participant.intake if command not in sent)

    @cached_property
    def decoder(self) -> Decoder:
        """Reads all that comes into the history, in any version. Knows the classes there are at its
        first use."""
        return Decoder(self.recorded)

    @cached_property
    def believed(self) -> Mapping[str, frozenset[str] | None]:
        """Keyed by the type of an event or a command: see `believed_of`."""
        kinds = [kind for p in self.participants for kind in p.messages]
        kinds.sort(key=lambda kind: kind.version)  # The newest one counts.
        return {kind.type: believed_of(kind) for kind in kinds}

    @cached_property
    def _receivers(self) -> Mapping[str, Participant]:
        """Keyed by type: who takes a command that participants send."""
        return {command.type: p for p in self.participants for command in self.sent_to(p)}

    def _check_private(self, owner: Participant, reaction: Reaction, event: type[Event]) -> None:
        """Raise `ChoreographyError` unless a private event is one participant's own."""
        if not event.private:
            return
        for other in self.participants:
            if other is not owner and any(kind.type == event.type for kind in other.publishes):
                raise ChoreographyError(
                    f"{place_of(reaction.function)} publishes {event.type}, which is private, and "
                    f"{other.name} does, too; let each have one of its own"
                )

    def _check_receiver(
        self,
        sender: Participant,
        reaction: Reaction,
        command: type[Command],
        *,
        partial: bool,
    ) -> None:
        """Raise `ChoreographyError` unless one other participant takes the command."""
        where = f"{place_of(reaction.function)} sends {command.type}"
        takers = [
            (participant, taken)
            for participant in self.participants
            for taken in participant.by_message
            if issubclass(taken, Command) and taken.type == command.type
        ]
        if not takers:
            if partial:
                return
            raise ChoreographyError(
                f"{where}, which no participant takes; let a reaction of its receiver take it"
            )
        if len(takers) > 1:
            names = " and ".join(participant.name for participant, _ in takers)
            raise ChoreographyError(
                f"{where}, which {names} take; a command has one receiver: let it be an event"
            )
        ((receiver, taken),) = takers
        if receiver is sender:
            raise ChoreographyError(
                f"{where}, which {sender.name} takes itself; let the reaction decide on it at once"
            )
        if not taken.intake:
            raise ChoreographyError(
                f"{where}, which {receiver.name} does not take over the broker; "
                f"let {taken.__name__} have `intake = True`"
            )
        if any(command.type == event.type for event in self.events):
            raise ChoreographyError(f"{where}, and an event is called so, too; rename one")


def _newest(kinds: Iterable[type[E]]) -> tuple[type[E], ...]:
    """Of each type the newest version, by type."""
    newest = {kind.type: kind for kind in sorted(kinds, key=lambda kind: kind.version)}
    return tuple(newest[type_] for type_ in sorted(newest))
