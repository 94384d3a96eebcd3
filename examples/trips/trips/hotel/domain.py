"""A room: booked at the hotel, and cancelled there with the trip."""

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

from trips.language import (
    AboutTrip,
    HotelBooked,
    HotelCancelled,
    HotelRefused,
    TripCancelled,
    TripRequested,
)


class RoomAnswered(AboutTrip, Answer):
    """Whether the hotel keeps a room, and at which price."""

    kept: bool
    cents: int


class RoomGivenBack(AboutTrip, Answer):
    """The hotel keeps no room any more."""


class BookRoom(AboutTrip, Intent):
    """Ask the hotel to keep a room."""

    answer: ClassVar[type[Answer]] = RoomAnswered

    hotel: str
    cents: int


class SettleRoom(BookRoom):
    """The same once more, since the trip was cancelled while it was asked."""


class CancelRoom(AboutTrip, Intent):
    """Ask the hotel to keep no room."""

    answer: ClassVar[type[Answer]] = RoomGivenBack


@dataclass(frozen=True, slots=True)
class Room(State):
    """The room of one trip."""

    phase: Phase = Phase.NEW
    asking: BookRoom | None = None

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case SettleRoom():
                return replace(self, phase=Phase.SETTLING)
            case BookRoom():
                return replace(self, phase=Phase.ASKING, asking=message)
            case HotelBooked():
                return replace(self, phase=Phase.TAKEN, asking=None)
            case HotelRefused(dearer=True):  # It is kept until the trip is cancelled because of it.
                return replace(self, phase=Phase.TAKEN, asking=None)
            case HotelRefused():
                return replace(self, phase=Phase.REFUSED, asking=None)
            case CancelRoom():
                return replace(self, phase=Phase.UNDOING)
            case HotelCancelled():
                return replace(self, phase=Phase.VOID, asking=None)
            case _:
                return self


def book(event: TripRequested, room: Room) -> BookRoom | None:
    def question() -> BookRoom:
        return BookRoom(trip=event.trip, hotel=event.hotel, cents=event.hotel_cents)

    return ask(room.phase, question)


def record_booking(
    answer: RoomAnswered, room: Room
) -> (
    HotelBooked
    | HotelRefused
    | HotelCancelled
    | tuple[HotelBooked | HotelRefused, CancelRoom]
    | CancelRoom
    | None
):
    return record(
        room.phase,
        answer.kept,
        taken=lambda: _booked(answer, room),
        refused=lambda: HotelRefused(trip=answer.trip, dearer=False),
        void=lambda: HotelCancelled(trip=answer.trip),
        undo=lambda: CancelRoom(trip=answer.trip),
    )


def _booked(answer: RoomAnswered, room: Room) -> HotelBooked | HotelRefused:
    """What is kept at a price that was not agreed to is refused."""
    if room.asking is not None and answer.cents > room.asking.cents:
        return HotelRefused(trip=answer.trip, dearer=True)
    return HotelBooked(trip=answer.trip)


def cancel(event: TripCancelled, room: Room) -> HotelCancelled | SettleRoom | CancelRoom | None:
    return take_back(
        room.phase,
        void=lambda: HotelCancelled(trip=event.trip),
        settle=lambda: SettleRoom(**dict(room.asking or ())),
        undo=lambda: CancelRoom(trip=event.trip),
    )


def record_cancelled(answer: RoomGivenBack, room: Room) -> HotelCancelled | None:
    return record_undone(room.phase, lambda: HotelCancelled(trip=answer.trip))


PARTICIPANT = Participant(
    "hotel",
    book,
    record_booking,
    cancel,
    record_cancelled,
    retry=Retry(max_calls=4, delay=0.5, backoff=2.0, max_delay=5.0),
)
