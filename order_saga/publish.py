"""Sending a plan's orders to a running system, and knowing how each of them has to end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from http import HTTPStatus
from typing import Any, Final
from uuid import UUID

import aiormq
import httpx

from common.events import CancellationReason, order_id_of
from order_saga.orders import (
    RUN_MAX,
    TIME_LIMIT_SECONDS,
    Malformed,
    OrderLoad,
    PlannedOrder,
    Shares,
    StockNeed,
    key_of,
    plan,
    prefix_of,
)
from payment_service.gateway import Account, SandboxGateway
from saga.choreography import Choreography
from saga.deployment import Deployment
from saga.envelope import CONTENT_TYPE, source_of, wrap
from saga.errors import Explained
from saga.http import client
from saga.message import Priority
from saga.personal.persons import Persons
from saga.runtime.messaging import frames
from saga.runtime.messaging.connection import BrokerError
from saga.runtime.messaging.frames import Posting
from saga.runtime.messaging.publisher import BrokerPublisher, posting_of
from saga.runtime.messaging.topology import EVENTS_EXCHANGE, intake_queue
from saga.runtime.messaging.wire import Unroutable
from saga.runtime.tasks import side_by_side

CONCURRENCY: Final = 32
"""Requests on their way at once."""
PATIENCE_SECONDS: Final = 120.0
"""How long one message is tried again while its receiver is away or busy."""
DELIVERY_ITEMS_MAX: Final = 500
"""Stock items in one request; the inventory service takes no more."""
BROKER_PATIENCE_SECONDS: Final = 5.0
REQUEST_TIMEOUT_SECONDS: Final = 30.0
BACKOFF_MIN_SECONDS, BACKOFF_MAX_SECONDS = 0.05, 1.0

_AWAY: Final = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
)
_CONFIRMED: Final = "confirmed"

Progress = Callable[[int], None]


class PublishError(Explained):
    """The load cannot be sent. One line that names what was refused, and by whom."""


@dataclass(slots=True)
class PublishedOrders:
    """What was sent. `expected` is by order: None for confirmed, or the reason it ends for."""

    orders: int = 0
    malformed: int = 0
    too_late: int = 0
    """Cancellations that came when the order was confirmed already."""
    seconds: float = 0.0
    expected: dict[UUID, CancellationReason | None] = field(default_factory=dict)


async def next_plan(
    deployment: Deployment, orders: int, seed: int, shares: Shares | None = None
) -> OrderLoad:
    """The plan in its first run that the system has not seen yet.

    So the same seed gives the same orders on every fresh system, and new ones where it has been
    used before. Two who ask at the same time get the same.
    """
    shares = shares or Shares()
    async with _client(deployment, "order") as orders_client:
        for run in range(1, RUN_MAX + 1):
            # The first order stands for all of the run.
            first = key_of(prefix_of(orders, seed, shares, run), 0)
            path = f"/orders/{order_id_of(first)}"
            response = await _insist(partial(orders_client.get, path), path)
            if response.status_code == HTTPStatus.NOT_FOUND:
                return plan(orders, seed, shares, run=run)
    raise PublishError(f"seed {seed} was used {RUN_MAX} times on this system; take another")


async def publish(
    deployment: Deployment,
    plan: OrderLoad,
    *,
    direct: bool = False,
    rate: float | None = None,
    concurrency: int = CONCURRENCY,
    progress: Progress = lambda _: None,
) -> PublishedOrders:
    """Prepare the system for the plan, then send its orders and malformed messages, mixed.

    Orders go over HTTP or, with `direct`, as commands to the order service's intake queues. `rate`
    limits them to so many a second. What a service or broker that is away may have missed is sent
    again under the same key, so nothing is lost or doubled. `progress` is told of each message
    sent. Raises `PublishError`, or `BrokerError`.
    """
    published = PublishedOrders(expected={order.order_id: order.reason for order in plan.orders})
    await asyncio.to_thread(_open_accounts, deployment.outside_urls["provider"], plan.accounts)
    await deliver(deployment, plan)
    publisher = BrokerPublisher(deployment.amqp_url, "saga publish")
    await publisher.open(BROKER_PATIENCE_SECONDS)
    started = time.monotonic()
    try:
        async with Persons(deployment.personal_settings()) as persons:
            sender = _Sender(
                deployment, publisher, persons, published, direct=direct, progress=progress
            )
            await sender.send(_mixed(plan), rate, concurrency)
    finally:
        await publisher.close()
    published.seconds = time.monotonic() - started
    return published


def dead_letters_of(plan: OrderLoad, graph: Choreography) -> int:
    """How many dead letters the plan's malformed messages must leave."""
    return sum(len(graph.reacting_to(m.routing_key.rpartition(".")[0])) for m in plan.malformed)


class _Sender:
    """Sends messages concurrently, each until it has arrived."""

    def __init__(
        self,
        deployment: Deployment,
        publisher: BrokerPublisher,
        persons: Persons,
        published: PublishedOrders,
        *,
        direct: bool,
        progress: Progress,
    ) -> None:
        self._deployment = deployment
        self._publisher = publisher
        self._persons = persons
        self._published = published
        self._direct = direct
        self._progress = progress

    async def send(
        self, messages: Sequence[PlannedOrder | Malformed], rate: float | None, concurrency: int
    ) -> None:
        started = time.monotonic()
        numbered = iter(enumerate(messages))  # shared: each sender takes the next

        async def sender(replica: int) -> None:
            async with _client(self._deployment, "order", replica) as client:
                for number, message in numbered:
                    if rate is not None:
                        await asyncio.sleep(max(0.0, started + number / rate - time.monotonic()))
                    await self._send(message, client)
                    self._progress(1)

        await side_by_side(*(sender(replica) for replica in range(min(concurrency, len(messages)))))

    async def _send(self, message: PlannedOrder | Malformed, client: httpx.AsyncClient) -> None:
        if isinstance(message, Malformed):
            properties = {
                "message_id": frames.short(message.id),
                "content_type": frames.short(CONTENT_TYPE),
                "timestamp": int(time.time()).to_bytes(8),
            }
            posting = Posting(message.routing_key, frames.join(properties), message.body)
            await self._publish(EVENTS_EXCHANGE, posting)
            self._published.malformed += 1
            return
        if self._direct:
            await self._command(message)
        else:
            await self._place(message, client)
        self._published.orders += 1
        if message.cancels:
            await self._cancel(message, client)

    async def _place(self, order: PlannedOrder, client: httpx.AsyncClient) -> None:
        response = await _insist(
            lambda: client.post(
                "/orders",
                json=order.request(TIME_LIMIT_SECONDS),
                headers={"Idempotency-Key": order.key},
            ),
            f"order {order.key}",
        )
        if response.status_code != HTTPStatus.ACCEPTED:
            raise PublishError(_refusal("the order service", f"order {order.key}", response))

    async def _command(self, order: PlannedOrder) -> None:
        envelope = wrap(
            await self._persons.as_given(order.command(TIME_LIMIT_SECONDS)),
            id=order.key,
            source=source_of("saga-publish"),
            time=datetime.now(UTC),
            priority=order.priority,
        )
        queue = intake_queue("order", Priority(order.priority))
        await self._publish("", posting_of(envelope.to_bytes(), queue))

    async def _cancel(self, order: PlannedOrder, client: httpx.AsyncClient) -> None:
        path = f"/orders/{order.order_id}/cancel"
        # A command on its way through the intake queue is an order the service does not know yet.
        again = (HTTPStatus.NOT_FOUND,) if self._direct else ()
        response = await _insist(lambda: client.post(path), path, again=again)
        match response.status_code:
            case HTTPStatus.ACCEPTED:
                return
            case HTTPStatus.CONFLICT:
                # "cancelled already" is what a repeated request hears of its own first attempt.
                if response.json().get("order_status") == _CONFIRMED:
                    self._published.too_late += 1
                    self._published.expected[order.order_id] = None
            case _:
                raise PublishError(_refusal("the order service", path, response))

    async def _publish(self, exchange: str, posting: Posting) -> None:
        deadline = time.monotonic() + PATIENCE_SECONDS
        backoff_seconds = BACKOFF_MIN_SECONDS
        while True:
            try:
                await self._publisher.publish(exchange, posting)
            except Unroutable as error:
                raise PublishError(f"{error}; is the topology applied?") from error
            except (
                BrokerError,  # it connects again when it has to
                aiormq.exceptions.AMQPError,
                ConnectionError,
                TimeoutError,
            ) as error:
                if time.monotonic() > deadline:
                    raise PublishError(
                        f"the broker confirmed nothing for {PATIENCE_SECONDS:g} s: {error}"
                    ) from error
                await asyncio.sleep(backoff_seconds)
                backoff_seconds = min(backoff_seconds * 2, BACKOFF_MAX_SECONDS)
            else:
                return


def _mixed(plan: OrderLoad) -> list[PlannedOrder | Malformed]:
    """The orders, with the malformed messages spread evenly among them."""
    messages: list[PlannedOrder | Malformed] = list(plan.orders)
    for number, malformed in reversed(list(enumerate(plan.malformed, start=1))):
        messages.insert(number * len(plan.orders) // (len(plan.malformed) + 1), malformed)
    return messages


def _open_accounts(url: str, accounts: Sequence[Account]) -> None:
    gateway = SandboxGateway(url)
    try:
        gateway.set_accounts(accounts)
    finally:
        asyncio.run(gateway.close())


async def deliver(deployment: Deployment, plan: OrderLoad) -> None:
    """Put the plan's stock on the shelf, once per plan."""
    async with _client(deployment, "inventory") as inventory:
        for first in range(0, len(plan.stock), DELIVERY_ITEMS_MAX):
            items = plan.stock[first : first + DELIVERY_ITEMS_MAX]
            what = f"the stock of {plan.prefix}"
            response = await _insist(
                partial(
                    inventory.post,
                    "/stock",
                    json={"items": [_item(need) for need in items]},
                    headers={"Idempotency-Key": f"{plan.prefix}-stock-{first}"},
                ),
                what,
            )
            if response.status_code != HTTPStatus.ACCEPTED:
                raise PublishError(_refusal("the inventory service", what, response))


def _item(need: StockNeed) -> dict[str, Any]:
    return {
        "sku": need.sku,
        "quantity": need.quantity,
        "unit_price_cents": need.unit_price_cents,
        "currency": need.currency,
    }


def _client(deployment: Deployment, service: str, replica: int = 0) -> httpx.AsyncClient:
    """A client of one replica; they take turns as the numbers go up."""
    urls = deployment.http_urls[service]
    return client(urls[replica % len(urls)], REQUEST_TIMEOUT_SECONDS)


async def _insist(
    request: Callable[[], Awaitable[httpx.Response]],
    what: str,
    *,
    again: Sequence[HTTPStatus] = (),
) -> httpx.Response:
    """The answer to an idempotent request, sent again while the service is away or busy.

    With an answer in `again` it is only a moment too early.
    """
    deadline = time.monotonic() + PATIENCE_SECONDS
    backoff_seconds = BACKOFF_MIN_SECONDS
    while True:
        try:
            response = await request()
        except httpx.TransportError as error:
            trouble, early = f"{type(error).__name__}: {error}", False
        else:
            early = response.status_code in again
            if not (early or response.status_code in _AWAY):
                return response
            trouble = response.text
        if time.monotonic() > deadline:
            raise PublishError(f"no answer about {what} for {PATIENCE_SECONDS:g} s: {trouble}")
        await asyncio.sleep(backoff_seconds)
        if not early:
            backoff_seconds = min(backoff_seconds * 2, BACKOFF_MAX_SECONDS)


def _refusal(who: str, what: str, response: httpx.Response) -> str:
    return f"{who} refused {what}: {response.status_code} {response.text[:300]}"
