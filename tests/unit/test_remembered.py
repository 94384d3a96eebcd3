"""What several outsides remember of one state."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Self

from saga.choreography import Participant, State
from saga.history.outside import Remembered
from saga.message import Answer, Command, Decided, Event, Intent
from saga.runtime.kernel.fold import Fold
from saga.testing import NOW


class _About:
    @property
    def subject(self) -> str:
        return "a"


class Begin(_About, Command):
    type: ClassVar[str] = "trip.begin"


class Begun(_About, Event):
    type: ClassVar[str] = "trip.begun"


class FlightAnswered(_About, Answer):
    pass


class HotelAnswered(_About, Answer):
    pass


class AskFlight(_About, Intent):
    answer: ClassVar[type[Answer]] = FlightAnswered


class AskHotel(_About, Intent):
    answer: ClassVar[type[Answer]] = HotelAnswered


@dataclass(frozen=True, slots=True)
class Trip(State):
    flight: bool = False
    hotel: bool = False

    def evolve(self, message: Decided, at: datetime) -> Self:
        if isinstance(message, AskFlight):
            return replace(self, flight=True)
        return replace(self, hotel=True) if isinstance(message, AskHotel) else self


def begin(command: Begin, trip: Trip) -> Begun | AskFlight | AskHotel: ...  # type: ignore[empty-body]  # only its signature is looked at
def flight(answer: FlightAnswered, trip: Trip) -> Begun: ...  # type: ignore[empty-body]  # only its signature is looked at
def hotel(answer: HotelAnswered, trip: Trip) -> Begun: ...  # type: ignore[empty-body]  # only its signature is looked at


@dataclass
class Recalls:
    """An outside that was asked this."""

    intent: Intent

    @property
    def keys(self) -> Collection[str]:
        return {"a"}

    def asked(self, state: State) -> Intent | None:
        return self.intent

    def taken_back(self, state: State) -> Intent | None:
        return None

    def contradiction(self, state: State) -> str | None:
        return f"{type(self.intent).__name__} cannot be"


def test_every_question_that_is_open_about_a_state_is_put_back() -> None:
    remembered = Remembered([Recalls(AskFlight()), Recalls(AskHotel())])
    fold = Fold(Participant("trip", begin, flight, hotel))

    for intent in remembered.asked(Trip("a")):
        fold.ask(intent, NOW)

    assert fold.find((Trip, "a")) == Trip("a", flight=True, hotel=True)
    assert remembered.contradictions(Trip("a")) == ["AskFlight cannot be", "AskHotel cannot be"]
