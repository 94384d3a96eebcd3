"""The people in a run: customers, who ask until they are answered, and an operator."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from common.envelope import derived_id, source_of, wrap
from common.events import OrderCancelled
from common.kernel.groups import Done, Duplicate, Kernel
from common.kernel.step import Firing
from common.message import Command, Priority
from common.messaging import frames
from common.messaging.dead_letters import Reason
from common.messaging.publisher import posting_of
from common.messaging.topology import EVENTS_EXCHANGE, dead_letter_queue, intake_queue
from order_service.domain import CancelOrder, UnknownOrder
from order_service.store import ORDERS, orders
from saga.dlq import letters
from saga.simulation.broker import EPOCH
from saga.simulation.loop import settle
from saga.simulation.network import delivered
from saga.simulation.server import Server
from saga.simulation.workload import Plan, PlannedOrder

if TYPE_CHECKING:
    from saga.simulation.world import World

REPLY_TIMEOUT_SECONDS = 5.0
"""How long a customer waits for the answer to a request before trying again."""
OPERATOR_SECONDS = 4.0
"""How often the operator looks for dead letters."""
HURRY_SHARE = 0.05
"""How often an operator who looks has something done now that is due later."""


class People:
    """They do what the plan says, whatever else happens."""

    def __init__(self, world: World, plan: Plan, chance: random.Random) -> None:
        self._world = world
        self._plan = plan
        self._chance = chance
        self._customers = 0
        self._sent: list[PlannedOrder] = []
        """Orders that were placed over the broker."""
        self.cancelled: set[str] = set()
        """Orders whose customers were told that they are cancelled."""
        self.brought_forward: set[str] = set()
        """Orders whose deadlines an operator wanted to come now."""

    @property
    def busy(self) -> bool:
        """Whether somebody still wants something."""
        return self._customers > 0 or self._letters_left()

    async def put_stock_up(self) -> None:
        for item in self._plan.stock:
            await self._ask("inventory", item, derived_id("stock", item.sku), Priority.NORMAL)

    def begin(self) -> None:
        """Have the orders placed, and whatever fails replayed."""
        for order in self._plan.orders:
            self._begin(partial(self._order, order))
        for key, body in self._plan.malformed:
            self._publish(
                EVENTS_EXCHANGE, key, body, frames.join({"message_id": frames.short("malformed")})
            )
        self._world.loop.spawn(self._world.process, self._operate())

    def _begin(self, work: Callable[[], Awaitable[None]]) -> None:
        async def begun() -> None:
            await work()
            self._customers -= 1

        self._customers += 1
        self._world.loop.spawn(self._world.process, begun())

    async def _order(self, order: PlannedOrder) -> None:
        """A customer places an order, and perhaps cancels it."""
        await asyncio.sleep(order.at_seconds)
        self._world.trace.note("customer", f"places {order.key}, {order.command.order_id}")
        if order.over_broker:
            self._sent.append(order)
            self._command(order)
        else:
            command_id = derived_id(order.key, order.command.type)
            await self._ask("order", order.command, command_id, order.command.priority)
        if order.cancelled_after_seconds is None:
            return
        await asyncio.sleep(order.cancelled_after_seconds)
        cancel = CancelOrder(order_id=order.command.order_id)
        outcome = await self._ask("order", cancel, None, order.command.priority)
        if isinstance(outcome, Done) and any(
            isinstance(event.data, OrderCancelled) for event in outcome.events
        ):
            self._world.trace.note("customer", f"has cancelled {order.key}")
            self.cancelled.add(order.command.subject)

    def _command(self, order: PlannedOrder) -> None:
        """Place an order over the broker, twice if the confirm is lost."""
        envelope = wrap(
            order.command,
            id=order.key,
            source=source_of("customer"),
            time=EPOCH + timedelta(seconds=self._world.loop.time()),
            priority=order.command.priority,
        )
        body = envelope.to_bytes()
        for _ in range(2 if self._world.weather.happens(self._world.weather.rates.reset) else 1):
            posting = posting_of(body, intake_queue("order", envelope.priority))
            self._publish("", posting.routing_key, body, posting.properties)

    def send_again(self) -> None:
        """The broker was lost: who placed an order over it that is in no book does so again."""
        known = self._world.stores["order"].run(
            lambda c: {*c.scalars(sa.select(orders.c.order_id))}
        )
        for order in self._sent:
            if order.command.subject not in known:
                self._command(order)

    def _publish(self, exchange: str, key: str, body: bytes, properties: bytes) -> None:
        self._world.trace.note("broker", f"{key} from outside")
        self._world.broker.publish(exchange, key, body, properties)

    async def _ask(
        self, participant: str, command: Command, id: str | None, priority: Priority
    ) -> Done | Duplicate:
        """Have a command carried out over HTTP, asked again until there is an answer."""
        while True:
            servers = [s for s in self._world.replicas(participant) if s.kernel is not None]
            if servers:
                answer: asyncio.Future[Any] = self._world.loop.create_future()
                server = self._chance.choice(servers)
                self._world.loop.spawn(
                    server.process, self._serve(server, command, id, priority, answer)
                )
                try:
                    async with asyncio.timeout(REPLY_TIMEOUT_SECONDS):
                        outcome = await answer
                except TimeoutError:
                    outcome = None
                if isinstance(outcome, Done | Duplicate):
                    return outcome
            await asyncio.sleep(self._world.weather.seconds(1.0))

    async def _serve(
        self,
        server: Server,
        command: Command,
        id: str | None,
        priority: Priority,
        answer: asyncio.Future[Any],
    ) -> None:
        """A request's way through a service."""
        assert server.kernel is not None  # noqa: S101 - it was asked for that
        try:
            outcome: Any = await server.kernel.give(command, id=id, priority=priority)
        except (sa.exc.IntegrityError, UnknownOrder):
            outcome = None
        self._world.loop.call_later(
            self._world.weather.latency(),
            settle,
            answer,
            outcome,
            context=self._world.process.context,
        )

    async def _operate(self) -> None:
        """Replay dead letters, over and over; leave those that nobody can read."""
        while True:
            await asyncio.sleep(OPERATOR_SECONDS)
            for participant in self._world.choreography.participants:
                self._replay(participant.name)
            if not self._world.weather.calm and self._chance.random() < HURRY_SHARE:
                self._hurry()

    def _hurry(self) -> None:
        """Bring forward the deadline of some order."""
        servers = [s for s in self._world.replicas("order") if s.kernel is not None]
        known = self._world.stores["order"].run(ORDERS.due)
        if not servers or not known:
            return
        server, (order_id, _) = self._chance.choice(servers), self._chance.choice(known)
        order = self._world.stores["order"].run(lambda c: ORDERS.find(c, order_id))
        firing = order and Firing.of(order, brought_forward=True)
        if firing and server.kernel:
            self._world.trace.note("operator", f"brings forward what is due about {order_id}")
            self.brought_forward.add(order_id)
            self._world.loop.spawn(server.process, self._bring_forward(server.kernel, firing))

    async def _bring_forward(self, kernel: Kernel, firing: Firing) -> None:
        with contextlib.suppress(sa.exc.IntegrityError):
            await kernel.fire(firing)

    def _replay(self, participant: str) -> None:
        channel = self._world.broker.channel()
        while (delivery := channel.get(dead_letter_queue(participant))) is not None:
            message = delivery.message
            copy = letters.copy_of(delivered(message), participant, EPOCH)
            if copy.reason != Reason.FAILED:
                continue
            self._world.trace.note(
                "operator", f"replays {copy.type} {copy.key[:8]} to {copy.queue}"
            )
            again = letters.posting_of(copy, copy.replays + 1)
            self._world.broker.publish("", copy.queue, again.body, again.properties)
            if self._world.weather.happens(0.1):
                self._world.trace.note("operator", "is killed before the acknowledgement")
                break
            channel.ack(delivery.tag)
        channel.close()

    def _letters_left(self) -> bool:
        """Whether there is a dead letter to replay."""
        return any(
            letters.copy_of(delivered(message), participant.name, EPOCH).reason == Reason.FAILED
            for participant in self._world.choreography.participants
            for message in self._world.broker.messages_in(dead_letter_queue(participant.name))
        )
