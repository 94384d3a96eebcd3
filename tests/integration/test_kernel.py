"""Inbox, state and outbox in one transaction, shared by the messages in flight."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, ClassVar, TypeVar
from uuid import UUID

import asyncpg
import pytest
import sqlalchemy as sa
from prometheus_client import REGISTRY
from sqlalchemy.engine import Connection

from saga.choreography import Participant
from saga.envelope import Envelope, wrap
from saga.message import Answer, Command, Priority
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.outbox import Outbox
from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.kernel.rows import WriteSet
from saga.runtime.kernel.work import Conflicting, Done, Duplicate, Failed, Outcome
from saga.runtime.metrics import DatabaseMetrics
from tests.integration.kernels import Replica, Through, replica
from tests.integration.toy import (
    INQUIRER,
    NOW,
    PARTICIPANT,
    TALLY_MAX,
    Poison,
    RecordingPublisher,
    Tally,
    cancelled,
    make_tables,
)
from tests.polling import until
from tests.words import Inquire, Inquired, Released, Unexpected

T = TypeVar("T")

RUN_SECONDS = 120.0
"""Longer than any test here takes."""


def running(
    url: str,
    *,
    group_max: int = 32,
    **options: Any,  # of `replica`
) -> AbstractAsyncContextManager[Replica]:
    return replica(url, PARTICIPANT, make_tables(), group_max=group_max, **options)


async def tally_of(toy: Replica, number: int) -> int:
    state = await toy.find(Tally, UUID(int=number))
    return state.count if state else 0


async def test_a_message_is_done_once_however_often_it_comes(database_url: str) -> None:
    async with running(database_url) as toy:
        first = await toy.kernel.handle(cancelled(1))
        again = await toy.kernel.handle(cancelled(1))
        together = await asyncio.gather(*(toy.kernel.handle(cancelled(2)) for _ in range(10)))

        assert isinstance(first, Done)
        assert [event.type for event in first.events] == ["part.released"]
        assert again == Duplicate()
        assert (
            sorted(type(outcome).__name__ for outcome in together) == ["Done"] + ["Duplicate"] * 9
        )
        assert (await tally_of(toy, 1), await tally_of(toy, 2)) == (1, 1)
        await until(lambda: len(toy.publisher.published) == 2)


async def test_an_id_of_another_source_is_another_message(database_url: str) -> None:
    own = [envelope(Count(thing=UUID(int=number)), f"/{number}") for number in (1, 2)]
    async with replica(database_url, COUNTER, make_tables()) as counter:
        outcomes = [await counter.kernel.handle(command) for command in own]
        again = [await counter.kernel.handle(command) for command in own]
        await until(lambda: len(set(counter.publisher.published)) == 2)

        assert [type(outcome) for outcome in outcomes] == [Done, Done]
        assert again == [Duplicate(), Duplicate()]
        assert (await tally_of(counter, 1), await tally_of(counter, 2)) == (1, 1)


class Count(Command):
    type: ClassVar[str] = "count"

    thing: UUID

    @property
    def subject(self) -> str:
        return str(self.thing)


def count(command: Count, tally: Tally) -> Released:
    return Released(thing=command.thing, parts=())


COUNTER = Participant("counter", count)


def envelope(command: Count, source: str, id: str = "one") -> Envelope[Any]:
    return wrap(command, id=id, source=source, time=NOW, priority=Priority.NORMAL)


@pytest.mark.parametrize("again", ["together", "later", "pessimistically"])
async def test_another_message_under_the_same_source_and_id_is_no_duplicate(
    again: str, database_url: str
) -> None:
    other = cancelled(2, id=cancelled(1).id)
    async with running(database_url) as toy:

        async def handle(envelope: Envelope[Any], digest: bytes | None) -> Outcome:
            return await toy.kernel.handle(envelope, digest=digest)

        if again == "together":
            outcomes = list(
                await asyncio.gather(handle(cancelled(1), b"one"), handle(other, b"two"))
            )
        else:
            outcomes = [await handle(cancelled(1), b"one")]
            if again == "pessimistically":
                assert await handle(cancelled(1), b"one") == Duplicate()
            outcomes.append(await handle(other, b"two"))

        assert isinstance(outcomes[0], Done)
        assert isinstance(outcomes[1], Failed)
        assert isinstance(outcomes[1].error, Conflicting)
        assert await handle(cancelled(1), b"one") == Duplicate()
        assert await handle(cancelled(1), None) == Duplicate()
        assert (await tally_of(toy, 1), await tally_of(toy, 2)) == (1, 0)


async def test_what_was_done_without_a_digest_is_compared_with_nothing(database_url: str) -> None:
    async with running(database_url) as toy:
        await toy.kernel.handle(cancelled(1))

        assert await toy.kernel.handle(cancelled(1), digest=b"one") == Duplicate()


@pytest.mark.parametrize("length", [100, 255])
async def test_a_message_is_known_again_however_long_its_id_and_source(
    length: int, database_url: str
) -> None:
    sources = [f"{'s' * (length - 1)}{last}" for last in "aab"]
    async with replica(database_url, COUNTER, make_tables()) as counter:
        outcomes = [
            await counter.kernel.handle(envelope(Count(thing=UUID(int=1)), source, id="i" * length))
            for source in sources
        ]

    assert [type(outcome) for outcome in outcomes] == [Done, Duplicate, Done]


async def test_a_row_of_before_there_were_sources_counts_for_every_source(
    database_url: str,
) -> None:
    async with running(database_url) as toy:
        old = sa.insert(toy.tables.inbox).values(message_id=cancelled(1).id, at=NOW)
        await toy.database.transaction(lambda connection: connection.execute(old).close())
        outcomes = await asyncio.gather(
            *(toy.kernel.handle(cancelled(number), digest=b"x") for number in (1, 2))
        )

        assert [type(outcome) for outcome in outcomes] == [Duplicate, Done]
        assert await toy.kernel.handle(cancelled(1)) == Duplicate()


async def test_what_was_done_before_cannot_fail_any_more_nor_fail_others(database_url: str) -> None:
    """It is decided on optimistically, as if it were new, and its reaction raises."""
    async with running(database_url) as toy:
        await toy.kernel.handle(cancelled(1))
        outcomes = await asyncio.gather(
            toy.kernel.handle(cancelled(1, who="poison")),
            toy.kernel.handle(cancelled(2, who="poison")),
            toy.kernel.handle(cancelled(3)),
        )

        assert [type(outcome) for outcome in outcomes] == [Duplicate, Failed, Done]


async def test_what_was_done_before_is_not_refused_by_the_database(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Done once more, it would break a constraint. A database may find that before it finds that
    there is an inbox row: PostgreSQL promises no order."""
    execute = WriteSet.execute

    def execute_backwards(writes: WriteSet, connection: Connection) -> None:
        writes._writes.reverse()
        execute(writes, connection)

    monkeypatch.setattr(WriteSet, "execute", execute_backwards)
    async with running(database_url) as toy:
        done = [cancelled(1, id=f"{number}") for number in range(TALLY_MAX)]
        for envelope in done:
            assert isinstance(await toy.kernel.handle(envelope), Done)

        assert await toy.kernel.handle(done[0]) == Duplicate()


async def test_what_was_done_before_asks_nobody_again(database_url: str) -> None:
    """Its reaction does not look whether it has asked already."""
    asked: list[Inquire] = []

    async def ask(question: Inquire) -> Inquired:
        asked.append(question)
        return Inquired(thing=question.thing)

    tables = make_tables()
    async with replica(database_url, INQUIRER, tables, {Inquire: ask}) as inquirer:
        outcomes = [await inquirer.kernel.handle(cancelled(1)) for _ in range(2)]

    assert [type(outcome) for outcome in outcomes] == [Done, Duplicate]
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Unexpected(thing=UUID(int=1)), "by Unexpected, not by Inquired"),
        (Inquired(thing=UUID(int=2)), f"about '{UUID(int=2)}'"),
    ],
)
async def test_an_answer_to_something_else_is_refused_and_not_recorded(
    database_url: str, answer: Answer, said: str
) -> None:
    async def ask(_: Inquire) -> Answer:
        return answer

    async with replica(database_url, INQUIRER, make_tables(), {Inquire: ask}) as inquirer:
        outcome = await inquirer.kernel.handle(cancelled(1))

        assert isinstance(outcome, Failed)
        about = f"Inquire about '{UUID(int=1)}' was answered"
        assert str(outcome.error).startswith(f"{about} {said}")
        assert await inquirer.inbox() == set()


@pytest.mark.parametrize("id", ["\0", "a\0b", "'", "ä", "[]"])
async def test_a_message_is_known_again_whatever_its_id(id: str, database_url: str) -> None:
    """PostgreSQL keeps no text with a zero character: it fails there, each time."""
    async with running(database_url) as toy:
        outcomes = [await toy.kernel.handle(cancelled(1, id=id)) for _ in range(2)]

    kept = not (database_url.startswith("postgresql") and "\0" in id)
    assert [type(it) for it in outcomes] == ([Done, Duplicate] if kept else [Failed, Failed])


async def test_a_raising_reaction_fails_alone(database_url: str) -> None:
    """A group of 32 with one poison message: 31 done, that one's inbox row absent."""
    async with running(database_url) as toy:
        group = [cancelled(number, who="poison" if number == 7 else "c") for number in range(1, 33)]
        outcomes = await asyncio.gather(*(toy.kernel.handle(envelope) for envelope in group))

        failed = [o for o in outcomes if isinstance(o, Failed)]
        assert len(failed) == 1
        assert isinstance(failed[0].error, Poison)
        assert sum(isinstance(o, Done) for o in outcomes) == 31
        assert await toy.inbox() == {e.id for e in group} - {"event-7"}
        assert await tally_of(toy, 7) == 0


async def test_data_the_database_refuses_fails_alone(database_url: str) -> None:
    """A constraint breaks the whole group's transaction; split up, only the culprit fails."""
    async with running(database_url) as toy:
        too_many = [cancelled(1, id=f"more-{number}") for number in range(TALLY_MAX + 1)]
        others = [cancelled(number) for number in range(2, 20)]
        outcomes = await asyncio.gather(
            *(toy.kernel.handle(envelope) for envelope in (*too_many, *others))
        )

        failed = [o for o in outcomes if isinstance(o, Failed)]
        assert len(failed) == 1
        assert isinstance(failed[0].error, sa.exc.IntegrityError)
        assert await tally_of(toy, 1) == TALLY_MAX
        assert len(await toy.inbox()) == TALLY_MAX + len(others)


class Broken(Through):
    """A database that is away for a few transactions."""

    times = 0
    begun = 0

    async def transaction(self, work: Callable[[Connection], T], *, brief: bool = False) -> T:
        self.begun += 1
        if self.times > 0:
            self.times -= 1
            error: Exception = Exception("disk I/O error")
            if self.shared:
                error = asyncpg.CannotConnectNowError("the database system is starting up")
            raise sa.exc.OperationalError("BEGIN", None, error)
        return await super().transaction(work, brief=brief)


async def test_messages_waiting_share_a_transaction(database_url: str) -> None:
    async with running(database_url, through=Broken) as toy:
        database = toy.database
        assert isinstance(database, Broken)
        before = database.begun
        await asyncio.gather(*(toy.kernel.handle(cancelled(number)) for number in range(1, 65)))
        assert database.begun - before == 2


async def test_messages_about_one_subject_share_a_transaction(database_url: str) -> None:
    """Each is decided on as those before it in the group have left the state."""
    async with running(database_url) as toy:
        messages = [cancelled(1, id=f"event {number}") for number in range(TALLY_MAX)]
        outcomes = await asyncio.gather(*(toy.kernel.handle(message) for message in messages))

        numbers = [
            event.sequence
            for outcome in outcomes
            if isinstance(outcome, Done)
            for event in outcome.events
        ]
        assert numbers == list(range(1, TALLY_MAX + 1))
        assert await tally_of(toy, 1) == TALLY_MAX


async def test_a_database_that_is_away_is_nobodys_poison(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However the group would be tried again, were its data to blame."""
    monkeypatch.setattr("saga.runtime.kernel.kernel.BACKOFF_MIN_SECONDS", 0.001)
    async with running(database_url, through=Broken) as toy:
        database = toy.database
        assert isinstance(database, Broken)
        database.times = 6
        outcomes = await asyncio.gather(
            *(toy.kernel.handle(cancelled(number)) for number in range(1, 11))
        )
        assert all(isinstance(outcome, Done) for outcome in outcomes)


async def test_what_comes_behind_many_that_nobody_awaits_any_more_is_done(
    database_url: str,
) -> None:
    async with running(database_url, group_max=2) as toy:
        await toy.kernel.handle(cancelled(1))
        # As when a connection is lost while many deliveries wait: all of them come again.
        lost = [asyncio.create_task(toy.kernel.handle(cancelled(number))) for number in range(2, 7)]
        await asyncio.sleep(0)
        for task in lost:
            task.cancel()
        assert isinstance(await toy.kernel.handle(cancelled(7)), Done)
        await asyncio.gather(*lost, return_exceptions=True)


class Gate:
    """An outside that answers when it is let, and counts what it is asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.open = asyncio.Event()

    async def __call__(self, question: Inquire) -> Inquired:
        self.asked += 1
        await self.open.wait()
        return Inquired(thing=question.thing)


def inquiring(url: str, gate: Gate) -> AbstractAsyncContextManager[Replica]:
    return replica(url, INQUIRER, make_tables(), {Inquire: gate})


async def test_an_answer_is_kept_though_the_delivery_was_lost_meanwhile(database_url: str) -> None:
    gate, outcomes = Gate(), list[Outcome]()
    async with inquiring(database_url, gate) as toy:
        lost = toy.kernel.take(cancelled(1), outcomes.append)
        await until(lambda: gate.asked == 1)
        toy.kernel.abandon_all([lost])
        assert not toy.kernel.idle, "a stop has to wait for the answer"
        again = asyncio.create_task(toy.kernel.handle(cancelled(1)))
        await asyncio.sleep(0)
        gate.open.set()

        assert isinstance(await again, Duplicate)
        assert outcomes == [], "nobody waited for it"
        assert gate.asked == 1
        assert await toy.inbox() == {"event-1"}
        await until(lambda: toy.kernel.idle and toy.outbox.idle)
        assert len(toy.publisher.published) == 1


async def test_a_message_that_comes_twice_at_once_asks_the_outside_once(database_url: str) -> None:
    gate = Gate()
    gate.open.set()
    async with inquiring(database_url, gate) as toy:
        outcomes = await asyncio.gather(*(toy.kernel.handle(cancelled(1)) for _ in range(5)))

        assert (
            sorted(type(outcome).__name__ for outcome in outcomes) == ["Done"] + ["Duplicate"] * 4
        )
        assert gate.asked == 1


async def test_a_message_that_comes_again_while_the_outside_is_asked_waits_for_that(
    database_url: str,
) -> None:
    gate = Gate()
    async with inquiring(database_url, gate) as toy:
        first = asyncio.create_task(toy.kernel.handle(cancelled(1)))
        await until(lambda: gate.asked == 1)
        again = asyncio.create_task(toy.kernel.handle(cancelled(1)))
        nobodys = Released(thing=UUID(int=9), parts=())
        behind = wrap(nobodys, id="behind", source="/", time=NOW, priority=Priority.NORMAL)
        assert isinstance(await toy.kernel.handle(behind), Failed), "the other one was looked at"
        gate.open.set()

        assert (type(await first), await again) == (Done, Duplicate())
        assert gate.asked == 1


async def test_what_was_lost_again_and_again_while_the_outside_was_asked_does_not_pile_up(
    database_url: str,
) -> None:
    gate = Gate()
    async with inquiring(database_url, gate) as toy:
        works = [toy.kernel.take(cancelled(1), lambda _: None)]
        await until(lambda: gate.asked == 1)
        for _ in range(10):
            toy.kernel.abandon_all(works)
            works = [toy.kernel.take(cancelled(1), lambda _: None)]
            await asyncio.sleep(0.01)
        assert sum(map(len, toy.kernel._asked.values())) <= 1
        gate.open.set()
        await until(lambda: toy.kernel.idle)

        assert gate.asked == 1


async def test_a_failed_question_is_asked_again_for_the_delivery_that_came_meanwhile(
    database_url: str,
) -> None:
    asked = 0

    async def refuse_once(question: Inquire) -> Inquired:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.sleep(0.05)
            raise Poison
        return Inquired(thing=question.thing)

    async with replica(database_url, INQUIRER, make_tables(), {Inquire: refuse_once}) as toy:
        first = asyncio.create_task(toy.kernel.handle(cancelled(1)))
        await until(lambda: asked == 1)
        second = asyncio.create_task(toy.kernel.handle(cancelled(1)))

        assert isinstance(await first, Failed)
        assert isinstance(await second, Done)


@pytest.mark.parametrize("group_max", [1, 2, 3])
async def test_what_is_asked_over_http_leaves_the_broker_half_of_the_places(
    database_url: str, group_max: int
) -> None:
    finished: list[bool] = []

    async with running(database_url, group_max=group_max) as toy:

        async def handle(number: int, local: bool) -> None:
            await toy.kernel.handle(cancelled(number), local=local)
            finished.append(local)

        await asyncio.gather(
            *(handle(number, local=True) for number in range(1, 41)),
            *(handle(number, local=False) for number in range(41, 81)),
        )

    assert abs(finished[:40].count(False) - 20) <= group_max


async def test_an_idle_outbox_is_empty(database_url: str) -> None:
    async with running(database_url) as toy:
        await toy.kernel.handle(cancelled(1))
        await until(lambda: toy.outbox.idle)
        assert await toy.outbox_rows() == 0
        assert len(toy.publisher.published) == 1


async def test_a_backlog_is_forgotten_while_it_is_published(tmp_path: Path) -> None:
    count, publisher = 6_000, RecordingPublisher()
    publisher.delay_seconds = 0.005
    url, tables = f"sqlite:///{tmp_path / 'toy.db'}", make_tables()
    left = [
        {"event_id": f"{n}", "owner": "", "position": n, "routing_key": "a.b.high", "body": b"{}"}
        for n in range(count)
    ]
    database = await open_database(url, tables)
    await database.transaction(lambda c: c.execute(tables.outbox.insert(), left).close())
    await database.close()
    held: list[int] = []
    async with replica(url, PARTICIPANT, tables, publisher=publisher) as toy:
        while not toy.outbox.idle:
            await asyncio.sleep(0)
            if count // 2 < len(publisher.published) < count:
                held.append(len(toy.outbox._held))

    assert len(publisher.published) == count
    assert max(held) < count // 2


async def test_a_publisher_that_is_cancelled_by_others_ends_the_outbox(tmp_path: Path) -> None:
    """As a process that ends, and is started again, it publishes what is left."""
    publisher = RecordingPublisher()
    publisher.cancelled = True
    toy_database = await open_database(f"sqlite:///{tmp_path / 'toy.db'}", make_tables())
    outbox = Outbox("toy", toy_database, make_tables(), publisher)
    await outbox.open()
    running_outbox = asyncio.create_task(outbox.run())
    await asyncio.sleep(0)
    outbox.publish([Outgoing("1", "a.b.high", b"{}")])
    with pytest.raises(RuntimeError, match="cancelled"):
        await running_outbox
    await toy_database.close()


async def test_urgent_events_are_published_first(tmp_path: Path) -> None:
    publisher = RecordingPublisher()
    toy_database = await open_database(f"sqlite:///{tmp_path / 'toy.db'}", make_tables())
    outbox = Outbox("toy", toy_database, make_tables(), publisher)
    await outbox.open()
    normal = [Outgoing(f"normal {number}", "a.b.normal", b"{}") for number in range(200)]
    outbox.publish([*normal, Outgoing("urgent", "a.b.high", b"{}")])
    running_outbox = asyncio.create_task(outbox.run())
    await until(lambda: len(publisher.published) == 201)
    running_outbox.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running_outbox
    await toy_database.close()

    assert publisher.published[0] == "urgent"
    assert publisher.published[1:] == [row.event_id for row in normal]


async def test_what_could_not_be_published_is_published_later(database_url: str) -> None:
    publisher = RecordingPublisher()
    publisher.error = ConnectionError("the broker is away")
    async with running(database_url, publisher=publisher) as toy:
        await asyncio.gather(*(toy.kernel.handle(cancelled(number)) for number in range(1, 11)))
        assert toy.outbox.backlog == 10
        await until(lambda: any(loop.failing for loop in toy.outbox.retry_loops))
        assert toy.outbox.removable == 0
        assert await toy.outbox_rows() == 10
        publisher.error = None
        await until(lambda: toy.outbox.idle)
        assert len(publisher.published) == len(set(publisher.published)) == 10


async def test_a_row_that_holds_no_event_holds_up_neither_others_nor_a_stop(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Particular(RecordingPublisher):
        refused = 0

        async def publish_events(self, events: Sequence[Outgoing]) -> list[Exception | None]:
            answers = await super().publish_events(events)
            for number, event in enumerate(events):
                if event.body == b"ruined":
                    self.refused += 1
                    answers[number] = ValueError("no event")
            return answers

    publisher = Particular()
    async with running(database_url, publisher=publisher) as toy:
        row = {"event_id": "r", "owner": toy.outbox.owner, "position": 0, "routing_key": "a.b"}
        ruined = toy.tables.outbox.insert().values(row | {"body": b"ruined"})
        await toy.database.transaction(lambda connection: connection.execute(ruined))
        toy.outbox.look_again()
        await until(lambda: publisher.refused == 1)
        for number in range(1, 6):
            await toy.kernel.handle(cancelled(number))
        toy.outbox.look_again()
        await until(lambda: toy.outbox.idle)

        assert publisher.refused == 1, "it is not tried with each sweep"
        assert await toy.outbox_rows() == 1
        (told,) = [loop for loop in toy.outbox.retry_loops if loop.failing]
        assert (told.name, told.vital) == ("outbox_rows", False)
        monkeypatch.setattr(toy.outbox, "_ruined_until", 0.0)
        toy.outbox.look_again()
        await until(lambda: publisher.refused == 2)


async def test_a_restart_publishes_what_the_crash_left(database_url: str) -> None:
    dead = RecordingPublisher()
    dead.error = ConnectionError("the broker is away")
    async with running(database_url, publisher=dead, lease_seconds=0.6) as toy:
        await asyncio.gather(*(toy.kernel.handle(cancelled(number)) for number in range(1, 11)))
    async with running(database_url, lease_seconds=0.6) as toy:
        await until(lambda: len(toy.publisher.published) == 10)
        await until(lambda: toy.outbox.idle)
        assert len(toy.publisher.published) == 10
        assert await toy.outbox_rows() == 0


async def test_urgent_messages_go_first_and_normal_ones_keep_their_share(database_url: str) -> None:
    finished: list[Priority] = []

    async with running(database_url, group_max=16) as toy:

        async def handle(number: int, priority: Priority) -> None:
            await toy.kernel.handle(cancelled(number, priority=priority))
            finished.append(priority)

        await asyncio.gather(
            *(handle(number, Priority.NORMAL) for number in range(1, 101)),
            *(handle(number, Priority.HIGH) for number in range(101, 201)),
        )

    first_eighty = finished[:80]
    assert first_eighty.count(Priority.HIGH) == 70
    assert first_eighty.count(Priority.NORMAL) == 10


async def test_a_database_file_has_one_owner(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'toy.db'}"
    async with running(url):
        with pytest.raises(DatabaseError, match=r"toy\.db is in use by another process"):
            await open_database(url, make_tables())


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("sqlite://", "names no file"),
        ("not a url", "is no database URL"),
        ("mysql://localhost/x", "this version stores in sqlite"),
        ("sqlite+aiosqlite:///x.db", "this version stores in sqlite"),
        ("sqlite:////dev/null/x/toy.db", "cannot write in the data folder /dev/null/x"),
    ],
)
def test_a_database_that_cannot_be_used_is_named(url: str, said: str) -> None:
    with pytest.raises(DatabaseError, match=said):
        asyncio.run(open_database(url, make_tables()))


async def test_the_oldest_outbox_row_of_any_replica_has_an_age_and_an_away_database_none(
    database_url: str,
) -> None:
    publisher = RecordingPublisher()
    publisher.error = ConnectionError("the broker is away")
    async with running(database_url, publisher=publisher) as toy:
        figures = DatabaseMetrics("toy", toy.tables)
        await toy.kernel.handle(cancelled(1))

        await toy.database.read(figures.read)
        assert figure("saga_outbox_rows") == 1
        assert figure("saga_inbox_rows") == 1
        assert 0 < (age := figure("saga_outbox_oldest_seconds")) < RUN_SECONDS
        await toy.database.read(figures.read)
        assert figure("saga_outbox_oldest_seconds") > age
        assert figure("saga_outbox_backlog") == 1
        assert figure("saga_database_up") == 1

        figures.away()
        assert math.isnan(figure("saga_outbox_oldest_seconds"))
        assert figure("saga_database_up") == 0


def figure(name: str) -> float:
    found = REGISTRY.get_sample_value(name, {"participant": "toy"})
    assert found is not None, name
    return found
