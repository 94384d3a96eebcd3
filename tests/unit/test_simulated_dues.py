"""What a simulated run tells of timers: no more than its events can tell."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Self

import pytest

from saga.choreography import Participant, State
from saga.due import Due
from saga.envelope import Envelope, derived_id, source_of, wrap
from saga.message import Answer, Command, Decided, Event, Intent, Message, Priority
from saga.simulation.dues import LATE_MAX_SECONDS, _late

AT = datetime(2030, 1, 1, tzinfo=UTC)
KEY = "k"


class _About(Message):
    key: str = KEY

    @property
    def subject(self) -> str:
        return self.key


class Wanted(_About, Event):
    """A customer wants it."""

    type: ClassVar[str] = "hold.wanted"


class Bought(_About, Event):
    """A customer pays for it."""

    type: ClassVar[str] = "hold.bought"


class Held(_About, Event):
    """It is held for a minute."""

    type: ClassVar[str] = "hold.held"


class Sold(_About, Event):
    """It is theirs."""

    type: ClassVar[str] = "hold.sold"


class Lapsed(_About, Event):
    """It is held no longer."""

    type: ClassVar[str] = "hold.lapsed"


class Lapse(_About, Command):
    """The minute is over."""

    type: ClassVar[str] = "hold.lapse"


class Handed(_About, Answer):
    """The shop has handed it over."""


class HandOver(_About, Intent):
    """Ask the shop to hand it over."""

    answer: ClassVar[type[Answer]] = Handed


@dataclass(frozen=True, slots=True)
class Hold(State):
    """It lapses, unless the shop is asked to hand it over before."""

    until: datetime | None = None

    def evolve(self, message: Decided, at: datetime) -> Self:
        held = isinstance(message, Held)
        return replace(self, until=at + timedelta(minutes=1) if held else None)

    def due(self) -> Due[Lapse] | None:
        return Due(self.until, Lapse(key=self.key)) if self.until else None


def hold(event: Wanted, state: Hold) -> Held | None:
    return Held()


def sell(event: Bought, state: Hold) -> HandOver | Sold | None:
    return HandOver()


def record(answer: Handed, state: Hold) -> Sold | None:
    return Sold()


def lapse(command: Lapse, state: Hold) -> Lapsed | None:
    return Lapsed()


HOLDER = Participant("holder", hold, sell, record, lapse)


def published(event: Event, by: str, number: int, at: datetime) -> Envelope[Event]:
    return wrap(
        event,
        id=derived_id("cause", f"holder.{by}.{event.type}"),
        source=source_of("holder"),
        time=at,
        priority=Priority.NORMAL,
        sequence=number,
        causation="cause",
    )


@pytest.mark.parametrize(
    ("by", "rules"),
    [("record", []), ("sell", ["due_late"])],
    ids=["of an answer", "of an event"],
)
def test_what_came_of_an_answer_may_have_been_asked_in_time(by: str, rules: list[str]) -> None:
    long_after = AT + timedelta(seconds=60 + LATE_MAX_SECONDS + 1)
    events = [published(Held(), "hold", 1, AT), published(Sold(), by, 2, long_after)]

    assert [found.rule for found in _late(HOLDER, events, calm_at=AT)] == rules
