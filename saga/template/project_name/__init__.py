"""The saga as a whole: what no single participant may know."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Final

from saga import (
    ARCHIVE,
    Broken,
    DeskBookkeeper,
    Given,
    Outside,
    Phase,
    Plan,
    Priority,
    Saga,
    Scenario,
    States,
    Stimulus,
    View,
    derived_id,
)

from project_name.booking.domain import PARTICIPANT as BOOKING
from project_name.booking.domain import Stage, Stay
from project_name.hotel import Choice, HotelBooks, HotelMemory, asks
from project_name.language import CallOff, RequestStay, Why
from project_name.room.domain import PARTICIPANT as ROOM
from project_name.room.domain import Room

HOTEL: Final = Outside(
    "hotel",
    asked_by=ROOM.name,
    blank=HotelBooks(),
    decisions=tuple(Choice),
    ask=lambda desk: asks(DeskBookkeeper(desk)),
    read=HotelBooks.read,
    setting="HOTEL_URL",
    file="hotel.db",
    memory=HotelMemory,
)


# --- what must hold, beside what follows from roles ---------------------------------------------


def confirmed_without_room(
    stays: States[Stay], rooms: States[Room], hotel: HotelBooks
) -> Iterator[Broken]:
    """A confirmed stay has a room, in our books and in the hotel's."""
    for key, stay in stays.items():
        if stay.stage is not Stage.CONFIRMED:
            continue
        kept = hotel.find(key)
        if rooms.of(key).phase is not Phase.TAKEN:
            yield key, f"it is confirmed, and the room is {rooms.of(key).phase}"
        elif kept is None or not kept.kept or kept.given_back:
            yield key, "it is confirmed, and the hotel keeps no room"


def kept_in_vain(stays: States[Stay], hotel: HotelBooks) -> Iterator[Broken]:
    """The hotel keeps nothing for a stay that is not confirmed."""
    for kept in hotel:
        stage = stays.of(kept.key).stage
        if kept.kept and not kept.given_back and stage is not Stage.CONFIRMED:
            yield kept.key, f"it is {stage}, and the hotel keeps a room"


# --- how that is tried ----------------------------------------------------------------------------

NOW: Final = datetime(2030, 1, 1, tzinfo=UTC)
A: Final = "smith/2030-01"


def _open(view: View) -> bool:
    return view.states(Stay).of(A).stage is not Stage.UNKNOWN


ONE_STAY: Final = Scenario(
    "one stay",
    sent=[(BOOKING.name, RequestStay(stay=A, nights=2))],
    stimuli=[Stimulus("the guest calls off", BOOKING.name, CallOff(stay=A), NOW, _open)],
    moments=(NOW, NOW + timedelta(seconds=300)),
    names={A: "A"},
)


def plan(chance: random.Random, stays: int) -> Plan:
    """Draw a load: guests who ask for a room, and some who do not come."""
    given: list[Given] = []
    ends: dict[str, frozenset[str]] = {}
    for number in range(stays):
        full = chance.random() < 0.2
        short = chance.random() < 0.1
        key = f"guest {chance.randrange(10**6)}/{number}{' full' if full else ''}"
        request = RequestStay(
            stay=key, nights=chance.randint(1, 14), time_limit_seconds=3 if short else 10**6
        )
        at = chance.random() * 3
        over_broker = chance.random() < 0.5
        priority = chance.choice(list(Priority))
        given.append(
            Given(BOOKING.name, request, derived_id(key, request.type), at, over_broker, priority)
        )
        ends[key] = frozenset({str(Why.NO_ROOM) if full else "stay.confirmed"})
        if short:
            ends[key] |= {str(Why.TOO_LATE)}
        if chance.random() < 0.3:
            off = CallOff(stay=key)
            later = at + chance.random() * 5
            given.append(Given(BOOKING.name, off, derived_id(key, off.type), later))
            ends[key] |= {str(Why.CALLED_OFF)}
    return Plan(given, ends, decisions={HOTEL.name: lambda intent: Choice.of(intent.subject)})


SAGA: Final = Saga(
    "project_name",
    participants=(BOOKING, ROOM),
    observers=(ARCHIVE,),
    subject=Stay,
    outside=(HOTEL,),
    always=(confirmed_without_room,),
    at_rest=(kept_in_vain,),
    scenarios=(ONE_STAY,),
    load=plan,
)
