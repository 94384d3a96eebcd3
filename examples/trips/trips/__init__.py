"""The saga as a whole: what no single participant may know."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from saga import (
    ARCHIVE,
    Broken,
    EarlyEnd,
    Events,
    Given,
    Intent,
    Phase,
    Plan,
    Priority,
    Saga,
    Scenario,
    States,
    Stimulus,
    View,
    derived_id,
)

from trips.car.domain import PARTICIPANT as CAR
from trips.car.domain import Car
from trips.flight.domain import PARTICIPANT as FLIGHT
from trips.flight.domain import Seat
from trips.hotel.domain import PARTICIPANT as HOTEL
from trips.hotel.domain import Room
from trips.language import CallOff, FlightHeld, HotelBooked, RequestTrip, Why
from trips.outsides import AIRLINE, HOTEL_CHAIN, PROVIDERS, RENTAL
from trips.providers import LAST, AirlineBooks, Choice, HotelBooks, RentalBooks, choice_of
from trips.trip.domain import PARTICIPANT as TRIP
from trips.trip.domain import Stage, Trip

# --- what must hold, beside what follows from roles ---------------------------------------------


def booked_in_part(
    trips: States[Trip],
    seats: States[Seat],
    rooms: States[Room],
    cars: States[Car],
    airline: AirlineBooks,
    hotel: HotelBooks,
    rental: RentalBooks,
) -> Iterator[Broken]:
    """A booked trip has a ticket, a room and a car, in our books and in the providers'."""
    for key, trip in trips.items():
        if trip.stage is not Stage.BOOKED:
            continue
        if seats.of(key).ticket is not Phase.TAKEN:
            yield key, f"it is booked, and the ticket is {seats.of(key).ticket}"
        for what, state in (
            ("seat", seats.of(key)),
            ("room", rooms.of(key)),
            ("car", cars.of(key)),
        ):
            if state.phase is not Phase.TAKEN:
                yield key, f"it is booked, and the {what} is {state.phase}"
        for what, books in (("seat", airline), ("room", hotel), ("car", rental)):
            kept = books.find(key)
            if kept is None or not kept.stands:
                yield key, f"it is booked, and the provider keeps no {what}"


def overpaid(
    trips: States[Trip], airline: AirlineBooks, hotel: HotelBooks, rental: RentalBooks
) -> Iterator[Broken]:
    """A booked trip costs what the customer has agreed to, by the providers' books."""
    for key, trip in trips.items():
        kept = [found for books in (airline, hotel, rental) if (found := books.find(key))]
        cents = sum(each.cents for each in kept if each.stands)
        if trip.stage is Stage.BOOKED and cents > trip.cents:
            yield key, f"it costs {cents} cents, and {trip.cents} were agreed to"


def sold_twice(airline: AirlineBooks) -> Iterator[Broken]:
    """The last seat is sold once."""
    sold = Counter(seat.what for seat in airline if seat.what.endswith(LAST) and seat.stands)
    for seat in airline:
        if seat.stands and sold[seat.what] > 1:
            yield seat.key, f"{seat.what!r} is sold {sold[seat.what]} times"


def car_too_early(
    held: Events[FlightHeld], booked: Events[HotelBooked], rental: RentalBooks
) -> Iterator[Broken]:
    """No car is asked for before there are a flight and a hotel."""
    flights = {event.subject for event in held}
    hotels = {event.subject for event in booked}
    for car in rental:
        for publisher, told, known in (
            (FLIGHT.name, held, flights),
            (HOTEL.name, booked, hotels),
        ):
            if car.key not in known and told.complete(publisher, car.key):
                yield car.key, f"the rental was asked for a car, and there was no {publisher} yet"


def kept_otherwise(
    trips: States[Trip],
    seats: States[Seat],
    rooms: States[Room],
    cars: States[Car],
    airline: AirlineBooks,
    hotel: HotelBooks,
    rental: RentalBooks,
) -> Iterator[Broken]:
    """What a provider keeps is what we think it keeps, and is for a booked trip."""
    for what, ours, books in (
        ("ticket", {key: seat.ticket for key, seat in seats.items()}, airline),
        ("room", {key: room.phase for key, room in rooms.items()}, hotel),
        ("car", {key: car.phase for key, car in cars.items()}, rental),
    ):
        for kept in books:
            phase, stage = ours.get(kept.key, Phase.NEW), trips.of(kept.key).stage
            if kept.stands is not (phase is Phase.TAKEN):
                does = "keeps one" if kept.stands else "keeps none"
                yield kept.key, f"the {what} is {phase}, and the provider {does}"
            elif kept.stands and stage is not Stage.BOOKED:
                yield kept.key, f"the trip is {stage}, and the provider keeps a {what}"


# --- how that is tried ----------------------------------------------------------------------------

NOW: Final = datetime(2030, 1, 1, tzinfo=UTC)
LIMIT_SECONDS: Final = 300
LATER: Final = NOW + timedelta(seconds=LIMIT_SECONDS)


def _wish(
    trip: str, flight: str = "LX 40", traveller: str = "Ada Smith", **other: int
) -> RequestTrip:
    limits = {"hold_seconds": LIMIT_SECONDS, "time_limit_seconds": LIMIT_SECONDS} | other
    return RequestTrip(
        trip=trip,
        traveller=traveller,
        flight=flight,
        flight_cents=20_000,
        hotel="Bristol",
        hotel_cents=30_000,
        car="small",
        car_cents=9_000,
        **limits,
    )


def _is_known(view: View) -> bool:
    return view.states(Trip).of(A).stage is not Stage.UNKNOWN


A, B = "oslo/1", "oslo/2"
ONE_TRIP: Final = Scenario(
    "one trip",
    sent=[(TRIP.name, _wish(A))],
    stimuli=[Stimulus("the customer calls off", TRIP.name, CallOff(trip=A), NOW, _is_known)],
    moments=(NOW, LATER),
    names={A: "A", B: "B"},
)
LAST_SEAT: Final = replace(
    ONE_TRIP,
    name="two trips and the last seat",
    sent=[(TRIP.name, _wish(trip, f"LX 40, {LAST}")) for trip in (A, B)],
    stimuli=(),
    decisions={each.name: (Choice.KEEPS,) for each in PROVIDERS},
    timers_last=True,
)

KINDS: Final[dict[str, tuple[float, set[str]]]] = {
    "": (10.0, {"trip.booked"}),
    "no-flight": (1.0, {Why.NO_FLIGHT}),
    "no-hotel": (1.0, {Why.NO_HOTEL}),
    "no-car": (1.0, {Why.NO_CAR}),
    "no-flight no-hotel": (0.5, {Why.NO_FLIGHT, Why.NO_HOTEL}),
    "dear-flight": (0.5, {Why.DEARER}),
    "dear-hotel": (0.5, {Why.DEARER}),
    "dear-car": (0.5, {Why.DEARER}),
    "slow-car short-hold": (0.5, {"trip.booked", Why.HOLD_LAPSED}),
    "slow-hotel short-limit": (0.5, {"trip.booked", Why.TOO_LATE}),
}
"""Keyed by what the key of a trip says: how often that is drawn, and how it may end. A slow provider
answers after the short time; in a simulation it may be in time."""
SHORT_SECONDS: Final = 1
NEVER_SECONDS: Final = 10**6
WEIGHTS: Final = [weight for weight, _ in KINDS.values()]


def plan(chance: random.Random, trips: int) -> Plan:
    """Draw a load: customers who want trips, some two of them the same last seat, and some who
    then stay at home."""
    given: list[Given] = []
    ends: dict[str, frozenset[str]] = {}
    flight = ""
    for number in range(trips):
        (kind,) = chance.choices(list(KINDS), WEIGHTS)
        rivals = flight.endswith(LAST)  # for the seat that the one before them wants
        if not rivals:
            last = f", {LAST}" if chance.random() < 0.1 else ""
            flight = f"LX {chance.randrange(10**6)}/{number}{last}"
        key = f"trip {chance.randrange(10**6)}/{number} {kind}".rstrip()
        wish = _wish(
            key,
            flight,
            f"Traveller {chance.randrange(10**6)}",
            hold_seconds=SHORT_SECONDS if "short-hold" in kind else NEVER_SECONDS,
            time_limit_seconds=SHORT_SECONDS if "short-limit" in kind else NEVER_SECONDS,
        )
        ends[key] = frozenset(map(str, KINDS[kind][1]))
        if flight.endswith(LAST):
            ends[key] |= {str(Why.NO_FLIGHT)}
        if rivals:
            flight = ""
        at = chance.random() * 3
        over_broker = chance.random() < 0.5
        priority = chance.choice(list(Priority))
        given.append(Given(TRIP.name, wish, derived_id(key, wish.type), at, over_broker, priority))
        if chance.random() < 0.15:
            off = CallOff(trip=key)
            later = at + chance.random() * 2
            given.append(Given(TRIP.name, off, derived_id(key, off.type), later))
            ends[key] |= {str(Why.CALLED_OFF)}
    words = {AIRLINE.name: FLIGHT.name, HOTEL_CHAIN.name: HOTEL.name, RENTAL.name: CAR.name}
    return Plan(
        given, ends, decisions={name: partial(_decide, word) for name, word in words.items()}
    )


def _decide(provider: str, intent: Intent) -> Choice:
    return choice_of(provider, intent.subject)


SAGA: Final = Saga(
    "trips",
    participants=(TRIP, FLIGHT, HOTEL, CAR),
    observers=(ARCHIVE,),
    subject=Trip,
    outside=PROVIDERS,
    early_end=EarlyEnd(TRIP.name, "/trips/{subject}/call-off", lambda trip: CallOff(trip=trip)),
    always=(booked_in_part, overpaid, sold_twice, car_too_early),
    at_rest=(kept_otherwise,),
    scenarios=(ONE_TRIP, LAST_SEAT),
    load=plan,
)
