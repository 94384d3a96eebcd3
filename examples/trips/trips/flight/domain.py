"""A flight: a seat is held, and ticketed once the trip has all else; the hold lapses by itself."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Self

from saga import (
    Answer,
    Command,
    Decided,
    Due,
    Intent,
    Moment,
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
    FlightHeld,
    FlightLapsed,
    FlightRefused,
    FlightReleased,
    FlightTicketed,
    TripAssembled,
    TripCancelled,
    TripRequested,
)


class SeatAnswered(AboutTrip, Answer):
    """Whether the airline holds a seat, until when, and at which price."""

    held: bool
    until: Moment
    cents: int


class TicketAnswered(AboutTrip, Answer):
    """Whether the airline has issued a ticket: not for a hold that has lapsed."""

    issued: bool


class SeatReleased(AboutTrip, Answer):
    """The airline keeps no seat any more."""


class HoldSeat(AboutTrip, Intent):
    """Ask the airline to hold a seat."""

    answer: ClassVar[type[Answer]] = SeatAnswered

    flight: str
    cents: int
    until: Moment


class SettleSeat(HoldSeat):
    """The same once more, since the trip was cancelled while it was asked."""


class IssueTicket(AboutTrip, Intent):
    """Ask the airline for a ticket for the seat that it holds."""

    answer: ClassVar[type[Answer]] = TicketAnswered


class ReleaseSeat(AboutTrip, Intent):
    """Ask the airline to keep no seat, ticketed or not. It issues no ticket from here on."""

    answer: ClassVar[type[Answer]] = SeatReleased


class LapseHold(AboutTrip, Command):
    """The time for which the seat is held is over."""

    type: ClassVar[str] = "flight.lapse"


@dataclass(frozen=True, slots=True)
class Seat(State):
    """The seat of one trip, and the ticket for it. What only a question tells is forgotten with its
    answer: at rest, a state follows from events alone."""

    phase: Phase = Phase.NEW
    ticket: Phase = Phase.NEW
    """`REFUSED` once the hold has lapsed."""
    until: datetime | None = None
    asking: HoldSeat | None = None

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case SettleSeat():
                return replace(self, phase=Phase.SETTLING)
            case HoldSeat():
                return replace(self, phase=Phase.ASKING, asking=message)
            case FlightHeld():
                return replace(self, phase=Phase.TAKEN, until=message.until, asking=None)
            case FlightRefused(
                dearer=True
            ):  # It is held until the trip is cancelled because of it.
                return replace(self, phase=Phase.TAKEN, ticket=Phase.REFUSED, asking=None)
            case FlightRefused():
                return replace(self, phase=Phase.REFUSED, asking=None)
            case IssueTicket():
                return replace(self, ticket=Phase.ASKING)
            case FlightTicketed():
                return replace(self, ticket=Phase.TAKEN)
            case FlightLapsed():
                return replace(self, ticket=Phase.REFUSED)
            case ReleaseSeat():
                return replace(self, phase=Phase.UNDOING)
            case FlightReleased():
                return replace(self, phase=Phase.VOID, ticket=Phase.VOID, asking=None)
            case _:
                return self

    def due(self) -> Due[LapseHold] | None:
        """The hold lapses, unless a ticket was asked for before."""
        if self.phase is not Phase.TAKEN or self.ticket is not Phase.NEW or self.until is None:
            return None
        return Due(self.until, LapseHold(trip=self.key))


def hold(event: TripRequested, seat: Seat) -> HoldSeat | None:
    def question() -> HoldSeat:
        return HoldSeat(
            trip=event.trip, flight=event.flight, cents=event.flight_cents, until=event.held_until
        )

    return ask(seat.phase, question)


def record_seat(
    answer: SeatAnswered, seat: Seat
) -> (
    FlightHeld
    | FlightRefused
    | FlightReleased
    | tuple[FlightHeld | FlightRefused, ReleaseSeat]
    | ReleaseSeat
    | None
):
    return record(
        seat.phase,
        answer.held,
        taken=lambda: _held(answer, seat),
        refused=lambda: FlightRefused(trip=answer.trip, dearer=False),
        void=lambda: FlightReleased(trip=answer.trip),
        undo=lambda: ReleaseSeat(trip=answer.trip),
    )


def _held(answer: SeatAnswered, seat: Seat) -> FlightHeld | FlightRefused:
    """What is held at a price that was not agreed to is refused."""
    if seat.asking is not None and answer.cents > seat.asking.cents:
        return FlightRefused(trip=answer.trip, dearer=True)
    return FlightHeld(trip=answer.trip, until=answer.until)


def issue_ticket(event: TripAssembled, seat: Seat) -> IssueTicket | None:
    """From here on the hold does not lapse by our clock: the airline's answer decides."""
    if seat.phase is not Phase.TAKEN:
        return None
    return ask(seat.ticket, lambda: IssueTicket(trip=event.trip))


def record_ticket(answer: TicketAnswered, seat: Seat) -> FlightTicketed | FlightLapsed | None:
    if seat.phase is not Phase.TAKEN or seat.ticket is not Phase.ASKING:
        return None
    return FlightTicketed(trip=answer.trip) if answer.issued else FlightLapsed(trip=answer.trip)


def lapse(command: LapseHold, seat: Seat) -> FlightLapsed | None:
    """The trip is cancelled because of it, and that releases the seat: clocks may differ."""
    if seat.phase is not Phase.TAKEN or seat.ticket is not Phase.NEW:
        return None
    return FlightLapsed(trip=command.trip)


def release(event: TripCancelled, seat: Seat) -> FlightReleased | SettleSeat | ReleaseSeat | None:
    return take_back(
        seat.phase,
        void=lambda: FlightReleased(trip=event.trip),
        settle=lambda: SettleSeat(**dict(seat.asking or ())),
        undo=lambda: ReleaseSeat(trip=event.trip),
    )


def record_release(answer: SeatReleased, seat: Seat) -> FlightReleased | None:
    return record_undone(seat.phase, lambda: FlightReleased(trip=answer.trip))


PARTICIPANT = Participant(
    "flight",
    hold,
    record_seat,
    issue_ticket,
    record_ticket,
    lapse,
    release,
    record_release,
    retry=Retry(max_calls=4, delay=0.5, backoff=2.0, max_delay=5.0),
)
