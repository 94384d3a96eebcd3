"""Run release 0.1.0 until it has something of everything, kill it, and keep what it leaves.

Runs with the release's own code, not with this tree's: `make`, beside this file, calls it.
"""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Awaitable, Callable, Set
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import aio_pika
import httpx
from aio_pika.abc import (
    AbstractChannel,
    AbstractConnection,
    AbstractIncomingMessage,
    AbstractMessage,
    AbstractQueue,
)

from common.envelope import wrap
from common.events import PlaceOrder, order_id_of
from common.message import Priority
from common.messaging.publisher import message_of
from common.messaging.topology import EVENTS_EXCHANGE, HISTORY_STREAM, topology_of
from payment_service.gateway import Fault, FaultMode, SandboxGateway
from saga.demo import demo
from saga.discovery import choreography
from saga.orders import Shares
from saga.publish import next_plan
from saga.system import System

YEARS: Final = 90 * 365 * 24 * 3600
SHORT_SECONDS: Final = 45
PRICE_CENTS: Final = 1250
SHARES: Final = Shares(
    high=0.2, out_of_stock=0.08, mispriced=0.1, declined=0.08, cancelled=0.06, malformed=0.16
)
PLANNED: Final = 40


class MailServer:
    """Answers as the customer's name asks: `refused`, `rejected`, `lost` after the text, `slow`
    for ever, or else accepts."""

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self) -> str:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return f"smtp://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            await self._talk(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        recipient = ""
        writer.write(b"220 ready\r\n")
        while line := (await reader.readline()).decode().strip():
            match line.split(":")[0].upper().split()[0]:
                case "EHLO" | "HELO":
                    writer.write(b"250 well met\r\n")
                case "RCPT":
                    recipient = line
                    if "rejected" in recipient:
                        writer.write(b"550 nobody of that name\r\n")
                    elif "refused" in recipient:
                        writer.write(b"450 try again later\r\n")
                    else:
                        writer.write(b"250 ok\r\n")
                case "DATA":
                    writer.write(b"354 go on\r\n")
                    await reader.readuntil(b"\r\n.\r\n")
                    if "lost" in recipient:
                        return
                    if "slow" in recipient:
                        await asyncio.Event().wait()
                    writer.write(b"250 accepted\r\n")
                case "QUIT":
                    writer.write(b"221 bye\r\n")
                    return
                case _:
                    writer.write(b"250 ok\r\n")


class Shop:
    """A customer of the running system. Keeps what every order has to come to."""

    def __init__(self, system: System) -> None:
        self._system = system
        self.orders: dict[str, dict[str, str]] = {}
        """Keyed by order id."""

    async def ask(self, service: str, method: str, path: str, **how: Any) -> httpx.Response:
        url = self._system.deployment.http_urls[service][0]
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
            response = await client.request(method, path, **how)
        assert response.status_code < 400, response.text
        return response

    async def place(
        self,
        key: str,
        expected: str,
        *,
        customer: str = "",
        priority: str = "normal",
        seconds: int = YEARS,
    ) -> str:
        """Place an order; return its id."""
        await self.ask(
            "order",
            "POST",
            "/orders",
            headers={"Idempotency-Key": key},
            json=request_of(customer or f"customer-{key}", priority, seconds),
        )
        return self.expect(key, expected)

    def expect(self, key: str, expected: str) -> str:
        order = str(order_id_of(key))
        self.orders[order] = {"key": key, "expected": expected}
        return order

    async def cancel(self, order: str) -> None:
        await self.ask("order", "POST", f"/orders/{order}/cancel")

    async def status(self, order: str) -> str:
        status: str = (await self.ask("order", "GET", f"/orders/{order}")).json()["status"]
        return status

    async def mail(self, order: str) -> str:
        try:
            found = await self.ask("notification", "GET", f"/notifications/{order}")
        except AssertionError:
            return ""
        status: str = found.json()["status"]
        return status


def request_of(customer: str, priority: str, seconds: int) -> dict[str, Any]:
    return {
        "customer": customer,
        "currency": "EUR",
        "lines": [{"sku": "mug", "quantity": 1, "unit_price_cents": PRICE_CENTS}],
        "priority": priority,
        "time_limit_seconds": seconds,
    }


async def until(what: str, look: Callable[[], Awaitable[bool]], seconds: float = 90.0) -> None:
    async with asyncio.timeout(seconds):
        while not await look():
            await asyncio.sleep(0.2)
    print(what, flush=True)


async def operate(folder: Path, *arguments: str, status: Set[int] = frozenset({0})) -> str:
    """What an operator types."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-c",
        "from saga.cli import main; main()",
        *arguments,
        "--data-dir",
        str(folder),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    out, error = await process.communicate()
    print("saga", *arguments, "->", process.returncode, error.decode().strip()[:300], flush=True)
    assert process.returncode in status, (out.decode(), error.decode())
    return out.decode()


async def main(out: Path, folder: Path) -> None:
    mails = await MailServer().start()
    environment = {"SMTP_URL": mails, "SMTP_TIMEOUT_SECONDS": "300"}
    async with System(
        folder,
        environment=environment,
        broker_plugins=["rabbitmq_management"],
        report=lambda line: print(line, flush=True),
    ) as system:
        await run(system, out)


async def run(system: System, out: Path) -> None:
    folder, deployment, graph = system.folder, system.deployment, choreography()
    shop = Shop(system)
    gateway = SandboxGateway(deployment.sandbox_url)

    async def waits(queue: str) -> int:
        async with await aio_pika.connect(deployment.amqp_url) as connection:
            channel = await connection.channel()
            found = (await channel.declare_queue(queue, passive=True)).declaration_result
            return found.message_count or 0

    # What has ended, in every way, through an outage; malformed messages besides.
    load = await next_plan(deployment, PLANNED, 1, SHARES)
    result = await demo(deployment, graph, load, seed=1, outage=True)
    assert not result.report.violations, result.report.violations
    for order in load.orders:
        shop.expect(order.key, "confirmed" if order.reason is None else str(order.reason))
    await shop.ask(
        "inventory",
        "POST",
        "/stock",
        headers={"Idempotency-Key": "mugs"},
        json={
            "items": [
                {
                    "sku": "mug",
                    "quantity": 1000,
                    "unit_price_cents": PRICE_CENTS,
                    "currency": "EUR",
                }
            ]
        },
    )

    # Mails: told, refused for ever, of no known fate, and being handed over.
    wanted = {
        "told": "sent",
        "rejected": "waiting",
        "lost-0": "unknown",
        "lost-1": "unknown",
        "slow-0": "sending",
        "slow-1": "sending",
    }
    mailed = {key: await shop.place(key, "confirmed") for key in wanted}

    async def mails_are_so() -> bool:
        return {key: await shop.mail(mailed[key]) for key in wanted} == wanted

    await until("mails are as wanted", mails_are_so)
    await shop.ask("notification", "POST", f"/notifications/{mailed['lost-1']}/dismiss")

    # Charges that are dead letters: in the operator's store, and still in the queue.
    await asyncio.to_thread(gateway.set_fault, Fault(FaultMode.UNAVAILABLE))
    dead = [await shop.place(f"dead-{n}", "confirmed") for n in range(6)]
    await shop.place("expires", "deadline_exceeded", seconds=SHORT_SECONDS)
    untold = await shop.place("rejected-too", "customer_request")
    refused = await shop.place("refused", "customer_request")

    async def all_are_dead() -> bool:
        return await waits("payment.dlq") >= len(dead) + 3

    await until("charges are dead", all_are_dead)
    letters = json.loads(
        await operate(folder, "dlq", "list", "--by", "letter", "--json", status={0, 1})
    )["list"]
    charges = {one["order"]: str(one["letter"]) for one in letters if one["order"] in dead}
    malformed = [str(one["letter"]) for one in letters if one["order"] not in shop.orders]
    await operate(folder, "dlq", "discard", malformed[0], "--reason", "a test message")
    edit = ("--set", "data.lines.0.quantity=2", "--reason", "of no weight to the charge")
    await operate(folder, "dlq", "edit", charges[dead[0]], *edit)
    more = [await shop.place(f"dead-in-queue-{n}", "confirmed") for n in range(3)]

    async def more_are_dead() -> bool:
        return await waits("payment.dlq") >= len(more) + 1  # The corrected copy is dead, too.

    await until("more charges are dead", more_are_dead)

    # Charges that wait for another try; one of them is cancelled meanwhile.
    asked = [await shop.place(f"asked-{n}", "confirmed") for n in range(3)]
    cancelled = await shop.place("cancelled-while-asked", "customer_request", priority="high")

    async def are_charging() -> bool:
        return {*asked, cancelled} <= {*charging(folder)}

    await until("charges wait", are_charging)
    system.kill("payment")
    await shop.cancel(cancelled)
    replay = ("--timeout", "1", "--reason", "the provider is back")
    await operate(folder, "dlq", "replay", charges[dead[1]], *replay, status={1})

    # Dead letters that are still in their queues: a mail, and what is no event at all. Another mail
    # waits for its next try.
    await shop.cancel(untold)
    await shop.cancel(refused)
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        exchange = await (await connection.channel()).get_exchange(EVENTS_EXCHANGE)
        await exchange.publish(aio_pika.Message(b"two mugs, please"), "order.placed.normal")

    async def are_in_queues() -> bool:
        dead = await waits("notification.dlq") and await waits("inventory.dlq")
        return bool(dead) and await shop.mail(refused) == "waiting"

    await until("dead letters are in their queues", are_in_queues)
    system.kill("notification")

    # Orders nobody has looked at, and events the history has not seen.
    system.kill("inventory")
    for n in range(3):
        await shop.place(f"new-{n}", "confirmed", priority="high" if n == 0 else "normal")
    unwanted = await shop.place("new-and-cancelled", "customer_request")
    await shop.cancel(unwanted)
    system.kill("history")
    changed = await shop.place("cancelled-in-the-outbox", "customer_request")
    await shop.place("unseen", "confirmed")
    await shop.place("unseen-and-late", "deadline_exceeded", seconds=SHORT_SECONDS)

    async def are_there() -> bool:
        return await waits("inventory.normal") + await waits("inventory.high") >= 8

    await until("new orders wait", are_there)
    async with await aio_pika.connect(deployment.amqp_url) as connection:
        channel = await connection.channel()
        stream = await channel.declare_queue(HISTORY_STREAM, passive=True)
        keep(out / "stream.jsonl", await read_stream(channel, stream))
        queues = [queue.name for queue in topology_of(graph).queues if queue.name != stream.name]
        # Those first in which messages wait for so long only.
        queues.sort(key=lambda name: (not name.startswith("saga.retry."), len(name), name))
        kept = [line for queue in queues for line in await take_all(connection, queue)]

    # Outboxes, of a broker that is away; and commands that wait for a service.
    assert system.node is not None
    system.node.kill()
    for n in range(2):
        await shop.place(f"in-the-outbox-{n}", "confirmed")
    await shop.cancel(changed)
    system.kill("order")
    for n in range(2):
        key = f"commanded-{n}"
        body = {"order_id": str(order_id_of(key))} | request_of(f"customer-{key}", "normal", 86_400)
        command = wrap(
            PlaceOrder.model_validate_json(json.dumps(body)),
            id=f"command-{n}",
            source="https://shop.example",
            time=datetime.now(UTC),
            priority=Priority.NORMAL,
        )
        message = message_of(command.to_bytes())
        kept.append(line_of("order.intake.normal", "", "order.intake.normal", message))
        shop.expect(key, "confirmed")
    keep(out / "queues.jsonl", kept)
    await gateway.close()
    for database in sorted(folder.glob("*.db")):
        copy_database(database, out / database.name)
    (out / "orders.json").write_text(json.dumps(shop.orders, indent=0, sort_keys=True) + "\n")


def charging(folder: Path) -> list[str]:
    """The orders whose payments stand at the question."""
    with sqlite3.connect(folder / "payment.db") as connection:
        query = "SELECT order_id FROM payments WHERE status = 'charging'"
        return [order for (order,) in connection.execute(query)]


async def read_stream(channel: AbstractChannel, stream: AbstractQueue) -> list[dict[str, Any]]:
    """All that is in it, in order."""
    lines: list[dict[str, Any]] = []
    arrived = asyncio.Event()

    async def take(message: AbstractIncomingMessage) -> None:
        await message.ack()
        line = line_of(stream.name, message.exchange or "", message.routing_key or "", message)
        lines.append(line | {"offset": line["headers"].pop("x-stream-offset")})
        arrived.set()

    await channel.set_qos(prefetch_count=1_000)
    tag = await stream.consume(take, arguments={"x-stream-offset": "first"})
    while True:
        arrived.clear()
        try:
            async with asyncio.timeout(3.0):
                await arrived.wait()
        except TimeoutError:
            await stream.cancel(tag)
            return lines


async def take_all(connection: AbstractConnection, name: str) -> list[dict[str, Any]]:
    """All that is in a queue; it stays taken until the connection ends."""
    channel = await connection.channel()
    queue = await channel.declare_queue(name, passive=True)
    lines = []
    while message := await queue.get(fail=False):
        lines.append(line_of(name, message.exchange or "", message.routing_key or "", message))
    return lines


def line_of(
    queue: str, exchange: str, routing_key: str, message: AbstractMessage
) -> dict[str, Any]:
    properties = {
        name: getattr(message, name)
        for name in ("message_id", "type", "correlation_id", "app_id", "content_type", "timestamp")
    }
    return {
        "queue": queue,
        "exchange": exchange,
        "routing_key": routing_key,
        "properties": {k: v for k, v in properties.items() if v is not None},
        "headers": dict(message.headers),
        "body": message.body,
    }


def keep(file: Path, lines: list[dict[str, Any]]) -> None:
    text = [json.dumps(line, default=told, sort_keys=True) for line in lines]
    file.write_text("\n".join(text) + "\n")


def told(value: object) -> dict[str, str]:
    """What JSON has no word for."""
    match value:
        case datetime():
            return {"time": value.isoformat()}
        case bytes():
            try:
                return {"text": value.decode()}
            except UnicodeDecodeError:
                return {"base64": base64.b64encode(value).decode()}
        case _:
            raise TypeError(repr(value))


def copy_database(source: Path, target: Path) -> None:
    """A whole copy, with what is in the write-ahead log of one that was killed."""
    with tempfile.TemporaryDirectory() as folder, sqlite3.connect(source) as connection:
        whole = Path(folder) / source.name
        connection.execute("VACUUM INTO ?", (str(whole),))
        target.with_name(f"{target.name}.gz").write_bytes(gzip.compress(whole.read_bytes(), mtime=0))


if __name__ == "__main__":
    target, data = Path(sys.argv[1]), Path(sys.argv[2])
    asyncio.run(main(target, data))
