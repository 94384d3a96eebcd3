"""A car: booked at the rental once there are a flight and a hotel, and cancelled with the trip."""

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
    CarBooked,
    CarCancelled,
    CarRefused,
    TripCancelled,
    TripNeedsCar,
)


class RentalAnswered(AboutTrip, Answer):
    """Whether the rental keeps a car, and at which price."""

    kept: bool
    cents: int


class CarGivenBack(AboutTrip, Answer):
    """The rental keeps no car any more."""


class BookCar(AboutTrip, Intent):
    """Ask the rental to keep a car."""

    answer: ClassVar[type[Answer]] = RentalAnswered

    car: str
    cents: int


class SettleCar(BookCar):
    """The same once more, since the trip was cancelled while it was asked."""


class CancelCar(AboutTrip, Intent):
    """Ask the rental to keep no car."""

    answer: ClassVar[type[Answer]] = CarGivenBack


@dataclass(frozen=True, slots=True)
class Car(State):
    """The car of one trip."""

    phase: Phase = Phase.NEW
    asking: BookCar | None = None

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case SettleCar():
                return replace(self, phase=Phase.SETTLING)
            case BookCar():
                return replace(self, phase=Phase.ASKING, asking=message)
            case CarBooked():
                return replace(self, phase=Phase.TAKEN, asking=None)
            case CarRefused(dearer=True):  # It is kept until the trip is cancelled because of it.
                return replace(self, phase=Phase.TAKEN, asking=None)
            case CarRefused():
                return replace(self, phase=Phase.REFUSED, asking=None)
            case CancelCar():
                return replace(self, phase=Phase.UNDOING)
            case CarCancelled():
                return replace(self, phase=Phase.VOID, asking=None)
            case _:
                return self


def book(event: TripNeedsCar, car: Car) -> BookCar | None:
    def question() -> BookCar:
        return BookCar(trip=event.trip, car=event.car, cents=event.car_cents)

    return ask(car.phase, question)


def record_booking(
    answer: RentalAnswered, car: Car
) -> (
    CarBooked
    | CarRefused
    | CarCancelled
    | tuple[CarBooked | CarRefused, CancelCar]
    | CancelCar
    | None
):
    return record(
        car.phase,
        answer.kept,
        taken=lambda: _booked(answer, car),
        refused=lambda: CarRefused(trip=answer.trip, dearer=False),
        void=lambda: CarCancelled(trip=answer.trip),
        undo=lambda: CancelCar(trip=answer.trip),
    )


def _booked(answer: RentalAnswered, car: Car) -> CarBooked | CarRefused:
    """What is kept at a price that was not agreed to is refused."""
    if car.asking is not None and answer.cents > car.asking.cents:
        return CarRefused(trip=answer.trip, dearer=True)
    return CarBooked(trip=answer.trip)


def cancel(event: TripCancelled, car: Car) -> CarCancelled | SettleCar | CancelCar | None:
    return take_back(
        car.phase,
        void=lambda: CarCancelled(trip=event.trip),
        settle=lambda: SettleCar(**dict(car.asking or ())),
        undo=lambda: CancelCar(trip=event.trip),
    )


def record_cancelled(answer: CarGivenBack, car: Car) -> CarCancelled | None:
    return record_undone(car.phase, lambda: CarCancelled(trip=answer.trip))


PARTICIPANT = Participant(
    "car",
    book,
    record_booking,
    cancel,
    record_cancelled,
    retry=Retry(max_calls=4, delay=0.5, backoff=2.0, max_delay=5.0),
)
