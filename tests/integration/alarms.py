"""A participant that lives by the clock: an alarm rings at its time, as often as it was set.

Nothing in its reactions guards against ringing twice, or too early: that is the kernel's.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import ClassVar, Self

import sqlalchemy as sa

from saga.choreography import Participant, State
from saga.due import Due
from saga.message import Command, Decided, Event
from saga.runtime.kernel.tables import StateTable, Tables, Utc, due_columns

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)
EVERY = timedelta(hours=1)


class _About:
    key: str

    @property
    def subject(self) -> str:
        return self.key


class SetAlarm(_About, Command):
    """Ring at a time, and so often, an hour apart."""

    type: ClassVar[str] = "alarm.set"

    key: str
    at: datetime
    times: int = 1


class StopAlarm(_About, Command):
    """Ring no more."""

    type: ClassVar[str] = "alarm.stop"

    key: str


class Ring(_About, Command):
    """It is time."""

    type: ClassVar[str] = "alarm.ring"

    key: str


class AlarmSet(_About, Event):
    type: ClassVar[str] = "alarm.was_set"
    publisher: ClassVar[str | None] = "alarm"
    final: ClassVar[bool] = True

    key: str
    at: datetime
    times: int


class AlarmStopped(_About, Event):
    type: ClassVar[str] = "alarm.was_stopped"
    publisher: ClassVar[str | None] = "alarm"
    final: ClassVar[bool] = True

    key: str


class AlarmRang(_About, Event):
    type: ClassVar[str] = "alarm.rang"
    publisher: ClassVar[str | None] = "alarm"
    final: ClassVar[bool] = True

    key: str


@dataclass(frozen=True, slots=True)
class Alarm(State):
    """When it rings next, and how often it has."""

    at: datetime | None = None
    left: int = 0
    rung: int = 0

    def evolve(self, message: Decided, at: datetime) -> Self:
        match message:
            case AlarmSet():
                return replace(self, at=message.at, left=message.times)
            case AlarmStopped():
                return replace(self, left=0)
            case AlarmRang() if self.key == "broken":
                return replace(self, rung=self.rung + 1)
            case AlarmRang() if self.at is not None:
                next_at = self.at + EVERY if self.left > 1 else self.at
                return replace(self, at=next_at, left=self.left - 1, rung=self.rung + 1)
            case _:
                return self

    def due(self) -> Due[Ring] | None:
        if self.at is None or self.left == 0:
            return None
        return Due(self.at, Ring(key=self.key))


def set_alarm(command: SetAlarm, alarm: Alarm) -> AlarmSet:
    return AlarmSet(key=command.key, at=command.at, times=command.times)


def stop_alarm(command: StopAlarm, alarm: Alarm) -> AlarmStopped:
    return AlarmStopped(key=command.key)


def ring(command: Ring, alarm: Alarm) -> AlarmRang | None:
    if command.key == "silent":
        return None
    return AlarmRang(key=command.key)


PARTICIPANT = Participant("alarm", set_alarm, stop_alarm, ring)


def make_tables() -> Tables:
    metadata = sa.MetaData()
    table = sa.Table(
        "alarms",
        metadata,
        sa.Column("key", sa.String(36), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("at", Utc),
        sa.Column("left", sa.Integer, nullable=False),
        sa.Column("rung", sa.Integer, nullable=False),
        *due_columns("alarms"),
    )
    return Tables(metadata, StateTable(Alarm, table))
