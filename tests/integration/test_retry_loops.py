"""What goes round in circles is said: in `/readyz`, `saga status` and the metrics, and in the log
once."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import aio_pika
import asyncpg
import httpx
import pytest
import sqlalchemy as sa
import yarl
from aio_pika.abc import AbstractChannel

from saga.choreography import Choreography
from saga.http import client
from saga.local.node import RabbitNode
from saga.runtime import process, retry_loop
from saga.runtime.kernel import inbox
from saga.runtime.kernel.inbox import keep_forgetting
from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.messaging import consumer
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.publisher import BrokerPublisher
from saga.runtime.messaging.topology import DEAD_EXCHANGE, EVENTS_EXCHANGE, apply, topology_of
from saga.runtime.messaging.wire import Unroutable
from saga.runtime.retry_loop import RetryLoop
from saga.runtime.service import Service, process_of
from saga.runtime.settings import Settings
from saga.runtime.tasks import cancel_all
from saga.status import READY, SystemStatus, readiness
from tests.faults.proxy import Proxy
from tests.integration.kernels import Through, replica
from tests.integration.toy import PARTICIPANT, RecordingPublisher, cancelled, make_tables
from tests.polling import until

LOOPS = {
    "outbox",
    "partitions",
    "members",
    "persons",
    "outbox_rows",
    "sweep",
    "lease",
    "commits",
    "inbox",
    "kept",
    "copies",
    "consumer_connection",
    "publisher_connection",
}
"""Of every service that reacts to messages."""
STUCK_SECONDS = 0.5
STEADY_SECONDS = 3.0
RUN_SECONDS = 60.0


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(retry_loop, "STUCK_SECONDS", STUCK_SECONDS)
    monkeypatch.setattr(retry_loop, "STEADY_SECONDS", STEADY_SECONDS)
    caplog.set_level(logging.INFO, "saga")


@pytest.fixture
async def broker(amqp_url: str) -> AsyncIterator[AbstractChannel]:
    async with await connect(amqp_url, name="test") as connection:
        channel = await connection.channel()
        await apply(topology_of(Choreography([PARTICIPANT])), channel)
        yield channel


@asynccontextmanager
async def serving(
    url: str, folder: Path, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[httpx.AsyncClient]:
    """The toy participant as a service, in this process."""
    settings = Settings(amqp_url=url, data_dir=folder)
    service = Service(PARTICIPANT, make_tables())
    running = asyncio.create_task(process.run(process_of(service, settings), settings))
    try:
        await until(lambda: running.done() or "ready" in logged(caplog))
        found = re.search(r"serving on (http://\S+)", "\n".join(logged(caplog)))
        assert found is not None
        async with client(found[1], RUN_SECONDS) as served:
            await until(is_ready(served))
            yield served
    finally:
        await cancel_all(running)


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What a service logs; the client's own words it does not."""
    return [record.getMessage() for record in caplog.records if record.name.startswith("saga.")]


def is_ready(service: httpx.AsyncClient) -> Callable[[], Awaitable[bool]]:
    async def ready() -> bool:
        return (await service.get("/readyz")).status_code == 200

    return ready


async def missing_of(service: httpx.AsyncClient) -> dict[str, str]:
    """What it lacks, by its own account."""
    return dict((await service.get("/readyz")).json().get("missing", {}))


def is_stuck(service: httpx.AsyncClient, loop: str) -> Callable[[], Awaitable[bool]]:
    async def stuck() -> bool:
        return loop in await missing_of(service)

    return stuck


async def stuck_loops(service: httpx.AsyncClient) -> dict[str, bool]:
    """Keyed by loop: what the metrics say of it."""
    text = (await service.get("/metrics")).text
    found = re.findall(
        r'^saga_retry_loop_stuck\{loop="(\w+)",participant="toy"\} (\S+)$', text, re.MULTILINE
    )
    return {loop: bool(float(value)) for loop, value in found}


# --- with a broker --------------------------------------------------------------------------------


async def test_every_loop_of_a_service_is_among_its_metrics(
    broker: AbstractChannel, amqp_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(amqp_url, tmp_path, caplog) as service:
        assert await stuck_loops(service) == dict.fromkeys(LOOPS, False)


@pytest.mark.parametrize("missing", ["binding", "exchange"])
async def test_a_copy_that_the_broker_refuses_is_said_until_it_is_taken(
    missing: str,
    broker: AbstractChannel,
    amqp_url: str,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(consumer, "BACKOFF_MAX_SECONDS", 0.2)
    dead = await broker.get_queue("toy.dlq", ensure=False)
    if missing == "binding":
        await dead.unbind(DEAD_EXCHANGE, "toy")
    else:
        await broker.exchange_delete(DEAD_EXCHANGE)
    async with serving(amqp_url, tmp_path, caplog) as service:
        exchange = await broker.get_exchange(EVENTS_EXCHANGE, ensure=False)
        await exchange.publish(aio_pika.Message(b"{", message_id="bad"), "thing.cancelled.normal")

        await until(is_stuck(service, "copies"))
        assert (await stuck_loops(service))["copies"]
        assert (await service.get("/livez")).status_code == 200
        said = await readiness([str(service.base_url)])
        assert "copies: cannot publish copies of failed messages, tried" in said
        assert ("no queue takes" if missing == "binding" else DEAD_EXCHANGE) in said
        (problem,) = SystemStatus(services={"toy": said}).problems
        assert said in problem

        await apply(topology_of(Choreography([PARTICIPANT])), broker)
        await until(is_ready(service))
        assert not any((await stuck_loops(service)).values())
        assert await readiness([str(service.base_url)]) == READY
    about = [line for line in logged(caplog) if "publish copies" in line]
    # Between the exchange's coming back and the binding's there may be another cause.
    assert 2 <= len(about) <= 3
    assert about[0].startswith("cannot publish copies of failed messages, trying again: ")
    assert about[-1].startswith("can publish copies of failed messages again, after")


async def test_a_connection_that_the_broker_closes_again_and_again_is_said_with_the_cause(
    broker: AbstractChannel,
    amqp_url: str,
    rabbit_node: RabbitNode,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with serving(amqp_url, tmp_path, caplog) as service:
        host = yarl.URL(amqp_url).path.lstrip("/")

        async def closed_once_more() -> bool:
            close = "close_all_connections", "--vhost", host, "go away"
            await asyncio.to_thread(rabbit_node.ctl, *close)
            return await is_stuck(service, "consumer_connection")()

        await until(closed_once_more)
        assert "go away" in (await missing_of(service))["consumer_connection"]
        assert (await stuck_loops(service))["consumer_connection"]

        await until(is_ready(service))
    about = [line for line in logged(caplog) if "the consumer's connection" in line]
    assert len([line for line in about if "go away" in line]) == 1
    assert about[-1].startswith("can hold the consumer's connection to the broker again, after")


async def test_a_connection_that_the_network_cuts_again_and_again_is_said(
    broker: AbstractChannel, amqp_url: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    url = yarl.URL(amqp_url)
    async with AsyncExitStack() as stack:
        way = await stack.enter_async_context(Proxy(lambda: url.port or 0))
        through = str(url.with_port(way.port))
        service = await stack.enter_async_context(serving(through, tmp_path, caplog))

        async def cut_once_more() -> bool:
            way.cut()
            await until(lambda: way.connections > 0)
            missing = await missing_of(service)
            return {"consumer_connection", "publisher_connection"} <= missing.keys()

        await until(cut_once_more)
        await until(is_ready(service))
    for which in ("consumer", "publisher"):
        about = [line for line in logged(caplog) if f"the {which}'s connection" in line]
        assert len(about) == len(set(about)) <= 5  # Its few causes once each, and the end.


# --- without one ----------------------------------------------------------------------------------


class Away(Through):
    """A database that can be away."""

    away = False

    async def transaction(self, work: Any, *, brief: bool = False) -> Any:
        self._check()
        return await super().transaction(work, brief=brief)

    async def read(self, query: Any) -> Any:
        self._check()
        return await super().read(query)

    def _check(self) -> None:
        if self.away:
            error = asyncpg.CannotConnectNowError("the database system is starting up")
            raise sa.exc.OperationalError("BEGIN", None, error)


class Picky(RecordingPublisher):
    """Refuses what is about one thing, as long as it is told to."""

    refused = ""

    async def publish_events(self, events: Sequence[Outgoing]) -> list[Exception | None]:
        return [
            Unroutable("nobody wants it")
            if self.refused and self.refused in event.body.decode()
            else error
            for event, error in zip(events, await super().publish_events(events), strict=True)
        ]


def trouble_of(loops: Sequence[RetryLoop], name: str) -> str:
    (found,) = [loop.trouble for loop in loops if loop.name == name]
    return found


async def test_one_event_that_is_refused_again_and_again_is_said_while_others_go_through(
    database_url: str,
) -> None:
    publisher = Picky()
    picky = cancelled(1)
    publisher.refused = picky.subject
    async with replica(database_url, PARTICIPANT, make_tables(), publisher=publisher) as toy:
        await toy.kernel.handle(picky)
        for number in range(2, 1_000):
            await toy.kernel.handle(cancelled(number))
            if trouble_of(toy.outbox.retry_loops, "outbox"):
                break
        assert "nobody wants it" in trouble_of(toy.outbox.retry_loops, "outbox")

        publisher.refused = ""
        await until(lambda: trouble_of(toy.outbox.retry_loops, "outbox") == "")


async def test_an_event_that_an_operator_has_removed_is_no_trouble_any_more(
    database_url: str,
) -> None:
    publisher = Picky()
    publisher.refused = cancelled(1).subject
    tables = make_tables()
    async with replica(database_url, PARTICIPANT, tables, publisher=publisher) as toy:
        await toy.kernel.handle(cancelled(1))
        await until(lambda: trouble_of(toy.outbox.retry_loops, "outbox") != "")

        await toy.database.transaction(lambda c: c.execute(tables.outbox.delete()))
        await until(lambda: trouble_of(toy.outbox.retry_loops, "outbox") == "")


async def test_a_database_that_stays_away_is_said_by_whatever_needs_it(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr("saga.runtime.kernel.outbox.SWEEP_SECONDS", 0.1)
    tables = make_tables()
    async with replica(postgres_url, PARTICIPANT, tables, through=Away, lease_seconds=0.4) as toy:
        assert isinstance(toy.database, Away)
        forgetting = RetryLoop("inbox", "look through the inbox")
        loops = [*toy.outbox.retry_loops, *toy.kernel.retry_loops, forgetting]
        tasks = [
            asyncio.create_task(keep_forgetting(toy.database, tables, 100, forgetting)),
            asyncio.create_task(toy.kernel.handle(cancelled(1))),
        ]
        toy.database.away = True
        needing = ("sweep", "lease", "commits", "inbox")
        await until(lambda: all(trouble_of(loops, name) for name in needing))
        assert all("is starting up" in trouble_of(loops, name) for name in needing)

        toy.database.away = False
        await until(lambda: not any(loop.trouble for loop in loops))
        await cancel_all(*tasks)


async def test_a_publisher_that_cannot_connect_says_so(closed_port: int) -> None:
    publisher = BrokerPublisher(f"amqp://127.0.0.1:{closed_port}/", "test publisher")

    async def stuck() -> bool:
        await publisher.publish_events([Outgoing("1", "a.b", b"{}")])
        return "cannot reach" in trouble_of(publisher.retry_loops, "publisher_connection")

    await until(stuck)
