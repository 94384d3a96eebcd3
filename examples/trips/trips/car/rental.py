"""How `car` puts its questions to the rental."""

from __future__ import annotations

from collections.abc import Mapping

from saga import Ask, Intent

from trips.car.domain import (
    BookCar,
    CancelCar,
    CarGivenBack,
    RentalAnswered,
    SettleCar,
)
from trips.providers import Booking, Provider


def asks(rental: Provider) -> Mapping[type[Intent], Ask]:
    async def book(intent: BookCar) -> RentalAnswered:
        car = await rental.keep(intent.trip, intent.car, intent.cents)
        return RentalAnswered(trip=intent.trip, kept=car.kept, cents=car.cents)

    async def cancel(intent: CancelCar) -> CarGivenBack:
        await rental.give_up(intent.trip)
        return CarGivenBack(trip=intent.trip)

    return {BookCar: book, SettleCar: book, CancelCar: cancel}


def book_again(car: Booking) -> BookCar:
    """The question that led to a booking, from the rental's books."""
    return BookCar(trip=car.key, car=car.what, cents=car.agreed_cents)


def give_up_again(booking: Booking) -> CancelCar:
    return CancelCar(trip=booking.key)
