"""A crew: booked at the agency, released if the move is given up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Self

from saga.asking import Phase, ask, record, record_undone, take_back
from saga.choreography import Participant, State
from saga.message import Answer, Decided, Intent
from saga.retry import Retry
from tests.moving.language import (
    CrewBooked,
    CrewRefused,
    CrewReleased,
    MoveGivenUp,
    MoveRequested,
    Size,
)


class _About(Intent):
    move: str

    @property
    def subject(self) -> str:
        return self.move


class AgencyAnswered(Answer):
    """Whether the agency keeps a crew."""

    move: str
    kept: bool

    @property
    def subject(self) -> str:
        return self.move


class LetGo(Answer):
    """The agency keeps none any more."""

    move: str

    @property
    def subject(self) -> str:
        return self.move


class BookCrew(_About):
    """Ask the agency to keep a crew."""

    answer: ClassVar[type[Answer]] = AgencyAnswered

    size: Size


class SettleCrew(BookCrew):
    """The same once more, since the move was given up."""


class ReleaseCrew(_About):
    """Ask the agency to keep none."""

    answer: ClassVar[type[Answer]] = LetGo


@dataclass(frozen=True, slots=True)
class Crew(State):
    """The crew of one move."""

    phase: Phase = Phase.NEW
    size: Size | None = None

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case SettleCrew():
                return replace(self, phase=Phase.SETTLING)
            case BookCrew():
                return replace(self, phase=Phase.ASKING, size=message.size)
            case CrewBooked():
                return replace(self, phase=Phase.TAKEN, size=None)
            case CrewRefused():
                return replace(self, phase=Phase.REFUSED, size=None)
            case ReleaseCrew():
                return replace(self, phase=Phase.UNDOING)
            case CrewReleased():
                return replace(self, phase=Phase.VOID, size=None)
            case _:
                return self


def hire(event: MoveRequested, crew: Crew) -> BookCrew | None:
    return ask(crew.phase, lambda: BookCrew(move=event.move, size=event.size))


def record_crew(
    answer: AgencyAnswered, crew: Crew
) -> CrewBooked | CrewRefused | CrewReleased | tuple[CrewBooked, ReleaseCrew] | ReleaseCrew | None:
    return record(
        crew.phase,
        answer.kept,
        taken=lambda: CrewBooked(move=answer.move),
        refused=lambda: CrewRefused(move=answer.move),
        void=lambda: CrewReleased(move=answer.move),
        undo=lambda: ReleaseCrew(move=answer.move),
    )


def release(event: MoveGivenUp, crew: Crew) -> CrewReleased | SettleCrew | ReleaseCrew | None:
    return take_back(
        crew.phase,
        void=lambda: CrewReleased(move=event.move),
        settle=lambda: SettleCrew(move=event.move, size=crew.size or Size.SMALL),
        undo=lambda: ReleaseCrew(move=event.move),
    )


def record_let_go(answer: LetGo, crew: Crew) -> CrewReleased | None:
    return record_undone(crew.phase, lambda: CrewReleased(move=answer.move))


PARTICIPANT = Participant(
    "crew",
    hire,
    record_crew,
    release,
    record_let_go,
    retry=Retry(max_calls=4, delay=0.5, backoff=2.0, max_delay=5.0),
)
