"""What a participant sees of a saga's course follows from its signatures and roles."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar, Literal

import pytest

from common.events import CancellationReason
from order_saga import SAGA as ORDERS
from order_service.domain import Order
from saga.choreography import Participant, State
from saga.course import Course, course_of, reason_of, subject_of
from saga.declaration import Saga
from saga.message import Command, Event, Role
from tests import errands
from tests.moving import SAGA as MOVING
from tests.moving.language import MoveGivenUp, Why
from tests.moving.move.domain import Move


def course(saga: Saga, name: str) -> Course | None:
    (participant,) = (p for p in saga.participants if p.name == name)
    return course_of(saga, participant)


def test_the_owner_of_the_subject_sees_it_whole() -> None:
    found = course(ORDERS, "order")

    assert found is not None
    assert (found.saga, found.subject, found.whole) == ("orders", Order, True)
    assert found.has_deadline
    assert set(found.ends) == {"order.confirmed", "order.cancelled"}
    assert found.ends["order.cancelled"] == set(CancellationReason)


def test_no_field_that_the_outcome_is_not_made_of_is_a_reason() -> None:
    found = course(ORDERS, "order")

    assert found is not None
    assert found.ends["order.confirmed"] == frozenset(), "a currency is none"


@pytest.mark.parametrize("name", ["inventory", "payment", "notification"])
def test_who_neither_owns_the_subject_nor_ends_the_saga_sees_nothing(name: str) -> None:
    assert course(ORDERS, name) is None


def test_nobody_sees_the_course_of_a_saga_that_it_takes_no_part_in() -> None:
    assert course_of(ORDERS, MOVING.participants[0]) is None


def test_a_saga_that_names_no_subject_is_about_the_state_it_ends_with() -> None:
    assert subject_of(replace(MOVING, subject=None)) is Move
    assert subject_of(errands.SAGA) is not None


def test_an_end_gives_its_reason_only_in_listed_words() -> None:
    event = MoveGivenUp(move="m", why=Why.NO_VAN)

    assert reason_of(event, frozenset({event.outcome})) == event.outcome
    assert reason_of(event, frozenset()) == ""


# --- one who begins, and another who ends ---------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Parcel(State):
    pass


@dataclass(frozen=True, slots=True)
class Round(State):
    pass


class SendParcel(Command):
    type: ClassVar[str] = "parcel.send"


class ParcelSent(Event):
    type: ClassVar[str] = "parcel.sent"


class ParcelDelivered(Event):
    type: ClassVar[str] = "parcel.delivered"
    role: ClassVar[Role] = Role.COMPLETION

    where: Literal["door", "box"] | None = None
    note: str = ""

    @property
    def outcome(self) -> str:
        return self.where or self.note


def send(command: SendParcel, parcel: Parcel, now: datetime) -> ParcelSent | None:
    return ParcelSent()


def deliver(event: ParcelSent, round_: Round) -> ParcelDelivered | None:
    return ParcelDelivered()


SENDER = Participant("sender", send)
COURIER = Participant("courier", deliver)
PARCELS = Saga("parcels", participants=(SENDER, COURIER), subject=Parcel)


def test_who_only_begins_cannot_tell_how_long_it_takes_nor_how_many_have_not_ended() -> None:
    found = course_of(PARCELS, SENDER)

    assert found is not None
    assert (found.subject, found.ends, found.whole) == (Parcel, {}, False)


def test_who_only_ends_counts_how() -> None:
    found = course_of(PARCELS, COURIER)

    assert found is not None
    assert (found.subject, found.whole, found.has_deadline) == (None, False, False)
    assert found.ends == {"parcel.delivered": {"door", "box"}}


def test_free_text_is_no_reason() -> None:
    words = frozenset({"door", "box"})

    assert reason_of(ParcelDelivered(where="box"), words) == "box"
    assert reason_of(ParcelDelivered(note="with the neighbour"), words) == ""
