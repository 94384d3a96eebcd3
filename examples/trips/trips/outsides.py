"""The providers as outsides: for the checker, the simulation, the books and a rebuild."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from typing import Final

from saga import ErasureRequest, Intent, Outside, Phase, State

from trips.car import rental
from trips.car.domain import PARTICIPANT as CAR
from trips.car.domain import Car
from trips.flight import airline
from trips.flight.domain import PARTICIPANT as FLIGHT
from trips.flight.domain import IssueTicket, Seat
from trips.hotel import chain
from trips.hotel.domain import PARTICIPANT as HOTEL
from trips.hotel.domain import Room
from trips.providers import (
    AirlineBooks,
    Booking,
    Books,
    Choice,
    DeskProvider,
    HotelBooks,
    RentalBooks,
    reads,
)


class ProviderMemory:
    """What a provider's books tell of questions that no event tells of: a database that is made
    again from the events asks for it."""

    def __init__(
        self,
        books: Books,
        book: Callable[[Booking], Intent],
        give_up: Callable[[Booking], Intent],
    ) -> None:
        self._bookings = {each.key: each for each in books}
        self._book = book
        self._give_up = give_up

    @property
    def keys(self) -> Collection[str]:
        return self._bookings.keys()

    def asked(self, state: State) -> Intent | None:
        booking = self._bookings.get(state.key)
        if booking is None or not isinstance(state, Seat | Room | Car):
            return None
        match state.phase:
            case Phase.NEW:
                return self._book(booking)
            case Phase.TAKEN if booking.given_up:
                return self._give_up(booking)
            case Phase.TAKEN if isinstance(state, Seat):
                untold = state.ticket is Phase.NEW and booking.firm
                return IssueTicket(trip=state.key) if untold else None
            case _:
                return None

    def taken_back(self, state: State) -> Intent | None:
        return None

    def contradiction(self, state: State) -> str | None:
        return None


def names_nobody(_: ErasureRequest) -> int:
    """No provider here is told who travels, so there is no traveller to take out of its books."""
    return 0


AIRLINE: Final = Outside(
    "airline",
    asked_by=FLIGHT.name,
    blank=AirlineBooks(),
    decisions=tuple(Choice),
    ask=lambda desk: airline.asks(DeskProvider(desk)),
    read=reads(AirlineBooks),
    setting="AIRLINE_URL",
    file="airline.db",
    memory=partial(ProviderMemory, book=airline.hold_again, give_up=airline.give_up_again),
    forget=names_nobody,
)
HOTEL_CHAIN: Final = Outside(
    "hotel chain",
    asked_by=HOTEL.name,
    blank=HotelBooks(),
    decisions=tuple(Choice),
    ask=lambda desk: chain.asks(DeskProvider(desk)),
    read=reads(HotelBooks),
    setting="HOTEL_URL",
    file="hotel-chain.db",
    memory=partial(ProviderMemory, book=chain.book_again, give_up=chain.give_up_again),
    forget=names_nobody,
)
RENTAL: Final = Outside(
    "rental",
    asked_by=CAR.name,
    blank=RentalBooks(),
    decisions=tuple(Choice),
    ask=lambda desk: rental.asks(DeskProvider(desk)),
    read=reads(RentalBooks),
    setting="RENTAL_URL",
    file="rental.db",
    memory=partial(ProviderMemory, book=rental.book_again, give_up=rental.give_up_again),
    forget=names_nobody,
)
PROVIDERS: Final = (AIRLINE, HOTEL_CHAIN, RENTAL)
