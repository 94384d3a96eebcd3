"""The four kinds of message a reaction deals in.

An *event* is a fact, published to whoever reacts to it. A *command* has one receiver. An *intent*
is a question a participant has decided to ask the outside; an *answer* is what came back. Intents
and answers never leave their participant.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import ClassVar, TypeVar

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
    it. What is `final` needs nobody to react to it. What `repeats` may be published about one
    subject more than once.
    """

    type: ClassVar[str]
    version: ClassVar[int] = 1
    publisher: ClassVar[str | None] = None
    role: ClassVar[Role] = Role.STEP
    undoes: ClassVar[EventTypes] = ()
    final: ClassVar[bool] = False
    repeats: ClassVar[bool] = False

    @property
    def outcome(self) -> str:
        """How a saga ended with this event, in a word; of interest only where its role ends one."""
        return self.type

    def upcast(self) -> Event:
        """This event as the next newer version of its type; the newest returns itself."""
        return self

    def newest(self) -> Event:
        """This event as the newest version of its type."""
        event = self
        while (newer := event.upcast()) is not event:
            event = newer
        return event


class Command(Message):
    """A request to one participant, in the imperative.

    One with `intake` may also arrive over the broker, through its receiver's intake queues.
    Commands are not kept, so each has one version at a time.
    """

    type: ClassVar[str]
    version: ClassVar[int] = 1
    intake: ClassVar[bool] = False


class Answer(Message):
    """What the outside said to an intent."""


class Intent(Message):
    """A question to the outside, committed before it is asked; `answer` is what it is met with."""

    answer: ClassVar[type[Answer]]


M = TypeVar("M", bound=Message)


def all_below(base: type[M]) -> Iterator[type[M]]:
    """Every class derived from `base` that there is by now."""
    for child in base.__subclasses__():
        yield child
        yield from all_below(child)
