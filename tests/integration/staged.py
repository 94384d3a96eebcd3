"""The three services in the test's process, on a real broker: the test decides what comes first.

A delivery waits at a service's `gate`, and a question at the provider, until the test lets it go.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from aio_pika.abc import AbstractChannel

import inventory_service.app
import notification_service.app
import order_service.app
import payment_service.app
from common.events import OrderLine, PlaceOrder
from inventory_service.domain import AddStock
from inventory_service.store import RESERVATIONS, STOCK
from notification_service.app import MailSettings
from order_service.domain import CancelOrder
from order_service.store import ORDERS
from payment_service.gateway import Account, SandboxGateway
from payment_service.ledger import Decline, Receipt
from payment_service.store import PAYMENTS
from saga.broker.setup import apply_topology
from saga.deployment import Deployment, dead_letters_url_in
from saga.discovery import choreography
from saga.envelope import Envelope
from saga.local.postgres import PostgresCluster
from saga.reconcile import reconcile
from saga.retry import RUNGS_MS
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.outbox import Outbox
from saga.runtime.kernel.tables import utc_now
from saga.runtime.kernel.timer import Timekeeper
from saga.runtime.kernel.work import Done, Failed, Outcome, Work
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.consumer import Consumer
from saga.runtime.messaging.publisher import BrokerPublisher
from saga.runtime.messaging.topology import dead_letter_queue, queues_of, wait_queue
from saga.runtime.service import Service
from saga.runtime.settings import Settings
from saga.runtime.tasks import cancel_all
from tests.polling import until

RICH, BROKE = "rich", "broke"
SKU = "tea"
PRICE_CENTS = 250
ON_THE_SHELF = 10
TIME_LIMIT_SECONDS = 60


class Broken(Exception):
    """What a service that is broken for an event dead-letters it with."""


class Clock:
    """The services' time. It begins in the past, so that a deadline can pass and still have
    passed."""

    def __init__(self) -> None:
        self._behind = timedelta(hours=1)

    def __call__(self) -> datetime:
        return utc_now() - self._behind

    def advance(self, seconds: float) -> None:
        self._behind -= timedelta(seconds=seconds)
        assert self._behind >= timedelta(0), "orders that end in the future are not at rest"


class Gate:
    """Where a service's messages wait, by their type, or are refused."""

    def __init__(self) -> None:
        self.waiting: Counter[str] = Counter()
        self.broken_for: set[str] = set()
        self._held: dict[str, asyncio.Event] = {}

    def hold(self, *types: str) -> None:
        self._held |= {type: asyncio.Event() for type in types}

    def let(self, *types: str) -> None:
        """Let them through in this order, into one group."""
        for type in types:
            self._held.pop(type).set()

    def is_open(self, type: str) -> bool:
        return type not in self.broken_for and type not in self._held

    async def pass_through(self, type: str) -> None:
        """Raises `Broken`."""
        if type in self.broken_for:
            raise Broken(f"nobody can take {type}")
        if type in self._held:
            self.waiting[type] += 1
            await self._held[type].wait()
            self.waiting[type] -= 1


class _Gated(Kernel):
    gate: Gate

    def take(
        self, envelope: Envelope[Any], then: Callable[[Outcome], None], **options: Any
    ) -> Work:
        if self.gate.is_open(envelope.type):
            return super().take(envelope, then, **options)
        # Stands for the work until the gate lets it through.
        waiting = Work(envelope, envelope.data, then, self._lanes, self._clock(), 1)
        self._unresolved += 1

        def pass_on(outcome: Outcome) -> None:
            if waiting.then is not None:
                self.abandon(waiting)
                then(outcome)

        async def wait() -> None:
            try:
                await self.gate.pass_through(envelope.type)
            except Broken as error:
                pass_on(Failed(error))
            else:
                super(_Gated, self).take(envelope, pass_on, **options)

        self._waiting.add(task := asyncio.create_task(wait()))
        task.add_done_callback(self._waiting.discard)
        return waiting

    @cached_property
    def _waiting(self) -> set[asyncio.Task[None]]:
        return set()


class Provider(SandboxGateway):
    """The sandbox, but each charge asked of it may be held: before it is done, or after."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.holding: str | None = None
        """`questions` or `answers`; those of refunds are never held."""
        self.held: list[asyncio.Event] = []
        """Let one go by setting it."""

    async def charge(
        self, key: str, *, customer: str, currency: str, amount_cents: int
    ) -> Receipt | Decline:
        holding = self.holding
        if holding == "questions":
            await self._hold()
        answer = await super().charge(
            key, customer=customer, currency=currency, amount_cents=amount_cents
        )
        if holding == "answers":
            await self._hold()
        return answer

    async def _hold(self) -> None:
        gone = asyncio.Event()
        self.held.append(gone)
        await gone.wait()


class Member:
    """One service, as `saga.runtime.service` puts it together, without HTTP."""

    def __init__(self, service: Service, url: str, amqp_url: str, clock: Clock) -> None:
        self.gate = Gate()
        self._service = service
        self._url = url
        self._amqp_url = amqp_url
        self._clock = clock

    async def start(self) -> None:
        service, name = self._service, self._service.participant.name
        self.database = await open_database(self._url, service.tables)
        self._publisher = BrokerPublisher(self._amqp_url, f"{name} publisher")
        self.outbox = Outbox(name, self.database, service.tables, self._publisher)
        await self.outbox.open()
        self.kernel = _Gated(
            service.participant,
            self.database,
            service.tables,
            self.outbox,
            service.ask,
            clock=self._clock,
        )
        self.kernel.gate = self.gate
        keepers = [
            Timekeeper(self.kernel, self.database, service.tables, clock=self._clock)
            for _ in service.tables.with_dues[:1]
        ]
        self._tasks = [
            asyncio.ensure_future(coroutine)
            for coroutine in (
                self.kernel.run(),
                self.outbox.run(),
                *(keeper.run() for keeper in keepers),
            )
        ]
        self._consumer = Consumer(
            service.participant, self.kernel, self._publisher, self._amqp_url, drain_seconds=0.1
        )
        await self._publisher.open()
        await self._consumer.start()

    async def stop(self) -> None:
        """End it where it stands: what it has in hand is delivered again."""
        await cancel_all(*self._tasks)
        await self._consumer.stop()
        await self._publisher.close()
        await self.database.close()


@dataclass(frozen=True, slots=True)
class End:
    """What became of one order, in the books of all."""

    order: str
    reason: str | None
    reservation: str
    payment: str
    charged_cents: int
    refunded_cents: int


class Stage:
    """The system, and what a customer and an operator do with it."""

    def __init__(
        self,
        folder: Path,
        amqp_url: str,
        channel: AbstractChannel,
        database_urls: Mapping[str, str],
    ) -> None:
        self.channel = channel
        self.clock = Clock()
        self.graph = choreography()
        self.deployment = Deployment(
            amqp_url=amqp_url,
            http_urls={},
            database_urls=dict(database_urls),
            outside_urls={"provider": f"sqlite:///{folder / 'provider'}.db"},
            dead_letters_url=dead_letters_url_in(folder),
        )
        self.provider = Provider(self.deployment.outside_urls["provider"])
        services = (
            order_service.app.build(Settings()),
            inventory_service.app.build(Settings()),
            payment_service.app.build_with(self.provider),
            notification_service.app.build(MailSettings(mail_dir=folder / "mail")),
        )
        self.members = tuple(
            Member(service, database_urls[service.participant.name], amqp_url, self.clock)
            for service in services
        )
        self.order, self.inventory, self.payment, _ = self.members

    async def place(self, customer: str = RICH) -> UUID:
        """An order for one unit."""
        order_id = uuid4()
        line = OrderLine(sku=SKU, quantity=1, unit_price_cents=PRICE_CENTS)
        await self.order.kernel.give(
            PlaceOrder(
                order_id=order_id,
                customer=customer,
                currency="EUR",
                lines=(line,),
                time_limit_seconds=TIME_LIMIT_SECONDS,
            )
        )
        return order_id

    async def ask_to_cancel(self, order_id: UUID) -> bool:
        """Whether it was the customer who ended the order."""
        outcome = await self.order.kernel.give(CancelOrder(order_id=order_id))
        return isinstance(outcome, Done) and bool(outcome.events)

    def pass_deadlines(self) -> None:
        """The time of every order placed up to now is up."""
        self.clock.advance(TIME_LIMIT_SECONDS + 1)

    async def cancel(self, order_id: UUID, by: str) -> None:
        """Cancel it as the customer, or let its deadline pass; returns when it is cancelled."""
        if by == "deadline":
            self.pass_deadlines()
        else:
            assert await self.ask_to_cancel(order_id)
        await until(lambda: self.is_order(order_id, "cancelled"))

    async def is_order(self, order_id: UUID, status: str) -> bool:
        order = await self.order.database.read(lambda c: ORDERS.find(c, str(order_id)))
        return order is not None and order.status == status

    async def is_payment(self, order_id: UUID, status: str) -> bool:
        payment = await self.payment.database.read(lambda c: PAYMENTS.find(c, str(order_id)))
        return payment is not None and payment.status == status

    async def messages(self, queues: Iterable[str]) -> int:
        """How many there are in these queues, ready or in hand."""
        found = [await self.channel.declare_queue(queue, passive=True) for queue in queues]
        return sum(queue.declaration_result.message_count or 0 for queue in found)

    async def dead_letters(self, count: int) -> None:
        """Wait for so many dead letters."""
        queues = [dead_letter_queue(participant.name) for participant in self.graph.participants]

        async def there() -> bool:
            return await self.messages(queues) == count

        await until(there)

    async def waiting_to_be_tried_again(self) -> bool:
        return await self.messages(map(wait_queue, RUNGS_MS)) > 0

    async def rest(self) -> None:
        """Wait until nothing moves; then all books have to agree."""
        queues = [q for participant in self.graph.participants for q in queues_of(participant)]

        async def at_rest() -> bool:
            working = [m for m in self.members if not (m.kernel.idle and m.outbox.idle)]
            return not working and not await self.messages([*queues, *map(wait_queue, RUNGS_MS)])

        await until(at_rest)
        report = await reconcile(self.deployment, grace_seconds=0.0, settle_seconds=0.0)
        assert report.violations == ()
        assert report.checked["orders_at_rest"] == report.checked["orders"] > 0

    async def end(self, order_id: UUID) -> End:
        """How the order ended, once nothing moves any more and the books are right."""
        await self.rest()
        key = str(order_id)
        order = await self.order.database.read(lambda c: ORDERS.find(c, key))
        reservation = await self.inventory.database.read(lambda c: RESERVATIONS.find(c, key))
        payment = await self.payment.database.read(lambda c: PAYMENTS.find(c, key))
        charges = [charge for charge in self.provider.ledger() if charge.key == key]
        charged = [charge for charge in charges if charge.outcome == "charged"]
        assert order is not None
        return End(
            str(order.status),
            None if order.reason is None else str(order.reason),
            "none" if reservation is None else str(reservation.status),
            "none" if payment is None else str(payment.status),
            sum(charge.amount_cents for charge in charged),
            sum(charge.refunded_cents for charge in charged),
        )

    async def shelf(self) -> tuple[int, int]:
        """Units free, and held."""
        item = await self.inventory.database.read(lambda c: STOCK.find(c, SKU))
        assert item is not None
        return item.free, item.held


@contextlib.asynccontextmanager
async def staged(
    folder: Path, amqp_url: str, cluster: PostgresCluster | None = None
) -> AsyncIterator[Stage]:
    """The services running, with stock on the shelf, and two customers known to the provider.

    With a cluster, their databases are there, and are dropped in the end.
    """
    names = [participant.name for participant in choreography().participants]
    async with contextlib.AsyncExitStack() as stack:
        if cluster is None:
            urls = {name: f"sqlite:///{folder / name}.db" for name in names}
        else:
            urls = {}
            for name in names:
                database = f"{name}_{uuid4().hex[:12]}"
                urls[name] = await asyncio.to_thread(cluster.create_database, database)
                stack.push_async_callback(asyncio.to_thread, cluster.drop_database, database)
        await apply_topology(amqp_url, choreography())
        connection = await stack.enter_async_context(await connect(amqp_url, name="test"))
        stage = Stage(folder, amqp_url, await connection.channel(), urls)
        stage.provider.set_accounts([Account(RICH), Account(BROKE, card_blocked=True)])
        stack.push_async_callback(stage.provider.close)
        for member in stage.members:
            await member.start()
            stack.push_async_callback(member.stop)
        await stage.inventory.kernel.give(
            AddStock(
                delivery_id=UUID(int=1),
                sku=SKU,
                quantity=ON_THE_SHELF,
                unit_price_cents=PRICE_CENTS,
                currency="EUR",
            )
        )
        yield stage
