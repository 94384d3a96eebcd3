"""The published language of a second saga: moving house.

A move needs a van and a crew, each from an agency of its own, booked side by side. Once it has
both, the mover has the van sent off, which ends the move. Nothing here is about orders.
"""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from saga.limits import Moment
from saga.message import Command, Event, EventTypes, Role


class Size(StrEnum):
    """Of a household."""

    SMALL = "small"
    LARGE = "large"


class _MoveEvent(Event):
    """`move` is any string, such as `smith/2030-04`."""

    move: str

    @property
    def subject(self) -> str:
        return self.move


class _MoveCommand(Command):
    move: str

    @property
    def subject(self) -> str:
        return self.move


class RequestMove(_MoveCommand):
    """A household wants to move."""

    type: ClassVar[str] = "move.request"
    intake: ClassVar[bool] = True

    size: Size
    time_limit_seconds: int = 300


class CallMoveOff(_MoveCommand):
    """The household stays where it is."""

    type: ClassVar[str] = "move.call_off"
    intake: ClassVar[bool] = True


class SendVan(_MoveCommand):
    """There is a crew for it: send the van off."""

    type: ClassVar[str] = "van.send"
    intake: ClassVar[bool] = True
    senders: ClassVar[tuple[str, ...]] = ("move",)


class MoveRequested(_MoveEvent):
    """A move is to be arranged before the deadline."""

    type: ClassVar[str] = "move.requested"
    publisher: ClassVar[str] = "move"

    size: Size
    deadline: Moment


class MoveHasVan(_MoveEvent):
    """There is a van for it, and no crew yet."""

    type: ClassVar[str] = "move.has_van"
    publisher: ClassVar[str] = "move"
    private: ClassVar[bool] = True


class MoveHasCrew(_MoveEvent):
    """There is a crew for it, and no van yet."""

    type: ClassVar[str] = "move.has_crew"
    publisher: ClassVar[str] = "move"
    private: ClassVar[bool] = True


class MoveArranged(_MoveEvent):
    """Van and crew are on their way."""

    type: ClassVar[str] = "move.arranged"
    publisher: ClassVar[str] = "move"
    role: ClassVar[Role] = Role.COMPLETION
    final: ClassVar[bool] = True


class Why(StrEnum):
    """Why a move was given up."""

    NO_VAN = "no_van"
    NO_CREW = "no_crew"
    CALLED_OFF = "called_off"
    TOO_LATE = "too_late"


class MoveGivenUp(_MoveEvent):
    """The move will not happen."""

    type: ClassVar[str] = "move.given_up"
    publisher: ClassVar[str] = "move"
    role: ClassVar[Role] = Role.CANCELLATION

    why: Why

    @property
    def outcome(self) -> str:
        return str(self.why)


class VanBooked(_MoveEvent):
    """The rental keeps a van."""

    type: ClassVar[str] = "van.booked"
    publisher: ClassVar[str] = "van"
    role: ClassVar[Role] = Role.EFFECT


class VanRefused(_MoveEvent):
    """The rental has none."""

    type: ClassVar[str] = "van.refused"
    publisher: ClassVar[str] = "van"
    role: ClassVar[Role] = Role.FAILURE


class VanSent(_MoveEvent):
    """The van is on its way."""

    type: ClassVar[str] = "van.sent"
    publisher: ClassVar[str] = "van"


class VanReturned(_MoveEvent):
    """The rental keeps no van any more, or never did."""

    type: ClassVar[str] = "van.returned"
    publisher: ClassVar[str] = "van"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (VanBooked,)
    final: ClassVar[bool] = True


class CrewBooked(_MoveEvent):
    """The agency keeps a crew."""

    type: ClassVar[str] = "crew.booked"
    publisher: ClassVar[str] = "crew"
    role: ClassVar[Role] = Role.EFFECT


class CrewRefused(_MoveEvent):
    """The agency has none."""

    type: ClassVar[str] = "crew.refused"
    publisher: ClassVar[str] = "crew"
    role: ClassVar[Role] = Role.FAILURE


class CrewReleased(_MoveEvent):
    """The agency keeps no crew any more, or never did."""

    type: ClassVar[str] = "crew.released"
    publisher: ClassVar[str] = "crew"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (CrewBooked,)
    final: ClassVar[bool] = True
