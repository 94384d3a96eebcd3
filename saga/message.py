"""The four kinds of message a reaction deals in.

An *event* is a fact, published to all who react to it. A *command* has one receiver; it comes from
outside, or from another participant. An *intent* is a question a participant has decided to ask the
outside; an *answer* is what came back. Intents and answers never leave their participant.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator
from enum import StrEnum
from typing import Any, ClassVar, TypeVar

from pydantic import BaseModel, ConfigDict


class Priority(StrEnum):
    """Which of a participant's two queues a message travels through."""

    HIGH = "high"
    NORMAL = "normal"


class Role(StrEnum):
    """What an event means for the saga it belongs to. The map shows it, and `saga check` asks what
    has to follow from it."""

    STEP = "step"
    """The saga goes on, and nothing has to be undone for it."""
    EFFECT = "effect"
    """Its publisher did something that it has to undo if the saga is cancelled."""
    FAILURE = "failure"
    """Its publisher said no, so the saga has to be cancelled."""
    COMPENSATION = "compensation"
    """Its publisher undid its part, or saw to it that there will be nothing to undo."""
    COMPLETION = "completion"
    """The saga ended well. Terminal."""
    CANCELLATION = "cancellation"
    """The saga ended, and every effect it had has to be undone. Terminal."""

    @property
    def terminal(self) -> bool:
        """Whether the saga ends with it."""
        return self in (Role.COMPLETION, Role.CANCELLATION)


class Message(BaseModel):
    """Base of everything a reaction takes or gives: immutable, strictly typed.

    Unknown fields are ignored, so that a reader survives a writer that learned a new one.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    @property
    def subject(self) -> str:
        """What the message is about; states are looked up by it."""
        raise TypeError(f"{type(self).__name__} names no subject")


EventTypes = tuple[type["Event"], ...]


class Event(Message):
    """A fact, in the past tense. `type` is its name on the wire and the head of its routing key.

    `publisher` is the participant whose events of this type its readers believe; None leaves that
    to the broker's permissions alone. `undoes` names the effects that do not stand any more after
    it. What is `final` needs no participant to react to it. What `repeats` may be published about
    one subject more than once.

    A `private` one is its participant's own: the first leg of a join, a count. The history has it,
    so that a rebuild and the trace know it; no participant reacts to it, and it is in no contract.
    """

    type: ClassVar[str]
    version: ClassVar[int] = 1
    publisher: ClassVar[str | None] = None
    role: ClassVar[Role] = Role.STEP
    undoes: ClassVar[EventTypes] = ()
    final: ClassVar[bool] = False
    repeats: ClassVar[bool] = False
    private: ClassVar[bool] = False

    @property
    def outcome(self) -> str:
        """How a saga ended with this event, in a word; of interest only where its role ends one."""
        return self.type

    def upcast(self) -> Event:
        """This event as the next newer version of its type; the newest returns itself."""
        return self

    def newest(self) -> Event:
        """This event as the newest version of its type."""
        return _newest(self)


class Command(Message):
    """A request to one participant, in the imperative.

    One with `intake` may also arrive over the broker, through its receiver's intake queues: from
    outside, or from a participant one of whose reactions returns it. `senders` are the participants
    that its receiver believes; it refuses what any other one sends.

    What `repeats` may be sent about one subject more than once.

    What participants send is kept in the history like an event, so its older versions have to be
    read. A command that only comes from outside is not kept, and has one version at a time.
    """

    type: ClassVar[str]
    version: ClassVar[int] = 1
    intake: ClassVar[bool] = False
    repeats: ClassVar[bool] = False
    senders: ClassVar[tuple[str, ...]] = ()

    def upcast(self) -> Command:
        """This command as the next newer version of its type; the newest returns itself."""
        return self

    def newest(self) -> Command:
        """This command as the newest version of its type."""
        return _newest(self)


E = TypeVar("E", Event, Command)


def _newest(message: E) -> E:
    while (newer := message.upcast()) is not message:
        message = newer
    return message


class Answer(Message):
    """What the outside said to an intent."""


class Intent(Message):
    """A question to the outside, committed before it is asked; `answer` is what it is met with."""

    answer: ClassVar[type[Answer]]


Ask = Callable[[Any], Awaitable[Answer]]
"""Puts an intent to the outside, for real or in memory, and returns what it answers."""

Decided = Event | Command | Intent
"""What a reaction may decide on, and its participant's states evolve by."""

M = TypeVar("M", bound=Message)


def all_below(base: type[M]) -> Iterator[type[M]]:
    """Every class derived from `base` that there is by now."""
    for child in base.__subclasses__():
        yield child
        yield from all_below(child)


class AmbiguousMessage(TypeError):
    """Two classes stand for what is one on the wire. Names both places, and the way out."""


def check_distinct(kinds: Iterable[type[Event | Command]]) -> None:
    """Raise `AmbiguousMessage` if two of these classes cannot be told apart on the wire: by type
    and version, or since one is an event and the other a command."""
    by_type: defaultdict[str, list[type[Event | Command]]] = defaultdict(list)
    for kind in dict.fromkeys(kinds):
        for other in by_type[kind.type]:
            if issubclass(kind, Command) != issubclass(other, Command):
                raise AmbiguousMessage(
                    f"{_both(other, kind)} have the type {kind.type!r}, one as an event and one "
                    f"as a command; give one of them another type"
                )
            if other.version == kind.version:
                raise AmbiguousMessage(
                    f"{_both(other, kind)} have the type {kind.type!r} and the version "
                    f"{kind.version}; give one of them another type, or the newer one the next "
                    f"version"
                )
        by_type[kind.type].append(kind)


def versions_of(newest: type[Event] | type[Command]) -> dict[int, type[Event] | type[Command]]:
    """Every version of a type that there is a class for by now, by number.

    For its own version, that is the given class, even if others have the same. Where two classes
    claim another version, the one beside it counts; raises `AmbiguousMessage` if that does not
    tell.
    """
    base: type[Event | Command] = Command if issubclass(newest, Command) else Event
    found: defaultdict[int, list[type[Event | Command]]] = defaultdict(list)
    for kind in all_below(base):
        if getattr(kind, "type", None) == newest.type and kind.version != newest.version:
            found[kind.version].append(kind)
    versions: dict[int, type[Event] | type[Command]] = {newest.version: newest}
    for version, kinds in found.items():
        beside = [kind for kind in kinds if kind.__module__ == newest.__module__]
        candidates = beside if len(kinds) > 1 and beside else kinds
        check_distinct(candidates)
        versions[version] = candidates[0]
    return dict(sorted(versions.items()))


def _both(one: type, other: type) -> str:
    return " and ".join(f"{kind.__module__}.{kind.__qualname__}" for kind in (one, other))
