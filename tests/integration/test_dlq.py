"""Dead letters on a real broker: collected, listed, replayed, edited, discarded."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any
from uuid import UUID

import aio_pika
import pytest
import sqlalchemy as sa
from aio_pika.abc import AbstractChannel, AbstractIncomingMessage

from saga.archive.subjects import SUBJECTS, Subject
from saga.choreography import Choreography, Participant
from saga.deployment import Deployment, dead_letters_url_in
from saga.dlq import DlqError, SelectionChanged
from saga.dlq.collect import collect
from saga.dlq.desk import DeadLetterDesk, open_desk
from saga.dlq.edit import edit, with_values
from saga.dlq.examine import Expectation
from saga.dlq.letters import REPLAYS, Copy
from saga.dlq.replay import STOPPED, ReplayResult, ReplaySettings, Stop, dry_run, replay
from saga.dlq.replays import Replay
from saga.dlq.selection import FrozenSelection, Selection
from saga.dlq.states import HERE, ItemState, LetterState
from saga.dlq.store import Store
from saga.envelope import Envelope
from saga.errors import InputError
from saga.message import Priority
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.outbox import Outbox
from saga.runtime.kernel.rows import writing
from saga.runtime.kernel.sqlite import sqlite_engine
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.consumer import Consumer
from saga.runtime.messaging.dead_letters import (
    ERROR_TYPE,
    FINGERPRINT,
    FIRST_FAILED_AT,
    LAST_FAILED_AT,
    ORIGIN_QUEUE,
    REASON,
)
from saga.runtime.messaging.frames import NO_PROPERTIES
from saga.runtime.messaging.publisher import BrokerPublisher
from saga.runtime.messaging.topology import (
    DEAD_EXCHANGE,
    EVENTS_EXCHANGE,
    HISTORY_STREAM,
    apply,
    topology_of,
)
from saga.runtime.tasks import cancel_all
from tests.integration.toy import NOW, Tally, cancelled, id_in_inbox, make_tables, open_toy, rows
from tests.messages import message_of
from tests.polling import until
from tests.words import Cancelled, Released

broken = True
"""Whether the reaction fails for the name `ill`."""


class Ill(Exception):
    """What the reaction raises while it is broken."""


class Killed(Exception):
    """Stands for a process that ends in the middle."""


def tally(event: Cancelled, tally: Tally) -> Released | None:
    if event.who == "never" or (event.who == "ill" and broken):
        raise Ill(f"thing {event.thing} cannot be served")
    return Released(thing=event.thing, parts=())


TOY = Participant("toy", tally)
GRAPH = Choreography([TOY])
EVERYTHING = Selection()
QUICK = ReplaySettings(timeout_seconds=60.0)


@dataclass
class Bench:
    """A broker with the toy's topology, and the addresses an operator has."""

    deployment: Deployment
    channel: AbstractChannel
    folder: Path

    async def publish(self, envelopes: Iterable[Envelope[Any]]) -> None:
        exchange = await self.channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
        await asyncio.gather(
            *(exchange.publish(message_of(e.to_bytes()), e.routing_key) for e in envelopes)
        )

    async def bury(self, message: aio_pika.Message) -> None:
        exchange = await self.channel.get_exchange(DEAD_EXCHANGE, ensure=False)
        await exchange.publish(message, "toy")

    async def depth(self, queue: str) -> int:
        declared = await self.channel.declare_queue(queue, passive=True)
        return declared.declaration_result.message_count or 0

    async def holds(self, queue: str, count: int) -> bool:
        return await self.depth(queue) == count

    async def take(self, queue: str) -> AbstractIncomingMessage:
        await until(lambda: self._any(queue))
        found = await self.channel.get_queue(queue, ensure=False)
        return await found.get(no_ack=True)

    async def _any(self, queue: str) -> bool:
        return await self.depth(queue) > 0

    def desk(self) -> contextlib.AbstractAsyncContextManager[DeadLetterDesk]:
        return open_desk(self.deployment, GRAPH)

    async def letters(self, count: int, who: str = "ill") -> None:
        """Put so many dead letters into the toy's queue."""
        before = await self.depth("toy.dlq")
        async with running(self):
            await self.publish(cancelled(n, who=who) for n in range(1, count + 1))
            await until(lambda: self.holds("toy.dlq", before + count))

    def record(self, number: int, ended_by: str | None = None) -> None:
        """Make a thing known to the archive."""
        engine = sqlite_engine(self.deployment.database_urls["history"])
        SUBJECTS.table.metadata.create_all(engine)
        state = Subject(
            str(UUID(int=number)), ended_by=ended_by, ended_at=NOW if ended_by else None
        )
        with engine.begin() as connection, writing(connection) as writes:
            SUBJECTS.save(writes, [(state, 0)])
        engine.dispose()


@pytest.fixture
async def bench(amqp_url: str, tmp_path: Path) -> AsyncIterator[Bench]:
    global broken
    broken = True
    deployment = Deployment(
        amqp_url=amqp_url,
        http_urls={},
        database_urls={
            "toy": f"sqlite:///{tmp_path / 'toy.db'}",
            "history": f"sqlite:///{tmp_path / 'history.db'}",
        },
        outside_urls={"provider": ""},
        dead_letters_url=dead_letters_url_in(tmp_path),
    )
    await open_toy(tmp_path, make_tables()).close()
    async with await connect(amqp_url, name="test") as connection:
        channel = await connection.channel(on_return_raises=True)
        await apply(topology_of(GRAPH), channel)
        made = Bench(deployment, channel, tmp_path)
        made.record(999_999)
        yield made


class Toy:
    def __init__(self, bench: Bench) -> None:
        url = bench.deployment.amqp_url
        self.tables = make_tables()
        self.database = open_toy(bench.folder, self.tables)
        self.publisher = BrokerPublisher(url, "toy publisher")
        self.outbox = Outbox("toy", self.database, self.tables, self.publisher)
        self.kernel = Kernel(TOY, self.database, self.tables, self.outbox)
        self.consumer = Consumer(TOY, self.kernel, self.publisher, url, drain_seconds=5)

    async def counts(self) -> dict[str, int]:
        """How often each thing was counted."""
        states = self.tables.states[Tally].table
        found = await self.database.read(
            lambda c: [tuple(r) for r in c.execute(sa.select(states.c.key, states.c.count))]
        )
        return dict(found)


@asynccontextmanager
async def running(bench: Bench) -> AsyncIterator[Toy]:
    toy = Toy(bench)
    await toy.outbox.open()
    await toy.publisher.open(patience_seconds=5)
    tasks = [asyncio.create_task(toy.kernel.run()), asyncio.create_task(toy.outbox.run())]
    await toy.consumer.start()
    try:
        yield toy
    finally:
        await toy.consumer.stop()
        await cancel_all(*tasks)
        await toy.publisher.close()
        await toy.database.close()


def heal() -> None:
    global broken
    broken = False


def states(desk: DeadLetterDesk) -> list[LetterState]:
    return [letter.state for letter in desk.store.find(EVERYTHING)]


# --- collecting -----------------------------------------------------------------------------------


async def test_collecting_empties_the_queue_into_the_store(bench: Bench) -> None:
    await bench.letters(3)
    async with bench.desk() as desk:
        letters = desk.store.find(EVERYTHING)
        assert [letter.state for letter in letters] == [LetterState.DEAD] * 3
        assert {letter.key for letter in letters} == {cancelled(n).id for n in (1, 2, 3)}
        assert {letter.queue for letter in letters} == {"toy.normal"}
        assert {letter.error_type for letter in letters} == {"Ill"}
        assert len({letter.fingerprint for letter in letters}) == 1
    assert await bench.holds("toy.dlq", 0)


async def test_killed_between_insert_and_ack_there_is_still_one_letter(bench: Bench) -> None:
    await bench.letters(2)
    store = Store(str(bench.deployment.dead_letters_url))

    def insert_and_die(found: Any, now: Any) -> int:
        Store.take(store, found, now)
        raise Killed

    store.take = insert_and_die  # type: ignore[method-assign]  # the kill
    async with await connect(bench.deployment.amqp_url, name="killed") as connection:
        with pytest.raises(Killed):
            await collect(connection, store, ["toy"])
    store.close()
    await until(lambda: bench.holds("toy.dlq", 2))

    async with bench.desk() as desk:
        letters = desk.store.find(EVERYTHING)
        assert [(letter.state, letter.copies) for letter in letters] == [(LetterState.DEAD, 1)] * 2


async def test_copies_of_one_message_are_one_letter(bench: Bench) -> None:
    for minute in (1, 2):
        message = message_of(cancelled(1).to_bytes())
        message.headers[LAST_FAILED_AT] = (NOW + timedelta(minutes=minute)).isoformat()
        await bench.bury(message)
    async with bench.desk() as desk:
        (letter,) = desk.store.find(EVERYTHING)
        assert letter.copies == 2
        assert letter.last_failed_at == NOW + timedelta(minutes=2)


async def test_a_message_under_the_id_of_another_one_is_a_letter_of_its_own_and_not_done(
    bench: Bench,
) -> None:
    heal()
    other = cancelled(2, id=cancelled(1).id)
    async with running(bench) as toy:
        await bench.publish([cancelled(1)])
        await until(lambda: _done(toy, 1))
        await bench.publish([other, cancelled(1)])
        await until(lambda: bench.holds("toy.dlq", 1))

    async with bench.desk() as desk:
        (letter,) = desk.store.find(EVERYTHING)
        (verdict,) = (await desk.examiner().examine([letter])).values()

    assert letter.reason == "conflicting"
    assert letter.key != cancelled(1).id == letter.event_id
    assert letter.body == other.to_bytes()
    assert not verdict.already_done


async def test_a_message_that_is_nothing_at_all_is_a_letter(bench: Bench) -> None:
    await bench.bury(
        aio_pika.Message(b"\xff\x00", headers={"x": [bytearray(b"\x01"), {"y": None}]})
    )
    async with bench.desk() as desk:
        (letter,) = desk.store.find(EVERYTHING)
        assert letter.body == b"\xff\x00"
        (_, verdict), *_ = await dry_run(desk, EVERYTHING, QUICK)
        assert verdict.expectation is Expectation.UNDECODABLE


# --- what a replay would do -----------------------------------------------------------------------


async def test_what_came_under_a_key_that_is_not_its_own_is_not_replayed(bench: Bench) -> None:
    lie = cancelled(1, who="well")
    async with running(bench):
        exchange = await bench.channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
        await exchange.publish(message_of(lie.to_bytes()), "thing.cancelled.high")
        await until(lambda: bench.holds("toy.dlq", 1))

    async with bench.desk() as desk:
        ((_, verdict),) = await dry_run(desk, EVERYTHING, QUICK)

    assert verdict.expectation is Expectation.UNDECODABLE
    assert "no right to it" in verdict.detail


async def test_a_dry_run_says_what_would_become_of_each_letter(bench: Bench) -> None:
    bench.record(2, ended_by="thing.cancelled")
    bench.record(1)
    await bench.letters(3)
    heal()
    async with running(bench) as toy:  # Thing 3's message comes again, and is done.
        await bench.publish([cancelled(3, who="ill")])
        await until(lambda: _done(toy, 3))
    await bench.bury(aio_pika.Message(b"{", message_id="torn"))

    async with bench.desk() as desk:
        found = await dry_run(desk, EVERYTHING, QUICK)
        verdicts = {letter.key: verdict for letter, verdict in found}
        assert await bench.depth("toy.normal") == 0

    first, second, third = (verdicts[cancelled(n).id] for n in (1, 2, 3))
    assert (first.expectation, first.decodes) == (Expectation.HANDLED, True)
    assert (first.known, first.ended_by, first.saga) == (True, None, "open")
    assert second.ended_by == "thing.cancelled"
    assert "thing.cancelled was said already" in second.detail
    assert not third.known
    assert third.expectation is Expectation.ALREADY_DONE
    assert verdicts["torn"].expectation is Expectation.UNDECODABLE


async def _done(toy: Toy, number: int) -> bool:
    return str(UUID(int=number)) in await toy.counts()


# --- replaying ------------------------------------------------------------------------------------


async def test_a_replay_gets_letters_done_and_says_so(bench: Bench) -> None:
    await bench.letters(40)
    heal()
    async with running(bench) as toy, bench.desk() as desk:
        result = await replay(desk, EVERYTHING, QUICK, why="healed")
        assert result.ok
        assert result.counts == {ItemState.DONE: 40}
        assert set((await toy.counts()).values()) == {1}
        assert set(states(desk)) == {LetterState.DONE}
        actions = desk.store.actions(10)
        assert [a.action for a in actions] == ["replay", "replay", "collect"]
        assert {a.reason for a in actions[:2]} == {"healed"}
        assert actions[0].result["done"] == 40
        assert "@" in actions[0].who


async def test_a_replayed_message_is_as_it_was_first(bench: Bench) -> None:
    envelope = cancelled(7, who="ill", priority=Priority.HIGH)
    async with running(bench):
        await bench.publish([envelope])
        await until(lambda: bench.holds("toy.dlq", 1))
    async with bench.desk() as desk:
        replaying = asyncio.create_task(replay(desk, EVERYTHING, QUICK))
        await until(lambda: bench.holds("toy.high", 1))
        await cancel_all(replaying)
    message = await bench.take("toy.high")
    first = message_of(envelope.to_bytes())

    headers = {k: v for k, v in message.headers.items() if k != "x-delivery-count"}  # the broker's
    assert headers == {REPLAYS: 1}
    assert message.body == first.body
    for name in ("message_id", "correlation_id", "type", "app_id", "timestamp", "content_type"):
        assert getattr(message, name) == getattr(first, name)
    assert message.delivery_mode == aio_pika.DeliveryMode.PERSISTENT


async def test_what_fails_again_stops_the_replay_and_stays_dead(bench: Bench) -> None:
    await bench.letters(10)
    async with running(bench), bench.desk() as desk:
        result = await replay(desk, EVERYTHING, QUICK)
        assert not result.ok
        assert result.stopped is not None
        assert "1 of the last 1" in result.stopped
        assert result.counts == {ItemState.FAILED: 1, ItemState.WAITING: 9}
        letters = desk.store.find(EVERYTHING)
        assert {letter.state for letter in letters} == {LetterState.DEAD}
        assert [letter.replays for letter in letters] == [1] + [0] * 9
        assert letters[0].attempts == 1


async def test_a_replay_loop_ends_at_its_cap(bench: Bench) -> None:
    await bench.letters(1, who="never")
    async with running(bench), bench.desk() as desk:
        for _ in range(3):
            result = await replay(
                desk, EVERYTHING, ReplaySettings(timeout_seconds=60, max_failing=1.0)
            )
            assert result.counts == {ItemState.FAILED: 1}
        result = await replay(desk, EVERYTHING, QUICK)
        assert result.counts == {ItemState.SKIPPED: 1}
        assert result.sent == 0
        forced = ReplaySettings(timeout_seconds=60, max_failing=1.0, force=True)
        assert (await replay(desk, EVERYTHING, forced)).counts == {ItemState.FAILED: 1}
        (letter,) = desk.store.find(EVERYTHING)
        assert letter.replays == 4


async def test_a_replay_that_is_asked_to_stop_sends_no_more_and_is_resumed(bench: Bench) -> None:
    await bench.letters(10)
    heal()
    stop = Stop()
    async with running(bench) as toy, bench.desk() as desk:
        result = await replay(
            desk, EVERYTHING, QUICK, stop=stop, progress=lambda _: stop.ask("to look at it")
        )
        assert not result.ok
        assert result.stopped == STOPPED
        assert 1 <= result.counts[ItemState.DONE] < 10
        unfinished = desk.store.replays.unfinished()
        assert unfinished is not None
        (last, *_) = desk.store.actions(1)
        assert (last.action, last.reason) == ("replay", "to look at it")
        assert last.result["state"] == "stopped"

        resumed = await replay(desk, None, QUICK)
        assert (resumed.run, resumed.resumed, resumed.ok) == (result.run, True, True)
        assert resumed.counts == {ItemState.DONE: 10}
        assert set((await toy.counts()).values()) == {1}


async def test_the_store_keeps_nothing_else_on_the_event_loop_waiting(bench: Bench) -> None:
    await bench.letters(3)
    name = Path(dead_letters_url_in(bench.folder)).name
    on_the_loop: list[str] = []

    def watch(connection: sa.Connection, _: object, statement: str, *__: object) -> None:
        with contextlib.suppress(RuntimeError):  # There is no loop in a thread.
            asyncio.get_running_loop()
            if str(connection.engine.url).endswith(name):
                on_the_loop.append(statement)

    sa.event.listen(sa.Engine, "before_cursor_execute", watch)
    try:
        async with bench.desk() as desk:
            chosen = Selection(subject=str(UUID(int=1)), type=Cancelled.type)
            (number,) = (await desk.selection(chosen, ["1"])).numbers
            await desk.document_about(number)
            await dry_run(desk, EVERYTHING, QUICK)
            task = asyncio.create_task(replay(desk, EVERYTHING, QUICK))
            await until(lambda: bench.holds("toy.normal", 1))
            heal()
            async with running(bench):
                assert (await task).ok
    finally:
        sa.event.remove(sa.Engine, "before_cursor_execute", watch)

    assert on_the_loop == []


async def test_what_was_confirmed_is_replayed_and_nothing_else(bench: Bench) -> None:
    await bench.letters(3)
    heal()
    async with running(bench), bench.desk() as desk:
        confirmed = FrozenSelection.of(desk.store.numbers(EVERYTHING, HERE), utc_now())
        desk.store.discard(Selection(numbers=(1,)), "not this one")
        with pytest.raises(SelectionChanged, match="2 by now"):
            await replay(desk, EVERYTHING, QUICK, confirmed=confirmed)
        assert desk.store.replays.newest(1) == []
        with pytest.raises(SelectionChanged):
            desk.store.discard(EVERYTHING, "all of them", confirmed=confirmed)
        assert desk.store.find(EVERYTHING, HERE, contents=False)[0].number == 2

        confirmed = FrozenSelection.of(desk.store.numbers(EVERYTHING, HERE), utc_now())
        run = desk.store.replays.begin(EVERYTHING, [2, 3], {}, "never ended")
        with pytest.raises(DlqError, match="never ended"):
            await replay(desk, EVERYTHING, QUICK, confirmed=confirmed)
        desk.store.replays.end(run, "given up", {}, "")
        await bench.bury(message_of(cancelled(4).to_bytes()))
        await until(lambda: _came(desk, 4))
        assert (await replay(desk, EVERYTHING, QUICK, confirmed=confirmed)).counts == {
            ItemState.DONE: 2
        }
        assert desk.store.numbers(EVERYTHING, HERE) == [4]


async def test_the_replay_that_was_looked_at_is_resumed_and_no_other(bench: Bench) -> None:
    await bench.letters(1)
    async with bench.desk() as desk:
        ended = desk.store.replays.begin(EVERYTHING, [1], {}, "looked at")
        desk.store.replays.end(ended, "finished", {}, "")
        with pytest.raises(DlqError, match="replay 1 does not wait"):
            await replay(desk, None, QUICK, resuming=ended.number)
        other = desk.store.replays.begin(EVERYTHING, [1], {}, "begun meanwhile")
        with pytest.raises(DlqError, match="replay 1 does not wait"):
            await replay(desk, None, QUICK, resuming=ended.number)
        assert desk.store.replays.open_items(other) == [(1, ItemState.WAITING)]


async def _came(desk: DeadLetterDesk, number: int) -> bool:
    await desk.collect()
    return bool(desk.store.numbers_known([number]))


async def test_letters_are_grouped_and_paged_where_they_are_kept(bench: Bench) -> None:
    for number in range(7):
        for minute in range(1 + number % 2):
            message = message_of(cancelled(number).to_bytes())
            message.headers |= {
                FINGERPRINT: f"kind-{number % 3}",
                ERROR_TYPE: f"Error{number}",
                FIRST_FAILED_AT: NOW.isoformat(),
                LAST_FAILED_AT: (NOW + timedelta(minutes=number + minute)).isoformat(),
            }
            await bench.bury(message)
    async with bench.desk() as desk:
        store = desk.store
        groups = store.groups(EVERYTHING, HERE, "fingerprint")
        assert [(group.key, group.letters) for group in groups] == [
            ("kind-0", 3),
            ("kind-1", 2),
            ("kind-2", 2),
        ]
        assert {group.first_failed_at for group in groups} == {NOW}
        assert [*groups[0].queues, *groups[0].services] == ["toy.normal", "toy"]
        behind = store.groups(EVERYTHING, HERE, "fingerprint", limit=1, after=(2, "kind-1"))
        assert behind == groups[2:]
        (whole,) = store.groups(EVERYTHING, HERE, "service")
        assert (whole.letters, whole.subjects) == (7, 7)

        until_then = NOW + timedelta(minutes=10)
        deaths = store.deaths(EVERYTHING, HERE, "fingerprint", groups, until_then, 5)
        assert [sum(deaths[group.key]) for group in groups] == [3, 2, 2]
        assert [sum(part) for part in zip(*deaths.values(), strict=True)] == [3, 2, 2, 0, 0]

        seen: list[int] = []
        after = None
        while found := store.page(EVERYTHING, HERE, 3, after):
            seen += [letter.number for letter in found]
            after = found[-1].first_failed_at, found[-1].number
        assert seen == store.numbers(EVERYTHING, HERE) == list(range(1, 8))


async def test_a_selection_is_frozen_at_the_start(bench: Bench) -> None:
    await bench.letters(2)
    heal()
    async with bench.desk() as desk:
        task = asyncio.create_task(replay(desk, EVERYTHING, QUICK))
        await until(lambda: bench.holds("toy.normal", 1))
        await bench.bury(message_of(cancelled(3).to_bytes()))
        async with running(bench):
            result = await task
        assert result.counts == {ItemState.DONE: 2}
        await desk.collect()
        assert states(desk).count(LetterState.DEAD) == 1


async def test_what_nobody_answers_is_said_to_be_unanswered(bench: Bench) -> None:
    await bench.letters(2)
    async with bench.desk() as desk:
        result = await replay(desk, EVERYTHING, ReplaySettings(timeout_seconds=0.3))
        assert result.counts == {ItemState.UNANSWERED: 1, ItemState.WAITING: 1}
        assert LetterState.SENT in states(desk)
    heal()
    async with running(bench) as toy:
        await until(lambda: _done(toy, 1))
    async with bench.desk() as desk:  # The next command finds out.
        assert states(desk).count(LetterState.DONE) == 1


async def test_two_replays_do_not_run_at_once(bench: Bench) -> None:
    await bench.letters(1)
    async with bench.desk() as desk:
        task = asyncio.create_task(replay(desk, EVERYTHING, QUICK))
        await until(lambda: bench.holds("toy.normal", 1))
        with pytest.raises(DlqError, match="another replay"):
            await replay(desk, EVERYTHING, QUICK)
        heal()
        async with running(bench):
            assert (await task).ok


async def test_killed_half_way_a_replay_goes_on_and_each_message_has_its_effect_once(
    bench: Bench,
) -> None:
    await bench.letters(200)
    heal()
    script = (
        "import asyncio, sys; from tests.integration.test_dlq import replay_at;"
        "asyncio.run(replay_at(sys.argv[1]))"
    )
    environment = os.environ | {"PYTHONPATH": os.getcwd()}
    async with running(bench) as toy:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-c", script, bench.deployment.model_dump_json(), env=environment
        )
        async with bench.desk() as desk:
            await until(lambda: _out(desk, 60))
            process.send_signal(signal.SIGKILL)
            await process.wait()
            run = desk.store.replays.unfinished()
            assert run is not None
            assert len(desk.store.replays.open_items(run)) > 0

            with pytest.raises(DlqError, match="--resume"):
                await replay(desk, Selection(type="thing.cancelled"), QUICK)
            result = await replay(desk, EVERYTHING, QUICK)
            assert result.resumed
            assert result.run == run.number
            assert result.counts == {ItemState.DONE: 200}
            assert {letter.replays for letter in desk.store.find(EVERYTHING)} == {1}
        counts = await toy.counts()
    assert len(counts) == 200
    assert set(counts.values()) == {1}


def _out(desk: DeadLetterDesk, count: int) -> bool:
    return sum(state is not LetterState.DEAD for state in states(desk)) >= count


async def replay_at(deployment: str) -> ReplayResult:
    """What the killed process runs."""
    async with open_desk(Deployment.model_validate_json(deployment), GRAPH) as desk:
        return await replay(desk, EVERYTHING, ReplaySettings(rate=100.0))


# --- editing and discarding -----------------------------------------------------------------------


async def test_an_edited_copy_takes_the_letters_place(bench: Bench) -> None:
    await bench.letters(1, who="never")
    async with running(bench) as toy, bench.desk() as desk:
        (letter,) = desk.store.find(EVERYTHING)
        edited = await edit(
            desk, letter.number, lambda text: with_values(text, ["who=somebody"]), why="typo"
        )
        assert edited is not None
        assert '+    "who": "somebody"' in edited.diff
        await until(lambda: _done(toy, 1))
        ids = {
            id_in_inbox(row[0])
            for row in await toy.database.read(lambda c: rows(c, toy.tables.inbox))
        }
        assert ids == {edited.copy_id}
        assert states(desk) == [LetterState.REPLACED]
        assert edited.recorded
        assert desk.store.edits_of(letter.number)[0]["diff"] == edited.diff
    copy = await _newest_of(bench, HISTORY_STREAM, edited.copy_id)
    assert copy["causationid"] == letter.key
    assert copy["data"]["who"] == "somebody"


async def test_a_letter_that_was_settled_while_the_editor_was_open_is_not_edited(
    bench: Bench,
) -> None:
    await bench.letters(1, who="never")
    async with bench.desk() as desk:
        (letter,) = desk.store.find(EVERYTHING)

        def change(text: str) -> str:
            other = Store(str(bench.deployment.dead_letters_url))
            other.discard(EVERYTHING, "by another person")
            other.close()
            return with_values(text, ["who=somebody"])

        with pytest.raises(InputError, match="is discarded; only a dead one can be edited"):
            await edit(desk, letter.number, change)

        assert states(desk) == [LetterState.DISCARDED]
        assert desk.store.edits_of(letter.number) == []
    assert await bench.holds("toy.normal", 0)


async def _newest_of(bench: Bench, stream: str, message_id: str) -> dict[str, Any]:
    found: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def take(message: AbstractIncomingMessage) -> None:
        await message.ack()
        if message.message_id == message_id and not found.done():
            found.set_result(message.body)

    channel = bench.channel
    await channel.set_qos(prefetch_count=100)
    queue = await channel.get_queue(stream, ensure=False)
    await queue.consume(take, arguments={"x-stream-offset": "first"})
    document: dict[str, Any] = json.loads(await asyncio.wait_for(found, 10))
    return document


async def test_an_edit_that_breaks_the_schema_changes_nothing(bench: Bench) -> None:
    await bench.letters(1)
    async with bench.desk() as desk:
        (letter,) = desk.store.find(EVERYTHING)
        for setting in ("reason=boredom", "subject=somebody", "data.thing=7", "type=thing.lost"):
            with pytest.raises(InputError, match="cannot take"):
                await edit(desk, letter.number, partial(_with, setting))
        for text in ("{", "[]"):
            with pytest.raises(InputError, match="JSON"):
                await edit(desk, letter.number, partial(_instead, text))
        assert states(desk) == [LetterState.DEAD]
        assert desk.store.edits_of(letter.number) == []
        assert [action.action for action in desk.store.actions(10)] == ["collect"]
    assert await bench.holds("toy.normal", 0)


def _with(setting: str, text: str) -> str:
    return with_values(text, [setting])


def _instead(text: str, _: str) -> str:
    return text


async def test_what_is_discarded_is_not_replayed_and_can_be_restored(bench: Bench) -> None:
    await bench.letters(2)
    heal()
    async with running(bench), bench.desk() as desk:
        one = Selection(numbers=(desk.store.find(EVERYTHING)[0].number,))
        assert desk.store.discard(one, "a test") == list(one.numbers)
        assert (await replay(desk, EVERYTHING, QUICK)).counts == {ItemState.DONE: 1}
        assert desk.store.get(one.numbers[0]).note == "a test"
        assert desk.store.restore(one, "") == list(one.numbers)
        assert (await replay(desk, EVERYTHING, QUICK)).counts == {ItemState.DONE: 1}


async def test_the_audit_record_is_only_appended_to(bench: Bench) -> None:
    async with bench.desk() as desk:
        desk.store.note("test", "because", {}, {})
        engine = sqlite_engine(f"sqlite:///{desk.store.path}")
        for statement in ("DELETE FROM audit", "UPDATE audit SET who = 'nobody'"):
            with pytest.raises(sa.exc.DBAPIError, match="appended"), engine.begin() as connection:
                connection.execute(sa.text(statement))
        engine.dispose()
        assert desk.store.actions(1)[0].at <= utc_now()


# --- figures --------------------------------------------------------------------------------------

MANY = 10_000


async def _bury_many(bench: Bench, count: int) -> None:
    exchange = await bench.channel.get_exchange(DEAD_EXCHANGE, ensure=False)
    for start in range(1, count + 1, 1_000):
        numbers = range(start, min(start + 1_000, count + 1))
        await asyncio.gather(*(exchange.publish(_dead(number), "toy") for number in numbers))


def _dead(number: int) -> aio_pika.Message:
    """A dead letter as the toy would have left it."""
    message = message_of(cancelled(number).to_bytes())
    at = (NOW + timedelta(seconds=number)).isoformat()
    message.headers |= {
        LAST_FAILED_AT: at,
        FIRST_FAILED_AT: at,
        REASON: "failed",
        ERROR_TYPE: "Ill",
        FINGERPRINT: f"{number % 7}",
        ORIGIN_QUEUE: "toy.normal",
    }
    return message


@pytest.mark.long
async def test_10000_letters_are_collected_and_grouped_in_seconds(bench: Bench) -> None:
    await _bury_many(bench, MANY)
    started = time.monotonic()
    async with bench.desk() as desk:
        collected = time.monotonic() - started
        assert len(desk.store.find(EVERYTHING)) == MANY
    started = time.monotonic()
    async with bench.desk() as desk:
        groups = {letter.fingerprint for letter in desk.store.find(EVERYTHING, contents=False)}
        listed = time.monotonic() - started
    print(f"collected in {collected:.1f} s, listed in {listed:.1f} s")  # noqa: T201  # a figure
    assert len(groups) == 7
    assert collected < 15
    assert listed < 5


@pytest.mark.long
@pytest.mark.parametrize(("count", "rate"), [(MANY, 500.0), (100, 20.0)])
async def test_a_replay_keeps_within_a_tenth_of_its_rate(
    bench: Bench, count: int, rate: float
) -> None:
    await _bury_many(bench, count)
    async with running(bench) as toy, bench.desk() as desk:
        result = await replay(desk, EVERYTHING, ReplaySettings(rate=rate, timeout_seconds=30))
        assert result.ok
        assert len(await toy.counts()) == count
    assert result.rate is not None
    print(f"asked for {rate:g}/s, sent {result.rate:.1f}/s")  # noqa: T201  # a figure
    assert 0.9 * rate <= result.rate <= 1.1 * rate
    assert result.seconds <= count / rate * 1.1 + 1


# --- a letter's states ----------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    opened = Store(dead_letters_url_in(tmp_path))
    yield opened
    opened.close()


def _copy(died: int, replays: int = 0, key: str = "event-1") -> Copy:
    at = NOW + timedelta(seconds=died)
    return Copy(
        participant="toy",
        key=key,
        died=at.isoformat(),
        event_id=key,
        type="thing.cancelled",
        subject="thing-1",
        queue="toy.normal",
        reason="failed",
        error_type="Ill",
        error=f"error {died}",
        fingerprint="f",
        attempts=1,
        replays=replays,
        first_failed_at=at,
        last_failed_at=at,
        properties={},
        headers={},
        raw=NO_PROPERTIES,
        body=f"{died}".encode(),
    )


def _sent(store: Store, replays: int = 1) -> Replay:
    run = store.replays.begin(EVERYTHING, [1], {}, "")
    assert store.replays.mark_sending(run, {1: replays}) == {1}
    store.replays.mark_sent(run, [1])
    assert store.get(1).state is LetterState.SENT
    return run


def test_the_same_copy_is_taken_once(store: Store) -> None:
    assert store.take([_copy(1), _copy(1)], NOW) == 1
    assert store.take([_copy(1)], NOW) == 0
    assert store.get(1).copies == 1


def test_a_copy_that_was_replayed_as_often_has_failed_again(store: Store) -> None:
    store.take([_copy(1)], NOW)
    _sent(store)
    store.take([_copy(2, replays=1)], NOW)
    letter = store.get(1)
    assert (letter.state, letter.error, letter.body) == (LetterState.DEAD, "error 2", b"2")
    assert letter.first_failed_at < letter.last_failed_at


def test_a_copy_from_before_the_replay_says_nothing_of_it(store: Store) -> None:
    store.take([_copy(1)], NOW)
    _sent(store)
    store.take([_copy(2)], NOW)
    letter = store.get(1)
    assert (letter.state, letter.copies, letter.error) == (LetterState.SENT, 2, "error 1")


def test_a_copy_that_comes_back_before_it_is_known_to_be_sent_is_dead(store: Store) -> None:
    store.take([_copy(1)], NOW)
    run = store.replays.begin(EVERYTHING, [1], {}, "")
    store.replays.mark_sending(run, {1: 1})
    store.take([_copy(2, replays=1)], NOW)
    store.replays.mark_sent(run, [1])
    assert store.get(1).state is LetterState.DEAD


@pytest.mark.parametrize("settle", ["discard", "edit"])
def test_what_a_person_has_settled_stays_settled(store: Store, settle: str) -> None:
    store.take([_copy(1)], NOW)
    if settle == "discard":
        store.discard(Selection(numbers=(1,)), "a test")
    else:
        store.begin_edit(1, "copy", "", b"", "")
        store.end_edit(1, "copy", "")
    before = store.get(1).state
    store.take([_copy(2)], NOW)
    assert store.get(1).state is before
    assert store.replays.mark_sending(store.replays.begin(EVERYTHING, [1], {}, ""), {1: 1}) == set()


def test_letters_are_in_order_of_their_first_failure(store: Store) -> None:
    store.take([_copy(3, key="c"), _copy(1, key="a"), _copy(2, key="b")], NOW)
    assert [letter.key for letter in store.find(EVERYTHING)] == ["a", "b", "c"]


def test_only_old_letters_that_nothing_is_owed_of_are_purged(store: Store) -> None:
    long_ago = utc_now() - timedelta(days=100)
    keys = ("dead", "sent", "done", "discarded", "replaced", "in a replay", "young")
    found = [
        replace(_copy(1, key=key), last_failed_at=long_ago, first_failed_at=long_ago)
        for key in keys
    ]
    found[-1] = replace(found[-1], last_failed_at=utc_now() - timedelta(days=80))
    store.take(found, NOW)
    number = {letter.key: letter.number for letter in store.find(EVERYTHING)}

    def send(*keys: str) -> Replay:
        run = store.replays.begin(EVERYTHING, [number[key] for key in keys], {}, "")
        store.replays.mark_sending(run, {number[key]: 1 for key in keys})
        store.replays.mark_sent(run, [number[key] for key in keys])
        return run

    run = send("sent", "done")
    store.settle_done([number["done"]])
    store.replays.end(run, "finished", {}, "")
    send("in a replay")
    store.discard(Selection(numbers=(number["discarded"], number["young"])), "a test")
    store.begin_edit(number["replaced"], "copy", "", b"", "")
    store.end_edit(number["replaced"], "copy", "")

    purged = store.purge(90 * 86_400, "old enough")

    assert {key for key in keys if number[key] in purged} == {
        *("sent", "done", "discarded", "replaced")
    }
    assert {letter.key for letter in store.find(EVERYTHING)} == {"dead", "in a replay", "young"}
    assert store.edits_of(number["replaced"]) == []
    assert store.replays.items_of(run) == []
    action, *_ = store.actions(1)
    assert (action.action, action.reason) == ("purge", "old enough")
    assert action.result == {"letters": purged}


def test_a_store_that_cannot_be_written_is_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DlqError, match="cannot keep dead letters"):
        Store(f"sqlite:///{tmp_path / 'file' / 'store.db'}")
