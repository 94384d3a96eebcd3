"""Toy words: messages of no business, which the tests of the engine speak.

A thing is begun, its parts are held, something outside is asked about it, and it ends: completed,
or cancelled, with what was held released.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar, Self
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, model_validator

from saga.limits import Moment, Plain
from saga.message import Answer, Command, Event, EventTypes, Intent, Priority, Role

PARTS_MAX = 100
COUNT_MAX = 10_000
SIZE_MAX = 100_000_000
LIMIT_MAX_SECONDS = 7 * 24 * 3600

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Who = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,128}$")]


class Reason(StrEnum):
    """Why a thing was cancelled, or a part of it refused."""

    WISH = "wish"
    LATE = "late"
    REFUSED = "refused"


class Part(BaseModel):
    """So many of one name, each of one size."""

    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")

    name: Name
    count: Annotated[int, Field(ge=1, le=COUNT_MAX)]
    size: Annotated[int, Field(ge=1, le=SIZE_MAX)] = 1


Parts = Annotated[tuple[Part, ...], Field(max_length=PARTS_MAX)]
SomeParts = Annotated[tuple[Part, ...], Field(min_length=1, max_length=PARTS_MAX)]
Total = Annotated[int, Field(ge=1, le=PARTS_MAX * COUNT_MAX * SIZE_MAX)]


def total_of(parts: tuple[Part, ...]) -> int:
    """The size of all parts together."""
    return sum(part.count * part.size for part in parts)


class Begin(Command):
    """Begin this thing."""

    type: ClassVar[str] = "thing.begin"
    intake: ClassVar[bool] = True

    thing: UUID
    who: Annotated[Who, Plain]
    parts: SomeParts
    priority: Priority = Priority.NORMAL
    limit_seconds: int = Field(default=300, ge=1, le=LIMIT_MAX_SECONDS)

    @property
    def subject(self) -> str:
        return str(self.thing)


class Cancel(Command):
    """Cancel this thing, if it has not ended; told to its participant alone."""

    type: ClassVar[str] = "thing.cancel"

    thing: UUID

    @property
    def subject(self) -> str:
        return str(self.thing)


class ThingEvent(Event):
    """An event in the life of one thing."""

    thing: UUID

    @property
    def subject(self) -> str:
        return str(self.thing)


class Begun(ThingEvent):
    type: ClassVar[str] = "thing.begun"
    publisher: ClassVar[str] = "starter"

    who: Who
    parts: SomeParts
    total: Total
    priority: Priority
    deadline: Moment

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.total != total_of(self.parts):
            raise ValueError(
                f"total is {self.total}, but the parts add up to {total_of(self.parts)}"
            )
        return self


class Completed(ThingEvent):
    type: ClassVar[str] = "thing.completed"
    publisher: ClassVar[str] = "starter"
    role: ClassVar[Role] = Role.COMPLETION
    final: ClassVar[bool] = True

    who: Who


class Cancelled(ThingEvent):
    type: ClassVar[str] = "thing.cancelled"
    publisher: ClassVar[str] = "starter"
    role: ClassVar[Role] = Role.CANCELLATION

    who: Who
    reason: Reason

    @property
    def outcome(self) -> str:
        return str(self.reason)


class Held(ThingEvent):
    type: ClassVar[str] = "part.held"
    publisher: ClassVar[str] = "keeper"
    role: ClassVar[Role] = Role.EFFECT

    who: Who
    parts: SomeParts


class Refused(ThingEvent):
    type: ClassVar[str] = "part.refused"
    publisher: ClassVar[str] = "keeper"
    role: ClassVar[Role] = Role.FAILURE

    reason: Reason
    name: Name


class Released(ThingEvent):
    """Nothing is held any more; `parts` is what was."""

    type: ClassVar[str] = "part.released"
    publisher: ClassVar[str] = "keeper"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (Held,)
    final: ClassVar[bool] = True

    parts: Parts


class Agreed(ThingEvent):
    """The outside has said yes."""

    type: ClassVar[str] = "question.agreed"
    publisher: ClassVar[str] = "asker"
    role: ClassVar[Role] = Role.EFFECT


class Denied(ThingEvent):
    """The outside has said no."""

    type: ClassVar[str] = "question.denied"
    publisher: ClassVar[str] = "asker"
    role: ClassVar[Role] = Role.FAILURE


class Voided(ThingEvent):
    """Nothing was asked outside, and nothing will be."""

    type: ClassVar[str] = "question.voided"
    publisher: ClassVar[str] = "asker"
    role: ClassVar[Role] = Role.COMPENSATION
    final: ClassVar[bool] = True


class Noted(ThingEvent):
    """Another was told how the thing ended."""

    type: ClassVar[str] = "end.noted"
    publisher: ClassVar[str] = "teller"
    final: ClassVar[bool] = True


class Inquired(Answer):
    thing: UUID

    @property
    def subject(self) -> str:
        return str(self.thing)


class Unexpected(Answer):
    """An answer to nothing that is asked here."""

    thing: UUID

    @property
    def subject(self) -> str:
        return str(self.thing)


class Inquire(Intent):
    """Ask the outside about this thing."""

    answer: ClassVar[type[Answer]] = Inquired

    thing: UUID

    @property
    def subject(self) -> str:
        return str(self.thing)
