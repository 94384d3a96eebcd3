"""Participants in applications that have a life of their own: FastAPI's and FastStream's."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa
from fastapi import FastAPI
from faststream import FastStream
from faststream.rabbit import ExchangeType, RabbitBroker, RabbitExchange, RabbitMessage, RabbitQueue

from common.events import PlaceOrder
from order_service.app import build
from saga import Service, Settings, TakingPart, taking_part
from saga.auth.keys import new_key, write_keys
from saga.auth.settings import Auth
from saga.choreography import Choreography
from saga.discovery import choreography
from saga.envelope import Attributes
from saga.runtime.kernel.database import Database, DatabaseError
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.messaging.topology import EVENTS_EXCHANGE, apply, topology_of
from saga.runtime.settings import SettingsError
from tests.moving.crew.domain import PARTICIPANT as CREW
from tests.moving.language import RequestMove, Size
from tests.moving.move.domain import PARTICIPANT as MOVE
from tests.moving.move.domain import Move, Stage
from tests.moving.move.store import TABLES
from tests.moving.van.domain import PARTICIPANT as VAN
from tests.polling import DEADLINE_SECONDS, until

SERVICE = Service(MOVE, TABLES)
KEY = "smith/2030-04"
TEA = {"sku": "tea", "quantity": 1, "unit_price_cents": 250}


@pytest.fixture
async def settings(amqp_url: str, tmp_path: Path) -> Settings:
    async with await connect(amqp_url, name="test") as connection:
        await apply(topology_of(Choreography([MOVE, VAN, CREW])), await connection.channel())
    return Settings(
        amqp_url=amqp_url, data_dir=tmp_path, auth=Auth.OFF, auth_off_reason="tests alone ask it"
    )


async def stage(part: TakingPart, move: str) -> Stage:
    found = await part.running.database.read(
        lambda connection: TABLES.states[Move].find(connection, move)
    )
    return found.stage if isinstance(found, Move) else Stage.UNKNOWN


async def is_ready(client: httpx.AsyncClient) -> bool:
    return (await client.get("/saga/readyz")).status_code == 200


def client_of(app: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://application")


async def test_a_database_that_is_away_again_once_it_was_opened_is_named(
    settings: Settings,
) -> None:
    async def recall(database: Database) -> None:
        """As a server does that is too slow to connect to."""
        raise sa.exc.OperationalError("SELECT 1", {}, TimeoutError())

    with pytest.raises(DatabaseError, match="the database of move was opened, and does not answer"):
        async with taking_part(replace(SERVICE, recall=recall), settings):
            pass


async def test_it_takes_part_from_the_lifespan_of_an_application_of_fastapi(
    settings: Settings,
) -> None:
    parts: list[TakingPart] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with taking_part(SERVICE, settings) as part:
            app.mount("/saga", part.app)
            parts.append(part)
            yield

    app = FastAPI(lifespan=lifespan)

    @app.post("/moves/{move:path}")
    async def request(move: str) -> None:
        await parts[0].running.give(RequestMove(move=move, size=Size.SMALL))

    async with app.router.lifespan_context(app), client_of(app) as client:
        assert (await client.post(f"/moves/{KEY}")).status_code == 200
        assert await stage(parts[0], KEY) is Stage.OPEN
        await until(partial(is_ready, client))
        assert "saga_build_info{" in (await client.get("/saga/metrics")).text


@pytest.mark.parametrize(
    "said",
    [
        {"auth": None, "auth_off_reason": None},
        {"auth": None},
        {"auth_off_reason": None},
    ],
)
async def test_in_another_application_it_has_to_be_said_who_may_ask(
    settings: Settings, said: dict[str, object]
) -> None:
    """Also where it would listen on loopback by itself: it is the application that is reached."""
    with pytest.raises(SettingsError, match="AUTH=on"):
        async with taking_part(SERVICE, settings.model_copy(update=said)):
            pytest.fail("it takes part, open to whoever reaches the application")


async def test_in_another_application_its_routes_know_their_callers(
    settings: Settings, tmp_path: Path
) -> None:
    write_keys(tmp_path / "api_keys.json", [new_key("shop", ["*"], now=utc_now())[1]])
    closed = settings.model_copy(update={"auth": Auth.ON, "auth_off_reason": None})
    app = FastAPI()
    async with taking_part(SERVICE, closed) as part, client_of(app) as client:
        app.mount("/saga", part.app)

        assert (await client.get("/saga/moves/x")).status_code == 401
        await until(partial(is_ready, client))


class Shown(logging.Handler):
    """A handler of the application: it shows all of a record, and what frames hold."""

    def __init__(self) -> None:
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += self.format(record) + str(record.__dict__)
        if record.exc_info and record.exc_info[2]:
            frames = traceback.walk_tb(record.exc_info[2])
            self.text += "".join(str(frame.f_locals) for frame, _ in frames)


async def test_the_log_of_the_application_names_nobody_whom_its_requests_and_messages_name(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, body = "Zenobia Ungelesen", {"currency": "EUR", "lines": [TEA]}
    before, shown = logging.getLogRecordFactory(), Shown()
    given = settings.model_copy(update={"outbox_backlog_max": 1_000})
    async with await connect(settings.amqp_url, name="test") as connection:
        await apply(topology_of(choreography()), await connection.channel())
    logging.getLogger().addHandler(shown)
    try:
        async with taking_part(build(given), given) as part, client_of(part.app) as client:

            async def fail(command: PlaceOrder, **_: object) -> None:
                raise ValueError(f"no order for {command.customer}")

            monkeypatch.setattr(part.running.kernel, "give", fail)
            answer = await client.post(
                "/orders", json=body | {"customer": name}, headers={"Idempotency-Key": "k"}
            )
            assert answer.status_code == 500
    finally:
        logging.getLogger().removeHandler(shown)
        logging.setLogRecordFactory(before)

    assert "no order for Z…" in shown.text
    assert "Zenobia" not in shown.text


async def test_it_takes_part_from_the_lifespan_of_an_application_of_faststream(
    settings: Settings,
) -> None:
    """Whose own subscriber hears what it publishes, on the same broker."""
    heard: list[object] = []
    broker = RabbitBroker(settings.broker_url)
    queue = RabbitQueue("neighbour", routing_key="move.requested.*")
    events = RabbitExchange(EVENTS_EXCHANGE, type=ExchangeType.TOPIC, declare=False)

    @broker.subscriber(queue, events)
    async def hear(message: RabbitMessage) -> None:
        heard.append(Attributes.of(message.body).subject)

    @asynccontextmanager
    async def lifespan() -> AsyncIterator[None]:
        async with taking_part(SERVICE, settings) as part:
            parts.append(part)
            yield

    parts: list[TakingPart] = []
    started = asyncio.Event()
    app = FastStream(broker, lifespan=lifespan, after_startup=[started.set])
    running = asyncio.create_task(app.run())
    try:
        await until(lambda: running.done() or started.is_set())
        await parts[0].running.give(RequestMove(move=KEY, size=Size.SMALL))
        await until(lambda: running.done() or bool(heard))
    finally:
        app.exit()
        await running
    assert heard == [KEY]


async def test_it_is_drained_at_the_end_and_taken_up_again(settings: Settings) -> None:
    for number in range(3):
        async with taking_part(SERVICE, settings) as part:
            await part.running.give(RequestMove(move=f"{KEY}/{number}", size=Size.SMALL))
    await until(lambda: len(asyncio.all_tasks()) == 1)

    async with taking_part(SERVICE, settings) as part:
        assert part.running.outbox.idle
        for number in range(3):
            assert await stage(part, f"{KEY}/{number}") is Stage.OPEN


async def test_the_application_is_told_to_end_when_the_participant_cannot_go_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = asyncio.Event()

    async def fails(_: Kernel) -> None:
        raise RuntimeError("a mistake of ours")

    monkeypatch.setattr(Kernel, "run", fails)
    async with taking_part(SERVICE, settings, on_crash=told.set):
        await asyncio.wait_for(told.wait(), DEADLINE_SECONDS)


async def test_an_application_whose_broker_is_away_does_not_start(
    settings: Settings, closed_port: int
) -> None:
    away = settings.model_copy(
        update={
            "amqp_url": f"amqp://guest:guest@127.0.0.1:{closed_port}/",
            "broker_patience_seconds": 0.1,
        }
    )
    with pytest.raises(BrokerError, match=f":{closed_port}"):
        async with taking_part(SERVICE, away):
            pytest.fail("it takes part without a broker")
