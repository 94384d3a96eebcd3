"""Commands between participants on a real broker: a desk that coordinates a rider and a stamper."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar

import aio_pika
import aiormq
import pytest
from aio_pika.abc import AbstractChannel

from saga.choreography import Participant, State
from saga.deployment import Deployment
from saga.discovery import tables_in
from saga.dlq.desk import DeadLetterDesk, open_desk
from saga.dlq.edit import edit
from saga.dlq.replay import ReplaySettings, replay
from saga.dlq.selection import Selection
from saga.envelope import Attributes, Envelope
from saga.local.node import RabbitNode
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.outbox import Outbox
from saga.runtime.kernel.sqlite import SqliteDatabase
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.consumer import Consumer
from saga.runtime.messaging.permissions import OPERATOR, REPLAY
from saga.runtime.messaging.publisher import BrokerPublisher
from saga.runtime.messaging.stream import FIRST, reading
from saga.runtime.messaging.topology import EVENTS_EXCHANGE
from saga.runtime.tasks import cancel_all
from tests import errands
from tests.errands import DESK, GRAPH, RIDER, STAMPER, Errand, Mark, Papers, Ride, Stage
from tests.integration.toy import id_in_inbox, rows
from tests.integration.users import Users, make_users
from tests.messages import message_of
from tests.polling import until

S = TypeVar("S", bound=State)
EVERYTHING = Selection()
KINDS: Mapping[str, type[State]] = {"desk": Errand, "rider": Ride, "stamper": Papers}


class Service:
    """A participant as a service would run it, in this process, as its own user on the broker."""

    def __init__(self, participant: Participant, url: str, folder: Path) -> None:
        name = participant.name
        self.kind = KINDS[name]
        self.tables = tables_in(participant.package)
        self.database = SqliteDatabase(database_url(folder, name), self.tables)
        self.publisher = BrokerPublisher(url, f"{name} publisher")
        self.outbox = Outbox(name, self.database, self.tables, self.publisher)
        self.kernel = Kernel(participant, self.database, self.tables, self.outbox)
        self.consumer = Consumer(participant, self.kernel, self.publisher, url, drain_seconds=5)

    async def state(self, kind: type[S], errand: str) -> S:
        found = await self.database.read(lambda c: self.tables.states[kind].find(c, errand))
        return found or kind(errand)

    async def done(self) -> list[str]:
        found = await self.database.read(lambda c: rows(c, self.tables.inbox))
        return sorted(id_in_inbox(row[0]) for row in found)


def database_url(folder: Path, name: str) -> str:
    return f"sqlite:///{folder / name}.db"


@asynccontextmanager
async def running(participant: Participant, users: Users, folder: Path) -> AsyncIterator[Service]:
    service = Service(participant, users[participant.name], folder)
    await service.outbox.open()
    await service.publisher.open(patience_seconds=5)
    tasks = [asyncio.create_task(service.kernel.run()), asyncio.create_task(service.outbox.run())]
    await service.consumer.start()
    try:
        yield service
    finally:
        await service.consumer.stop()
        await cancel_all(*tasks)
        await service.publisher.close()
        await service.database.close()


@asynccontextmanager
async def all_running(users: Users, folder: Path) -> AsyncIterator[dict[str, Service]]:
    async with AsyncExitStack() as stack:
        yield {
            participant.name: await stack.enter_async_context(running(participant, users, folder))
            for participant in (DESK, RIDER, STAMPER)
        }


@pytest.fixture
async def users(amqp_url: str, rabbit_node: RabbitNode) -> Users:
    return await make_users(amqp_url, rabbit_node, GRAPH)


@pytest.fixture
async def channel(users: Users, amqp_url: str) -> AsyncIterator[AbstractChannel]:
    """The test's own way to the broker, as one who may do everything."""
    async with await connect(amqp_url, name="test") as connection:
        yield await connection.channel(on_return_raises=True)


async def give(channel: AbstractChannel, envelope: Envelope[Any], queue: str) -> None:
    """Put a message straight into a queue, as an operator may."""
    await channel.default_exchange.publish(message_of(envelope.to_bytes()), queue)


async def publish(channel: AbstractChannel, envelope: Envelope[Any], key: str = "") -> None:
    exchange = await channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
    await exchange.publish(message_of(envelope.to_bytes()), key or envelope.routing_key)


async def depth(channel: AbstractChannel, queue: str) -> int:
    declared = await channel.declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0


async def recorded(url: str, count: int) -> list[Attributes]:
    """The first so many messages of the history's stream."""
    found: list[Attributes] = []

    async def enough() -> bool:
        found.extend(Attributes.of(record.body) for record in await reader.take(100, 0.1))
        return len(found) >= count

    async with await connect(url, name="test") as connection, reading(connection, FIRST) as reader:
        await until(enough)
    return found


async def test_a_coordinator_has_an_errand_run_by_two_others(
    users: Users, channel: AbstractChannel, amqp_url: str, tmp_path: Path
) -> None:
    async with all_running(users, tmp_path) as services:
        await give(channel, errands.asked("near"), "desk.intake.normal")
        await give(channel, errands.asked("far", far=True), "desk.intake.high")

        async def stage(errand: str) -> Stage:
            return (await services["desk"].state(Errand, errand)).stage

        async def ended() -> bool:
            return await stage("near") is Stage.ENDED and await stage("far") is Stage.CANCELLED

        async def taken_off() -> bool:
            return (await services["stamper"].state(Papers, "far")).mark is Mark.VOID

        await until(ended)
        await until(taken_off)

    sent = [message for message in await recorded(amqp_url, 11) if message.subject == "near"]
    by_desk = [m.sequence for m in sent if m.source == "/services/desk"]
    assert sorted(m.type for m in sent) == [
        "errand.ended",
        # the first leg, whichever came first
        *sorted({m.type for m in sent} & {"errand.ridden", "errand.stamped"}),
        "ride.done",
        "ride.start",
        "stamp.give",
        "stamp.given",
    ]
    assert sorted(number or 0 for number in by_desk) == [1, 2, 3, 4]
    ride = next(m for m in sent if m.type == "ride.start")
    assert next(m for m in sent if m.type == "ride.done").causationid == ride.id


async def test_a_command_that_comes_twice_has_its_effect_once(
    users: Users, channel: AbstractChannel, tmp_path: Path
) -> None:
    command = errands.told_to_ride("a")
    async with running(RIDER, users, tmp_path) as rider:
        await publish(channel, command)
        await publish(channel, command)
        await publish(channel, errands.told_to_ride("b"))

        async def both() -> bool:
            return await rider.done() == ["ride-a", "ride-b"]

        async def nothing_waits() -> bool:
            return await depth(channel, "rider.intake.normal") == 0

        await until(both)
        await until(nothing_waits)

        ridden = await rider.state(Ride, "a")
        assert (ridden.rides, ridden.sequence) == (1, 1)
    assert await depth(channel, "rider.dlq") == 0


async def test_a_command_has_one_receiver(users: Users, channel: AbstractChannel) -> None:
    await publish(channel, errands.told_to_ride("a"))

    async def waits() -> bool:
        return await depth(channel, "rider.intake.normal") == 1

    await until(waits)
    queues = ("rider.normal", "desk.normal", "desk.intake.normal", "stamper.intake.normal")
    assert [await depth(channel, queue) for queue in queues] == [0, 0, 0, 0]


@pytest.mark.parametrize("user", ["rider", "stamper"])
async def test_the_broker_refuses_a_command_of_a_participant_that_may_not_send_it(
    user: str, users: Users, channel: AbstractChannel
) -> None:
    command = errands.told_to_ride("a")
    async with await connect(users[user], name="test") as connection:
        theirs = await connection.channel(publisher_confirms=True)
        exchange = await theirs.get_exchange(EVENTS_EXCHANGE, ensure=False)
        with pytest.raises(aiormq.exceptions.ChannelAccessRefused):
            await exchange.publish(
                aio_pika.Message(command.to_bytes()), command.routing_key, timeout=60
            )

    assert await depth(channel, "rider.intake.normal") == 0


async def test_a_sender_cannot_write_the_receivers_queue(
    users: Users, channel: AbstractChannel
) -> None:
    async with await connect(users["desk"], name="test") as connection:
        theirs = await connection.channel(publisher_confirms=True)
        with pytest.raises(aiormq.exceptions.ChannelAccessRefused):
            await theirs.default_exchange.publish(
                aio_pika.Message(errands.told_to_ride("a").to_bytes()),
                "rider.intake.normal",
                timeout=60,
            )

    assert await depth(channel, "rider.intake.normal") == 0


@pytest.mark.parametrize("source", ["/services/stamper", "https://customer.example"])
async def test_a_command_that_says_it_is_from_anybody_else_is_a_dead_letter(
    source: str, users: Users, channel: AbstractChannel, tmp_path: Path
) -> None:
    async with running(RIDER, users, tmp_path) as rider:
        await publish(channel, errands.told_to_ride("a", source=source))

        async def dead() -> bool:
            return await depth(channel, "rider.dlq") == 1

        await until(dead)

        assert await rider.done() == []
    letter = await (await channel.get_queue("rider.dlq", ensure=False)).get(no_ack=True)
    assert f"says it is from '{source}'" in str(letter.headers["x-saga-error"])


# --- dead letters -------------------------------------------------------------------------------


@pytest.fixture
def desk(users: Users, tmp_path: Path) -> Deployment:
    """What an operator's desk needs to know, after a command has died of the rider's illness."""
    return Deployment(
        amqp_url=users[OPERATOR],
        http_urls={},
        amqp_urls={REPLAY: users[REPLAY]},
        database_urls={name: database_url(tmp_path, name) for name in KINDS},
        dead_letters_url=f"sqlite:///{tmp_path / 'dead.db'}",
    )


@asynccontextmanager
async def with_a_dead_command(
    desk: Deployment, users: Users, channel: AbstractChannel, folder: Path
) -> AsyncIterator[DeadLetterDesk]:
    errands.ill.add("a")
    try:
        async with running(RIDER, users, folder):
            await publish(channel, errands.told_to_ride("a"))

            async def dead() -> bool:
                return await depth(channel, "rider.dlq") == 1

            await until(dead)
    finally:
        errands.ill.clear()
    async with open_desk(desk, GRAPH) as opened:
        yield opened


async def test_a_dead_command_is_replayed_into_its_receivers_intake_queue_and_done_once(
    desk: Deployment, users: Users, channel: AbstractChannel, tmp_path: Path
) -> None:
    async with with_a_dead_command(desk, users, channel, tmp_path) as opened:
        (letter,) = opened.store.find(EVERYTHING)
        assert (letter.type, letter.queue) == ("ride.start", "rider.intake.normal")
        async with running(RIDER, users, tmp_path) as rider:
            result = await replay(opened, EVERYTHING, ReplaySettings(timeout_seconds=60.0))

            assert result.ok
            assert await rider.done() == ["ride-a"]
            assert (await rider.state(Ride, "a")).rides == 1


async def test_a_corrected_command_is_in_the_history_like_a_corrected_event(
    desk: Deployment, users: Users, channel: AbstractChannel, amqp_url: str, tmp_path: Path
) -> None:
    async with with_a_dead_command(desk, users, channel, tmp_path) as opened:
        edited = await edit(opened, 1, lambda text: text.replace("false", "true"))
        assert edited is not None
        assert edited.recorded

    async with running(RIDER, users, tmp_path) as rider:

        async def refused() -> bool:
            return (await rider.state(Ride, "a")).refusals == 1

        await until(refused)
    found = await recorded(amqp_url, 3)
    assert [(m.type, m.source) for m in found] == [
        ("ride.start", "/services/desk"),
        ("ride.start", "/operators/dlq"),
        ("ride.refused", "/services/rider"),
    ]
