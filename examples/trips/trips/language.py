"""What the participants say to each other: commands and events, and nothing else they share."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, ClassVar

from pydantic import Field
from saga import Command, Event, EventTypes, Message, Moment, Personal, Role

Traveller = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]{1,128}$"), Personal]
"""Whom a trip is for. Where `PERSONAL=sealed`, it is sealed from the request on."""


class AboutTrip(Message):
    """`trip` is any string that tells nothing of the traveller, such as `oslo/4711`: it is in the
    history for good, and in clear."""

    trip: str

    @property
    def subject(self) -> str:
        return self.trip


# --- the trip -------------------------------------------------------------------------------------


class RequestTrip(AboutTrip, Command):
    """A customer wants a flight, a hotel room and a car, each at the price that they were shown."""

    type: ClassVar[str] = "trip.request"
    intake: ClassVar[bool] = True

    traveller: Traveller
    flight: str
    flight_cents: int
    hotel: str
    hotel_cents: int
    car: str
    car_cents: int
    hold_seconds: int = 600
    """How long the airline holds a seat at such a fare."""
    time_limit_seconds: int = 300


class CallOff(AboutTrip, Command):
    """The customer does not travel."""

    type: ClassVar[str] = "trip.call_off"
    intake: ClassVar[bool] = True


class TripRequested(AboutTrip, Event):
    """Flight and hotel are to be booked, then a car, all of it before the deadline."""

    type: ClassVar[str] = "trip.requested"
    publisher: ClassVar[str] = "trip"

    traveller: Traveller
    flight: str
    flight_cents: int
    held_until: Moment
    hotel: str
    hotel_cents: int
    car: str
    car_cents: int
    deadline: Moment


class TripHasFlight(AboutTrip, Event):
    """A seat is held for it, and there is no room yet."""

    type: ClassVar[str] = "trip.has_flight"
    publisher: ClassVar[str] = "trip"
    private: ClassVar[bool] = True


class TripHasHotel(AboutTrip, Event):
    """A room is booked for it, and there is no seat yet."""

    type: ClassVar[str] = "trip.has_hotel"
    publisher: ClassVar[str] = "trip"
    private: ClassVar[bool] = True


class TripNeedsCar(AboutTrip, Event):
    """It has a flight and a hotel: now a car is worth asking for."""

    type: ClassVar[str] = "trip.needs_car"
    publisher: ClassVar[str] = "trip"

    car: str
    car_cents: int


class TripAssembled(AboutTrip, Event):
    """It has all three. The seat is only held, so a ticket is issued for it last."""

    type: ClassVar[str] = "trip.assembled"
    publisher: ClassVar[str] = "trip"


class TripBooked(AboutTrip, Event):
    """The customer travels."""

    type: ClassVar[str] = "trip.booked"
    publisher: ClassVar[str] = "trip"
    role: ClassVar[Role] = Role.COMPLETION
    final: ClassVar[bool] = True


class Why(StrEnum):
    """Why a trip was cancelled."""

    NO_FLIGHT = "no_flight"
    NO_HOTEL = "no_hotel"
    NO_CAR = "no_car"
    DEARER = "dearer"
    HOLD_LAPSED = "hold_lapsed"
    CALLED_OFF = "called_off"
    TOO_LATE = "too_late"


class TripCancelled(AboutTrip, Event):
    """There will be no trip: whatever is booked for it is cancelled."""

    type: ClassVar[str] = "trip.cancelled"
    publisher: ClassVar[str] = "trip"
    role: ClassVar[Role] = Role.CANCELLATION

    why: Why

    @property
    def outcome(self) -> str:
        return str(self.why)


# --- the flight -----------------------------------------------------------------------------------


class FlightHeld(AboutTrip, Event):
    """The airline holds a seat, until then."""

    type: ClassVar[str] = "flight.held"
    publisher: ClassVar[str] = "flight"
    role: ClassVar[Role] = Role.EFFECT

    until: Moment


class FlightRefused(AboutTrip, Event):
    """The airline has no seat, or none at that price."""

    type: ClassVar[str] = "flight.refused"
    publisher: ClassVar[str] = "flight"
    role: ClassVar[Role] = Role.FAILURE

    dearer: bool


class FlightLapsed(AboutTrip, Event):
    """The seat was held for as long as the fare allows, and no ticket was issued."""

    type: ClassVar[str] = "flight.lapsed"
    publisher: ClassVar[str] = "flight"
    role: ClassVar[Role] = Role.FAILURE


class FlightTicketed(AboutTrip, Event):
    """The seat is the customer's."""

    type: ClassVar[str] = "flight.ticketed"
    publisher: ClassVar[str] = "flight"
    role: ClassVar[Role] = Role.EFFECT


class FlightReleased(AboutTrip, Event):
    """The airline keeps no seat any more, or never did."""

    type: ClassVar[str] = "flight.released"
    publisher: ClassVar[str] = "flight"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (FlightHeld, FlightTicketed)
    final: ClassVar[bool] = True


# --- the hotel room and the car -------------------------------------------------------------------


class HotelBooked(AboutTrip, Event):
    """The hotel keeps a room."""

    type: ClassVar[str] = "hotel.booked"
    publisher: ClassVar[str] = "hotel"
    role: ClassVar[Role] = Role.EFFECT


class HotelRefused(AboutTrip, Event):
    """The hotel has no room, or none at that price."""

    type: ClassVar[str] = "hotel.refused"
    publisher: ClassVar[str] = "hotel"
    role: ClassVar[Role] = Role.FAILURE

    dearer: bool


class HotelCancelled(AboutTrip, Event):
    """The hotel keeps no room any more, or never did."""

    type: ClassVar[str] = "hotel.cancelled"
    publisher: ClassVar[str] = "hotel"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (HotelBooked,)
    final: ClassVar[bool] = True


class CarBooked(AboutTrip, Event):
    """The rental keeps a car."""

    type: ClassVar[str] = "car.booked"
    publisher: ClassVar[str] = "car"
    role: ClassVar[Role] = Role.EFFECT


class CarRefused(AboutTrip, Event):
    """The rental has no car, or none at that price."""

    type: ClassVar[str] = "car.refused"
    publisher: ClassVar[str] = "car"
    role: ClassVar[Role] = Role.FAILURE

    dearer: bool


class CarCancelled(AboutTrip, Event):
    """The rental keeps no car any more, or never did."""

    type: ClassVar[str] = "car.cancelled"
    publisher: ClassVar[str] = "car"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (CarBooked,)
    final: ClassVar[bool] = True
