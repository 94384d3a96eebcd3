"""A saga of its own words, in which one participant coordinates two others by commands.

The desk has an errand ridden and stamped, and ends it when both is done: a join, whose first leg is
a private fact. A rider who finds the way too far refuses; then the desk has the stamp taken off.

There is no deadline, which `saga check` remarks: it would end whatever a mistake has left undone.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, ClassVar, Final, Self

from saga.choreography import Participant, State
from saga.declaration import Saga, Scenario
from saga.envelope import Envelope, wrap
from saga.load.plan import Given, Plan
from saga.message import Command, Decided, Event, EventTypes, Priority, Role
from saga.retry import Retry, TransientError
from saga.view import Broken, States

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class _ErrandCommand(Command):
    errand: str

    @property
    def subject(self) -> str:
        return self.errand


class _ErrandEvent(Event):
    errand: str

    @property
    def subject(self) -> str:
        return self.errand


class AskErrand(_ErrandCommand):
    """A customer wants this errand run."""

    type: ClassVar[str] = "errand.ask"
    intake: ClassVar[bool] = True

    far: bool = False


class StartRide(_ErrandCommand):
    """Ride there."""

    type: ClassVar[str] = "ride.start"
    intake: ClassVar[bool] = True
    senders: ClassVar[tuple[str, ...]] = ("desk",)

    far: bool = False


class GiveStamp(_ErrandCommand):
    """Stamp the papers."""

    type: ClassVar[str] = "stamp.give"
    intake: ClassVar[bool] = True
    senders: ClassVar[tuple[str, ...]] = ("desk",)


class TakeStampOff(_ErrandCommand):
    """See to it that the papers have no stamp."""

    type: ClassVar[str] = "stamp.take_off"
    intake: ClassVar[bool] = True
    senders: ClassVar[tuple[str, ...]] = ("desk",)


class RideDone(_ErrandEvent):
    """The rider was there."""

    type: ClassVar[str] = "ride.done"
    publisher: ClassVar[str] = "rider"


class RideRefused(_ErrandEvent):
    """It is too far, and will not be ridden."""

    type: ClassVar[str] = "ride.refused"
    publisher: ClassVar[str] = "rider"
    role: ClassVar[Role] = Role.FAILURE


class StampGiven(_ErrandEvent):
    """The papers are stamped."""

    type: ClassVar[str] = "stamp.given"
    publisher: ClassVar[str] = "stamper"
    role: ClassVar[Role] = Role.EFFECT


class StampTakenOff(_ErrandEvent):
    """The papers have no stamp, and get none."""

    type: ClassVar[str] = "stamp.taken_off"
    publisher: ClassVar[str] = "stamper"
    role: ClassVar[Role] = Role.COMPENSATION
    undoes: ClassVar[EventTypes] = (StampGiven,)
    final: ClassVar[bool] = True


class ErrandRidden(_ErrandEvent):
    """The rider is back, and the stamp is not."""

    type: ClassVar[str] = "errand.ridden"
    private: ClassVar[bool] = True


class ErrandStamped(_ErrandEvent):
    """The papers are back, and the rider is not."""

    type: ClassVar[str] = "errand.stamped"
    private: ClassVar[bool] = True


class ErrandEnded(_ErrandEvent):
    """The errand was run."""

    type: ClassVar[str] = "errand.ended"
    publisher: ClassVar[str] = "desk"
    role: ClassVar[Role] = Role.COMPLETION
    final: ClassVar[bool] = True


class ErrandCancelled(_ErrandEvent):
    """The errand will not be run."""

    type: ClassVar[str] = "errand.cancelled"
    publisher: ClassVar[str] = "desk"
    role: ClassVar[Role] = Role.CANCELLATION
    final: ClassVar[bool] = True


# --- the desk -----------------------------------------------------------------------------------


class Stage(StrEnum):
    """How far an errand is."""

    NEW = "new"
    ASKED = "asked"
    RIDDEN = "ridden"
    STAMPED = "stamped"
    ENDED = "ended"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Errand(State):
    """What the desk knows of an errand."""

    stage: Stage = Stage.NEW

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case StartRide():
                return replace(self, stage=Stage.ASKED)
            case ErrandRidden():
                return replace(self, stage=Stage.RIDDEN)
            case ErrandStamped():
                return replace(self, stage=Stage.STAMPED)
            case ErrandEnded():
                return replace(self, stage=Stage.ENDED)
            case ErrandCancelled():
                return replace(self, stage=Stage.CANCELLED)
            case _:
                return self


def ask(command: AskErrand, errand: Errand) -> tuple[StartRide, GiveStamp] | None:
    if errand.stage is not Stage.NEW:
        return None
    return StartRide(errand=command.errand, far=command.far), GiveStamp(errand=command.errand)


def ridden(event: RideDone, errand: Errand) -> ErrandEnded | ErrandRidden | None:
    match errand.stage:
        case Stage.STAMPED:
            return ErrandEnded(errand=event.errand)
        case Stage.ASKED:
            return ErrandRidden(errand=event.errand)
        case _:
            return None


def stamped(event: StampGiven, errand: Errand) -> ErrandEnded | ErrandStamped | None:
    match errand.stage:
        case Stage.RIDDEN:
            return ErrandEnded(errand=event.errand)
        case Stage.ASKED:
            return ErrandStamped(errand=event.errand)
        case _:
            return None


def refused(event: RideRefused, errand: Errand) -> tuple[ErrandCancelled, TakeStampOff] | None:
    if errand.stage not in (Stage.ASKED, Stage.STAMPED):
        return None
    return ErrandCancelled(errand=event.errand), TakeStampOff(errand=event.errand)


DESK = Participant("desk", ask, ridden, stamped, refused, package=f"{__name__}.desk")


# --- those who are told -------------------------------------------------------------------------


class Ill(TransientError):
    """The rider rides as soon as they are well again."""


ill: set[str] = set()
"""The errands on which the rider is ill."""


@dataclass(frozen=True, slots=True)
class Ride(State):
    """What the rider knows of an errand."""

    rides: int = 0
    refusals: int = 0

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case RideDone():
                return replace(self, rides=self.rides + 1)
            case RideRefused():
                return replace(self, refusals=self.refusals + 1)
            case _:
                return self


def ride(command: StartRide, ride: Ride) -> RideDone | RideRefused | None:
    if command.errand in ill:
        raise Ill(f"no rider for {command.errand}")
    if ride.rides or ride.refusals:
        return None
    kind = RideRefused if command.far else RideDone
    return kind(errand=command.errand)


RIDER = Participant("rider", ride, retry=Retry(max_calls=1), package=f"{__name__}.rider")


class Mark(StrEnum):
    """What is on the papers."""

    NONE = "none"
    STAMP = "stamp"
    VOID = "void"
    """No stamp, and there will be none."""


@dataclass(frozen=True, slots=True)
class Papers(State):
    """What the stamper knows of an errand."""

    mark: Mark = Mark.NONE

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case StampGiven():
                return replace(self, mark=Mark.STAMP)
            case StampTakenOff():
                return replace(self, mark=Mark.VOID)
            case _:
                return self


def stamp(command: GiveStamp, papers: Papers) -> StampGiven | None:
    return StampGiven(errand=command.errand) if papers.mark is Mark.NONE else None


def take_off(command: TakeStampOff, papers: Papers) -> StampTakenOff | None:
    return None if papers.mark is Mark.VOID else StampTakenOff(errand=command.errand)


STAMPER = Participant("stamper", stamp, take_off, package=f"{__name__}.stamper")

# --- the saga as a whole ------------------------------------------------------------------------


def ridden_once(rides: States[Ride]) -> Iterator[Broken]:
    """No errand is ridden twice."""
    for errand, ride in rides.items():
        if ride.rides > 1:
            yield errand, f"ridden {ride.rides} times"


def ended_undone(
    errands: States[Errand], rides: States[Ride], papers: States[Papers]
) -> Iterator[Broken]:
    """What has ended is ridden and stamped."""
    for key, errand in errands.items():
        done = rides.of(key).rides and papers.of(key).mark is Mark.STAMP
        if errand.stage is Stage.ENDED and not done:
            yield key, "ended, and not all of it is done"


def never_ended(errands: States[Errand]) -> Iterator[Broken]:
    """Every errand ends."""
    for key, errand in errands.items():
        if errand.stage not in (Stage.ENDED, Stage.CANCELLED):
            yield key, f"at rest, and {errand.stage}"


def stamp_left(errands: States[Errand], papers: States[Papers]) -> Iterator[Broken]:
    """The papers of what was cancelled have no stamp."""
    for key, errand in errands.items():
        if errand.stage is Stage.CANCELLED and papers.of(key).mark is Mark.STAMP:
            yield key, "cancelled, and stamped"


def plan(chance: random.Random, errands: int) -> Plan:
    """Errands near and far, asked for by commands over the broker and at the desk."""
    far = {f"errand-{number}": chance.random() < 0.4 for number in range(errands)}
    given = [
        Given(
            DESK.name,
            AskErrand(errand=errand, far=far[errand]),
            key=f"ask-{errand}",
            after_seconds=chance.random(),
            over_broker=chance.random() < 0.5,
            priority=chance.choice(list(Priority)),
        )
        for errand in far
    ]
    ends = {errand: ErrandCancelled.type if far[errand] else ErrandEnded.type for errand in far}
    return Plan(given, {errand: frozenset({end}) for errand, end in ends.items()})


SCENARIO: Final = Scenario(
    "one errand",
    starts={
        "near": [("desk", AskErrand(errand="a"))],
        "far": [("desk", AskErrand(errand="a", far=True))],
    },
    sent=(),
    moments=(NOW,),
)

SAGA: Final = Saga(
    "errands",
    participants=(DESK, RIDER, STAMPER),
    subject=Errand,
    always=(ridden_once, ended_undone),
    at_rest=(never_ended, stamp_left),
    scenarios=(SCENARIO,),
    load=plan,
)
GRAPH: Final = SAGA.choreography


# --- for tests ----------------------------------------------------------------------------------


def asked(errand: str, *, far: bool = False) -> Envelope[Any]:
    """A customer's command to the desk."""
    return wrap(
        AskErrand(errand=errand, far=far),
        id=f"ask-{errand}",
        source="https://customer.example",
        time=NOW,
        priority=Priority.NORMAL,
    )


def told_to_ride(errand: str, *, source: str = "/services/desk") -> Envelope[Any]:
    """A command to the rider, as the desk sends it."""
    return wrap(
        StartRide(errand=errand),
        id=f"ride-{errand}",
        source=source,
        time=NOW,
        priority=Priority.NORMAL,
        sequence=1,
        causation=f"ask-{errand}",
    )
