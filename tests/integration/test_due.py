"""What a state says is due is done once its time has come, and once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY

from saga.runtime.kernel import timer
from saga.runtime.kernel.rows import writing
from saga.runtime.kernel.step import DueStays, Firing, ForwardRequest
from saga.runtime.kernel.tables import StateTable
from saga.runtime.kernel.timer import Timekeeper
from saga.runtime.kernel.work import Done, Duplicate
from saga.runtime.metrics import DatabaseMetrics
from saga.runtime.tasks import cancel_all
from tests.integration.alarms import (
    EVERY,
    NOON,
    PARTICIPANT,
    Alarm,
    Ring,
    SetAlarm,
    StopAlarm,
    make_tables,
)
from tests.integration.kernels import Replica, Slow, Through, replica
from tests.integration.toy import RecordingPublisher
from tests.polling import until

BEFORE, AFTER = NOON - timedelta(seconds=1), NOON + timedelta(minutes=1)


@dataclass
class Clock:
    """Shows what it is set to."""

    now: datetime = BEFORE
    read: int = field(default=0)

    def __call__(self) -> datetime:
        self.read += 1
        return self.now


@dataclass
class Service:
    """A replica, with the timekeepers that look after its states."""

    replica: Replica
    keepers: list[Timekeeper]
    looks: Clock

    async def set(self, key: str, at: datetime = NOON, times: int = 1) -> None:
        await self.replica.kernel.give(SetAlarm(key=key, at=at, times=times))

    async def alarm(self, key: str) -> Alarm:
        found = await self.replica.find(Alarm, key)
        assert found is not None
        return found

    async def has_rung(self, key: str, times: int) -> bool:
        return (await self.alarm(key)).rung == times

    async def firing(self, key: str) -> Firing:
        firing = Firing.of(await self.alarm(key))
        assert firing is not None
        return firing

    async def look_again(self) -> None:
        """Wait until each keeper has looked some more."""
        enough = self.looks.read + 4 * len(self.keepers)
        await until(lambda: self.looks.read >= enough)

    async def due_at(self, key: str) -> datetime | None:
        dues = dict(await self.replica.database.read(table_of(self.replica).due))
        return dues.get(key)

    async def execute(self, statement: str) -> None:
        await self.replica.database.transaction(lambda c: c.execute(sa.text(statement)))


def table_of(replica: Replica) -> StateTable[Any]:
    return replica.tables.states[Alarm]


@asynccontextmanager
async def service(
    url: str,
    clock: Clock,
    *,
    keepers: int = 1,
    publisher: RecordingPublisher | None = None,
    slow: bool = False,
) -> AsyncIterator[Service]:
    looks = Clock()

    def look() -> datetime:
        looks()
        return clock.now

    through = partial(Slow, url=url) if slow else Through
    async with replica(
        url, PARTICIPANT, make_tables(), clock=clock, publisher=publisher, through=through
    ) as one:
        made = [
            Timekeeper(one.kernel, one.database, one.tables, clock=look, poll_seconds=0.01)
            for _ in range(keepers)
        ]
        running = [asyncio.create_task(keeper.run()) for keeper in made]
        try:
            yield Service(one, made, looks)
        finally:
            await cancel_all(*running)


async def test_what_is_due_is_done_when_its_time_has_come_and_not_before(database_url: str) -> None:
    clock = Clock()
    async with service(database_url, clock) as alarms:
        await alarms.set("a")
        await alarms.look_again()
        assert await alarms.has_rung("a", 0)

        clock.now = NOON
        await until(lambda: alarms.has_rung("a", 1))
        await alarms.look_again()

        assert await alarms.has_rung("a", 1)
        assert await alarms.due_at("a") is None


async def test_what_happens_before_its_time_leaves_nothing_to_be_done(database_url: str) -> None:
    clock = Clock()
    async with service(database_url, clock) as alarms:
        await alarms.set("a")
        await alarms.replica.kernel.give(StopAlarm(key="a"))
        clock.now = AFTER
        await alarms.look_again()

        assert await alarms.has_rung("a", 0)


async def test_two_timekeepers_do_it_once(database_url: str) -> None:
    clock = Clock()
    async with service(database_url, clock, keepers=3) as alarms:
        for number in range(20):
            await alarms.set(f"a{number}")
        clock.now = NOON
        for number in range(20):
            await until(partial(alarms.has_rung, f"a{number}", 1))
        await alarms.look_again()

        assert {(await alarms.alarm(f"a{number}")).rung for number in range(20)} == {1}
        assert len(alarms.replica.publisher.published) == 40


async def test_two_replicas_that_do_it_at_the_same_moment_do_it_once(postgres_url: str) -> None:
    clock = Clock()
    publisher = RecordingPublisher()
    async with (
        service(postgres_url, clock, keepers=0, publisher=publisher, slow=True) as slow,
        service(postgres_url, clock, keepers=0, publisher=publisher) as other,
    ):
        await slow.set("a")
        clock.now = NOON
        firing = await slow.firing("a")
        assert isinstance(slow.replica.database, Slow)
        slow.replica.database.arm()
        first = asyncio.create_task(slow.replica.kernel.fire(firing))
        await slow.replica.database.holding.wait()
        outcomes = await asyncio.gather(first, other.replica.kernel.fire(firing))

        done = [outcome for outcome in outcomes if isinstance(outcome, Done) and outcome.events]
        assert len(done) == 1
        assert (await other.alarm("a")).rung == 1
        await until(lambda: len(publisher.published) == 2)


async def test_what_became_due_while_nobody_ran_is_done_after_the_start(database_url: str) -> None:
    clock = Clock()
    async with service(database_url, clock) as alarms:
        await alarms.set("a")
    clock.now = AFTER
    async with service(database_url, clock) as alarms:
        await until(lambda: alarms.has_rung("a", 1))
    async with service(database_url, clock) as alarms:
        await alarms.look_again()
        assert await alarms.has_rung("a", 1)


async def test_a_clock_that_jumps_has_it_done_once(database_url: str) -> None:
    clock = Clock()
    async with service(database_url, clock) as alarms:
        await alarms.set("a", times=2)
        for moment, times in (
            (NOON - timedelta(days=365), 0),
            (NOON, 1),
            (NOON - timedelta(days=1), 1),
            (NOON, 1),
            (NOON + EVERY, 2),
            (BEFORE, 2),
            (NOON + timedelta(days=365), 2),
        ):
            clock.now = moment
            await until(partial(alarms.has_rung, "a", times))
            await alarms.look_again()
            assert await alarms.has_rung("a", times), moment


async def test_what_was_missed_again_and_again_is_made_up_for(database_url: str) -> None:
    clock = Clock()
    async with service(database_url, clock) as alarms:
        await alarms.set("a", times=3)
        clock.now = NOON + 10 * EVERY
        await until(lambda: alarms.has_rung("a", 3))


async def test_the_same_may_be_due_again_at_the_same_time(database_url: str) -> None:
    clock = Clock(AFTER)
    async with service(database_url, clock) as alarms:
        for times in (1, 2, 3):
            await alarms.set("a", NOON)
            await until(partial(alarms.has_rung, "a", times))


async def test_a_firing_that_comes_too_late_or_too_early_leaves_no_trace(
    database_url: str,
) -> None:
    clock = Clock()
    async with service(database_url, clock, keepers=0) as alarms:
        await alarms.set("a")
        firing = await alarms.firing("a")
        before = await alarms.replica.inbox()
        early = await alarms.replica.kernel.fire(firing)
        await alarms.set("a", NOON + EVERY)
        clock.now = NOON + EVERY
        late = await alarms.replica.kernel.fire(firing)

        assert (early, late) == (Duplicate(), Duplicate())
        assert firing.id(PARTICIPANT.name) not in await alarms.replica.inbox() - before
        assert await alarms.has_rung("a", 0)


async def test_what_is_brought_forward_is_done_before_its_time_and_once(database_url: str) -> None:
    clock = Clock()
    async with service(database_url, clock) as alarms:
        await alarms.set("a")
        firing = Firing.of(
            await alarms.alarm("a"), brought_forward=ForwardRequest("ada", "it is late")
        )
        assert firing is not None
        outcome = await alarms.replica.kernel.fire(firing)
        again = await alarms.replica.kernel.fire(firing)
        clock.now = AFTER
        await alarms.look_again()

        assert isinstance(outcome, Done)
        assert [event.type for event in outcome.events] == ["alarm.rang"]
        assert again == Duplicate()
        assert await alarms.has_rung("a", 1)


@pytest.mark.parametrize("key", ["silent", "broken"])
async def test_a_reaction_that_leaves_the_same_thing_due_is_named_and_stops_no_other(
    key: str, database_url: str
) -> None:
    clock = Clock()
    async with service(database_url, clock) as alarms:
        await alarms.set(key, BEFORE)
        await alarms.set("a")
        clock.now = NOON
        await until(lambda: alarms.has_rung("a", 1))
        _, firing = alarms.keepers[0].retry_loops
        await until(lambda: bool(firing.failing))

        assert firing.failing == {(Alarm, key)}
        assert await alarms.has_rung(key, 0), "nothing of it was kept"
        with pytest.raises(DueStays, match=rf"alarm\.ring leaves alarm\.ring due about .*'{key}'"):
            await alarms.replica.kernel.fire(await alarms.firing(key))


@pytest.mark.parametrize("key", ["put back", "silent"])
async def test_what_is_due_under_an_id_that_was_done_is_named_and_stops_no_other(
    key: str, database_url: str
) -> None:
    clock = Clock()
    async with service(database_url, clock) as alarms:
        await alarms.set(key)
        await alarms.set("a")
        firing = await alarms.firing(key)
        await note_as_done(alarms, firing)
        clock.now = NOON
        await until(lambda: alarms.has_rung("a", 1))
        _, loop = alarms.keepers[0].retry_loops
        await until(lambda: bool(loop.failing))

        assert loop.failing == {(Alarm, key)}
        assert await alarms.has_rung(key, 0), "its events would have the ids of others"
        with pytest.raises(DueStays, match=rf"alarm\.ring .*'{key}'"):
            await alarms.replica.kernel.fire(firing)


async def note_as_done(alarms: Service, firing: Firing) -> None:
    """As if the state's row had been put back to what it was before."""
    key = firing.envelope(PARTICIPANT.name, NOON).key

    def note(connection: sa.Connection) -> None:
        with writing(connection) as writes:
            alarms.replica.tables.mark_each_done(writes, {key: NOON})

    await alarms.replica.database.transaction(note)


async def test_what_failed_is_tried_again_later(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timer, "PUT_OFF_SECONDS", 0.05)
    clock = Clock()
    async with service(database_url, clock) as alarms:
        await alarms.set("silent")
        clock.now = NOON
        _, firing = alarms.keepers[0].retry_loops
        await until(lambda: bool(firing.failing))
        await alarms.replica.kernel.give(StopAlarm(key="silent"))
        await until(lambda: not firing.failing)


@pytest.mark.parametrize("row", ["0", "1893456000000000"], ids=["not known", "another time"])
async def test_a_row_that_says_another_time_than_its_state_is_corrected(
    row: str, database_url: str
) -> None:
    clock = Clock()
    async with service(database_url, clock) as alarms:
        await alarms.set("a", NOON + EVERY)
        await alarms.set("over", NOON + EVERY)
        await alarms.replica.kernel.give(StopAlarm(key="over"))
        await alarms.execute(f"UPDATE alarms SET due_at = {row}")  # noqa: S608 - ours
        clock.now = NOON

        async def corrected() -> bool:
            dues = [await alarms.due_at(key) for key in ("a", "over")]
            return dues == [NOON + EVERY, None]

        await until(corrected)
        assert await alarms.has_rung("a", 0)
        clock.now = NOON + EVERY
        await until(lambda: alarms.has_rung("a", 1))


async def test_what_is_due_first_is_found_first(database_url: str) -> None:
    clock = Clock(BEFORE)
    async with service(database_url, clock, keepers=0) as alarms:
        for key, hours in (("c", 3), ("a", 1), ("b", 2)):
            await alarms.set(key, NOON + hours * EVERY)
        table = table_of(alarms.replica)
        found = await alarms.replica.database.read(
            lambda c: table.due(c, until=NOON + 2 * EVERY, limit=5)
        )

        assert [key for key, _ in found] == ["a", "b"]
        assert (await alarms.firing("a")).due.command == Ring(key="a")


async def test_metrics_tell_what_is_due_how_late_it_is_and_what_was_done(
    database_url: str,
) -> None:
    clock = Clock()
    async with service(database_url, clock, keepers=0) as alarms:
        figures = DatabaseMetrics(PARTICIPANT.name, alarms.replica.tables, clock=clock)
        before = done()
        for key in ("a", "b"):
            await alarms.set(key)
        clock.now = NOON + timedelta(seconds=90)
        await alarms.replica.database.read(figures.read)
        assert gauge("saga_due_waiting", participant="alarm", state="Alarm") == 2
        assert gauge("saga_due_late_seconds", participant="alarm", state="Alarm") == 90

        wish = ForwardRequest("ada", "why not")
        forward = Firing.of(await alarms.alarm("b"), brought_forward=wish)
        assert forward is not None
        await alarms.replica.kernel.fire(await alarms.firing("a"))
        await alarms.replica.kernel.fire(forward)
        await alarms.replica.database.read(figures.read)

        assert gauge("saga_due_waiting", participant="alarm", state="Alarm") == 0
        assert gauge("saga_due_late_seconds", participant="alarm", state="Alarm") == 0
        assert [now - then for now, then in zip(done(), before, strict=True)] == [1, 90, 1]


def gauge(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0.0


def done() -> list[float]:
    labels = {"participant": "alarm", "command": "alarm.ring"}
    names = (
        "saga_due_done_seconds_count",
        "saga_due_done_seconds_sum",
        "saga_due_brought_forward_total",
    )
    return [gauge(name, **labels) for name in names]
