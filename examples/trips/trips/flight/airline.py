"""How `flight` puts its questions to the airline."""

from __future__ import annotations

from collections.abc import Mapping

from saga import Ask, Intent

from trips.flight.domain import (
    HoldSeat,
    IssueTicket,
    ReleaseSeat,
    SeatAnswered,
    SeatReleased,
    SettleSeat,
    TicketAnswered,
)
from trips.providers import Booking, Provider


def asks(airline: Provider) -> Mapping[type[Intent], Ask]:
    async def hold(intent: HoldSeat) -> SeatAnswered:
        seat = await airline.keep(intent.trip, intent.flight, intent.cents, intent.until)
        return SeatAnswered(trip=intent.trip, held=seat.kept, until=seat.until, cents=seat.cents)

    async def issue(intent: IssueTicket) -> TicketAnswered:
        return TicketAnswered(trip=intent.trip, issued=await airline.make_firm(intent.trip))

    async def release(intent: ReleaseSeat) -> SeatReleased:
        await airline.give_up(intent.trip)
        return SeatReleased(trip=intent.trip)

    return {HoldSeat: hold, SettleSeat: hold, IssueTicket: issue, ReleaseSeat: release}


def hold_again(seat: Booking) -> HoldSeat:
    """The question that led to a booking, from the airline's books."""
    return HoldSeat(trip=seat.key, flight=seat.what, cents=seat.agreed_cents, until=seat.until)


def give_up_again(booking: Booking) -> ReleaseSeat:
    return ReleaseSeat(trip=booking.key)
