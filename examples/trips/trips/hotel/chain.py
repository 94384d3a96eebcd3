"""How `hotel` puts its questions to the hotel."""

from __future__ import annotations

from collections.abc import Mapping

from saga import Ask, Intent

from trips.hotel.domain import (
    BookRoom,
    CancelRoom,
    RoomAnswered,
    RoomGivenBack,
    SettleRoom,
)
from trips.providers import Booking, Provider


def asks(hotel: Provider) -> Mapping[type[Intent], Ask]:
    async def book(intent: BookRoom) -> RoomAnswered:
        room = await hotel.keep(intent.trip, intent.hotel, intent.cents)
        return RoomAnswered(trip=intent.trip, kept=room.kept, cents=room.cents)

    async def cancel(intent: CancelRoom) -> RoomGivenBack:
        await hotel.give_up(intent.trip)
        return RoomGivenBack(trip=intent.trip)

    return {BookRoom: book, SettleRoom: book, CancelRoom: cancel}


def book_again(room: Booking) -> BookRoom:
    """The question that led to a booking, from the hotel's books."""
    return BookRoom(trip=room.key, hotel=room.what, cents=room.agreed_cents)


def give_up_again(booking: Booking) -> CancelRoom:
    return CancelRoom(trip=booking.key)
