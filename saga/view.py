"""What invariants are written over: all states, all events and the outsides' books, at one moment.

An invariant is a function whose parameters say what it reads, and which yields what breaks it:

    def booked_unheld(
        trips: States[Trip], rooms: States[Room], hotel: Register
    ) -> Iterator[Broken]: ...

It is written once. The checker, the simulation, `saga reconcile` and the fault tests each collect a
`View` in their own way and apply the same invariants to it.
"""

from __future__ import annotations

import inspect
import types
import typing
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar

from saga.choreography import State
from saga.envelope import Envelope
from saga.errors import Explained
from saga.message import Event
from saga.runtime.kernel.step import StateId

S = TypeVar("S", bound=State)
E = TypeVar("E", bound=Event, covariant=True)

Broken = tuple[str, str]
"""The subject that breaks an invariant, and what was found."""


@dataclass(frozen=True, slots=True)
class Violation:
    """A broken rule: which, about what, and what was found."""

    rule: str
    subject: str
    detail: str


class InvariantError(Explained, TypeError):
    """An invariant whose signature does not say what it reads. Names the function."""


class States(Mapping[str, S]):
    """The states of one kind, by key; blank ones are left out."""

    def __init__(self, kind: type[S], found: Mapping[str, S]) -> None:
        self._kind = kind
        self._found = found

    def __getitem__(self, key: str) -> S:
        return self._found[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._found)

    def __len__(self) -> int:
        return len(self._found)

    def of(self, key: str) -> S:
        """The state under a key, blank if there is none."""
        return self._found.get(key) or self._kind(key)


class Events(Generic[E]):
    """The events of some types, each once. Those that wait in an outbox are among them."""

    def __init__(self, told: EventLog, types: Set[str]) -> None:
        self._told = told
        self._types = types

    def __iter__(self) -> Iterator[Envelope[E]]:
        return self._told.events(self._types)

    def subjects(self) -> Iterator[str]:
        """What they are about; reads none of them."""
        return (subject for subject in self._told.subjects() if self.types_about(subject))

    def types_about(self, subject: str) -> frozenset[str]:
        """Which types there are about a subject; reads none of them."""
        return frozenset(mark.type for mark in self._told.about(subject)) & self._types

    def complete(self, publisher: str, subject: str) -> bool:
        """Whether the first event of that participant about a subject is known: retention on the
        broker may have removed it."""
        return self._told.complete(publisher, subject)


class Mark(Protocol):
    """What rules that follow from roles need of an event."""

    @property
    def id(self) -> str: ...

    @property
    def type(self) -> str: ...

    @property
    def source(self) -> str: ...

    @property
    def sequence(self) -> int | None: ...


class EventLog(Protocol):
    """All that was published, and what waits in an outbox."""

    def events(self, types: Collection[str]) -> Iterator[Envelope[Any]]:
        """The events of these types."""
        ...

    def about(self, subject: str) -> Sequence[Mark]:
        """Those about a subject."""
        ...

    def own(self, source: str, subject: str) -> Sequence[Envelope[Any]]:
        """What was published about a subject by a participant that asks an outside."""
        ...

    def subjects(self) -> Collection[str]:
        """Everything that events are about."""
        ...

    def complete(self, publisher: str, subject: str) -> bool:
        """See `Events.complete`."""
        ...


class EventsInMemory:
    """Events in memory; see `EventLog`."""

    def __init__(self, events: Sequence[Envelope[Any]]) -> None:
        self._events = events

    @cached_property
    def _by_subject(self) -> Mapping[str, Sequence[Envelope[Any]]]:
        found: dict[str, list[Envelope[Any]]] = {}
        for event in self._events:
            found.setdefault(event.subject, []).append(event)
        return found

    def events(self, types: Collection[str]) -> Iterator[Envelope[Any]]:
        return (event for event in self._events if event.type in types)

    def about(self, subject: str) -> Sequence[Envelope[Any]]:
        return self._by_subject.get(subject, ())

    def own(self, source: str, subject: str) -> Sequence[Envelope[Any]]:
        return [event for event in self.about(subject) if event.source == source]

    def subjects(self) -> Collection[str]:
        return self._by_subject.keys()

    def complete(self, publisher: str, subject: str) -> bool:
        return True


class View:
    """One moment of a whole system. `known` is by participant what it knows, `books` by their type
    what each outside knows; `rests` says of a subject that nothing more will happen to it by
    itself, `busy` of a participant that it may still have a message about a subject."""

    def __init__(
        self,
        known: Mapping[str, Mapping[StateId, State]],
        told: EventLog,
        books: Iterable[Any] = (),
        *,
        rests: Callable[[str], bool],
        busy: Callable[[str, str], bool] = lambda participant, subject: False,
    ) -> None:
        self.known = known
        self.told = told
        self._books = {type(each): each for each in books}
        self.rests = rests
        self.busy = busy
        self._states: dict[type[State], States[Any]] = {}

    def states(self, kind: type[S]) -> States[S]:
        """The states of one kind, or derived from it."""
        found = self._states.get(kind)
        if found is None:
            found = self._states[kind] = States(
                kind,
                {
                    key: state
                    for known in self.known.values()
                    for (of, key), state in known.items()
                    if issubclass(of, kind)
                },
            )
        return found

    def events(self, *kinds: type[Event]) -> Events[Any]:
        """The events of these types."""
        return Events(self.told, {kind.type for kind in kinds})

    def books(self, kind: type[Any]) -> Any | None:
        """The books of that type; None if they could not be read."""
        return self._books.get(kind)


@dataclass(frozen=True)
class Invariant:
    """What must hold, as a function's signature tells what it takes to see it."""

    function: Callable[..., Iterable[Broken]]
    reads: tuple[Any, ...]
    """Keyed by parameter: a kind of state, a tuple of event types, or the type of an outside's
    books."""

    @property
    def name(self) -> str:
        """The rule's name."""
        return self.function.__name__

    @property
    def where(self) -> str:
        return f"{self.function.__module__}.{self.function.__qualname__}"

    @property
    def states(self) -> Collection[type[State]]:
        return [kind for kind in self.reads if isinstance(kind, type) and issubclass(kind, State)]

    @property
    def events(self) -> Collection[type[Event]]:
        return [kind for kinds in self.reads if isinstance(kinds, tuple) for kind in kinds]

    @property
    def books(self) -> Collection[type[Any]]:
        return [
            kind for kind in self.reads if isinstance(kind, type) and not issubclass(kind, State)
        ]

    def broken(self, view: View) -> Iterable[Broken]:
        """What breaks it in a view. Nothing where books that it reads could not be read: the
        collector of the view has to say so."""
        arguments: list[Any] = []
        for kind in self.reads:
            if isinstance(kind, tuple):
                arguments.append(view.events(*kind))
            elif issubclass(kind, State):
                arguments.append(view.states(kind))
            elif (books := view.books(kind)) is not None:
                arguments.append(books)
            else:
                return ()
        return self.function(*arguments)

    @classmethod
    def of(cls, function: Callable[..., Iterable[Broken]]) -> Invariant:
        """Read an invariant from its signature. Raises `InvariantError`."""
        where = f"{function.__module__}.{function.__qualname__}"
        try:
            hints = typing.get_type_hints(function)
        except NameError as error:
            raise InvariantError(
                f"{where}: {error}; import it in that module, outside `if TYPE_CHECKING`"
            ) from error
        names = list(inspect.signature(function).parameters)
        if missing := [name for name in names if name not in hints]:
            raise InvariantError(f"{where}: annotate {', '.join(missing)} with what it reads")
        if not names:
            raise InvariantError(f"{where}: it reads nothing; take States, Events or books")
        return cls(function, tuple(_read(where, name, hints[name]) for name in names))


def _read(where: str, name: str, annotation: Any) -> Any:
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is States and isinstance(arguments[0], type):
        return arguments[0]
    if origin is Events:
        (of,) = arguments
        union = typing.get_origin(of) in (typing.Union, types.UnionType)
        kinds = typing.get_args(of) if union else (of,)
        if all(isinstance(kind, type) and hasattr(kind, "type") for kind in kinds):
            return tuple(kinds)
    if origin is None and isinstance(annotation, type) and not issubclass(annotation, State):
        return annotation
    raise InvariantError(
        f"{where}: {name} is annotated with {annotation}; write States[...] of a kind of state, "
        f"Events[...] of event types, or the type of an outside's books"
    )
