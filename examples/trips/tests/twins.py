"""The saga with one mistake each, of the kinds that people make.

`saga verify` has to find fault with each. `TWINS` holds them, with the scenario in which a mistake
shows and the rule that a shortest schedule breaks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, get_type_hints

from saga import Due, Participant, Phase, Scenario

from trips import ONE_TRIP
from trips.flight import domain as flight
from trips.flight.domain import LapseHold, Seat
from trips.hotel import domain as hotel
from trips.hotel.domain import CancelRoom, Room, RoomAnswered, SettleRoom
from trips.language import (
    CallOff,
    CarBooked,
    FlightHeld,
    FlightLapsed,
    HotelBooked,
    HotelCancelled,
    HotelRefused,
    TripAssembled,
    TripBooked,
    TripCancelled,
    TripHasFlight,
    TripHasHotel,
    TripNeedsCar,
    Why,
)
from trips.trip import domain as trip
from trips.trip.domain import Stage, Trip


@dataclass(frozen=True)
class Twin:
    """A mistake, and what is to be found."""

    participant: Callable[[], Participant]
    rule: str
    steps: int
    scenario: Scenario


Recorded = (
    HotelBooked
    | HotelRefused
    | HotelCancelled
    | tuple[HotelBooked | HotelRefused, CancelRoom]
    | CancelRoom
    | None
)
TWINS: Final[dict[str, Twin]] = {}
Make = Callable[[], Participant]


def twin(rule: str, steps: int, scenario: Scenario = ONE_TRIP) -> Callable[[Make], Make]:
    def decorate(make: Make) -> Make:
        TWINS[make.__name__] = Twin(make, rule, steps, scenario)
        return make

    return decorate


def _swapped(participant: Participant, *instead: Callable[..., Any]) -> Participant:
    """The participant with these functions for the reactions of the same names."""
    names = {function.__name__: function for function in instead}
    functions = [names.pop(r.name, r.function) for r in participant.reactions]
    assert not names
    return Participant(participant.name, *functions, package=participant.package)


# --- the join -------------------------------------------------------------------------------------


@twin("car_too_early", 7)
def the_join_takes_one_leg_for_both() -> Participant:
    """It asks for a car as soon as a seat is held."""

    def note_flight(event: FlightHeld, state: Trip) -> TripHasFlight | TripNeedsCar | None:
        if state.stage is Stage.OPEN:
            return TripNeedsCar(trip=event.trip, car=state.car, car_cents=state.car_cents)
        return trip.note_flight(event, state)

    return _swapped(trip.PARTICIPANT, note_flight)


@twin("car_too_early", 8)
def the_join_counts_deliveries() -> Participant:
    """It takes the same leg, delivered again, for the other one."""

    def note_hotel(event: HotelBooked, state: Trip) -> TripHasHotel | TripNeedsCar | None:
        if state.stage is Stage.HAS_HOTEL:
            return TripNeedsCar(trip=event.trip, car=state.car, car_cents=state.car_cents)
        return trip.note_hotel(event, state)

    return _swapped(trip.PARTICIPANT, note_hotel)


@twin("said_twice", 10)
def the_join_fires_twice() -> Participant:
    """It forgets that it was complete before."""

    def note_hotel(event: HotelBooked, state: Trip) -> TripHasHotel | TripNeedsCar | None:
        if state.stage is Stage.NEEDS_CAR:
            return TripNeedsCar(trip=event.trip, car=state.car, car_cents=state.car_cents)
        return trip.note_hotel(event, state)

    return _swapped(trip.PARTICIPANT, note_hotel)


@twin("kept_otherwise", 9)
def a_refusal_is_forgotten_while_the_other_is_asked() -> Participant:
    """It cancels for want of a room only once it has a flight."""

    def cancel_roomless(event: HotelRefused, state: Trip) -> TripCancelled | None:
        return None if state.stage is Stage.OPEN else trip.cancel_roomless(event, state)

    return _swapped(trip.PARTICIPANT, cancel_roomless)


# --- compensations
# ----------------------------------------------------------------------------------


@twin("kept_otherwise", 20)
def the_hotel_is_not_cancelled_when_there_is_no_car() -> Participant:
    """It knows of all reasons to cancel but the latest."""

    def cancel(
        event: TripCancelled, state: Room
    ) -> HotelCancelled | SettleRoom | CancelRoom | None:
        return None if event.why is Why.NO_CAR else hotel.cancel(event, state)

    return _swapped(hotel.PARTICIPANT, cancel)


@twin("question_open", 9)
def the_marker_for_an_overtaking_cancellation_is_missing() -> Participant:
    """What is cancelled before it was asked for is booked afterwards."""

    def cancel(
        event: TripCancelled, state: Room
    ) -> HotelCancelled | SettleRoom | CancelRoom | None:
        return None if state.phase is Phase.NEW else hotel.cancel(event, state)

    return _swapped(hotel.PARTICIPANT, cancel)


@twin("kept_otherwise", 9)
def a_question_on_its_way_is_taken_for_unasked() -> Participant:
    """It says that there is no room while the hotel is being asked for one."""

    def cancel(
        event: TripCancelled, state: Room
    ) -> HotelCancelled | SettleRoom | CancelRoom | None:
        if state.phase is Phase.ASKING:
            return HotelCancelled(trip=event.trip)
        return hotel.cancel(event, state)

    return _swapped(hotel.PARTICIPANT, cancel)


@twin("kept_otherwise", 10)
def what_is_booked_after_all_is_not_cancelled() -> Participant:
    """It was asked for when the trip was cancelled, and the answer is only noted."""

    def record_booking(answer: RoomAnswered, state: Room) -> Recorded:
        if state.phase is Phase.ASKING:
            return hotel.record_booking(answer, state)
        return HotelCancelled(trip=answer.trip) if state.phase is Phase.SETTLING else None

    return _swapped(hotel.PARTICIPANT, record_booking)


@twin("outcome_changed", 18)
def a_booked_trip_is_called_off() -> Participant:
    """It cancels whatever the customer calls off, however it has ended."""

    def call_off(command: CallOff, state: Trip) -> TripCancelled | None:
        if state.stage is Stage.CANCELLED:
            return None
        return TripCancelled(trip=command.trip, why=Why.CALLED_OFF)

    return _swapped(trip.PARTICIPANT, call_off)


# --- the hold and the ticket
# ------------------------------------------------------------------------


@twin("booked_in_part", 13)
def a_held_seat_is_taken_for_a_ticket() -> Participant:
    """It is booked once it has all three, without a ticket."""

    def assemble(event: CarBooked, state: Trip) -> TripAssembled | TripBooked | None:
        return TripBooked(trip=event.trip) if state.stage is Stage.NEEDS_CAR else None

    return _swapped(trip.PARTICIPANT, assemble)


class _AlwaysLapses(Seat):
    __slots__ = ()

    def due(self) -> Due[LapseHold] | None:
        if self.phase is not Phase.TAKEN or self.until is None or self.ticket is Phase.REFUSED:
            return None
        return Due(self.until, LapseHold(trip=self.key))


@twin("booked_in_part", 18)
def the_hold_lapses_after_the_booking_was_confirmed() -> Participant:
    """The timer does not look at the ticket."""

    def lapse(command: LapseHold, state: Seat) -> FlightLapsed | None:
        lapses = state.phase is Phase.TAKEN and state.ticket is not Phase.REFUSED
        return FlightLapsed(trip=command.trip) if lapses else None

    def taking(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def reaction(*arguments: Any) -> Any:
            return function(*arguments)

        hints = get_type_hints(function).items()
        reaction.__annotations__ = {n: _AlwaysLapses if h is Seat else h for n, h in hints}
        return reaction

    functions = [r.function for r in flight.PARTICIPANT.reactions if r.name != "lapse"]
    return Participant("flight", *map(taking, [*functions, lapse]))


# --- prices
# -----------------------------------------------------------------------------------------


@twin("overpaid", 17, ONE_TRIP)
def a_dearer_room_is_paid() -> Participant:
    """It does not compare the hotel's price with the one that was agreed to."""

    def record_booking(answer: RoomAnswered, state: Room) -> Recorded:
        return hotel.record_booking(answer.model_copy(update={"cents": 0}), state)

    return _swapped(hotel.PARTICIPANT, record_booking)


@twin("kept_otherwise", 9, ONE_TRIP)
def a_dearer_room_is_refused_and_kept() -> Participant:
    """It takes the hotel's other price for a refusal by the hotel."""

    def record_booking(answer: RoomAnswered, state: Room) -> Recorded:
        if state.phase is Phase.ASKING and state.asking and answer.cents > state.asking.cents:
            return HotelRefused(trip=answer.trip, dearer=False)
        return hotel.record_booking(answer, state)

    return _swapped(hotel.PARTICIPANT, record_booking)
