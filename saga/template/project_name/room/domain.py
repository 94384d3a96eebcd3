"""A room: asked for at the hotel, given back when the stay is cancelled.

The hotel is asked outside of any transaction, so a crash may come between the question and the
answer, and a cancellation at any moment; `saga.ask`, `record` and `take_back` say what is right
then.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Self

from saga import (
    Answer,
    Decided,
    Intent,
    Participant,
    Phase,
    Retry,
    State,
    ask,
    record,
    record_undone,
    take_back,
)

from project_name.language import RoomRefused, RoomReleased, RoomReserved, StayCancelled, StayRequested


class HotelAnswered(Answer):
    """Whether the hotel keeps a room."""

    stay: str
    kept: bool

    @property
    def subject(self) -> str:
        return self.stay


class GivenBack(Answer):
    """The hotel keeps none any more."""

    stay: str

    @property
    def subject(self) -> str:
        return self.stay


class _About(Intent):
    stay: str

    @property
    def subject(self) -> str:
        return self.stay


class ReserveRoom(_About):
    """Ask the hotel to keep a room."""

    answer: ClassVar[type[Answer]] = HotelAnswered

    nights: int


class SettleRoom(ReserveRoom):
    """The same once more, since the stay was cancelled while it was asked."""


class GiveRoomBack(_About):
    """Ask the hotel to keep none."""

    answer: ClassVar[type[Answer]] = GivenBack


@dataclass(frozen=True, slots=True)
class Room(State):
    """The room of one stay. What only a question tells is forgotten with its answer: at rest, a
    state follows from events alone."""

    phase: Phase = Phase.NEW
    nights: int | None = None

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case SettleRoom():
                return replace(self, phase=Phase.SETTLING)
            case ReserveRoom():
                return replace(self, phase=Phase.ASKING, nights=message.nights)
            case RoomReserved():
                return replace(self, phase=Phase.TAKEN, nights=None)
            case RoomRefused():
                return replace(self, phase=Phase.REFUSED, nights=None)
            case GiveRoomBack():
                return replace(self, phase=Phase.UNDOING)
            case RoomReleased():
                return replace(self, phase=Phase.VOID, nights=None)
            case _:
                return self


def reserve(event: StayRequested, room: Room) -> ReserveRoom | None:
    return ask(room.phase, lambda: ReserveRoom(stay=event.stay, nights=event.nights))


def record_room(
    answer: HotelAnswered, room: Room
) -> (
    RoomReserved
    | RoomRefused
    | RoomReleased
    | tuple[RoomReserved, GiveRoomBack]
    | GiveRoomBack
    | None
):
    return record(
        room.phase,
        answer.kept,
        taken=lambda: RoomReserved(stay=answer.stay),
        refused=lambda: RoomRefused(stay=answer.stay),
        void=lambda: RoomReleased(stay=answer.stay),
        undo=lambda: GiveRoomBack(stay=answer.stay),
    )


def give_back(event: StayCancelled, room: Room) -> RoomReleased | SettleRoom | GiveRoomBack | None:
    return take_back(
        room.phase,
        void=lambda: RoomReleased(stay=event.stay),
        settle=lambda: SettleRoom(stay=event.stay, nights=room.nights or 0),
        undo=lambda: GiveRoomBack(stay=event.stay),
    )


def record_given_back(answer: GivenBack, room: Room) -> RoomReleased | None:
    return record_undone(room.phase, lambda: RoomReleased(stay=answer.stay))


PARTICIPANT = Participant(
    "room",
    reserve,
    record_room,
    give_back,
    record_given_back,
    retry=Retry(max_calls=4, delay=0.5, backoff=2.0, max_delay=5.0),
)
