"""A trip: booked once there are a flight, a room and a car, or cancelled."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import ClassVar, Self

from saga import Command, Decided, Due, Participant, State

from trips.language import (
    AboutTrip,
    CallOff,
    CarBooked,
    CarRefused,
    FlightHeld,
    FlightLapsed,
    FlightRefused,
    FlightTicketed,
    HotelBooked,
    HotelRefused,
    RequestTrip,
    Traveller,
    TripAssembled,
    TripBooked,
    TripCancelled,
    TripHasFlight,
    TripHasHotel,
    TripNeedsCar,
    TripRequested,
    Why,
)


class ExpireTrip(AboutTrip, Command):
    """The time to book it is over."""

    type: ClassVar[str] = "trip.expire"


class Stage(StrEnum):
    """How far a trip is."""

    UNKNOWN = "unknown"
    OPEN = "open"
    HAS_FLIGHT = "has_flight"
    HAS_HOTEL = "has_hotel"
    NEEDS_CAR = "needs_car"
    ASSEMBLED = "assembled"
    BOOKED = "booked"
    CANCELLED = "cancelled"


PENDING = (
    Stage.OPEN,
    Stage.HAS_FLIGHT,
    Stage.HAS_HOTEL,
    Stage.NEEDS_CAR,
    Stage.ASSEMBLED,
)


@dataclass(frozen=True, slots=True)
class Trip(State):
    """What is known of one trip. `car` and `car_cents` are asked for once it needs a car."""

    stage: Stage = Stage.UNKNOWN
    traveller: Traveller = ""
    cents: int = 0
    """What the customer has agreed to pay for all of it."""
    car: str = ""
    car_cents: int = 0
    deadline: datetime | None = None

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case TripRequested():
                return replace(
                    self,
                    stage=Stage.OPEN,
                    traveller=message.traveller,
                    cents=message.flight_cents + message.hotel_cents + message.car_cents,
                    car=message.car,
                    car_cents=message.car_cents,
                    deadline=message.deadline,
                )
            case TripHasFlight():
                return replace(self, stage=Stage.HAS_FLIGHT)
            case TripHasHotel():
                return replace(self, stage=Stage.HAS_HOTEL)
            case TripNeedsCar():
                return replace(self, stage=Stage.NEEDS_CAR)
            case TripAssembled():
                return replace(self, stage=Stage.ASSEMBLED)
            case TripBooked():
                return replace(self, stage=Stage.BOOKED)
            case TripCancelled():
                return replace(self, stage=Stage.CANCELLED)
            case _:
                return self

    def due(self) -> Due[ExpireTrip] | None:
        """It is cancelled at its deadline, if nothing else has ended it."""
        if self.stage not in PENDING or self.deadline is None:
            return None
        return Due(self.deadline, ExpireTrip(trip=self.key))


def request(command: RequestTrip, trip: Trip, now: datetime) -> TripRequested | None:
    if trip.stage is not Stage.UNKNOWN:
        return None
    return TripRequested(
        trip=command.trip,
        traveller=command.traveller,
        flight=command.flight,
        flight_cents=command.flight_cents,
        held_until=now + timedelta(seconds=command.hold_seconds),
        hotel=command.hotel,
        hotel_cents=command.hotel_cents,
        car=command.car,
        car_cents=command.car_cents,
        deadline=now + timedelta(seconds=command.time_limit_seconds),
    )


# Flight and hotel are asked side by side: whichever comes second completes the join, and the one
# that comes again finds a later stage.


def note_flight(event: FlightHeld, trip: Trip) -> TripHasFlight | TripNeedsCar | None:
    match trip.stage:
        case Stage.OPEN:
            return TripHasFlight(trip=event.trip)
        case Stage.HAS_HOTEL:
            return _needs_car(trip)
        case _:
            return None


def note_hotel(event: HotelBooked, trip: Trip) -> TripHasHotel | TripNeedsCar | None:
    match trip.stage:
        case Stage.OPEN:
            return TripHasHotel(trip=event.trip)
        case Stage.HAS_FLIGHT:
            return _needs_car(trip)
        case _:
            return None


def _needs_car(trip: Trip) -> TripNeedsCar:
    return TripNeedsCar(trip=trip.key, car=trip.car, car_cents=trip.car_cents)


def assemble(event: CarBooked, trip: Trip) -> TripAssembled | None:
    return TripAssembled(trip=event.trip) if trip.stage is Stage.NEEDS_CAR else None


def complete(event: FlightTicketed, trip: Trip) -> TripBooked | None:
    return TripBooked(trip=event.trip) if trip.stage is Stage.ASSEMBLED else None


def cancel_flightless(event: FlightRefused, trip: Trip) -> TripCancelled | None:
    return _cancel(trip, Why.DEARER if event.dearer else Why.NO_FLIGHT)


def cancel_lapsed(event: FlightLapsed, trip: Trip) -> TripCancelled | None:
    return _cancel(trip, Why.HOLD_LAPSED)


def cancel_roomless(event: HotelRefused, trip: Trip) -> TripCancelled | None:
    return _cancel(trip, Why.DEARER if event.dearer else Why.NO_HOTEL)


def cancel_carless(event: CarRefused, trip: Trip) -> TripCancelled | None:
    return _cancel(trip, Why.DEARER if event.dearer else Why.NO_CAR)


def call_off(command: CallOff, trip: Trip) -> TripCancelled | None:
    return _cancel(trip, Why.CALLED_OFF)


def expire(command: ExpireTrip, trip: Trip) -> TripCancelled | None:
    return _cancel(trip, Why.TOO_LATE)


def _cancel(trip: Trip, why: Why) -> TripCancelled | None:
    return TripCancelled(trip=trip.key, why=why) if trip.stage in PENDING else None


PARTICIPANT = Participant(
    "trip",
    request,
    note_flight,
    note_hotel,
    assemble,
    complete,
    cancel_flightless,
    cancel_lapsed,
    cancel_roomless,
    cancel_carless,
    call_off,
    expire,
)
