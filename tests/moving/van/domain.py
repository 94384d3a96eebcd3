"""A van: booked at the rental, given back if the move is given up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Self

from saga.asking import Phase, ask, record, record_undone, take_back
from saga.choreography import Participant, State
from saga.message import Answer, Decided, Intent
from saga.retry import Retry
from tests.moving.language import (
    MoveGivenUp,
    MoveRequested,
    SendVan,
    Size,
    VanBooked,
    VanRefused,
    VanReturned,
    VanSent,
)


class _About(Intent):
    move: str

    @property
    def subject(self) -> str:
        return self.move


class RentalAnswered(Answer):
    """Whether the rental keeps a van."""

    move: str
    kept: bool

    @property
    def subject(self) -> str:
        return self.move


class GivenBack(Answer):
    """The rental keeps none any more."""

    move: str

    @property
    def subject(self) -> str:
        return self.move


class BookVan(_About):
    """Ask the rental to keep a van."""

    answer: ClassVar[type[Answer]] = RentalAnswered

    size: Size


class SettleVan(BookVan):
    """The same once more, since the move was given up."""


class ReturnVan(_About):
    """Ask the rental to keep none."""

    answer: ClassVar[type[Answer]] = GivenBack


@dataclass(frozen=True, slots=True)
class Van(State):
    """The van of one move."""

    phase: Phase = Phase.NEW
    size: Size | None = None
    departures: int = 0

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case SettleVan():
                return replace(self, phase=Phase.SETTLING)
            case BookVan():
                return replace(self, phase=Phase.ASKING, size=message.size)
            case VanBooked():
                return replace(self, phase=Phase.TAKEN, size=None)
            case VanRefused():
                return replace(self, phase=Phase.REFUSED, size=None)
            case VanSent():
                return replace(self, departures=1)
            case ReturnVan():
                return replace(self, phase=Phase.UNDOING)
            case VanReturned():
                return replace(self, phase=Phase.VOID, size=None)
            case _:
                return self


def book(event: MoveRequested, van: Van) -> BookVan | None:
    return ask(van.phase, lambda: BookVan(move=event.move, size=event.size))


def record_van(
    answer: RentalAnswered, van: Van
) -> VanBooked | VanRefused | VanReturned | tuple[VanBooked, ReturnVan] | ReturnVan | None:
    return record(
        van.phase,
        answer.kept,
        taken=lambda: VanBooked(move=answer.move),
        refused=lambda: VanRefused(move=answer.move),
        void=lambda: VanReturned(move=answer.move),
        undo=lambda: ReturnVan(move=answer.move),
    )


def send(command: SendVan, van: Van) -> VanSent | None:
    if van.departures or van.phase is not Phase.TAKEN:
        return None
    return VanSent(move=command.move)


def give_back(event: MoveGivenUp, van: Van) -> VanReturned | SettleVan | ReturnVan | None:
    return take_back(
        van.phase,
        void=lambda: VanReturned(move=event.move),
        settle=lambda: SettleVan(move=event.move, size=van.size or Size.SMALL),
        undo=lambda: ReturnVan(move=event.move),
    )


def record_given_back(answer: GivenBack, van: Van) -> VanReturned | None:
    return record_undone(van.phase, lambda: VanReturned(move=answer.move))


PARTICIPANT = Participant(
    "van",
    book,
    record_van,
    send,
    give_back,
    record_given_back,
    retry=Retry(max_calls=4, delay=0.5, backoff=2.0, max_delay=5.0),
)
