"""What each participant answers, and what it says when the same comes twice."""

from __future__ import annotations

from datetime import timedelta

from saga import Phase
from saga.testing import NOW, assert_once, given

from project_name.booking.domain import PARTICIPANT as BOOKING
from project_name.booking.domain import ExpireStay, Stay
from project_name.language import (
    CallOff,
    RequestStay,
    RoomRefused,
    RoomReleased,
    RoomReserved,
    StayCancelled,
    StayConfirmed,
    StayRequested,
    Why,
)
from project_name.room.domain import PARTICIPANT as ROOM
from project_name.room.domain import (
    GivenBack,
    GiveRoomBack,
    HotelAnswered,
    ReserveRoom,
    Room,
    SettleRoom,
)

STAY = "smith/2030-04"
request = RequestStay(stay=STAY, nights=2)
requested = StayRequested(stay=STAY, nights=2, deadline=NOW + timedelta(minutes=5))
confirmed = StayConfirmed(stay=STAY)
reserve = ReserveRoom(stay=STAY, nights=2)
reserved = RoomReserved(stay=STAY)
refused = RoomRefused(stay=STAY)
released = RoomReleased(stay=STAY)


def cancelled(why: Why) -> StayCancelled:
    return StayCancelled(stay=STAY, why=why)


def test_a_request_is_taken_once() -> None:
    assert given(BOOKING).when(request) == (requested,)
    assert_once(given(BOOKING), request)


def test_a_stay_is_confirmed_once_it_has_a_room() -> None:
    assert given(BOOKING, requested).when(reserved) == (confirmed,)
    assert_once(given(BOOKING, requested), reserved)


def test_a_stay_without_a_room_is_cancelled() -> None:
    assert given(BOOKING, requested).when(refused) == (cancelled(Why.NO_ROOM),)


def test_a_stay_can_be_called_off_until_it_has_ended() -> None:
    off = CallOff(stay=STAY)
    assert given(BOOKING, requested).when(off) == (cancelled(Why.CALLED_OFF),)
    assert given(BOOKING, requested, confirmed).when(off) == ()


def test_a_stay_is_cancelled_at_its_deadline() -> None:
    due = given(BOOKING, requested).state(Stay, STAY).due()
    assert due is not None
    assert (due.at, due.command) == (requested.deadline, ExpireStay(stay=STAY))
    assert given(BOOKING, requested).when(due.command) == (cancelled(Why.TOO_LATE),)


def test_the_hotel_is_asked_for_a_room_and_its_answer_told() -> None:
    assert given(ROOM).when(requested) == (reserve,)
    kept, none = (HotelAnswered(stay=STAY, kept=each) for each in (True, False))
    assert given(ROOM, reserve).when(kept) == (reserved,)
    assert given(ROOM, reserve).when(none) == (refused,)


def test_a_cancellation_gives_back_what_there_is_at_any_moment() -> None:
    off = cancelled(Why.CALLED_OFF)
    assert given(ROOM).when(off) == (released,)
    assert given(ROOM, reserve).when(off) == (SettleRoom(stay=STAY, nights=2),)
    assert given(ROOM, reserve, reserved).when(off) == (GiveRoomBack(stay=STAY),)
    given_back = GivenBack(stay=STAY)
    undoing = given(ROOM, reserve, reserved, GiveRoomBack(stay=STAY))
    assert undoing.when(given_back) == (released,)


def test_a_cancellation_that_comes_first_keeps_the_hotel_from_being_asked() -> None:
    world = given(ROOM, released)
    assert world.state(Room, STAY).phase is Phase.VOID
    assert world.when(requested) == ()
