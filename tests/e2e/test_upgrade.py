"""What release 0.1.0 left when all of it was killed at work, taken over by today's system.

`tests/data/0.1.0` has its databases, its stream and what was in its queues; `left.py` there says
what is in them, and `make` makes them again.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import shutil
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, Final

import aio_pika
import httpx
import pytest
import pytest_asyncio
import sqlalchemy as sa
from aio_pika.abc import AbstractExchange
from sqlalchemy.engine import Connection

from notification_service.domain import NotificationStatus
from notification_service.store import notifications
from order_service.domain import OrderStatus
from order_service.store import orders
from payment_service.gateway import Fault, FaultMode, SandboxGateway
from saga.deployment import Deployment
from saga.discovery import choreography
from saga.dlq.desk import open_desk
from saga.dlq.replay import ReplayResult, ReplaySettings, replay
from saga.dlq.selection import Selection
from saga.dlq.states import HERE
from saga.history.rebuild import rebuild
from saga.history.sources import Sources
from saga.history.verify import verify
from saga.local.folder import broker_identity, note_broker
from saga.local.system import System
from saga.reconcile import reconcile
from saga.runtime.kernel.opening import read_database
from saga.runtime.urls import sqlite_url
from saga.schemas.registry import EXAMPLES, RELEASED, problems
from saga.status import status
from tests.forked import spawn
from tests.polling import until

LEFT: Final = Path(__file__).parents[1] / "data" / "0.1.0"
EXPECTED: Final[Mapping[str, Mapping[str, str]]] = json.loads((LEFT / "orders.json").read_text())
"""Keyed by order id: the `key` it was placed with, and how it is `expected` to end."""
DEAD: Final = {
    *(f"dead-{n}" for n in (0, 2, 3, 4, 5)),
    *(f"dead-in-queue-{n}" for n in range(3)),
}
"""The orders, by their keys, that wait for a dead letter to be replayed."""
EVER: Final = {"INBOX_DAYS": "3650"}
"""What the release has done is not forgotten, however old these files are."""

in_one_loop = pytest.mark.asyncio(loop_scope="session")


def lines_of(name: str) -> list[dict[str, Any]]:
    text = (LEFT / f"{name}.jsonl").read_text(encoding="utf-8")
    return [json.loads(line, object_hook=_meant) for line in text.splitlines()]


def _meant(value: dict[str, Any]) -> Any:
    """What JSON has no word for."""
    match value:
        case {"time": str(time), **rest} if not rest:
            return datetime.fromisoformat(time)
        case {"text": str(text), **rest} if not rest:
            return text.encode()
        case {"base64": str(text), **rest} if not rest:
            return base64.b64decode(text)
        case _:
            return value


def declare(url: str, admin: httpx.Client, *kinds: str) -> None:
    """Put into the virtual host these kinds of what the release's broker held."""
    declared = json.loads((LEFT / "definitions.json").read_text())
    parts = {
        kind: [{name: it for name, it in one.items() if name != "vhost"} for one in declared[kind]]
        for kind in kinds
    }
    admin.post(f"/api/definitions/{url.rpartition('/')[2]}", json=parts).raise_for_status()


async def fill(url: str) -> None:
    """Put into each queue, and nowhere else, what was in it, as it came there."""
    async with await aio_pika.connect(url) as connection:
        channel = await connection.channel()
        into: AbstractExchange
        for (name, came_by), lines in groupby(
            (*lines_of("stream"), *lines_of("queues")), itemgetter("queue", "exchange")
        ):
            into = channel.default_exchange
            queue = await channel.declare_queue(name, passive=True)
            if came_by:
                into = await channel.declare_exchange(came_by, "topic", durable=True)
                await queue.bind(into, "#")
            for line in lines:
                message = aio_pika.Message(
                    line["body"],
                    headers=line["headers"],
                    delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
                    **line["properties"],
                )
                await into.publish(message, line["routing_key"])
            if came_by:
                await queue.unbind(into, "#")


@dataclass
class Upgraded:
    """A system of today in which everything has come to its end."""

    system: System
    replayed: ReplayResult

    @property
    def sources(self) -> Sources:
        return Sources.of_deployment(self.system.deployment)


def statuses(connection: Connection) -> dict[str, str]:
    """How each order stands: confirmed, pending, or why it was cancelled."""
    query = sa.select(orders.c.order_id, orders.c.status, orders.c.reason)
    return {str(id): str(reason or status) for id, status, reason in connection.execute(query)}


def mails(connection: Connection) -> dict[str, str]:
    query = sa.select(notifications.c.order_id, notifications.c.status)
    return {str(id): str(status) for id, status in connection.execute(query)}


async def is_at_its_end(deployment: Deployment) -> bool:
    """Whether no order and no mail is under way any more, and the archive has all about them."""
    url = deployment.database_urls["notification"]
    found = await asyncio.to_thread(read_database, url, mails)
    under_way = {NotificationStatus.SENDING, NotificationStatus.WAITING}
    if found.keys() != EXPECTED.keys() or {*found.values()} & under_way:
        return False
    at_rest = (await status(deployment, choreography())).at_rest
    return at_rest and (await reconcile(deployment, grace_seconds=0.0)).ok


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def upgraded(
    tmp_path_factory: pytest.TempPathFactory,
    virtual_host: Callable[[], AbstractContextManager[str]],
    broker_admin: httpx.Client,
) -> AsyncIterator[Upgraded]:
    folder = tmp_path_factory.mktemp("upgraded")
    for packed in LEFT.glob("*.db.gz"):
        (folder / packed.stem).write_bytes(gzip.decompress(packed.read_bytes()))
    provider = SandboxGateway(sqlite_url(folder / "provider.db"))
    provider.set_fault(Fault(FaultMode.NONE))  # It was away when the release was killed.
    await provider.close()
    graph = choreography()
    with virtual_host() as broker:
        await asyncio.to_thread(declare, broker, broker_admin, "exchanges", "queues")
        await fill(broker)
        await asyncio.to_thread(declare, broker, broker_admin, "bindings")
        note_broker(folder, broker_identity(broker))
        async with System(
            folder, amqp_url=broker, environment=EVER, disposable=True, spawn=spawn
        ) as system:
            deployment = system.deployment
            url = deployment.database_urls["order"]

            async def rests() -> bool:
                found = await asyncio.to_thread(read_database, url, statuses)
                pending = {id for id, status in found.items() if status == OrderStatus.PENDING}
                return {EXPECTED[id]["key"] for id in pending} == DEAD

            await until(rests)
            async with open_desk(deployment, graph) as desk:
                dead = await asyncio.to_thread(desk.store.find, Selection(), HERE)
                ours = tuple(letter.number for letter in dead if letter.subject in EXPECTED)
                replayed = await replay(desk, Selection(numbers=ours), ReplaySettings())
            await until(partial(is_at_its_end, deployment))
            yield Upgraded(system, replayed)


@in_one_loop
async def test_every_dead_letter_of_an_order_is_replayed(upgraded: Upgraded) -> None:
    assert upgraded.replayed.ok, upgraded.replayed.to_json()
    assert upgraded.replayed.sent > len(DEAD)


@in_one_loop
async def test_every_order_ends_as_the_release_would_have_ended_it(upgraded: Upgraded) -> None:
    url = upgraded.system.deployment.database_urls["order"]
    found = await asyncio.to_thread(read_database, url, statuses)
    assert found == {id: order["expected"] for id, order in EXPECTED.items()}


@in_one_loop
async def test_every_customer_is_told_or_left_to_a_person(upgraded: Upgraded) -> None:
    url = upgraded.system.deployment.database_urls["notification"]
    found = await asyncio.to_thread(read_database, url, mails)
    unusual = {
        EXPECTED[id]["key"]: status
        for id, status in found.items()
        if status != NotificationStatus.SENT
    }
    assert unusual == {
        "lost-0": NotificationStatus.UNKNOWN,
        "lost-1": NotificationStatus.DISMISSED,
        "slow-0": NotificationStatus.UNKNOWN,
        "slow-1": NotificationStatus.UNKNOWN,
    }


@in_one_loop
async def test_the_books_agree(upgraded: Upgraded) -> None:
    report = await reconcile(upgraded.system.deployment, grace_seconds=0.0)
    assert report.violations == ()
    assert report.checked["orders_at_rest"] == len(EXPECTED)


@in_one_loop
async def test_every_database_is_as_its_events_tell(upgraded: Upgraded) -> None:
    found = await verify(upgraded.sources, choreography())
    assert found.differences == []
    assert found.gaps == []
    assert found.rows["order"] == len(EXPECTED)


@in_one_loop
@pytest.mark.parametrize("name", ["order", "inventory", "payment", "notification"])
async def test_a_database_is_made_again_from_the_release_s_events(
    name: str, upgraded: Upgraded, tmp_path: Path
) -> None:
    rebuilt = await rebuild(
        upgraded.sources, choreography(), name, f"sqlite:///{tmp_path / name}.db", waiting=()
    )
    assert rebuilt.holes == []
    assert rebuilt.contradictions == []
    assert rebuilt.lost == []
    assert rebuilt.states


def test_readers_of_the_release_read_what_is_published_now_and_the_other_way(
    tmp_path: Path,
) -> None:
    today = Path("contracts")
    shutil.copytree(LEFT / "contracts" / RELEASED, tmp_path / RELEASED)
    shutil.copytree(today / EXAMPLES, tmp_path / EXAMPLES)
    # In the place of today's: what the release has published is read, as it was then.
    shutil.copytree(LEFT / "contracts" / EXAMPLES, tmp_path / EXAMPLES, dirs_exist_ok=True)
    assert len([*(tmp_path / RELEASED).glob("*/v*.json")]) == 12
    assert problems(tmp_path, choreography()) == []
