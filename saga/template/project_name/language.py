"""What the participants say to each other: commands and events, and nothing else they share."""

from __future__ import annotations

from enum import StrEnum
from typing import ClassVar

from saga import Command, Event, EventTypes, Moment, Role


class _StayEvent(Event):
    """`stay` is any string, such as `smith/2030-04`."""

    stay: str

    @property
    def subject(self) -> str:
        return self.stay


class _StayCommand(Command):
    stay: str

    @property
    def subject(self) -> str:
        return self.stay


class RequestStay(_StayCommand):
    """A guest asks for a room."""

    type: ClassVar[str] = "stay.request"
    intake: ClassVar[bool] = True

    nights: int
    time_limit_seconds: int = 300


class CallOff(_StayCommand):
    """The guest does not come."""

    type: ClassVar[str] = "stay.call_off"
    intake: ClassVar[bool] = True


class StayRequested(_StayEvent):
    """A room is to be found before the deadline."""

    type: ClassVar[str] = "stay.requested"
    publisher: ClassVar[str] = "booking"

    nights: int
    deadline: Moment


class StayConfirmed(_StayEvent):
    """The guest has a room."""

    type: ClassVar[str] = "stay.confirmed"
    publisher: ClassVar[str] = "booking"
    role: ClassVar[Role] = Role.COMPLETION
    final: ClassVar[bool] = True


class Why(StrEnum):
    """Why a stay was cancelled."""

    NO_ROOM = "no_room"
    CALLED_OFF = "called_off"
    TOO_LATE = "too_late"


class StayCancelled(_StayEvent):
    """There will be no stay."""

    type: ClassVar[str] = "stay.cancelled"
    publisher: ClassVar[str] = "booking"
    role: ClassVar[Role] = Role.CANCELLATION

    why: Why

    @property
    def outcome(self) -> str:
        return str(self.why)


class RoomReserved(_StayEvent):
    """The hotel keeps a room."""

    type: ClassVar[str] = "room.reserved"
    publisher: ClassVar[str] = "room"
    role: ClassVar[Role] = Role.EFFECT


class RoomRefused(_StayEvent):
    """The hotel has none."""

    type: ClassVar[str] = "room.refused"
    publisher: ClassVar[str] = "room"
    role: ClassVar[Role] = Role.FAILURE


class RoomReleased(_StayEvent):
    """The hotel keeps no room any more, or never did."""

    type: ClassVar[str] = "room.released"
    publisher: ClassVar[str] = "room"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (RoomReserved,)
    final: ClassVar[bool] = True
