"""The order flow in two styles: choreographed, and with a coordinator. What both do under a load.

Both run the same rules behind the same engine, on one broker, and take turns. The figures are in
`docs/choreography-or-orchestration.md`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import aio_pika

from bench.compare import Comparison, all_started
from bench.payment import DECLINED, SLOW
from bench.rig import Bench, Report, Variant
from common.events import OrderLine, PlaceOrder
from order_saga.orders import OrderLoad, StockNeed
from saga.deployment import Deployment
from saga.envelope import CONTENT_TYPE, Envelope, source_of, wrap
from saga.local.node import RabbitNode
from saga.message import Command, Priority
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import EVENTS_EXCHANGE, intake_queue

ROOT: Final = Path(__file__).resolve().parents[1]
EXAMPLE: Final = ROOT / "examples" / "orchestrated"
ORCHESTRATED: Final = "orchestrated:SAGA"
# It is no part of this project, so nothing here can import it by its name.
sys.path.append(str(EXAMPLE))

COUNTED_ORDERS: Final = 50
OUTAGE_ORDERS: Final = 300
OUTAGE_SECONDS: Final = 5.0
"""How long the coordinating service is away, and others may go on."""
QUIET_SECONDS: Final = 4.0
"""After so long without a message, no more come: longer than a slow bank takes."""
PATIENCE_SECONDS: Final = 60.0
LATENCY_SECONDS: Final = 5.0
STEADY_SHARE: Final = 1 / 3
"""Of the rate that both keep: there latencies are taken, as on a machine that has room."""
LONE_ORDERS, LONE_PER_SECOND = 40, 5.0
ENDS: Final = ("order.confirmed", "order.cancelled")
PRICE_CENTS: Final = 1_250


async def _shelve(deployment: Deployment, load: OrderLoad) -> None:
    """Put a load's stock on the example's shelf: over the broker, where its commands come from."""
    language = import_module("orchestrated.language")
    delivery_id = uuid4()
    async with tapped(deployment) as tap:
        for need in load.stock:
            command = language.AddStock(
                delivery_id=delivery_id,
                sku=need.sku,
                quantity=need.quantity,
                unit_price_cents=need.unit_price_cents,
                currency=need.currency,
            )
            await tap.send("inventory", command)
        await tap.until(len(load.stock), "stock.added")


CHOREOGRAPHY: Final = Variant("choreography", programs={"payment": ("-m", "bench.payment")})
ORCHESTRATION: Final = Variant(
    "orchestration",
    programs={"payment": ("-m", "bench.payment", "orchestrated")},
    environment={"PYTHONPATH": f"{ROOT}{os.pathsep}{EXAMPLE}", "SAGA": ORCHESTRATED},
    saga=ORCHESTRATED,
    services=("coordinator", "inventory", "payment"),
    deliver=_shelve,
)
STYLES: Final = (CHOREOGRAPHY, ORCHESTRATION)
PLACED: Final = {CHOREOGRAPHY.name: "order.placed", ORCHESTRATION.name: "stock.reserve"}
"""What tells inventory of an order."""


# --- what is published --------------------------------------------------------------------------


@dataclass
class Tap:
    """Reads along with all that is published, and sends commands."""

    channel: Any
    messages: Counter[str] = field(default_factory=Counter)
    """Keyed by type."""
    bytes: Counter[str] = field(default_factory=Counter)
    """Keyed by type: of the bodies."""
    moved: asyncio.Event = field(default_factory=asyncio.Event)
    """Set whenever something is published."""

    async def take(self, message: Any) -> None:
        kind = message.routing_key.rpartition(".")[0]
        self.messages[kind] += 1
        self.bytes[kind] += len(message.body)
        self.moved.set()

    async def send(self, participant: str, command: Command) -> Envelope[Any]:
        envelope = wrap(
            command,
            id=str(uuid4()),
            source=source_of("bench"),
            time=datetime.now(UTC),
            priority=Priority.NORMAL,
        )
        message = aio_pika.Message(
            envelope.to_bytes(),
            content_type=CONTENT_TYPE,
            message_id=envelope.id,
            type=envelope.type,
            correlation_id=envelope.correlationid,
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        )
        queue = intake_queue(participant, Priority.NORMAL)
        await self.channel.default_exchange.publish(message, routing_key=queue)
        return envelope

    def of(self, *kinds: str) -> int:
        """How many messages of these types were published."""
        return sum(self.messages[kind] for kind in kinds)

    async def until(self, count: int, *kinds: str) -> None:
        """Until so many messages of these types were published. Raises `TimeoutError`."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while self.of(*kinds) < count:
                self.moved.clear()
                await self.moved.wait()

    async def until_quiet(self) -> None:
        """Until nothing was published for a while."""
        with contextlib.suppress(TimeoutError):
            while True:
                self.moved.clear()
                async with asyncio.timeout(QUIET_SECONDS):
                    await self.moved.wait()


@contextlib.asynccontextmanager
async def tapped(deployment: Deployment) -> AsyncIterator[Tap]:
    """A tap on all that is published from now on."""
    connection = await connect(deployment.amqp_url, name="bench")
    async with connection:
        channel = await connection.channel()
        queue = await channel.declare_queue(exclusive=True)
        await queue.bind(EVENTS_EXCHANGE, "#")
        tap = Tap(channel)
        await queue.consume(tap.take, no_ack=True)
        yield tap


# --- orders of each kind ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OrderKind:
    """Orders that all go the same way."""

    name: str
    customer: str = "anna"
    stocked: bool = True
    time_limit_seconds: int = 600


CONFIRMED: Final = OrderKind("confirmed")
KINDS: Final = (
    CONFIRMED,
    OrderKind("refused by inventory", stocked=False),
    OrderKind("refused by payment", customer=DECLINED),
    OrderKind("out of time while payment asks", customer=SLOW, time_limit_seconds=1),
)


@dataclass(frozen=True, slots=True)
class Counts:
    """What was published about orders of one kind, per order."""

    style: str
    kind: str
    messages: Mapping[str, float]
    body_bytes: Mapping[str, float]
    deliveries: float
    """To the queues of participants; the history is one more reader of each message."""

    @property
    def total(self) -> float:
        return sum(self.messages.values())

    @property
    def total_bytes(self) -> float:
        return sum(self.body_bytes.values())


async def counted(style: Variant, bench: Bench) -> list[Counts]:
    """What orders of each kind have published. The command that places an order counts, too."""
    found = []
    deployment = bench.system.deployment
    takers = takers_of(style)
    for kind in KINDS:
        orders = await _orders(style, deployment, kind, COUNTED_ORDERS)
        async with tapped(deployment) as tap:
            sizes = [len((await tap.send(style.services[0], order)).to_bytes()) for order in orders]
            await tap.until(len(orders), *ENDS)
            await tap.until_quiet()
            tap.messages["order.place"] = len(orders)
            tap.bytes["order.place"] = sum(sizes)
        delivered = sum(count * takers.get(name, 0) for name, count in tap.messages.items())
        per_order = partial(_per, len(orders))
        found.append(
            Counts(
                style.name,
                kind.name,
                per_order(tap.messages),
                per_order(tap.bytes),
                delivered / len(orders),
            )
        )
    return found


def _per(orders: int, counts: Mapping[str, int]) -> dict[str, float]:
    return {name: count / orders for name, count in sorted(counts.items())}


def takers_of(style: Variant) -> Mapping[str, int]:
    """Keyed by type of message: how many of the participants that are run take it."""
    if style is ORCHESTRATION:
        graph = import_module("orchestrated").SAGA.choreography
    else:
        graph = import_module("order_saga").SAGA.choreography
    return Counter(
        kind
        for participant in graph.participants
        if participant.name in style.services
        for kind in {r.consumes.type for r in participant.reactions if hasattr(r.consumes, "type")}
    )


async def _orders(
    style: Variant, deployment: Deployment, kind: OrderKind, count: int
) -> Sequence[Command]:
    """So many new orders, and their stock on the shelf."""
    sku = f"sku-{uuid4().hex[:12]}"
    line = OrderLine(sku=sku, quantity=1, unit_price_cents=PRICE_CENTS)
    if kind.stocked:
        need = StockNeed(sku, count, PRICE_CENTS, "CHF")
        await style.deliver(deployment, OrderLoad(sku, (), (need,), (), ()))
    return [
        PlaceOrder(
            order_id=UUID(bytes=uuid4().bytes),
            customer=f"{kind.customer} {number}",
            currency="CHF",
            lines=(line,),
            time_limit_seconds=kind.time_limit_seconds,
        )
        for number in range(count)
    ]


# --- without the coordinating service -----------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outage:
    """How far orders came while the service that takes and ends them was away, in shares of them,
    and how long it took from its start until all had ended."""

    style: str
    reserved: float
    charged: float
    ended: float
    seconds_to_end: float


async def outage(style: Variant, bench: Bench) -> Outage:
    """Kill the service that takes orders once they are placed, and see what goes on without it.

    Inventory is stopped until then, so that no order is further than being placed.
    """
    system, (taker, *_) = bench.system, style.services
    orders = await _orders(style, system.deployment, CONFIRMED, OUTAGE_ORDERS)
    async with tapped(system.deployment) as tap:
        os.kill(system.pid("inventory"), signal.SIGSTOP)
        try:
            for order in orders:
                await tap.send(taker, order)
            await tap.until(len(orders), PLACED[style.name])
            system.kill(taker)
        finally:
            os.kill(system.pid("inventory"), signal.SIGCONT)
        await asyncio.sleep(OUTAGE_SECONDS)
        reserved, charged, ended = (
            tap.of(*kinds) / len(orders)
            for kinds in (("stock.reserved",), ("payment.charged",), ENDS)
        )
        started = time.monotonic()
        with style.named():
            await system.start(taker)
        await tap.until(len(orders), *ENDS)
    return Outage(style.name, reserved, charged, ended, time.monotonic() - started)


# --- all of it ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Styles:
    """What was measured of both."""

    load: Comparison
    counts: Sequence[Counts]
    outages: Sequence[Outage]
    steady_rate: float
    """Orders a second, placed at both, at which latencies were taken."""


async def measure(
    node: RabbitNode, folder: Path, *, rounds: int, orders: int, report: Report
) -> Styles:
    """Both styles in turn, there and back in every round."""
    found, outages, rate = Comparison(), [], 0.0
    async with all_started(STYLES, node, folder, report) as benches:
        report("counting what is published")
        counts = [one for style in STYLES for one in await counted(style, benches[style.name])]
        for number in range(1, rounds + 1):
            report(f"round {number} of {rounds}: all orders at once")
            await _turn(benches, orders, 0.0, found.saturated)
            rate = rate or STEADY_SHARE * min(
                measured.orders_per_second for runs in found.saturated.values() for measured in runs
            )
            report(f"round {number} of {rounds}: {rate:.0f} orders a second")
            await _turn(benches, max(int(rate * LATENCY_SECONDS), 1), rate, found.half)
            report(f"round {number} of {rounds}: one order at a time")
            await _turn(benches, LONE_ORDERS, LONE_PER_SECOND, found.lone)
            report(f"round {number} of {rounds}: without the service that takes orders")
            outages += [await outage(style, benches[style.name]) for style in STYLES]
    return Styles(found, counts, outages, rate)


async def _turn(
    benches: Mapping[str, Bench], orders: int, rate: float, into: dict[str, list[Any]]
) -> None:
    for style in there_and_back(STYLES):
        measured = await benches[style.name].load(orders, rate)
        into.setdefault(style.name, []).append(measured)


def there_and_back(styles: Sequence[Variant]) -> Iterable[Variant]:
    """Each twice, so that neither has the advantage of being first."""
    return (*styles, *reversed(styles))
