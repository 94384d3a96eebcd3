"""A service as a process: how it stops, where it listens, and how it says that it cannot start.

What `tests/e2e/test_cli.py` checks of all services is not repeated here.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from uuid import UUID, uuid4

import httpx
import pytest
import yarl

from common.events import HeldLine, StockReserved
from payment_service.gateway import Account, SandboxGateway
from saga.broker.setup import apply_topology
from saga.discovery import choreography, packages
from saga.envelope import wrap
from saga.http import client
from saga.message import Priority
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import EVENTS_EXCHANGE
from tests.faults.proxy import Proxy
from tests.forked import run
from tests.integration.service_process import (
    RUN_SECONDS,
    ServiceProcess,
    assert_refuses,
    depth,
    rows,
)
from tests.messages import message_of
from tests.polling import until

IN_FLIGHT = 20
ORDER = {
    "customer": "c",
    "currency": "EUR",
    "lines": [{"sku": "A", "quantity": 1, "unit_price_cents": 100}],
}


@pytest.fixture
async def broker_url(amqp_url: str) -> str:
    """A virtual host with the topology on it."""
    await apply_topology(amqp_url, choreography())
    return amqp_url


# --- stopping -------------------------------------------------------------------------------------


async def test_a_stopped_service_first_finishes_what_it_has_begun(
    tmp_path: Path, broker_url: str
) -> None:
    provider = SandboxGateway(f"sqlite:///{tmp_path / 'provider.db'}")
    provider.set_accounts([Account("slow", answer_delay_ms=2000)])
    with ServiceProcess("payment_service", tmp_path, AMQP_URL=broker_url) as payment:
        await payment.says("ready")
        await reserve_stock(broker_url, "slow", IN_FLIGHT)
        await until(lambda: len(provider.ledger()) == IN_FLIGHT)
        answered_before = rows(tmp_path, "payment", "SELECT * FROM outbox")
        payment.popen.send_signal(signal.SIGTERM)

        assert await payment.exit_status() == 0
        assert "Traceback" not in payment.said
    await provider.close()

    assert answered_before == []
    statuses = rows(tmp_path, "payment", "SELECT status, count(*) FROM payments GROUP BY 1")
    assert statuses == [("charged", IN_FLIGHT)]
    assert rows(tmp_path, "payment", "SELECT * FROM outbox") == []
    assert await depth(broker_url, "payment.normal") == 0
    assert await depth(broker_url, "order.normal") == IN_FLIGHT


async def reserve_stock(url: str, customer: str, orders: int) -> None:
    """Publish the `stock.reserved` of so many orders."""
    async with await connect(url, name="test") as connection:
        channel = await connection.channel(publisher_confirms=True)
        exchange = await channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
        for number in range(orders):
            event = StockReserved(
                order_id=UUID(int=number),
                customer=customer,
                currency="EUR",
                total_cents=100,
                lines=(HeldLine(sku="A", quantity=1),),
            )
            envelope = wrap(
                event,
                id=f"reserved-{number}",
                source="/services/inventory",
                time=utc_now(),
                priority=Priority.NORMAL,
                sequence=1,
            )
            await exchange.publish(message_of(envelope.to_bytes()), envelope.routing_key)


async def test_an_order_that_was_accepted_while_stopping_is_placed_and_published(
    tmp_path: Path, broker_url: str
) -> None:
    with ServiceProcess("order_service", tmp_path, AMQP_URL=broker_url) as order:
        await order.says("ready")
        accepted: list[str] = []

        async def place_until_it_ends() -> None:
            with contextlib.suppress(httpx.TransportError):
                async with order.http() as http:
                    while True:
                        answer = await http.post("/orders", json=ORDER)
                        assert answer.status_code == 202, answer.text
                        accepted.append(answer.json()["order_id"])

        customers = asyncio.gather(*(place_until_it_ends() for _ in range(8)))
        await until(lambda: len(accepted) >= 40)
        order.popen.send_signal(signal.SIGTERM)
        await customers

        assert await order.exit_status() == 0
        assert "Traceback" not in order.said

    placed = {order_id for (order_id,) in rows(tmp_path, "order", "SELECT order_id FROM orders")}
    assert set(accepted) <= placed
    assert rows(tmp_path, "order", "SELECT * FROM outbox") == []
    assert await depth(broker_url, "inventory.normal") == len(placed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=["SIGTERM", "SIGINT"])
async def test_a_service_that_still_waits_for_the_broker_lives_and_can_be_stopped(
    number: signal.Signals, tmp_path: Path, closed_port: int
) -> None:
    url = f"amqp://guest:secret@127.0.0.1:{closed_port}/"
    with ServiceProcess("order_service", tmp_path, AMQP_URL=url) as order:
        await order.says("waiting for RabbitMQ")
        async with order.http() as http:

            async def only_the_broker_is_missing() -> bool:
                ready = await http.get("/readyz")
                assert ready.status_code == 503
                assert "secret" not in ready.text
                return set(ready.json()["missing"]) == {"broker", "consumers"}

            await until(only_the_broker_is_missing)  # The database is looked at in the background.
            alive = await http.get("/livez")
        order.popen.send_signal(number)

        assert await order.exit_status() == 0
        assert "Traceback" not in order.said
        assert "secret" not in order.said

    assert alive.status_code == 200


@pytest.mark.parametrize("package", packages())
async def test_a_service_that_still_waits_for_its_database_lives_and_can_be_stopped(
    package: str, tmp_path: Path, closed_port: int
) -> None:
    url = f"postgresql://saga:secret@127.0.0.1:{closed_port}/orders"
    with ServiceProcess(package, tmp_path, DATABASE_URL=url) as service:
        await service.says("waiting for the database")
        async with service.http() as http:
            alive, ready = await http.get("/livez"), await http.get("/readyz")
            early = await http.post("/orders", json=ORDER)
        service.popen.send_signal(signal.SIGTERM)

        assert await service.exit_status() == 0
        assert "Traceback" not in service.said
        assert "secret" not in service.said + ready.text

    assert alive.status_code == 200
    assert ready.status_code == early.status_code == 503
    assert set(ready.json()["missing"]) == {"database"}
    assert int(early.headers["Retry-After"]) > 0


# --- listening ------------------------------------------------------------------------------------


async def test_a_service_is_served_on_loopback_unless_told_otherwise(
    tmp_path: Path, broker_url: str
) -> None:
    # A listener on every interface would answer at 127.0.0.2 as well.
    for host, answers in ((None, False), ("0.0.0.0", True)):
        open_to_all = {"AUTH": "off", "AUTH_OFF_REASON": "a test of addresses"}
        environment = {"HTTP_HOST": host, **open_to_all} if host else {}
        with ServiceProcess("order_service", tmp_path, AMQP_URL=broker_url, **environment) as order:
            await order.says("ready")
            elsewhere = order.address.with_host("127.0.0.2")
            if answers:
                async with client(str(elsewhere), RUN_SECONDS) as http:
                    assert (await http.get("/livez")).status_code == 200
            else:
                assert order.address.host == "127.0.0.1"
                async with client(str(elsewhere), RUN_SECONDS) as http:
                    with pytest.raises(httpx.ConnectError):
                        await http.get("/livez")


@pytest.mark.parametrize(("fault", "said"), [("cut", "database is away"), ("silent", "within 1 s")])
async def test_a_request_while_the_database_is_away_is_told_to_come_back(
    fault: str, said: str, tmp_path: Path, broker_url: str, postgres_url: str, closed_port: int
) -> None:
    there = yarl.URL(postgres_url)
    ports = [closed_port, there.port or 0]
    key = {"Idempotency-Key": "once"}
    async with Proxy(lambda: ports[-1]) as way:
        environment = {
            "AMQP_URL": broker_url,
            "DATABASE_URL": str(there.with_port(way.port)),
            "HTTP_ANSWER_SECONDS": "1",
        }
        with ServiceProcess("order_service", tmp_path, **environment) as order:
            await order.says("ready")
            async with order.http() as http:

                async def is_answered(status: int) -> bool:
                    answer = await http.get(f"/orders/{uuid4()}")
                    return answer.status_code == status

                async def is_placed() -> bool:
                    return (await http.post("/orders", json=ORDER, headers=key)).status_code == 202

                assert await is_answered(404)

                if fault == "cut":
                    ports.reverse()
                    way.cut()
                else:
                    way.silence()
                answer = await http.get(f"/orders/{uuid4()}")
                assert said in answer.json()["detail"]
                for refused in (answer, await http.post("/orders", json=ORDER, headers=key)):
                    assert refused.status_code == 503
                    assert int(refused.headers["Retry-After"]) > 0
                alive, ready = await http.get("/livez"), await http.get("/readyz")
                assert alive.status_code == 200
                assert ready.status_code in (200, 503)  # It may not have been looked at since.

                if fault == "cut":
                    ports.reverse()
                else:
                    way.heal()
                await until(lambda: is_answered(404))
                await until(is_placed)
            assert "Traceback" not in order.said
            assert await depth(broker_url, "inventory.normal") == 1


# --- what a machine can have wrong with it --------------------------------------------------------


def test_where_text_is_asked_for_the_line_begins_with_error(tmp_path: Path) -> None:
    mine = {"LOG_FORMAT": "TEXT", "HTTP_PORT": "many", "DATA_DIR": str(tmp_path)}
    done = run("order_service.app", environment=os.environ | mine)

    assert done.stderr.startswith("error: cannot use the settings in the environment: HTTP_PORT:")


def test_a_virtual_host_that_does_not_exist_is_one_line(tmp_path: Path, amqp_url: str) -> None:
    url = str(yarl.URL(amqp_url).with_path("/nowhere"))

    assert_refuses("order_service", tmp_path, "virtual host", "nowhere", "AMQP_URL", AMQP_URL=url)


def test_a_broker_without_our_queues_is_one_line(tmp_path: Path, amqp_url: str) -> None:
    assert_refuses("order_service", tmp_path, "order", "`saga topology apply`", AMQP_URL=amqp_url)


@pytest.mark.parametrize(
    "url",
    [
        "nonsense",
        "http://guest:secret@127.0.0.1/",
        "amqp://guest:secret@no-such-host.invalid/",
        "amqps://guest:secret@127.0.0.1:1/",
        "",
    ],
)
def test_a_broker_address_that_is_none_is_one_line(url: str, tmp_path: Path) -> None:
    assert_refuses("order_service", tmp_path, "AMQP_URL", AMQP_URL=url)


async def test_a_database_that_another_process_uses_is_one_line(
    tmp_path: Path, broker_url: str
) -> None:
    with ServiceProcess("order_service", tmp_path, AMQP_URL=broker_url) as order:
        await order.says("ready")

        await asyncio.to_thread(
            assert_refuses,
            "order_service",
            tmp_path,
            "order.db",
            "in use by another process",
            "DATABASE_URL",
            AMQP_URL=broker_url,
        )

        async with order.http() as http:
            assert (await http.get("/readyz")).status_code == 200


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "order.db").write_text("a letter to my aunt " * 100)

    assert_refuses("order_service", tmp_path, str(tmp_path / "order.db"), "not a database")


@pytest.mark.parametrize(
    "url",
    ["nonsense", "sqlite://", "sqlite:///:memory:", "mysql://guest:secret@127.0.0.1/orders"],
)
def test_a_database_address_that_cannot_be_used_is_one_line(url: str, tmp_path: Path) -> None:
    assert_refuses("order_service", tmp_path, "DATABASE_URL", DATABASE_URL=url)


@pytest.mark.parametrize(
    "url", ["nonsense", "sqlite://", "postgresql://guest:secret@127.0.0.1/ledger"]
)
def test_a_sandbox_address_that_cannot_be_used_is_one_line(url: str, tmp_path: Path) -> None:
    assert_refuses("payment_service", tmp_path, "SANDBOX_URL", SANDBOX_URL=url)


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid", "1:2"])
def test_an_address_that_is_not_this_machine_s_is_one_line(host: str, tmp_path: Path) -> None:
    assert_refuses("order_service", tmp_path, "HTTP_HOST", HTTP_HOST=host)


def test_all_settings_that_make_no_sense_are_named_together(tmp_path: Path) -> None:
    assert_refuses(
        "payment_service",
        tmp_path,
        "HTTP_PORT",
        "LOG_LEVEL",
        "BODY_MAX_BYTES",
        "OUTBOX_BACKLOG_MAX",
        HTTP_PORT="99999",
        LOG_LEVEL="loud",
        BODY_MAX_BYTES="1",
        OUTBOX_BACKLOG_MAX="-1",
    )


_ASKS_NOBODY = """
from saga.runtime.service import Service, main
from saga.runtime.settings import Settings
from tests.integration.toy import INQUIRER, make_tables

main(lambda settings: Service(INQUIRER, make_tables()), Settings)
"""


def test_a_service_that_does_not_say_whom_it_asks_ends_with_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ASKS_NOBODY],
        env={**os.environ, "DATA_DIR": str(tmp_path), "LOG_FORMAT": "text"},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "toy.inquire may return Inquire, which inquirer puts to no outside" in line
    assert [*tmp_path.iterdir()] == []


INTERRUPTED_WHILE_IT_STARTS = """
import os, signal
from saga.runtime.process import main
from saga.runtime.settings import Settings

main(lambda _: os.kill(os.getpid(), signal.SIGINT), Settings)
"""


def test_a_service_that_is_interrupted_while_it_starts_ends_without_a_word() -> None:
    done = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_WHILE_IT_STARTS], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
