"""The private RabbitMQ node: it starts, survives a kill, disturbs no other and leaves nothing."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import aio_pika
import pytest

from saga.broker import setup as broker
from saga.broker.setup import DamagedQueue, apply_topology, mend_topology, missing_queues
from saga.discovery import choreography
from saga.local.node import NodeError, RabbitNode
from saga.runtime.messaging import topology
from saga.runtime.messaging.topology import HISTORY_STREAM
from tests.processes import processes_of

DEADLINE_SECONDS = 60.0


def wait_until_gone(folder: Path) -> None:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while left := processes_of(folder):
        assert time.monotonic() < deadline, f"still there: {left}"
        time.sleep(0.02)


async def publish(url: str, queue_name: str, body: bytes) -> None:
    """Declare a durable quorum queue and put a message into it, confirmed."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel(publisher_confirms=True)
        await channel.declare_queue(queue_name, durable=True, arguments={"x-queue-type": "quorum"})
        message = aio_pika.Message(body, delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, routing_key=queue_name)


async def take(url: str, queue_name: str) -> bytes:
    """Take one message; a queue that has just come back may need a moment."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        queue = await channel.get_queue(queue_name)
        message = await queue.get(timeout=DEADLINE_SECONDS)
        await message.ack()
        return message.body


async def test_each_test_has_a_virtual_host_of_its_own(
    amqp_url: str, rabbit_node: RabbitNode
) -> None:
    await publish(amqp_url, "orders", b"mine")

    assert amqp_url != rabbit_node.amqp_url
    with pytest.raises(aio_pika.exceptions.ChannelNotFoundEntity):
        await take(rabbit_node.amqp_url, "orders")
    assert await take(amqp_url, "orders") == b"mine"


@pytest.mark.long  # the broker takes its time to notice
async def test_a_queue_without_its_process_is_removed_and_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a disk was full: the stream's record is there, and what runs it is not."""
    for module in (topology, broker):
        monkeypatch.setattr(module, "DECLARE_SECONDS", 2.0)
    monkeypatch.setattr(broker, "BACK_SECONDS", 5.0)
    graph, lost, told = choreography(), list[str](), list[str]()
    node = RabbitNode(tmp_path)
    try:
        await asyncio.to_thread(node.start)
        await apply_topology(node.amqp_url, graph)
        await asyncio.to_thread(node.settle)
        node.kill()
        shutil.rmtree(node.folder / "data" / "coordination")
        await asyncio.to_thread(node.start)

        assert await missing_queues(node.amqp_url, graph) == []
        with pytest.raises(DamagedQueue, match=f"{HISTORY_STREAM} is down.*delete_queue"):
            await mend_topology(node.amqp_url, graph, None)
        for _ in range(2):
            await mend_topology(node.amqp_url, graph, node, before=lost.append, report=told.append)
        assert lost == told == [f"the queue {HISTORY_STREAM} is damaged, and is made again"]
    finally:
        await asyncio.to_thread(node.stop)


async def test_a_killed_node_comes_back_with_its_data_at_the_same_address(
    tmp_path: Path, rabbit_node: RabbitNode
) -> None:
    folder = tmp_path / "a folder with spaces"
    node = RabbitNode(folder, name="mortal")
    await asyncio.to_thread(node.start)  # while another broker, rabbit_node, is running
    try:
        address = node.amqp_url
        assert address != rabbit_node.amqp_url
        await publish(address, "orders", b"kept")
        await asyncio.to_thread(node.settle)
        first_pid = node.pid

        node.kill()
        with pytest.raises(OSError, match=r"."):
            await aio_pika.connect(address)
        with pytest.raises(NodeError, match="was not ready within"):  # nor is it at the first try
            await asyncio.to_thread(node.start, 0.05)
        await asyncio.to_thread(node.start)

        assert node.pid != first_pid
        assert node.amqp_url == address
        assert await take(address, "orders") == b"kept"
        assert "mortal@localhost" in node.ctl("eval", "node().")
        with pytest.raises(NodeError, match="another RabbitMQ node uses the folder"):
            RabbitNode(folder).start()
    finally:
        await asyncio.to_thread(node.stop)

    wait_until_gone(folder)
    assert rabbit_node.running


def test_a_node_dies_with_its_owner(tmp_path: Path) -> None:
    program = (
        "import pathlib, sys, time; from saga.local.node import RabbitNode;"
        "node = RabbitNode(pathlib.Path(sys.argv[1])); node.start();"
        "print('ready', flush=True); time.sleep(600)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        assert owner.stdout.readline() == "ready\n"
        assert processes_of(tmp_path)

        owner.send_signal(signal.SIGKILL)

    wait_until_gone(tmp_path)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(NodeError, match=r"cannot use the folder .*/file/data: .*: name a folder"):
        RabbitNode(tmp_path / "file" / "data").start()


def test_a_missing_rabbitmq_is_named_with_the_way_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RABBITMQ_HOME", str(tmp_path))

    with pytest.raises(NodeError, match=r"RABBITMQ_HOME=.* correct or unset it"):
        RabbitNode(tmp_path / "data").start()


def test_a_node_that_cannot_start_says_why_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").touch()  # where its data folder should be

    # As 3.x says it, and as 4.x does.
    why = "cannot_create_mnesia|could not create its data directory"
    with pytest.raises(NodeError, match=f"ended while starting: .*({why})") as caught:
        RabbitNode(tmp_path).start()

    assert "\n" not in str(caught.value)
    wait_until_gone(tmp_path)


def test_a_node_that_is_not_ready_in_time_is_ended(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match=r"was not ready within 0\.1 s"):
        RabbitNode(tmp_path).start(timeout_seconds=0.1)

    wait_until_gone(tmp_path)


def test_asking_a_node_that_was_never_started_is_refused(tmp_path: Path) -> None:
    node = RabbitNode(tmp_path)

    with pytest.raises(NodeError, match="start it first"):
        _ = node.amqp_url
    with pytest.raises(NodeError, match="start it first"):
        _ = node.pid
    node.stop()


@pytest.mark.parametrize("name", ["a#b", "it's", 'a"b', "a`b", "a{b"])
def test_a_folder_that_rabbitmq_cannot_work_in_is_refused_at_once(
    name: str, tmp_path: Path
) -> None:
    with pytest.raises(NodeError, match="name another folder"):
        RabbitNode(tmp_path / name).start()

    assert list(tmp_path.iterdir()) == []
