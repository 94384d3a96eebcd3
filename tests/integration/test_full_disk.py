"""Disks that are really full: whatever writes meets that with one line, and loses nothing.

Each test has a disk of its own, in memory, and is skipped where none may be mounted.
"""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import os
from collections.abc import Iterator, Sequence
from email.message import EmailMessage
from pathlib import Path
from typing import Any

import aio_pika
import pytest

from notification_service.mail import FolderMailer, MailRefused
from payment_service.gateway import SandboxGateway
from payment_service.ledger import Receipt
from saga.deployment import Deployment, write_secret
from saga.dlq import DlqError
from saga.dlq.store import Store
from saga.errors import InputError
from saga.history.transfer import export
from saga.local import SystemFault, keeping
from saga.local.node import NodeError, RabbitNode
from saga.local.postgres import PostgresCluster, PostgresError
from saga.local.supervision import Supervision
from saga.local.system import System
from saga.personal.opening import made_key
from saga.runtime.disk import INODES_MIN, lack_of_room
from saga.runtime.files import write_public, write_whole
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.work import Done
from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.tasks import cancel_all
from saga.runtime.urls import sqlite_url
from tests import forked
from tests.command import saga
from tests.integration.kernels import replica
from tests.integration.served import Answer, Served, serving
from tests.integration.toy import INQUIRER, cancelled, make_tables
from tests.polling import until
from tests.small_disk import SmallDisk, small_disk
from tests.stores import HISTORY
from tests.words import Inquire, Inquired

DISK_MEGABYTES = 16
NODES_DISK_MEGABYTES = 120
LIMIT_BYTES = 8_000_000
TAKEN_SECONDS = 5.0
"""How long a broker may take to confirm a message; one that cannot write never does."""
JSON = [(b"Content-Type", b"application/json")]
ORDER = {
    "customer": "ada",
    "currency": "EUR",
    "lines": [{"sku": "tea", "quantity": 1, "unit_price_cents": 995}],
}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk", DISK_MEGABYTES) as disk:
        yield disk


async def place(service: Served, key: str, **others: str) -> Answer:
    headers = [*JSON, (b"Idempotency-Key", key.encode())]
    return await service.ask("POST", "/orders", headers, json.dumps(ORDER | others).encode())


async def lacks(service: Served) -> str:
    """What `/readyz` says of the disk; the broker is missing in any case."""
    return str((await service.ask("GET", "/readyz")).json["missing"].get("disk", ""))


async def metric(service: Served, name: str) -> float:
    text = (await service.ask("GET", "/metrics")).body.decode()
    labels = f'{{folder="database",participant="{service.name}"}}'
    (value,) = [line.split()[-1] for line in text.splitlines() if line.startswith(name + labels)]
    return float(value)


# --- while there is room still -------------------------------------------------------------------


async def test_orders_are_refused_while_there_is_room_still_and_taken_again_with_more(
    disk: SmallDisk,
) -> None:
    limit = {"DISK_FREE_MIN_BYTES": str(LIMIT_BYTES)}
    async with serving("order_service", disk.path, **limit) as order:
        assert (await place(order, "before")).status == 202

        disk.fill(leave_bytes=LIMIT_BYTES - 100_000)
        await until(lambda: lacks_room(order))
        refused = await place(order, "meanwhile")

        assert refused.status == 503
        assert refused.headers["retry-after"] == "5"
        assert refused.detail == "there is little room left on the disk; try again later"
        said = await lacks(order)
        assert said.startswith(f"nothing new is begun: the disk of {disk.path} has 7 MB free, ")
        assert await metric(order, "saga_disk_stopped") == 1
        assert await metric(order, "saga_disk_free_bytes") < LIMIT_BYTES
        assert (await order.ask("GET", "/livez")).status == 200

        disk.make_room()
        await until(lambda: has_room(order))
        assert (await place(order, "meanwhile")).status == 202
        assert await metric(order, "saga_disk_stopped") == 0


async def lacks_room(service: Served) -> bool:
    return bool(await lacks(service))


async def has_room(service: Served) -> bool:
    return not await lacks(service)


async def test_a_disk_without_inodes_is_as_full_as_one_without_bytes(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", DISK_MEGABYTES, f"nr_inodes={2 * INODES_MIN}") as disk:
        async with serving("order_service", disk.path, DISK_FREE_MIN_BYTES="1000") as order:
            assert await lacks(order) == ""

            disk.take_inodes()
            await until(lambda: lacks_room(order))
            assert f"has 0 inodes free, less than {INODES_MIN // 2}" in await lacks(order)
            assert (await place(order, "meanwhile")).status == 503

            disk.make_room()
            await until(lambda: has_room(order))
            assert (await place(order, "meanwhile")).status == 202


def test_a_read_only_disk_is_told_from_a_full_one(disk: SmallDisk) -> None:
    assert lack_of_room(disk.path, 1, 1) == ""

    disk.remount("ro")

    assert lack_of_room(disk.path, 1, 1) == (
        f"the disk of {disk.path} is read-only; mount it so that it can be written to"
    )


async def test_what_waits_for_room_is_done_in_the_end_and_answers_are_kept_meanwhile(
    database_url: str,
) -> None:
    asked: list[Inquire] = []
    answer = asyncio.Event()

    async def ask(intent: Inquire) -> Inquired:
        asked.append(intent)
        await answer.wait()
        return Inquired(thing=intent.thing)

    async with replica(database_url, INQUIRER, make_tables(), {Inquire: ask}) as service:
        first = asyncio.ensure_future(service.kernel.handle(cancelled(1)))
        await until(lambda: len(asked) == 1)

        service.kernel.hold_back(True)
        second = asyncio.ensure_future(service.kernel.handle(cancelled(2)))
        answer.set()

        assert isinstance(await first, Done)
        assert not second.done()
        assert len(asked) == 1

        service.kernel.hold_back(False)
        assert isinstance(await second, Done)


# --- when there is none left ----------------------------------------------------------------------


async def test_an_order_that_meets_a_full_disk_is_503_and_placed_once_when_there_is_room(
    disk: SmallDisk,
) -> None:
    async with serving(
        "order_service", disk.path, DISK_FREE_MIN_BYTES="0", HTTP_ANSWER_SECONDS="0.5"
    ) as order:
        disk.fill()
        answers = {(await place(order, f"meanwhile-{number}")).status for number in range(20)}
        assert answers <= {202, 503}
        assert 503 in answers

        disk.make_room()

        async def placed() -> bool:
            return (await place(order, "meanwhile-0")).status == 202

        await until(placed)
        again = await place(order, "meanwhile-0")
        assert again.status == 202


async def test_without_room_for_the_key_store_who_is_new_is_turned_away_and_the_loop_is_free(
    disk: SmallDisk, tmp_path: Path
) -> None:
    made_key(tmp_path)
    async with serving(
        "order_service",
        tmp_path,
        PERSONAL="sealed",
        PERSONAL_CACHE_SECONDS="0",
        PERSONS_DATABASE_URL=sqlite_url(disk.path / "persons.db"),
    ) as order:
        assert (await place(order, "before")).status == 202
        disk.fill()

        async def is_refused() -> bool:
            """Not before its log takes more room than it had."""
            answer = await place(order, "meanwhile", customer=f"customer {next(numbers)}")
            return answer.status == 503 and "disk is full" in answer.detail

        numbers = itertools.count()
        await until(is_refused)
        waiting = [place(order, f"new {n}", customer=f"new {n}") for n in range(50)]
        refused = asyncio.gather(*waiting)
        assert (await order.ask("GET", "/livez")).status == 200
        assert {answer.status for answer in await refused} == {503}
        assert (await place(order, "known")).status == 202  # Their key is only read.

        disk.make_room()
        for number in range(50):
            answer = await place(order, f"new {number}", customer=f"new {number}")
            assert answer.status == 202


async def test_a_service_that_starts_on_a_full_disk_says_so_in_one_line(disk: SmallDisk) -> None:
    disk.fill()

    with pytest.raises(DatabaseError, match=r"cannot (open the database|write in the data folder)"):
        await open_database(f"sqlite:///{disk.path / 'order.db'}", make_tables())


def test_a_service_that_starts_on_a_read_only_disk_says_so_in_one_line(disk: SmallDisk) -> None:
    disk.remount("ro")

    done = forked.run("order_service.app", environment=os.environ | {"DATA_DIR": str(disk.path)})

    assert done.returncode == 1
    *_, last = done.stderr.splitlines()
    assert json.loads(last)["message"] == (
        f"cannot write in the data folder {disk.path}: Read-only file system; make it writable, or "
        f"name another in DATA_DIR or DATABASE_URL"
    )


async def test_a_full_disk_of_the_sandbox_s_uses_up_no_attempts(
    disk: SmallDisk, monkeypatch: pytest.MonkeyPatch
) -> None:
    gateway = SandboxGateway(f"sqlite:///{disk.path / 'provider.db'}")
    failed: list[Exception] = []
    commit = gateway._commit

    def watched(questions: Sequence[Any]) -> Any:
        try:
            return commit(questions)
        except Exception as error:
            failed.append(error)
            raise

    monkeypatch.setattr(gateway, "_commit", watched)
    try:
        disk.fill()
        asked = [
            asyncio.ensure_future(
                gateway.charge(f"key-{n}", customer="ada", currency="EUR", amount_cents=1)
            )
            for n in range(2_000)
        ]
        await until(lambda: len(failed) > 1)
        assert "disk is full" in str(failed[0])
        disk.make_room()

        assert all(isinstance(answer, Receipt) for answer in await asyncio.gather(*asked))
        assert len(gateway.ledger()) == len(asked)
    finally:
        await gateway.close()


async def test_a_mail_that_finds_no_room_is_refused_and_leaves_nothing(disk: SmallDisk) -> None:
    mail = EmailMessage()
    mail["Message-ID"] = "<order.confirmed.1@shop.example>"
    mail.set_content("x" * 100_000)
    mailer = FolderMailer(disk.path / "mail")
    disk.fill(leave_bytes=8_192)

    with pytest.raises(MailRefused, match="No space left on device"):
        await mailer.send(mail)
    assert [*(disk.path / "mail").iterdir()] == []

    disk.make_room()
    await mailer.send(mail)
    assert [file.name for file in (disk.path / "mail").iterdir()] == ["order.confirmed.1.eml"]


def test_a_store_of_dead_letters_that_cannot_be_made_is_one_line(disk: SmallDisk) -> None:
    disk.fill()

    with pytest.raises(DlqError, match=r"cannot keep dead letters in .* full"):
        Store(f"sqlite:///{disk.path / 'dead_letters.db'}")


@pytest.mark.parametrize("write", [write_whole, write_public, write_secret])
def test_a_file_that_finds_no_room_stays_as_it_was(disk: SmallDisk, write: Any) -> None:
    file = disk.path / "file.json"
    write(file, "before")
    disk.fill(leave_bytes=8_192)

    with pytest.raises(OSError, match=f"No space left on device: '{file}'") as raised:
        write(file, "x" * 100_000)

    assert raised.value.errno == errno.ENOSPC
    assert file.read_text("utf-8") == "before"
    assert {found.name for found in disk.path.iterdir()} == {"file.json", "filler"}


async def test_an_export_of_the_history_that_finds_no_room_leaves_no_file(
    disk: SmallDisk, tmp_path: Path
) -> None:
    url = f"sqlite:///{tmp_path / 'history.db'}"
    await (await open_database(url, HISTORY)).close()
    disk.fill()

    with pytest.raises(InputError, match=r"cannot write .*: No space left on device"):
        await asyncio.to_thread(export, url, disk.path / "history.jsonl")

    assert [found.name for found in disk.path.iterdir()] == ["filler"]


def test_schemas_that_find_no_room_are_one_line_and_no_half_file(disk: SmallDisk) -> None:
    disk.fill(leave_bytes=50_000)

    done = saga("schemas", "export", str(disk.path / "contracts"))

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: [Errno 28] No space left on device: ")
    assert line.endswith("; free space or inodes there")
    for file in disk.path.glob("contracts/**/*.json"):
        json.loads(file.read_text("utf-8"))
    assert not [*disk.path.glob("contracts/**/.*.part")]


def test_an_output_that_finds_no_room_is_one_line(disk: SmallDisk, tmp_path: Path) -> None:
    disk.fill()
    arguments = (forked.SAGA, "map", "--format", "svg")

    drawing = forked.Forked(arguments, os.environ, disk.path / "filler", tmp_path / "said")

    assert drawing.wait(forked.RUN_SECONDS) == 1
    said = (tmp_path / "said").read_text("utf-8")
    assert said == "error: cannot write the output: No space left on device\n"


# --- `saga up` ------------------------------------------------------------------------------------


def test_what_is_known_of_the_processes_stays_readable(disk: SmallDisk) -> None:
    found = Supervision(group=os.getpgrp(), stop_seconds=1, services={})
    found.save(disk.path)
    disk.fill()

    with pytest.raises(OSError, match=r"No space left on device: '.*processes.json'"):
        found.save(disk.path)

    assert Supervision.load(disk.path) == found


def test_where_the_broker_is_away_the_status_tells_of_the_full_disk(
    disk: SmallDisk, closed_port: int
) -> None:
    Deployment(
        amqp_url=f"amqp://guest:guest@127.0.0.1:{closed_port}/",
        http_urls={},
        database_urls={},
        outside_urls={"provider": "sqlite:///provider.db"},
    ).save(disk.path)
    disk.fill()

    done = saga("status", "--data-dir", str(disk.path))

    assert done.returncode == 1
    why, error = done.stderr.splitlines()
    assert why.startswith(f"saga: the disk of {disk.path} has 0 kB free, less than 100 MB; ")
    assert error.startswith("error: cannot reach RabbitMQ")


async def test_nothing_is_started_on_a_full_disk(disk: SmallDisk) -> None:
    disk.fill()
    system = System(disk.path)

    with pytest.raises(SystemFault, match=r"nothing can be started: the disk of .* has 0 kB free"):
        await system.start()
    await system.stop()


@pytest.mark.parametrize("server", [RabbitNode, PostgresCluster])
def test_a_server_that_finds_no_room_says_so(
    disk: SmallDisk, server: type[RabbitNode | PostgresCluster]
) -> None:
    disk.fill()
    started = server(disk.path / "server")

    with pytest.raises((NodeError, PostgresError), match=r"[Nn]o (space|room) left"):
        started.start()
    started.stop()

    disk.make_room()
    assert lack_of_room(disk.path, 1, 1) == ""


async def has_taken(node: RabbitNode, size: int) -> bool:
    """Whether a quorum queue of the node takes a message of so many bytes."""
    try:
        async with asyncio.timeout(TAKEN_SECONDS):
            connection = await connect(node.amqp_url, name="test")
            async with connection:
                channel = await connection.channel()
                await channel.declare_queue(
                    "queue", durable=True, arguments={"x-queue-type": "quorum"}
                )
                await channel.default_exchange.publish(aio_pika.Message(b"x" * size), "queue")
    except (BrokerError, TimeoutError, aio_pika.exceptions.AMQPError, ConnectionError):
        return False
    return True


@pytest.mark.long
async def test_a_broker_that_has_met_a_disk_full_for_a_moment_is_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing that looks at the disk has seen it, as with a quota."""
    monkeypatch.setattr(keeping, "SPEECHLESS_BYTES", 0)
    monkeypatch.setattr(keeping, "ROOM_LOOK_SECONDS", 0.05)
    reported: list[str] = []
    with small_disk(tmp_path / "disk", NODES_DISK_MEGABYTES) as disk:
        node = RabbitNode(disk.path / "node", settings={"disk_free_limit.absolute": "1000"})
        try:
            await asyncio.to_thread(node.start)
            assert await has_taken(node, 1)
            whole = System(disk.path, report=reported.append)
            renewing = asyncio.create_task(whole._renew_broker(node))
            await until(lambda: node.log_is_open)

            disk.fill()
            assert not await has_taken(node, 1_000_000)
            await until(lambda: not node.log_is_open)
            disk.make_room()
            await until(lambda: not node.running)

            assert reported == ["the broker writes to its queues no more; starting it again"]
            await asyncio.to_thread(node.start)
            await until(lambda: has_taken(node, 1_000_000))
            assert node.log_is_open
            assert len(reported) == 1
            await cancel_all(renewing)
        finally:
            await asyncio.to_thread(node.stop)
