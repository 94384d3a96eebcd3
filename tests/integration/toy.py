"""A participant small enough to see through, whose reaction can be told to fail."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.choreography import Participant, State
from saga.envelope import Envelope, wrap
from saga.message import Decided, Event, Priority
from saga.retry import Retry, TransientError
from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.kernel.sqlite import SqliteDatabase
from saga.runtime.kernel.tables import StateTable, Tables
from tests.words import Cancelled, Inquire, Inquired, Released, Voided

NOW = datetime(2030, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Tally(State):
    """How many events there were; the table allows at most `TALLY_MAX`."""

    count: int = 0

    def evolve(self, message: Decided, at: datetime) -> Self:
        return replace(self, count=self.count + 1)


class Poison(Exception):
    """What the reaction raises for the name `poison`."""


class Unavailable(TransientError):
    """What the reaction raises for the name `flaky` while it is in `flaky_until_call`."""


BEYOND: dict[str, Event | tuple[Event, ...]] = {
    "thief": Voided(thing=UUID(int=1)),
    "spendthrift": (Released(thing=UUID(int=1), parts=()),) * 2,
    "gossip": Released(thing=UUID(int=2), parts=()),
}
"""What the reaction returns for some customers of thing 1, beyond its signature."""
flaky_calls: list[str] = []
"""The ids of the things of `flaky` customers, one for each call."""
flaky_until_call = 10


def tally(event: Cancelled, tally: Tally) -> Released | None:
    if event.who == "flaky":
        flaky_calls.append(event.subject)
        if flaky_calls.count(event.subject) < flaky_until_call:
            raise Unavailable(f"no answer for thing {event.thing}")
    if event.who == "poison":
        raise Poison("somebody of that name cannot be served")
    if event.who in BEYOND:
        return BEYOND[event.who]  # type: ignore[return-value]  # what a type checker refuses
    return Released(thing=event.thing, parts=())


PARTICIPANT = Participant(
    "toy", tally, retry=Retry(max_calls=10, delay=0.1, backoff=1.0, max_delay=0.1)
)
TALLY_MAX = 3


def inquire(event: Cancelled, tally: Tally) -> Inquire:
    return Inquire(thing=event.thing)


def hear(answer: Inquired, tally: Tally) -> Released:
    return Released(thing=answer.thing, parts=())


INQUIRER = Participant("inquirer", inquire, hear)
"""Asks whenever it hears of a cancellation."""


def make_tables() -> Tables:
    metadata = sa.MetaData()
    table = sa.Table(
        "tallies",
        metadata,
        sa.Column("key", sa.String(36), primary_key=True),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("sequence", sa.Integer, nullable=False),
        sa.Column("count", sa.Integer, sa.CheckConstraint(f"count <= {TALLY_MAX}"), nullable=False),
    )
    return Tables(metadata, StateTable(Tally, table))


def open_toy(folder: Path, tables: Tables) -> SqliteDatabase:
    return SqliteDatabase(f"sqlite:///{folder / 'toy.db'}", tables)


def cancelled(
    number: int, *, id: str | None = None, who: str = "c", priority: Priority = Priority.NORMAL
) -> Envelope[Any]:
    """A `thing.cancelled` the toy reacts to."""
    event = Cancelled.model_validate_json(
        f'{{"thing": "{UUID(int=number)}", "who": "{who}", "reason": "wish"}}'
    )
    return wrap(
        event,
        id=id or f"event-{number}",
        source="/services/starter",
        time=NOW,
        priority=priority,
        sequence=1,
    )


class RecordingPublisher:
    """Confirms everything; pinned to the real publisher's contract by `test_messaging`."""

    def __init__(self) -> None:
        self.published: list[str] = []
        self.error: Exception | None = None
        self.delay_seconds = 0.0
        self.cancelled = False

    async def publish_events(self, events: Sequence[Outgoing]) -> list[Exception | None]:
        if self.cancelled:
            raise asyncio.CancelledError
        await asyncio.sleep(self.delay_seconds)
        if self.error is None:
            self.published += [event.event_id for event in events]
        return [self.error] * len(events)


def id_in_inbox(key: str) -> str:
    """The id of the message that an inbox row is about."""
    return key.partition("\t")[0]


def rows(connection: Connection, table: sa.Table) -> list[Any]:
    return [tuple(row) for row in connection.execute(sa.select(table))]
