"""A move: arranged once there is a van and a crew, or given up."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import ClassVar, Self

from saga.choreography import Participant, State
from saga.due import Due
from saga.message import Command, Decided
from tests.moving.language import (
    CallMoveOff,
    CrewBooked,
    CrewRefused,
    MoveArranged,
    MoveGivenUp,
    MoveHasCrew,
    MoveHasVan,
    MoveRequested,
    RequestMove,
    SendVan,
    Size,
    VanBooked,
    VanRefused,
    VanSent,
    Why,
)


class GiveUpMove(Command):
    """The time for it is over."""

    type: ClassVar[str] = "move.give_up"

    move: str

    @property
    def subject(self) -> str:
        return self.move


class Stage(StrEnum):
    """How far a move is."""

    UNKNOWN = "unknown"
    OPEN = "open"
    HAS_VAN = "has_van"
    HAS_CREW = "has_crew"
    HAS_BOTH = "has_both"
    ARRANGED = "arranged"
    GIVEN_UP = "given_up"


ENDED = (Stage.ARRANGED, Stage.GIVEN_UP)


@dataclass(frozen=True, slots=True)
class Move(State):
    """What is known of one move."""

    stage: Stage = Stage.UNKNOWN
    size: Size = Size.SMALL
    deadline: datetime | None = None

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case MoveRequested():
                return replace(self, stage=Stage.OPEN, size=message.size, deadline=message.deadline)
            case MoveHasVan():
                return replace(self, stage=Stage.HAS_VAN)
            case MoveHasCrew():
                return replace(self, stage=Stage.HAS_CREW)
            case SendVan():
                return replace(self, stage=Stage.HAS_BOTH)
            case MoveArranged():
                return replace(self, stage=Stage.ARRANGED)
            case MoveGivenUp():
                return replace(self, stage=Stage.GIVEN_UP)
            case _:
                return self

    def due(self) -> Due[GiveUpMove] | None:
        """It is given up at its deadline."""
        if self.deadline is None or self.stage in (Stage.UNKNOWN, *ENDED):
            return None
        return Due(self.deadline, GiveUpMove(move=self.key))


def request(command: RequestMove, move: Move, now: datetime) -> MoveRequested | None:
    if move.stage is not Stage.UNKNOWN:
        return None
    deadline = now + timedelta(seconds=command.time_limit_seconds)
    return MoveRequested(move=command.move, size=command.size, deadline=deadline)


def note_van(event: VanBooked, move: Move) -> MoveHasVan | SendVan | None:
    match move.stage:
        case Stage.OPEN:
            return MoveHasVan(move=event.move)
        case Stage.HAS_CREW:
            return SendVan(move=event.move)
        case _:
            return None


def note_crew(event: CrewBooked, move: Move) -> MoveHasCrew | SendVan | None:
    match move.stage:
        case Stage.OPEN:
            return MoveHasCrew(move=event.move)
        case Stage.HAS_VAN:
            return SendVan(move=event.move)
        case _:
            return None


def arrange(event: VanSent, move: Move) -> MoveArranged | None:
    return MoveArranged(move=event.move) if move.stage is Stage.HAS_BOTH else None


def give_up_vanless(event: VanRefused, move: Move) -> MoveGivenUp | None:
    return _give_up(move, Why.NO_VAN)


def give_up_crewless(event: CrewRefused, move: Move) -> MoveGivenUp | None:
    return _give_up(move, Why.NO_CREW)


def call_off(command: CallMoveOff, move: Move) -> MoveGivenUp | None:
    return _give_up(move, Why.CALLED_OFF)


def give_up_late(command: GiveUpMove, move: Move) -> MoveGivenUp | None:
    return _give_up(move, Why.TOO_LATE)


def _give_up(move: Move, why: Why) -> MoveGivenUp | None:
    if move.stage in (Stage.UNKNOWN, *ENDED):
        return None
    return MoveGivenUp(move=move.key, why=why)


PARTICIPANT = Participant(
    "move",
    request,
    note_van,
    note_crew,
    arrange,
    give_up_vanless,
    give_up_crewless,
    call_off,
    give_up_late,
)
