"""What each participant answers, and what it says when the same comes twice."""

from __future__ import annotations

from datetime import timedelta

import pytest
from saga import Event
from saga.testing import NOW, assert_once, given

from trips import language as said
from trips.car.domain import PARTICIPANT as CAR
from trips.flight.domain import PARTICIPANT as FLIGHT
from trips.flight.domain import (
    HoldSeat,
    IssueTicket,
    LapseHold,
    ReleaseSeat,
    Seat,
    SeatAnswered,
    TicketAnswered,
)
from trips.hotel.domain import PARTICIPANT as HOTEL
from trips.hotel.domain import BookRoom, CancelRoom, RoomAnswered, SettleRoom
from trips.language import Why
from trips.trip.domain import PARTICIPANT as TRIP
from trips.trip.domain import ExpireTrip, Trip

KEY = "oslo/1"
UNTIL = NOW + timedelta(minutes=10)
requested = said.TripRequested(
    trip=KEY,
    traveller="Ada Smith",
    flight="LX 40",
    flight_cents=200,
    held_until=UNTIL,
    hotel="Bristol",
    hotel_cents=300,
    car="small",
    car_cents=90,
    deadline=NOW + timedelta(minutes=5),
)
held = said.FlightHeld(trip=KEY, until=UNTIL)
lapsed = said.FlightLapsed(trip=KEY)
ticketed = said.FlightTicketed(trip=KEY)
room = said.HotelBooked(trip=KEY)
needs_car = said.TripNeedsCar(trip=KEY, car="small", car_cents=90)
assembled = said.TripAssembled(trip=KEY)


def cancelled(why: Why) -> said.TripCancelled:
    return said.TripCancelled(trip=KEY, why=why)


@pytest.mark.parametrize(
    ("first", "noted", "second"),
    [
        (held, said.TripHasFlight(trip=KEY), room),
        (room, said.TripHasHotel(trip=KEY), held),
    ],
    ids=["flight first", "hotel first"],
)
def test_a_car_is_wanted_once_there_are_flight_and_hotel(
    first: said.FlightHeld | said.HotelBooked,
    noted: Event,
    second: said.FlightHeld | said.HotelBooked,
) -> None:
    assert given(TRIP, requested).when(first) == (noted,)
    assert given(TRIP, requested, noted).when(first) == ()
    assert given(TRIP, requested, noted).when(second) == (needs_car,)
    assert_once(given(TRIP, requested, noted), second)


def test_a_trip_is_booked_once_the_held_seat_is_ticketed() -> None:
    assert given(TRIP, requested, needs_car).when(said.CarBooked(trip=KEY)) == (assembled,)
    done = given(TRIP, requested, needs_car, assembled)
    assert done.when(ticketed) == (said.TripBooked(trip=KEY),)
    assert done.when(lapsed) == (cancelled(Why.HOLD_LAPSED),)


def test_a_refusal_a_customer_and_the_time_limit_cancel_whatever_is_pending() -> None:
    for own in ((), (said.TripHasHotel(trip=KEY),), (needs_car,), (needs_car, assembled)):
        world = given(TRIP, requested, *own)
        refused = said.FlightRefused(trip=KEY, dearer=False)
        assert world.when(refused) == (cancelled(Why.NO_FLIGHT),)
        assert world.when(said.CarRefused(trip=KEY, dearer=True)) == (cancelled(Why.DEARER),)
        assert world.when(said.CallOff(trip=KEY)) == (cancelled(Why.CALLED_OFF),)
        due = world.state(Trip, KEY).due()
        assert due is not None
        assert (due.at, due.command) == (requested.deadline, ExpireTrip(trip=KEY))
        assert world.when(due.command) == (cancelled(Why.TOO_LATE),)


def test_a_hold_lapses_unless_a_ticket_is_asked_for_before() -> None:
    ask = HoldSeat(trip=KEY, flight="LX 40", cents=200, until=UNTIL)
    world = given(FLIGHT, ask, held)
    due = world.state(Seat, KEY).due()
    assert due is not None
    assert (due.at, due.command) == (UNTIL, LapseHold(trip=KEY))
    assert world.when(due.command) == (lapsed,)
    asking = given(FLIGHT, ask, held, IssueTicket(trip=KEY))
    assert asking.state(Seat, KEY).due() is None
    assert asking.when(due.command) == ()
    assert asking.when(TicketAnswered(trip=KEY, issued=False)) == (lapsed,)
    assert asking.when(cancelled(Why.CALLED_OFF)) == (ReleaseSeat(trip=KEY),)


def test_a_seat_that_has_become_dearer_is_refused_and_released_with_the_trip() -> None:
    ask = HoldSeat(trip=KEY, flight="LX 40", cents=200, until=UNTIL)
    dearer = said.FlightRefused(trip=KEY, dearer=True)
    answer = SeatAnswered(trip=KEY, held=True, until=UNTIL, cents=201)
    assert given(FLIGHT, ask).when(answer) == (dearer,)
    assert given(FLIGHT, ask, dearer).state(Seat, KEY).due() is None
    assert given(FLIGHT, ask, dearer).when(cancelled(Why.DEARER)) == (ReleaseSeat(trip=KEY),)


def test_a_room_is_cancelled_whatever_is_known_of_it() -> None:
    ask = BookRoom(trip=KEY, hotel="Bristol", cents=300)
    off = cancelled(Why.NO_FLIGHT)
    void = said.HotelCancelled(trip=KEY)
    settle = SettleRoom(trip=KEY, hotel="Bristol", cents=300)
    assert given(HOTEL).when(off) == (void,)
    assert given(HOTEL, ask).when(off) == (settle,)
    assert given(HOTEL, ask, room).when(off) == (CancelRoom(trip=KEY),)
    settling = given(HOTEL, ask, settle)
    kept, none = (RoomAnswered(trip=KEY, kept=each, cents=300) for each in (True, False))
    assert settling.when(kept) == (room, CancelRoom(trip=KEY))
    assert settling.when(none) == (void,)


def test_no_car_is_asked_for_once_the_trip_is_cancelled() -> None:
    world = given(CAR, said.CarCancelled(trip=KEY))
    assert world.when(needs_car) == ()
    assert given(CAR).when(cancelled(Why.CALLED_OFF)) == (said.CarCancelled(trip=KEY),)
