"""The hotel, which `room` asks: its rules, once, for the checker, the simulation and the sandbox of
a running system.

Put the client of the real one in the sandbox's place: it is asked under a key, so that the same
question, asked again, reserves nothing twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import partial

from saga import Ask, Bookkeeper, Intent, KeyedBooks, Phase, State

from project_name.room.domain import (
    GivenBack,
    GiveRoomBack,
    HotelAnswered,
    ReserveRoom,
    Room,
    SettleRoom,
)


class Choice(StrEnum):
    """What the hotel decides on a new wish."""

    KEEPS = "keeps a room"
    HAS_NONE = "has none"

    @classmethod
    def of(cls, key: str) -> Choice:
        """What the sandbox decides: the key says it."""
        return cls.HAS_NONE if "full" in key else cls.KEEPS


@dataclass(frozen=True, slots=True)
class Reservation:
    """What was asked for under a key, and what became of it."""

    key: str
    nights: int
    kept: bool
    given_back: bool = False


class HotelBooks(KeyedBooks[Reservation]):
    """All reservations."""

    __slots__ = ()
    kind = Reservation


def reserve(
    intent: ReserveRoom, known: Reservation | None, choice: Choice
) -> tuple[Reservation, bool]:
    """Keep a room, or none: the first question under a key decides."""
    known = known or Reservation(intent.stay, intent.nights, choice is Choice.KEEPS)
    if known.nights != intent.nights:
        raise ValueError(f"{intent.stay} is the key of another reservation")
    return known, known.kept


def give_back(
    intent: GiveRoomBack, known: Reservation | None, _: Choice
) -> tuple[Reservation, None]:
    """Keep the room no longer."""
    if known is None or not known.kept:
        raise ValueError(f"nothing is kept under {intent.stay}")
    return replace(known, given_back=True), None


def asks(hotel: Bookkeeper) -> Mapping[type[Intent], Ask]:
    """How each question is put to it."""

    async def ask_for_room(intent: ReserveRoom) -> HotelAnswered:
        kept = await hotel.ask(intent.stay, partial(reserve, intent))
        return HotelAnswered(stay=intent.stay, kept=kept)

    async def ask_to_take_back(intent: GiveRoomBack) -> GivenBack:
        await hotel.ask(intent.stay, partial(give_back, intent))
        return GivenBack(stay=intent.stay)

    return {ReserveRoom: ask_for_room, SettleRoom: ask_for_room, GiveRoomBack: ask_to_take_back}


class HotelMemory:
    """What its books tell of questions that no event tells of: `saga history rebuild` asks."""

    def __init__(self, books: HotelBooks) -> None:
        self._books = books

    @property
    def keys(self) -> Collection[str]:
        return [each.key for each in self._books]

    def asked(self, state: State) -> Intent | None:
        found = self._books.find(state.key)
        if found is None or not isinstance(state, Room):
            return None
        if state.phase is Phase.NEW:
            return ReserveRoom(stay=state.key, nights=found.nights)
        if state.phase is Phase.TAKEN and found.given_back:
            return GiveRoomBack(stay=state.key)
        return None

    def taken_back(self, state: State) -> Intent | None:
        return None

    def contradiction(self, state: State) -> str | None:
        return None
