"""The saga of moves with one mistake each, or without something that says whether all is well.

Each tool has to find it, or to name what it has not looked at.
"""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from saga.asking import Phase
from saga.choreography import Participant
from saga.declaration import Saga
from saga.due import Due
from saga.envelope import derived_id
from saga.load.plan import Given, Plan
from tests.moving import AGENCY, RENTAL, SAGA, plan
from tests.moving.agency import Choice
from tests.moving.language import (
    MoveGivenUp,
    MoveHasVan,
    MoveRequested,
    RequestMove,
    SendVan,
    Size,
    VanBooked,
    VanRefused,
    VanReturned,
    VanSent,
    Why,
)
from tests.moving.move import domain as move
from tests.moving.move.domain import PARTICIPANT as MOVE
from tests.moving.move.domain import GiveUpMove, Move, Stage
from tests.moving.van import domain as van
from tests.moving.van.domain import PARTICIPANT as VAN
from tests.moving.van.domain import BookVan, RentalAnswered, ReturnVan, SettleVan, Van
from tests.swapping import retyped, swapped, without

PLANTED: Final[dict[str, Callable[[], Saga]]] = {}
"""Mistakes that `saga verify` has to find."""


def planted(make: Callable[[], Participant]) -> Callable[[], Saga]:
    @functools.wraps(make)
    def saga() -> Saga:
        return SAGA.with_(make())

    PLANTED[make.__name__] = saga
    return saga


# --- compensations ------------------------------------------------------------------------------


@planted
def a_compensation_is_forgotten_in_the_body() -> Participant:
    def give_back(event: MoveGivenUp, state: Van) -> VanReturned | SettleVan | ReturnVan | None:
        return None if state.phase is Phase.TAKEN else van.give_back(event, state)

    return swapped(VAN, give_back)


@planted
def a_compensation_is_forgotten_in_the_signature() -> Participant:
    return without(VAN, "give_back")


@planted
def a_marker_is_missing() -> Participant:
    def give_back(event: MoveGivenUp, state: Van) -> VanReturned | SettleVan | ReturnVan | None:
        return None if state.phase is Phase.NEW else van.give_back(event, state)

    return swapped(VAN, give_back)


@planted
def a_question_on_its_way_is_taken_for_unasked() -> Participant:
    def give_back(event: MoveGivenUp, state: Van) -> VanReturned | SettleVan | ReturnVan | None:
        if state.phase is Phase.ASKING:
            return VanReturned(move=event.move)
        return van.give_back(event, state)

    return swapped(VAN, give_back)


# --- joins and private facts ----------------------------------------------------------------------


@planted
def a_join_takes_one_leg_for_both() -> Participant:
    def note_van(event: VanBooked, state: Move) -> MoveHasVan | SendVan | None:
        if state.stage is Stage.OPEN:
            return SendVan(move=event.move)
        return move.note_van(event, state)

    return swapped(MOVE, note_van)


@planted
def a_join_counts_deliveries() -> Participant:
    def note_van(event: VanBooked, state: Move) -> MoveHasVan | SendVan | None:
        if state.stage is Stage.HAS_VAN:  # the second of two
            return SendVan(move=event.move)
        return move.note_van(event, state)

    return swapped(MOVE, note_van)


@planted
def a_private_fact_is_forgotten() -> Participant:
    def note_van(event: VanBooked, state: Move) -> MoveHasVan | SendVan | None:
        return None if state.stage is Stage.OPEN else move.note_van(event, state)

    return swapped(MOVE, note_van)


# --- commands -------------------------------------------------------------------------------------


@planted
def a_command_leads_to_nothing() -> Participant:
    def send(command: SendVan, state: Van) -> VanSent | None:
        return None

    return swapped(VAN, send)


@planted
def an_answer_is_dropped() -> Participant:
    def record_van(
        answer: RentalAnswered, state: Van
    ) -> VanBooked | VanRefused | VanReturned | tuple[VanBooked, ReturnVan] | ReturnVan | None:
        return None if answer.kept else van.record_van(answer, state)

    return swapped(VAN, record_van)


# --- what is due ----------------------------------------------------------------------------------


class _NeverDue(Move):
    __slots__ = ()

    def due(self) -> Due[GiveUpMove] | None:
        return None


class _DueAgain(Move):
    __slots__ = ()

    def due(self) -> Due[GiveUpMove] | None:
        open_ = replace(self, stage=Stage.OPEN)
        return Move.due(open_) if self.deadline else None


@planted
def nothing_is_due() -> Participant:
    return retyped(MOVE, Move, _NeverDue)


@planted
def it_is_due_again_and_again() -> Participant:
    return retyped(MOVE, Move, _DueAgain)


@planted
def what_is_due_is_not_done() -> Participant:
    def give_up_late(command: GiveUpMove, state: Move) -> MoveGivenUp | None:
        return None

    return swapped(MOVE, give_up_late)


# --- without something that says whether all is well --------------------------------------------

NO_SCENARIO: Final = replace(SAGA, scenarios=())
NO_LOAD: Final = replace(SAGA, load=None)
TOO_FEW: Final = replace(SAGA, load=lambda chance, moves: plan(chance, 1))
SAME_AGAIN: Final = replace(SAGA, load=lambda chance, moves: plan(random.Random(1), moves))
NO_INVARIANT: Final = replace(SAGA, at_rest=(), always=())
BOOKS_UNREAD: Final = replace(SAGA, outside=(replace(RENTAL, read=None, memory=None), AGENCY))
NOBODY_ANSWERS: Final = replace(SAGA, outside=(RENTAL,), always=(), at_rest=())


# --- for long ---------------------------------------------------------------------------------

LATE_SECONDS: Final = 7_200


def _never_books() -> Participant:
    def book(event: MoveRequested, state: Van) -> BookVan | None:
        return None

    return swapped(VAN, book)


def _late(chance: random.Random, moves: int) -> Plan:
    """Moves that wait for a van until their deadline."""
    requests = [
        RequestMove(move=f"move {number}", size=Size.SMALL, time_limit_seconds=LATE_SECONDS)
        for number in range(moves)
    ]
    given = [
        Given(MOVE.name, request, derived_id(request.move, request.type), chance.random())
        for request in requests
    ]
    ends = {request.move: frozenset({Why.TOO_LATE.value}) for request in requests}
    return Plan(given, ends, decisions={AGENCY.name: lambda _: Choice.KEEPS})


LATE: Final = replace(SAGA.with_(_never_books()), load=_late)
