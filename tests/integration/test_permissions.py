"""Least privilege on a real broker: what the payment service's user cannot do, and what it can.

A publish is refused late: the broker closes the channel, and an unconfirmed publish never knows.
So every publish here waits for its confirm.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import stat
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import aio_pika
import aiormq
import httpx
import pytest
import yarl
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractIncomingMessage

from common.events import HeldLine, StockReserved
from payment_service.gateway import Account, SandboxGateway
from saga.broker.passwords import new_passwords
from saga.broker.setup import apply_topology, drift, put_users
from saga.choreography import Choreography
from saga.discovery import choreography
from saga.envelope import Envelope, wrap
from saga.local.node import RabbitNode
from saga.local.system import System
from saga.message import Priority
from saga.retry import RUNGS_MS
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.definitions import definitions, text
from saga.runtime.messaging.permissions import OPERATOR, REPLAY, name_on_broker, users_of
from saga.runtime.messaging.topology import (
    DEAD_EXCHANGE,
    EVENTS_EXCHANGE,
    HISTORY_STREAM,
    Queue,
    Topology,
    TopologyError,
    apply,
    topology_of,
    wait_queue,
)
from saga.runtime.tasks import cancel_all
from tests.forked import spawn
from tests.integration import order_events
from tests.integration import toy as toy_module
from tests.integration.service_process import ServiceProcess, rows
from tests.integration.test_messaging import running
from tests.integration.toy import PARTICIPANT, cancelled
from tests.integration.users import Users, make_users
from tests.messages import message_of
from tests.polling import until

RABBITMQ = Path(__file__).parents[2] / "rabbitmq"
OTHERS = ("inventory.high", "inventory.normal", "order.high", "order.intake.normal")
FIRST_WAIT = wait_queue(RUNGS_MS[0])


@pytest.fixture
async def users(amqp_url: str, rabbit_node: RabbitNode) -> Users:
    return await make_users(amqp_url, rabbit_node, choreography())


@pytest.fixture
async def operator(users: Users) -> AsyncIterator[AbstractChannel]:
    async with await connect(users[OPERATOR], name="test") as connection:
        yield await connection.channel(on_return_raises=True)


@pytest.fixture(scope="module")
def unmoved(
    virtual_host: Callable[[], contextlib.AbstractContextManager[str]], rabbit_node: RabbitNode
) -> Iterator[Users]:
    """Users on a virtual host for all that payment cannot do, which therefore stays as it is."""
    with virtual_host() as url:
        yield asyncio.run(make_users(url, rabbit_node, choreography()))


@pytest.fixture
async def payment(unmoved: Users) -> AsyncIterator[AbstractConnection]:
    async with await connect(unmoved["payment"], name="test") as connection:
        yield connection


@pytest.fixture
async def onlooker(unmoved: Users) -> AsyncIterator[AbstractChannel]:
    """An operator who sees that nothing has come of it."""
    async with await connect(unmoved[OPERATOR], name="test") as connection:
        yield await connection.channel(on_return_raises=True)


async def refused(
    connection: AbstractConnection, act: Callable[[AbstractChannel], Coroutine[Any, Any, Any]]
) -> None:
    """The broker answers with 403, on a channel that the refusal closes."""
    channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
    with pytest.raises(aiormq.exceptions.ChannelAccessRefused):
        await act(channel)
    assert channel.is_closed


def publishing(
    exchange: str, key: str, body: bytes = b"{}", **headers: Any
) -> Callable[[AbstractChannel], Coroutine[Any, Any, Any]]:
    async def publish(channel: AbstractChannel) -> None:
        target = (
            await channel.get_exchange(exchange, ensure=False)
            if exchange
            else channel.default_exchange
        )
        await target.publish(aio_pika.Message(body, headers=headers), key, timeout=60)

    return publish


async def messages(channel: AbstractChannel, queue: str) -> int:
    declared = await channel.declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0


def reserved(order: int, customer: str) -> Envelope[Any]:
    event = StockReserved(
        order_id=UUID(int=order),
        customer=customer,
        currency="EUR",
        total_cents=100,
        lines=(HeldLine(sku="A", quantity=1),),
    )
    return wrap(
        event,
        id=f"reserved-{order}",
        source="/services/inventory",
        time=utc_now(),
        priority=Priority.NORMAL,
        sequence=1,
    )


# --- what payment cannot do -----------------------------------------------------------------------


@pytest.mark.parametrize("type_", ["order.placed", "order.confirmed", "order.cancelled"])
async def test_payment_cannot_publish_the_order_services_events(
    type_: str, payment: AbstractConnection, onlooker: AbstractChannel
) -> None:
    for priority in Priority:
        await refused(payment, publishing(EVENTS_EXCHANGE, f"{type_}.{priority}"))

    assert await messages(onlooker, "inventory.normal") == 0


@pytest.mark.parametrize("queue", [*OTHERS, "inventory.dlq", "payment.dlq", HISTORY_STREAM])
async def test_payment_cannot_read_what_is_not_its_own(
    queue: str, payment: AbstractConnection, onlooker: AbstractChannel
) -> None:
    await publishing("", queue)(onlooker)

    async def get(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).get(no_ack=True)

    async def ignore(_: AbstractIncomingMessage) -> None: ...

    async def consume(channel: AbstractChannel) -> None:
        await channel.set_qos(1)
        await (await channel.get_queue(queue, ensure=False)).consume(ignore)

    async def purge(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).purge()

    for act in (get, consume, purge):
        await refused(payment, act)

    if queue != HISTORY_STREAM:
        assert await messages(onlooker, queue) == 1
        await purge(onlooker)


@pytest.mark.parametrize("queue", OTHERS)
@pytest.mark.parametrize(
    "exchange",
    ["", "amq.topic", "amq.direct", "amq.fanout", "amq.headers", EVENTS_EXCHANGE, DEAD_EXCHANGE],
)
async def test_payment_cannot_publish_to_anothers_queue(
    exchange: str, queue: str, payment: AbstractConnection, onlooker: AbstractChannel
) -> None:
    await refused(payment, publishing(exchange, queue))

    assert await messages(onlooker, queue) == 0


async def test_payment_cannot_have_a_wait_queue_send_a_message_to_anothers_queue(
    payment: AbstractConnection, onlooker: AbstractChannel
) -> None:
    for rung in RUNGS_MS:
        await refused(payment, publishing(wait_queue(rung), "inventory.normal"))

        assert await messages(onlooker, wait_queue(rung)) == 0


async def test_payment_cannot_write_anothers_dead_letters(
    payment: AbstractConnection, onlooker: AbstractChannel
) -> None:
    await refused(payment, publishing(DEAD_EXCHANGE, "order"))

    assert await messages(onlooker, "order.dlq") == 0


@pytest.mark.parametrize("queue", ["payment.normal", "inventory.normal", "payment.new"])
async def test_payment_cannot_change_the_topology(queue: str, payment: AbstractConnection) -> None:
    async def declare(channel: AbstractChannel) -> None:
        await channel.declare_queue(queue, durable=True, arguments={"x-queue-type": "quorum"})

    async def declare_for_itself(channel: AbstractChannel) -> None:
        await channel.declare_queue(None, exclusive=True)

    async def declare_exchange(channel: AbstractChannel) -> None:
        await channel.declare_exchange(queue, "topic")

    async def bind(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).bind(EVENTS_EXCHANGE, "order.#")

    async def unbind(channel: AbstractChannel) -> None:
        await (await channel.get_queue(queue, ensure=False)).unbind(EVENTS_EXCHANGE, "order.#")

    async def bind_exchanges(channel: AbstractChannel) -> None:
        events = await channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
        await events.bind(FIRST_WAIT, "#")

    async def delete(channel: AbstractChannel) -> None:
        await channel.queue_delete(queue)

    async def delete_exchange(channel: AbstractChannel) -> None:
        await channel.exchange_delete(EVENTS_EXCHANGE)

    acts = [declare, declare_for_itself, declare_exchange, bind_exchanges, delete_exchange]
    if queue != "payment.new":
        acts += [bind, unbind, delete]
    for act in acts:
        await refused(payment, act)


async def test_payment_has_no_other_virtual_host(unmoved: Users) -> None:
    elsewhere = str(yarl.URL(unmoved["payment"]).with_path("/"))

    with pytest.raises(aiormq.exceptions.AMQPError):
        await aio_pika.connect(elsewhere)


@pytest.fixture
def slipped_in(broker_admin: httpx.Client) -> int:
    """RabbitMQ 3 routes by CC and BCC too, and checks no permission for that; 4 refuses."""
    version = broker_admin.get("/api/overview").json()["rabbitmq_version"]
    return 2 if version.startswith("3.") else 0


@pytest.mark.parametrize("header", ["CC", "BCC"])
async def test_what_payment_slips_into_anothers_queue_is_dead_and_changes_nothing(
    header: str,
    tmp_path: Path,
    users: Users,
    operator: AbstractChannel,
    slipped_in: int,
) -> None:
    cancelled_ = order_events.cancelled(1)
    aside = aio_pika.Message(cancelled_.to_bytes(), headers={header: ["inventory.normal"]})
    forged = aio_pika.Message(
        cancelled_.to_bytes(), headers={header: [cancelled_.routing_key]}, message_id="forged"
    )
    async with await connect(users["payment"], name="test") as connection:
        for exchange, key, message in (
            (EVENTS_EXCHANGE, "payment.charged.normal", forged),
            (FIRST_WAIT, "payment.normal", aside),
        ):
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            target = await channel.get_exchange(exchange, ensure=False)
            with contextlib.suppress(aiormq.exceptions.ChannelAccessRefused):
                await target.publish(message, key, timeout=60)
    await until(lambda: _holds(operator, "inventory.normal", slipped_in))
    with ServiceProcess("inventory_service", tmp_path, AMQP_URL=users["inventory"]) as inventory:
        await inventory.says("ready")
        await until(lambda: _holds(operator, "inventory.dlq", slipped_in))
        inventory.popen.send_signal(signal.SIGTERM)  # Killed, it might not have acknowledged them.
        assert await inventory.exit_status() == 0

    assert rows(tmp_path, "inventory", "SELECT * FROM reservations") == []
    assert await messages(operator, "inventory.normal") == 0
    letters = await operator.get_queue("inventory.dlq", ensure=False)
    for _ in range(slipped_in):
        letter = await letters.get(no_ack=True)
        assert "its sender may have no right to it" in str(letter.headers["x-saga-error"])


async def test_an_event_under_another_events_key_is_dead_and_changes_nothing(
    tmp_path: Path, users: Users, operator: AbstractChannel
) -> None:
    async with await connect(users["order"], name="test") as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = await channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
        lie = reserved(1, "rich")
        await exchange.publish(message_of(lie.to_bytes()), "order.cancelled.normal")
    with ServiceProcess("payment_service", tmp_path, AMQP_URL=users["payment"]) as payment:
        await payment.says("ready")
        await until(lambda: _holds(operator, "payment.dlq"))

    assert rows(tmp_path, "payment", "SELECT * FROM payments") == []


# --- what payment can do --------------------------------------------------------------------------


async def test_payment_does_its_own_work_from_end_to_end(tmp_path: Path, users: Users) -> None:
    provider = SandboxGateway(f"sqlite:///{tmp_path / 'provider.db'}")
    provider.set_accounts([Account("rich")])
    async with await connect(users[OPERATOR], name="test") as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = await channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
        with ServiceProcess("payment_service", tmp_path, AMQP_URL=users["payment"]) as service:
            await service.says("ready")
            event = reserved(1, "rich")
            await exchange.publish(message_of(event.to_bytes()), event.routing_key)
            await exchange.publish(aio_pika.Message(b"no envelope"), event.routing_key)
            await until(lambda: _holds(channel, "order.normal"))
            await until(lambda: _holds(channel, "payment.dlq"))
    await provider.close()

    assert rows(tmp_path, "payment", "SELECT status FROM payments") == [("charged",)]


async def _holds(channel: AbstractChannel, queue: str, count: int = 1) -> bool:
    return await messages(channel, queue) == count


async def test_a_restricted_participant_waits_and_dead_letters(
    amqp_url: str, rabbit_node: RabbitNode, tmp_path: Path
) -> None:
    toys = await make_users(amqp_url, rabbit_node, Choreography([PARTICIPANT]))
    toy_module.flaky_calls.clear()
    async with (
        await connect(amqp_url, name="test") as connection,
        running(toys["toy"], tmp_path) as toy,
    ):
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        exchange = await channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
        for event in (cancelled(1, who="flaky"), cancelled(2, who="poison")):
            await exchange.publish(message_of(event.to_bytes()), event.routing_key)
        await until(lambda: toy.done(1))
        await until(lambda: _holds(channel, "toy.dlq"))

    assert len(toy_module.flaky_calls) == toy_module.flaky_until_call


# --- operators ------------------------------------------------------------------------------------


async def test_the_replay_user_takes_dead_letters_and_puts_them_back(
    users: Users, operator: AbstractChannel
) -> None:
    await publishing("", "payment.dlq", b"dead")(operator)
    async with await connect(users[REPLAY], name="test") as connection:
        channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
        letter = await (await channel.get_queue("payment.dlq", ensure=False)).get()
        await publishing("", "payment.normal", letter.body)(channel)
        await publishing("", HISTORY_STREAM, b"edited")(channel)
        await letter.ack()

        await refused(connection, publishing(EVENTS_EXCHANGE, "order.cancelled.high"))

    assert await messages(operator, "payment.normal") == 1
    assert await messages(operator, "payment.dlq") == 0


def deployed_settings() -> dict[str, str]:
    """The settings in the repository's `rabbitmq.conf`."""
    lines = (RABBITMQ / "rabbitmq.conf").read_text().splitlines()
    settings = (line.partition(" = ") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in settings}


async def test_a_blank_node_takes_the_exported_file_at_its_start(tmp_path: Path) -> None:
    graph = choreography()
    passwords = new_passwords(user.name for user in users_of(graph))
    file = tmp_path / "definitions.json"
    file.write_text(text(definitions(topology_of(graph), users_of(graph), passwords=passwords)))
    node = RabbitNode(
        tmp_path / "node",
        plugins=re.findall(r"\w+", (RABBITMQ / "enabled_plugins").read_text()),
        settings=deployed_settings() | {"definitions.local.path": str(file)},
    )
    await asyncio.to_thread(node.start)
    try:
        url = node.amqp_url_as("payment", passwords["payment"])
        async with await connect(url, name="test") as connection:
            channel = await connection.channel(publisher_confirms=True, on_return_raises=True)
            await publishing(DEAD_EXCHANGE, "payment")(channel)
            await refused(connection, publishing(DEAD_EXCHANGE, "order"))
        with pytest.raises(aiormq.exceptions.AMQPError):
            await aio_pika.connect(node.amqp_url)  # There is no user `guest`.
    finally:
        await asyncio.to_thread(node.kill)
        await asyncio.to_thread(node.stop)


# --- a whole system -------------------------------------------------------------------------------


async def test_each_service_is_a_user_of_its_own_and_no_password_is_ever_logged(
    tmp_path: Path,
) -> None:
    system = System(tmp_path, disposable=True, environment={"LOG_LEVEL": "DEBUG"}, spawn=spawn)
    async with system:
        assert system.node is not None
        listed = await asyncio.to_thread(system.node.ctl, "list_connections", "user")
        found = await drift(choreography(), None, None, tmp_path)
        system.node.kill()  # What is lost, or not there, is logged with most detail.
        system.kill("payment")
        back = asyncio.ensure_future(system.start("payment"))
        await until(lambda: "waiting for RabbitMQ" in system.log_path("payment").read_text())
        await cancel_all(back)
        deployment = system.deployment
        saved = tmp_path / "saga.json"
        assert stat.S_IMODE(saved.stat().st_mode) == 0o600

    assert set(listed.split()) >= set(system.services)
    assert "guest" not in listed
    assert found.differences == []
    passwords = [yarl.URL(url).password or "" for url in deployment.amqp_urls.values()]
    assert len(set(passwords)) == len(users_of(choreography()))
    told = logs(tmp_path)
    assert len(told) > len(system.services)
    assert [file for file, said in told.items() for p in passwords if p in said] == []


def logs(folder: Path) -> dict[Path, str]:
    """Every log below the folder, the broker's and its console's too."""
    return {
        file: file.read_text(errors="replace") for file in folder.rglob("*.log*") if file.is_file()
    }


async def test_what_drifted_is_told_and_applied(users: Users, rabbit_node: RabbitNode) -> None:
    management = str(yarl.URL(rabbit_node.management_url).with_user("guest").with_password("guest"))
    url = users[OPERATOR]
    graph = choreography()
    virtual_host = yarl.URL(url).path.removeprefix("/")
    folder = Path("nowhere")

    assert (await drift(graph, url, management, folder)).differences == []
    assert (await drift(graph, url, None, folder)).differences == []

    async with await connect(url, name="test") as connection:
        channel = await connection.channel()
        await channel.queue_delete("payment.high")
        stray = await channel.get_queue("order.normal", ensure=False)
        await stray.bind(EVENTS_EXCHANGE, "order.placed.normal")
    rights = {"configure": ".*", "write": ".*", "read": ".*"}
    async with httpx.AsyncClient(base_url=management, auth=("guest", "guest")) as api:
        payment = name_on_broker("payment", virtual_host)
        (
            await api.put(f"/api/permissions/{virtual_host}/{payment}", json=rights)
        ).raise_for_status()

    seen = {(d.kind, d.name) for d in (await drift(graph, url, management, folder)).differences}
    assert ("queue", "payment.high") in seen
    assert ("permission", payment) in seen
    assert ("binding", "saga.events order.placed.normal order.normal") in seen
    over_amqp = await drift(graph, url, None, folder)
    assert [(d.kind, d.name) for d in over_amqp.differences] == [("queue", "payment.high")]
    assert "users" in over_amqp.not_compared

    await apply_topology(url, graph)
    assert await put_users(users_of(graph), url, management, {}, None)
    left = (await drift(graph, url, management, folder)).differences
    assert [(d.kind, d.found) for d in left] == [("binding", "destination_type=queue")]
    async with await connect(users["payment"], name="test"):
        pass  # With the password it had.


async def test_a_stream_that_an_earlier_version_made_stays_and_is_as_it_should_be(
    users: Users, rabbit_node: RabbitNode
) -> None:
    """The broker changes no queue, and a new one would begin without any event."""
    management = str(yarl.URL(rabbit_node.management_url).with_user("guest").with_password("guest"))
    url = users[OPERATOR]
    graph = choreography()
    (stream,) = [queue for queue in topology_of(graph).queues if queue.name == HISTORY_STREAM]

    async def replaced(arguments: dict[str, str | int]) -> None:
        async with await connect(url, name="test") as connection:
            channel = await connection.channel()
            await channel.queue_delete(stream.name)
            await apply(Topology(queues=[Queue(stream.name, arguments)]), channel)
            queue = await channel.get_queue(stream.name, ensure=False)
            await queue.bind(EVENTS_EXCHANGE, "#")

    assert stream.formerly
    for former in stream.formerly:
        await replaced(dict(former))
        await apply_topology(url, graph)
        for management_url in (management, None):
            assert (await drift(graph, url, management_url, Path("nowhere"))).differences == []

    await replaced(dict(stream.arguments) | {"x-max-age": "1D"})
    with pytest.raises(TopologyError, match=r"saga\.history.*received '30D'"):
        await apply_topology(url, graph)
    for management_url in (management, None):
        (difference,) = (await drift(graph, url, management_url, Path("nowhere"))).differences
        assert difference.name == stream.name
