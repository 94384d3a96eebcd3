"""A second saga, moving house: it keeps the engine honest. No tool has a line for it but this.

Two outsides are asked side by side, the answers are joined, a deadline ends what never comes to an
end, and the mover, a coordinator as far as that goes, sends a command.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Final

from saga.archive import OBSERVER as HISTORY
from saga.asking import Phase
from saga.declaration import Saga, Scenario, Stimulus
from saga.envelope import derived_id
from saga.load.plan import Given, Plan
from saga.message import Intent, Priority
from saga.outside import Outside
from saga.view import Broken, States, View
from tests.moving.agency import (
    Choice,
    CrewBookings,
    CrewMemory,
    DeskKeeper,
    VanBookings,
    VanMemory,
    asks_agency,
    asks_rental,
    read,
)
from tests.moving.crew.domain import PARTICIPANT as CREW
from tests.moving.crew.domain import Crew
from tests.moving.language import CallMoveOff, RequestMove, Size, Why
from tests.moving.move.domain import PARTICIPANT as MOVE
from tests.moving.move.domain import Move, Stage
from tests.moving.van.domain import PARTICIPANT as VAN
from tests.moving.van.domain import Van

RENTAL: Final = Outside(
    "rental",
    asked_by=VAN.name,
    blank=VanBookings(),
    decisions=tuple(Choice),
    ask=lambda desk: asks_rental(DeskKeeper(desk)),
    read=lambda url: read(VanBookings, url),
    setting="RENTAL_URL",
    file="rental.db",
    memory=VanMemory,
)
AGENCY: Final = Outside(
    "agency",
    asked_by=CREW.name,
    blank=CrewBookings(),
    decisions=tuple(Choice),
    ask=lambda desk: asks_agency(DeskKeeper(desk)),
    read=lambda url: read(CrewBookings, url),
    setting="AGENCY_URL",
    file="agency.db",
    memory=CrewMemory,
)


# --- what must hold -----------------------------------------------------------------------------


def arranged_without(
    moves: States[Move],
    vans: States[Van],
    crews: States[Crew],
    rental: VanBookings,
    agency: CrewBookings,
) -> Iterator[Broken]:
    """An arranged move has a van and a crew, in our books and in the agencies'."""
    for key, move in moves.items():
        if move.stage is not Stage.ARRANGED:
            continue
        for what, state, booking in (
            ("van", vans.of(key), rental.find(key)),
            ("crew", crews.of(key), agency.find(key)),
        ):
            if state.phase is not Phase.TAKEN:
                yield key, f"it is arranged, and the {what} is {state.phase}"
            elif booking is None or not booking.kept or booking.let_go:
                yield key, f"it is arranged, and the agency keeps no {what}"


def kept_in_vain(
    moves: States[Move], rental: VanBookings, agency: CrewBookings
) -> Iterator[Broken]:
    """Nothing is kept for a move that is not arranged."""
    for what, books in (("van", rental), ("crew", agency)):
        for booking in books:
            stage = moves.of(booking.key).stage
            if booking.kept and not booking.let_go and stage is not Stage.ARRANGED:
                yield booking.key, f"it is {stage}, and the {what} is kept"


# --- how that is tried --------------------------------------------------------------------------

NOW: Final = datetime(2030, 1, 1, tzinfo=UTC)
A: Final = "smith/2030-01"


def _open(view: View) -> bool:
    return view.states(Move).of(A).stage is not Stage.UNKNOWN


ONE_MOVE: Final = Scenario(
    "one move",
    sent=[(MOVE.name, RequestMove(move=A, size=Size.SMALL))],
    stimuli=[Stimulus("the household stays", MOVE.name, CallMoveOff(move=A), NOW, _open)],
    moments=(NOW, NOW + timedelta(seconds=300)),
    names={A: "A"},
)

KINDS: Final = {
    "": frozenset({"move.arranged"}),
    "no-van": frozenset({Why.NO_VAN.value}),
    "no-crew": frozenset({Why.NO_CREW.value}),
    "nothing, no-van no-crew": frozenset({Why.NO_VAN.value, Why.NO_CREW.value}),
}
"""Keyed by what the key of a move says: how it may end."""


def plan(chance: random.Random, moves: int) -> Plan:
    """Draw a plan: households that move, and some that then stay where they are."""
    given: list[Given] = []
    ends: dict[str, frozenset[str]] = {}
    for number in range(moves):
        kind = chance.choice(list(KINDS))
        key = f"household {chance.randrange(10**6)}/{number} {kind}"
        request = RequestMove(
            move=key,
            size=chance.choice(list(Size)),
            time_limit_seconds=chance.choice((3, 10**6, 10**6, 10**6)),
        )
        at = chance.random() * 3
        priority = chance.choice(list(Priority))
        over_broker = chance.random() < 0.5
        given.append(
            Given(MOVE.name, request, derived_id(key, request.type), at, over_broker, priority)
        )
        ends[key] = KINDS[kind]
        if request.time_limit_seconds == 3:
            ends[key] |= {Why.TOO_LATE}
        if chance.random() < 0.3:
            stay = CallMoveOff(move=key)
            later = at + chance.random() * 5
            given.append(Given(MOVE.name, stay, derived_id(key, stay.type), later))
            ends[key] |= {Why.CALLED_OFF}
    return Plan(
        given,
        ends,
        decisions={
            RENTAL.name: partial(_decide, "no-van"),
            AGENCY.name: partial(_decide, "no-crew"),
        },
    )


def _decide(word: str, intent: Intent) -> Choice:
    return Choice.HAS_NONE if word in intent.subject else Choice.KEEPS


SAGA: Final = Saga(
    "moving",
    participants=(MOVE, VAN, CREW),
    observers=(HISTORY,),
    subject=Move,
    outside=(RENTAL, AGENCY),
    always=(arranged_without,),
    at_rest=(kept_in_vain,),
    scenarios=(ONE_MOVE,),
    load=plan,
)
