"""A stay: confirmed once there is a room for it, or cancelled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import ClassVar, Self

from saga import Command, Decided, Due, Participant, State

from project_name.language import (
    CallOff,
    RequestStay,
    RoomRefused,
    RoomReserved,
    StayCancelled,
    StayConfirmed,
    StayRequested,
    Why,
)


class ExpireStay(Command):
    """The time to find a room is over."""

    type: ClassVar[str] = "stay.expire"

    stay: str

    @property
    def subject(self) -> str:
        return self.stay


class Stage(StrEnum):
    """How far a stay is."""

    UNKNOWN = "unknown"
    OPEN = "open"
    CONFIRMED = "confirmed"
    CANCELLED = "cancelled"


PENDING = (Stage.OPEN,)


@dataclass(frozen=True, slots=True)
class Stay(State):
    """What is known of one stay. It changes by what its own participant publishes, only."""

    stage: Stage = Stage.UNKNOWN
    deadline: datetime | None = None

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case StayRequested():
                return replace(self, stage=Stage.OPEN, deadline=message.deadline)
            case StayConfirmed():
                return replace(self, stage=Stage.CONFIRMED)
            case StayCancelled():
                return replace(self, stage=Stage.CANCELLED)
            case _:
                return self

    def due(self) -> Due[ExpireStay] | None:
        """It is cancelled at its deadline, if nothing else has ended it."""
        if self.stage not in PENDING or self.deadline is None:
            return None
        return Due(self.deadline, ExpireStay(stay=self.key))


def request(command: RequestStay, stay: Stay, now: datetime) -> StayRequested | None:
    if stay.stage is not Stage.UNKNOWN:
        return None
    deadline = now + timedelta(seconds=command.time_limit_seconds)
    return StayRequested(stay=command.stay, nights=command.nights, deadline=deadline)


def confirm(event: RoomReserved, stay: Stay) -> StayConfirmed | None:
    return StayConfirmed(stay=event.stay) if stay.stage is Stage.OPEN else None


def cancel_roomless(event: RoomRefused, stay: Stay) -> StayCancelled | None:
    return _cancel(stay, Why.NO_ROOM)


def call_off(command: CallOff, stay: Stay) -> StayCancelled | None:
    return _cancel(stay, Why.CALLED_OFF)


def expire(command: ExpireStay, stay: Stay) -> StayCancelled | None:
    return _cancel(stay, Why.TOO_LATE)


def _cancel(stay: Stay, why: Why) -> StayCancelled | None:
    return StayCancelled(stay=stay.key, why=why) if stay.stage in PENDING else None


PARTICIPANT = Participant("booking", request, confirm, cancel_roomless, call_off, expire)
