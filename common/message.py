"""The four kinds of message a reaction deals in.

An *event* is a fact, published to whoever reacts to it. A *command* has one receiver. An *intent*
is a question a participant has decided to ask the outside; an *answer* is what came back. Intents
and answers never leave their participant.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Priority(StrEnum):
    """Which of a participant's two queues a message travels through."""

    HIGH = "high"
    NORMAL = "normal"


class Message(BaseModel):
    """Base of everything a reaction takes or gives: immutable, strictly typed.

    Unknown fields are ignored, so that a reader survives a writer that learned a new one.
    """

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    @property
    def subject(self) -> str:
        """What the message is about; states are looked up by it."""
        raise TypeError(f"{type(self).__name__} names no subject")


class Event(Message):
    """A fact, in the past tense. `type` is its name on the wire and the head of its routing key."""

    type: ClassVar[str]
    version: ClassVar[int] = 1

    def upcast(self) -> Event:
        """This event as the next newer version of its type; the newest returns itself."""
        return self


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
