"""The history: every event of the stream is kept once, and found again."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

import aio_pika
import pytest
import sqlalchemy as sa
import uvloop
from aio_pika.abc import AbstractChannel
from sqlalchemy.engine import Connection

from common.events import PaymentVoided
from inventory_service.domain import AddStock
from saga.archive import queries, store
from saga.archive.follower import Follower, missing
from saga.archive.store import Gap, LastRead
from saga.archive.subjects import folded, subjects
from saga.deployment import Deployment
from saga.discovery import choreography
from saga.envelope import Envelope, wrap
from saga.history import HistoryError
from saga.history.archive import Archive
from saga.history.rebuild import rebuild_views
from saga.history.transfer import Imported, export, take_in
from saga.message import Priority
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.messaging.frames import Delivery
from saga.runtime.messaging.publisher import BrokerPublisher, posting_of
from saga.runtime.messaging.stream import FIRST, Record, StreamReader, reading, restored
from saga.runtime.messaging.topology import (
    EVENTS_EXCHANGE,
    HISTORY_STREAM,
    Queue,
    Topology,
    apply,
    topology_of,
)
from saga.runtime.messaging.trust import EDITOR_SOURCE
from saga.runtime.messaging.wire import Channel
from saga.runtime.tasks import cancel_all
from tests.books import demand_turns
from tests.messages import message_of
from tests.order_play import Play
from tests.polling import until
from tests.stores import GRAPH, HISTORY, PROJECTION

T = TypeVar("T")


@dataclass
class Stream:
    """The history stream on a broker, and a publisher to it."""

    url: str
    channel: AbstractChannel

    async def publish(self, *events: Envelope[Any]) -> None:
        exchange = await self.channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
        await asyncio.gather(
            *(exchange.publish(message_of(event.to_bytes()), event.routing_key) for event in events)
        )

    async def publish_as(self, body: bytes, key: str, message_id: str, exchange: str) -> None:
        target = (
            await self.channel.get_exchange(exchange, ensure=False)
            if exchange
            else self.channel.default_exchange
        )
        await target.publish(aio_pika.Message(body, message_id=message_id), key)

    async def make_anew(self, **arguments: int) -> None:
        """Put an empty stream in place of the one there is."""
        await self.channel.queue_delete(HISTORY_STREAM)
        await apply(_with_stream(**arguments), self.channel)


def _with_stream(**arguments: int) -> Topology:
    topology = topology_of(choreography())
    more = {f"x-{name.replace('_', '-')}": value for name, value in arguments.items()}
    queues = [
        Queue(queue.name, {**queue.arguments, **more}) if queue.name == HISTORY_STREAM else queue
        for queue in topology.queues
    ]
    return replace(topology, queues=queues)


@pytest.fixture
async def stream(amqp_url: str) -> AsyncIterator[Stream]:
    connection = await aio_pika.connect(amqp_url)
    async with connection:
        channel = await connection.channel()
        await apply(topology_of(choreography()), channel)
        yield Stream(amqp_url, channel)


class History:
    """What was kept."""

    def __init__(self, database: Database) -> None:
        self.database = database

    async def ids(self) -> list[str]:
        """The ids of the events, in the order in which they were kept."""
        query = sa.select(store.events.c.event_id).order_by(store.events.c.position)
        return list(await self.database.read(lambda c: c.scalars(query).all()))

    async def strays(self) -> dict[str, str]:
        """The reasons of what is no event, by key."""
        query = sa.select(store.strays.c.key, store.strays.c.reason)
        return {
            row.key: row.reason
            for row in await self.database.read(lambda c: c.execute(query).all())
        }

    async def gaps(self) -> list[Gap]:
        return await self.database.read(queries.known_gaps)

    async def place(self) -> LastRead | None:
        return await self.database.read(queries.place)

    async def has(self, *events: Envelope[Any]) -> None:
        """Wait until these are there."""
        ids = {event.id for event in events}
        await until(lambda: self._holds(ids))

    async def _holds(self, ids: set[str]) -> bool:
        return ids <= set(await self.ids())


@pytest.fixture
async def history(database_url: str) -> AsyncIterator[History]:
    database = await open_database(database_url, HISTORY)
    await demand_turns(database)
    yield History(database)
    await database.close()


@pytest.fixture
async def shared(postgres_url: str) -> AsyncIterator[History]:
    """On PostgreSQL, where other processes may write as well."""
    database = await open_database(postgres_url, HISTORY)
    await demand_turns(database)
    yield History(database)
    await database.close()


@pytest.fixture
async def sqlite_history(tmp_path: Path) -> AsyncIterator[History]:
    """Where it makes no difference which database it is."""
    database = await open_database(f"sqlite:///{tmp_path / 'history.db'}", HISTORY)
    yield History(database)
    await database.close()


@asynccontextmanager
async def following(stream: Stream, database: Database) -> AsyncIterator[Follower]:
    """A follower at work; it ends as abruptly as its process would."""
    follower = Follower(stream.url, database, PROJECTION)
    task = asyncio.create_task(follower.run())
    await follower.start(patience_seconds=10)
    try:
        yield follower
    finally:
        await cancel_all(task)


def played(orders: int = 3) -> Play:
    play = Play(tick=timedelta(milliseconds=3))
    play.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=1), sku="tea", quantity=999, unit_price_cents=250, currency="EUR"
        ),
    )
    for _ in range(orders):
        play.place()
    play.deliver()
    return play


# --- following --------------------------------------------------------------------------------


async def test_every_event_is_kept_once_with_its_whole_envelope(
    stream: Stream, history: History
) -> None:
    play = played()
    async with following(stream, history.database):
        await stream.publish(*play.events)
        await stream.publish(*play.events[:5])  # Again, as after a crash of their publisher.
        last = play.events[-1].model_copy(update={"id": "last"})
        await stream.publish(last)
        await history.has(last)

    assert await history.ids() == [event.id for event in (*play.events, last)]
    facts = await history.database.read(
        lambda c: queries.facts_about(c, [event.subject for event in play.events])
    )
    assert [fact.body for fact in facts] == [e.to_bytes() for e in (*play.events, last)]
    assert (await history.strays(), await history.gaps()) == ({}, [])


async def test_what_comes_while_there_is_no_room_waits_in_the_stream(
    stream: Stream, shared: History, sqlite_history: History
) -> None:
    history, play = shared, played()
    first, *others = play.events
    async with (
        following(stream, history.database) as follower,
        following(stream, sqlite_history.database),
    ):
        await stream.publish(first)
        await history.has(first)

        follower.hold_back(True)
        await stream.publish(*others)
        await sqlite_history.has(*others)
        assert await history.ids() == [first.id]

        follower.hold_back(False)
        await history.has(*others)

    assert await history.ids() == [event.id for event in play.events]
    assert (await history.strays(), await history.gaps()) == ({}, [])


async def test_what_came_while_nobody_followed_is_there_afterwards_and_nothing_twice(
    stream: Stream, history: History
) -> None:
    play = played(40)
    parts = [play.events[:20], play.events[20:21], play.events[21:90], play.events[90:]]
    for part in parts:
        await stream.publish(*part)
        async with following(stream, history.database):
            await history.has(*part)

    assert await history.ids() == [event.id for event in play.events]
    assert await history.gaps() == []


async def test_what_an_older_version_recorded_is_folded_before_anything_new_comes(
    stream: Stream, history: History
) -> None:
    play = played()
    facts = [store.Fact(event, event.to_bytes()) for event in play.events]

    def as_older(connection: Connection) -> None:
        store.append(connection, facts, utc_now(), PROJECTION)
        connection.execute(sa.delete(subjects))
        connection.execute(sa.delete(folded))

    async def all_known() -> bool:
        query = sa.select(sa.func.sum(subjects.c.sequence))
        return bool(await history.database.read(lambda c: c.scalar(query)) == len(facts))

    await history.database.transaction(as_older)
    async with following(stream, history.database):
        await until(all_known)


@pytest.mark.long
async def test_a_fresh_database_begins_at_the_first_event(
    stream: Stream, sqlite_history: History, tmp_path: Path
) -> None:
    play = played(300)
    await stream.publish(*play.events)
    async with following(stream, sqlite_history.database):
        await sqlite_history.has(*play.events)

    assert await sqlite_history.ids() == [event.id for event in play.events]


async def test_an_empty_stream_is_waited_for(stream: Stream, sqlite_history: History) -> None:
    play = played(1)
    async with following(stream, sqlite_history.database) as follower:
        await until(lambda: not follower.trouble)
        await stream.publish(*play.events)
        await sqlite_history.has(*play.events)
    assert await sqlite_history.gaps() == []


async def test_the_end_of_a_segment_is_no_gap(stream: Stream, sqlite_history: History) -> None:
    """The broker uses an offset itself wherever a segment begins."""
    await stream.make_anew(stream_max_segment_size_bytes=20_000)
    play = played(60)
    for start in range(0, len(play.events), 40):
        part = play.events[start : start + 40]
        await stream.publish(*part)
        async with following(stream, sqlite_history.database):
            await sqlite_history.has(*part)

    place = await sqlite_history.place()
    assert place is not None
    assert place.offset > len(play.events)  # there were several segments
    assert await sqlite_history.gaps() == []


async def fill_until_trimmed(stream: Stream) -> list[Envelope[Any]]:
    """Publish until retention has taken the first events; returns all of them."""
    published: list[Envelope[Any]] = []
    while not published or await first_offset(stream) == 0:
        events = played(20).events
        for start in range(0, len(events), 10):  # Retention works on whole chunks.
            await stream.publish(*events[start : start + 10])
        published += events
    return published


async def first_offset(stream: Stream) -> int:
    connection = await connect(stream.url, name="test")
    async with connection, reading(connection, FIRST) as reader:
        return (await reader.take(1, 5))[0].offset


async def test_a_trimmed_head_is_a_gap_that_is_noted(
    stream: Stream, sqlite_history: History
) -> None:
    await stream.make_anew(max_length_bytes=60_000, stream_max_segment_size_bytes=20_000)
    published = await fill_until_trimmed(stream)
    async with following(stream, sqlite_history.database):
        await sqlite_history.has(published[-1])

    kept = await sqlite_history.ids()
    assert kept == [event.id for event in published][-len(kept) :]
    assert 0 < len(kept) < len(published)
    assert await sqlite_history.gaps() == [Gap(0, await first_offset(stream) - 1)]


@pytest.mark.long
async def test_what_retention_took_while_nobody_followed_is_noted_too(
    stream: Stream, sqlite_history: History
) -> None:
    await stream.make_anew(max_length_bytes=60_000, stream_max_segment_size_bytes=20_000)
    known = played(1).events
    await stream.publish(*known)
    async with following(stream, sqlite_history.database):
        await sqlite_history.has(*known)
    published = await fill_until_trimmed(stream)
    async with following(stream, sqlite_history.database):
        await sqlite_history.has(published[-1])

    assert await sqlite_history.gaps() == [Gap(len(known), await first_offset(stream) - 1)]
    assert await sqlite_history.ids() != [event.id for event in (*known, *published)]


@pytest.mark.parametrize(
    "fewer", [True, pytest.param(False, marks=pytest.mark.long)], ids=["shorter", "longer"]
)
async def test_a_stream_made_anew_is_read_from_its_beginning(
    fewer: bool, stream: Stream, sqlite_history: History
) -> None:
    before, after = played(5).events, played(1 if fewer else 9).events
    await stream.publish(*before)
    async with following(stream, sqlite_history.database):
        await sqlite_history.has(*before)
    await stream.make_anew()
    await stream.publish(before[0], *after)
    async with following(stream, sqlite_history.database) as follower:
        await sqlite_history.has(*after)
        assert "saga recover broker" in follower.stream_lacks
        await restore(stream, before[1], run="1234")
        await until(lambda: not follower.stream_lacks)

    assert await sqlite_history.ids() == [event.id for event in (*before, *after)]


async def restore(stream: Stream, *events: Envelope[Any], run: str) -> None:
    """Put events back into the stream, as `saga recover broker` does."""
    publisher = BrokerPublisher(stream.url, "test")
    try:
        channel = await publisher.open()
        postings = [posting_of(event.to_bytes(), event.routing_key) for event in events]
        again = [
            restored(p.body, p.properties, EVENTS_EXCHANGE, p.routing_key, run=run)
            for p in postings
        ]
        assert await channel.publish("", again, 30.0) == [None] * len(again)
    finally:
        await publisher.close()


async def test_what_is_put_back_into_a_stream_is_read_as_it_was_published(stream: Stream) -> None:
    play = played(2)
    await restore(stream, *play.events, run="1234")
    connection = await connect(stream.url, name="test")
    async with connection, reading(connection, FIRST) as reader:
        records: list[Record] = []
        while len(records) < len(play.events):
            records += await reader.take(100)

    assert [(record.exchange, record.routing_key, record.restored) for record in records] == [
        (EVENTS_EXCHANGE, event.routing_key, "1234") for event in play.events
    ]
    assert [record.key for record in records] == [event.id for event in play.events]
    assert [type(store.judge(record, 1, GRAPH)) for record in records] == [store.Fact] * len(
        records
    )


async def test_in_a_stream_filled_again_nothing_is_missed_that_was_published_meanwhile(
    stream: Stream, sqlite_history: History
) -> None:
    """An event that is put back may come to the very offset at which it was read before, with
    others before it that were not."""
    known, others = played(4).events, played(1).events
    await stream.publish(*known)
    async with following(stream, sqlite_history.database):
        await sqlite_history.has(*known)
    await stream.make_anew()
    await restore(stream, *known[len(others) : -1], run="1234")
    await stream.publish(*others)
    await restore(stream, known[-1], run="1234")
    async with following(stream, sqlite_history.database):
        await sqlite_history.has(*others)
    await restore(stream, *known, run="5678")
    after = played(1).events
    async with following(stream, sqlite_history.database):
        await stream.publish(*after)
        await sqlite_history.has(*after)

    assert await sqlite_history.ids() == [event.id for event in (*known, *others, *after)]
    assert await sqlite_history.strays() == {}


@pytest.mark.long
async def test_a_stream_that_vanishes_is_waited_for(
    stream: Stream, sqlite_history: History
) -> None:
    play = played(2)
    async with following(stream, sqlite_history.database) as follower:
        await stream.publish(play.events[0])
        await sqlite_history.has(play.events[0])
        await stream.channel.queue_delete(HISTORY_STREAM)
        await until(lambda: bool(follower.trouble))
        await apply(topology_of(choreography()), stream.channel)
        await stream.publish(*play.events)
        await sqlite_history.has(*play.events)


async def test_gaps_of_two_streams_that_begin_alike_are_both_known(
    stream: Stream, sqlite_history: History
) -> None:
    gaps: list[Gap] = []
    for number in (1, 2):
        await stream.make_anew(max_length_bytes=60_000, stream_max_segment_size_bytes=20_000)
        published = await fill_until_trimmed(stream)
        async with following(stream, sqlite_history.database):
            await sqlite_history.has(published[-1])
        gaps.append(Gap(0, await first_offset(stream) - 1, number))

    assert await sqlite_history.gaps() == gaps


async def test_long_messages_are_taken_a_few_at_a_time(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction of very many would be more than a database takes."""
    monkeypatch.setattr("saga.runtime.messaging.stream.TAKE_MAX_BYTES", 10_000)
    bodies = [bytes([number]) * 3_000 for number in range(20)]
    for number, body in enumerate(bodies):
        await stream.publish_as(body, "order.placed.normal", str(number), EVENTS_EXCHANGE)
    taken: list[list[Record]] = []
    connection = await connect(stream.url, name="test")
    async with connection, reading(connection, FIRST) as reader:
        await until(lambda: len(reader._arrived) == len(bodies))
        while sum(map(len, taken)) < len(bodies):
            taken.append(await reader.take(1_000, 10))

    assert [len(records) for records in taken] == [4] * 5
    assert [record.body for records in taken for record in records] == bodies


@pytest.mark.parametrize("run", [asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
async def test_what_is_not_taken_waits_at_the_broker_and_not_in_memory(
    run: Callable[[Coroutine[Any, Any, list[Record]]], list[Record]],
    stream: Stream,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("saga.runtime.messaging.stream.HELD_MAX_BYTES", 500_000)
    monkeypatch.setattr("saga.runtime.messaging.stream.TAKE_MAX_BYTES", 100_000)
    bodies = [bytes([number]) * 100_000 for number in range(100)]
    for number, body in enumerate(bodies):
        await stream.publish_as(body, "order.placed.normal", str(number), EVENTS_EXCHANGE)
    at_most: list[int] = []

    async def read() -> list[Record]:
        found: list[Record] = []
        connection = await connect(stream.url, name="test")
        async with connection, reading(connection, FIRST) as reader:
            await until(lambda: reader._size > 500_000)
            other = await connect(stream.url, name="test")
            await other.close()  # As long as that takes, more could come.
            while len(found) < len(bodies):
                at_most.append(reader._size)
                found += await reader.take(1, 10)
        return found

    assert [record.body for record in await asyncio.to_thread(run, read())] == bodies
    assert max(at_most) < 1_000_000


# --- a broker that takes its time -------------------------------------------------------------


@pytest.fixture
def slow_broker(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the stream holds comes later than it is looked for."""
    take_in = StreamReader._take_in
    coming: deque[tuple[StreamReader, Channel, Delivery]] = deque()

    def take_in_later(reader: StreamReader, channel: Channel, delivery: Delivery) -> None:
        coming.append((reader, channel, delivery))
        asyncio.get_running_loop().call_later(0.2, lambda: take_in(*coming.popleft()))

    monkeypatch.setattr(StreamReader, "_take_in", take_in_later)
    monkeypatch.setattr("saga.archive.follower.LOOK_SECONDS", 0.02)
    monkeypatch.setattr("saga.runtime.messaging.stream.END_SECONDS", 0.02)


async def test_a_broker_that_is_slow_to_answer_has_no_other_stream(
    stream: Stream,
    sqlite_history: History,
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    await stream.make_anew(max_length_bytes=60_000, stream_max_segment_size_bytes=20_000)
    async with following(stream, sqlite_history.database):
        published = await fill_until_trimmed(stream)
        await sqlite_history.has(*published)
    request.getfixturevalue("slow_broker")
    more = played(1).events
    async with following(stream, sqlite_history.database):
        await stream.publish(*more)
        await sqlite_history.has(*more)

    assert await sqlite_history.gaps() == []
    assert "read from its beginning" not in caplog.text


async def test_a_stream_that_has_lost_its_end_is_read_again_and_lacks_nothing(
    stream: Stream, sqlite_history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a node has lost what it had not on disk: the head has been trimmed long ago."""
    monkeypatch.setattr("saga.archive.follower.LOOK_SECONDS", 0.2)
    await stream.make_anew(max_length_bytes=60_000, stream_max_segment_size_bytes=20_000)
    async with following(stream, sqlite_history.database):
        published = await fill_until_trimmed(stream)
        await sqlite_history.has(*published)
    beyond = store.places.update().values(offset=store.places.c.offset + 1_000)
    await sqlite_history.database.transaction(lambda c: c.execute(beyond))
    more = played(1).events
    async with following(stream, sqlite_history.database):
        await stream.publish(*more)
        await sqlite_history.has(*more)

    assert await sqlite_history.gaps() == []
    place = await sqlite_history.place()
    assert place is not None
    assert place.stream_number == 1


async def test_a_history_behind_a_slow_broker_has_not_caught_up(
    stream: Stream, sqlite_history: History, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    archive = archive_in(tmp_path, stream)
    before, after = played(1).events, played(1).events
    await stream.publish(*before)
    async with following(stream, sqlite_history.database):
        await sqlite_history.has(*before)
    assert await archive.behind() == 0
    await stream.publish(*after)
    request.getfixturevalue("slow_broker")

    assert await archive.behind() == len(after)


async def test_of_a_stream_made_anew_nothing_is_kept_yet(
    stream: Stream, sqlite_history: History, tmp_path: Path
) -> None:
    before, after = played(5).events, played(1).events
    await stream.publish(*before)
    async with following(stream, sqlite_history.database):
        await sqlite_history.has(*before)
    await stream.make_anew()
    await stream.publish(*after)

    assert await archive_in(tmp_path, stream).behind() == len(after)


def archive_in(folder: Path, stream: Stream) -> Archive:
    return Archive(
        Deployment(
            amqp_url=stream.url,
            http_urls={},
            database_urls={"history": f"sqlite:///{folder / 'history.db'}"},
            outside_urls={"provider": ""},
            dead_letters_url=None,
        )
    )


# --- several who write ------------------------------------------------------------------------


async def waits_for_a_lock(history: History) -> bool:
    """Whether a session waits for another's transaction."""
    query = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    count = await history.database.read(lambda c: c.exec_driver_sql(query).scalar())
    return bool(count)


@contextmanager
def held_import(url: str, file: Path) -> Iterator[Callable[[], Imported]]:
    """An import that has written everything and does not commit, until it is called to its end."""
    written, go_on = threading.Event(), threading.Event()

    def hold(_: int) -> None:
        written.set()
        assert go_on.wait(60)

    with ThreadPoolExecutor(1) as thread:
        importing = thread.submit(lambda: asyncio.run(take_in(url, file, GRAPH, hold)))
        assert written.wait(60)

        def end() -> Imported:
            go_on.set()
            return importing.result(60)

        try:
            yield end
        finally:
            go_on.set()


@pytest.fixture
async def exported(tmp_path: Path) -> tuple[Path, list[str]]:
    """Another history as a file, and the ids of its events."""
    other = f"sqlite:///{tmp_path / 'other.db'}"
    events = played(2).events
    database = await open_database(other, HISTORY)
    facts = [store.Fact(event, event.to_bytes()) for event in events]
    await database.transaction(lambda c: store.append(c, facts, utc_now(), PROJECTION))
    await database.close()
    file = tmp_path / "other.jsonl"
    await asyncio.to_thread(export, other, file)
    return file, [event.id for event in events]


async def test_an_import_beside_the_service_at_work_makes_no_event_a_stray(
    stream: Stream, shared: History, postgres_url: str, exported: tuple[Path, list[str]]
) -> None:
    file, imported = exported
    play = played(2)
    async with following(stream, shared.database):
        await stream.publish(*play.events[:5])
        await shared.has(*play.events[:5])
        with held_import(postgres_url, file) as end:
            await stream.publish(play.events[5])
            await until(lambda: waits_for_a_lock(shared))
            assert (await asyncio.to_thread(end)).new == len(imported)
        await stream.publish(*play.events[6:])
        await shared.has(*play.events)

    assert await shared.strays() == {}
    assert await shared.ids() == [
        *(event.id for event in play.events[:5]),
        *imported,
        *(event.id for event in play.events[5:]),
    ]


async def test_an_import_that_takes_long_is_waited_for_by_whoever_else_writes(
    stream: Stream,
    shared: History,
    postgres_url: str,
    exported: tuple[Path, list[str]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("saga.archive.store.TURN_SECONDS", 0.05)
    file, imported = exported
    play = played(1)
    async with following(stream, shared.database) as follower:
        with held_import(postgres_url, file) as end:
            await stream.publish(*play.events)
            await until(lambda: "another process writes into this history" in follower.trouble)
            for work in (take_in(postgres_url, file, GRAPH), rebuild_views(postgres_url, GRAPH)):
                with pytest.raises(HistoryError, match=r"another process writes .* try again"):
                    await work
            await asyncio.to_thread(end)
        await shared.has(*play.events)

    assert await shared.strays() == {}
    assert await take_in(postgres_url, file, GRAPH) == Imported(0, len(imported), 0, [])
    assert await rebuild_views(postgres_url, GRAPH) == 4


async def test_a_position_that_an_older_replica_took_is_no_fault_of_an_event(
    stream: Stream, postgres_url: str
) -> None:
    """It takes no turns."""
    shared = History(await open_database(postgres_url, HISTORY))
    older, newer = played(1).events, played(1).events
    row = store.row_of(older[0].id, store.Fact(older[0], older[0].to_bytes()), 1, utc_now())
    wrote, go_on = threading.Event(), threading.Event()

    def write(connection: Connection) -> None:
        connection.execute(store.events.insert().values(row))
        wrote.set()
        assert go_on.wait(60)

    async def as_older() -> None:
        database = await open_database(postgres_url, HISTORY)
        await database.transaction(write)
        await database.close()

    with ThreadPoolExecutor(1) as thread:
        writing = thread.submit(lambda: asyncio.run(as_older()))
        assert wrote.wait(60)
        async with following(stream, shared.database):
            await stream.publish(newer[0])  # Several would be tried again, one by one.
            await until(lambda: waits_for_a_lock(shared))
            go_on.set()
            await asyncio.to_thread(writing.result)
            await stream.publish(*newer[1:])
            await shared.has(*newer)

    assert await shared.strays() == {}
    assert await shared.ids() == [older[0].id, *(event.id for event in newer)]
    await shared.database.close()


async def test_without_the_stream_it_does_not_start(amqp_url: str, tmp_path: Path) -> None:
    database = await open_database(f"sqlite:///{tmp_path / 'history.db'}", HISTORY)
    with pytest.raises(BrokerError, match=r"no stream saga\.history"):
        await Follower(amqp_url, database, PROJECTION).start(patience_seconds=0)
    await database.close()


@pytest.mark.long
async def test_two_followers_of_one_database_keep_each_event_once(
    stream: Stream, postgres_url: str
) -> None:
    play = played(50)
    one, other = [await open_database(postgres_url, HISTORY) for _ in range(2)]
    async with following(stream, one), following(stream, other):
        for start in range(0, len(play.events), 20):
            await stream.publish(*play.events[start : start + 20])
        await History(one).has(*play.events)

    assert sorted(await History(one).ids()) == sorted(event.id for event in play.events)
    await one.close()
    await other.close()


class Ailing:
    """A database that fails transactions, as long as `error` says so."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.shared = database.shared
        self.error: Callable[[], Exception | None] = lambda: None
        self.read = database.read
        self.is_away = database.is_away
        self.close = database.close

    async def transaction(self, work: Callable[[Connection], T], *, brief: bool = False) -> T:
        if error := self.error():
            raise error
        return await self._database.transaction(work, brief=brief)


async def test_a_database_that_is_away_is_waited_for(
    stream: Stream, sqlite_history: History
) -> None:
    play = played(1)
    ailing = Ailing(sqlite_history.database)
    failures = iter([sa.exc.OperationalError("", {}, Exception("disk full"))] * 2)
    ailing.error = lambda: next(failures, None)
    async with following(stream, ailing):
        await stream.publish(*play.events)
        await sqlite_history.has(*play.events)

    assert next(failures, None) is None
    assert await sqlite_history.ids() == [event.id for event in play.events]


async def test_what_nobody_has_thought_of_is_told_and_tried_again(
    stream: Stream, sqlite_history: History
) -> None:
    play = played(1)
    ailing = Ailing(sqlite_history.database)
    ailing.error = lambda: ValueError("of another kind")
    async with following(stream, ailing) as follower:
        await stream.publish(*play.events)
        await until(lambda: "of another kind" in follower.trouble)
        ailing.error = lambda: None
        await sqlite_history.has(*play.events)

    assert await sqlite_history.strays() == {}


async def test_a_database_that_goes_away_as_the_stream_is_another_one_is_waited_for(
    stream: Stream, sqlite_history: History, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saga.archive.follower.LOOK_SECONDS", 0.2)
    before, after = played(2).events, played(1).events
    await stream.publish(*before)
    async with following(stream, sqlite_history.database):
        await sqlite_history.has(*before)
    await stream.make_anew()
    await stream.publish(*after)
    ailing = Ailing(sqlite_history.database)
    ailing.error = lambda: sa.exc.OperationalError("", {}, Exception("disk full"))
    async with following(stream, ailing) as follower:
        await until(lambda: "disk full" in follower.trouble)
        ailing.error = lambda: None
        await sqlite_history.has(*after)


async def test_what_the_database_refuses_is_set_aside_alone(
    stream: Stream, sqlite_history: History
) -> None:
    play = played(3)
    culprit = play.events[7]
    await sqlite_history.database.transaction(
        lambda c: c.exec_driver_sql(
            f"CREATE TRIGGER refuse BEFORE INSERT ON events WHEN NEW.event_id = '{culprit.id}' "
            f"BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        )
    )
    await stream.publish(*play.events)
    async with following(stream, sqlite_history.database):
        await sqlite_history.has(play.events[-1])

    kept = [event.id for event in play.events if event is not culprit]
    assert await sqlite_history.ids() == kept
    assert await sqlite_history.strays() == {culprit.id: "refused"}


async def test_what_is_no_event_is_kept_apart_with_its_reason(
    stream: Stream, history: History
) -> None:
    order = UUID(int=1)
    event = wrap(
        PaymentVoided(order_id=order),
        id="e",
        source="/services/payment",
        time=utc_now(),
        priority=Priority.NORMAL,
    )
    forged = event.model_copy(update={"id": "forged"}).to_bytes()
    nul = event.to_bytes().replace(b'"id":"e"', b'"id":"\\u0000"')
    other = event.model_copy(update={"subject": str(UUID(int=2))}).to_bytes()
    late = event.to_bytes().replace(b'"time":"20', b'"time":"99')
    foreign = event.model_copy(update={"id": "foreign", "source": "/services/order"}).to_bytes()
    copy = event.model_copy(update={"id": "copy", "source": EDITOR_SOURCE})
    async with following(stream, history.database):
        await stream.publish(event)
        await stream.publish_as(b"{", "payment.voided.normal", "torn", EVENTS_EXCHANGE)
        await stream.publish_as(forged, "order.placed.high", "forged", EVENTS_EXCHANGE)
        await stream.publish_as(forged, HISTORY_STREAM, "straight", "")
        await stream.publish_as(nul, "payment.voided.normal", "nul", EVENTS_EXCHANGE)
        await stream.publish_as(other, "payment.voided.normal", "e", EVENTS_EXCHANGE)
        await stream.publish_as(late, "payment.voided.normal", "late", EVENTS_EXCHANGE)
        await stream.publish_as(foreign, "payment.voided.normal", "foreign", EVENTS_EXCHANGE)
        await stream.publish_as(copy.to_bytes(), HISTORY_STREAM, "copy", "")
        await history.has(event, copy)

    assert await history.ids() == ["e", "copy"]
    strays = await history.strays()
    conflicting = [key for key, reason in strays.items() if reason == "conflicting"]
    assert len(conflicting) == 1
    del strays[conflicting[0]]
    assert strays == {
        "torn": "malformed",
        "forged": "misrouted",
        "straight": "misrouted",
        "nul": "malformed",
        "late": "malformed",
        "foreign": "misrouted",
    }


async def test_an_id_that_another_source_used_before_is_kept_as_well(
    stream: Stream, history: History
) -> None:
    play = played(1)
    real = play.events[-1]
    theirs = next(event for event in play.events if event.source != real.source)
    squatter = theirs.model_copy(update={"id": real.id})
    async with following(stream, history.database):
        await stream.publish(squatter, real, real, theirs)
        await history.has(theirs)

    assert await history.ids() == [real.id, f"{real.id}\t{real.source}", theirs.id]
    assert await history.strays() == {}


async def test_what_was_kept_cannot_be_changed(stream: Stream, history: History) -> None:
    play = played(1)
    async with following(stream, history.database):
        await stream.publish_as(b"{", "payment.voided.normal", "torn", EVENTS_EXCHANGE)
        await stream.publish(*play.events)
        await history.has(*play.events)
    for statement in (
        "UPDATE events SET type = 'x'",
        "DELETE FROM events",
        "UPDATE strays SET reason = 'x'",
        "DELETE FROM strays",
    ):
        with pytest.raises(sa.exc.DBAPIError, match="only appended to"):
            await history.database.transaction(
                lambda c, statement=statement: c.exec_driver_sql(statement)  # type: ignore[misc]
            )


def test_the_gaps_between_offsets() -> None:
    def records(*offsets: int) -> list[Record]:
        return [Record(offset, "", "", "id", None, b"") for offset in offsets]

    assert missing(records(0, 1, 3), -1, adjoins=False) == []
    assert missing(records(5, 6), -1, adjoins=False) == [(0, 4)]
    assert missing(records(12, 13), 10, adjoins=True) == []
    assert missing(records(12, 13), 10, adjoins=False) == [(11, 11)]
    assert missing(records(11, 500), 10, adjoins=True) == [(12, 499)]
