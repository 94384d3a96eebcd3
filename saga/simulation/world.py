"""One run: the services, their customers and an operator, in whatever weather the seed brings."""

from __future__ import annotations

import asyncio
import importlib
import random
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterator
from dataclasses import replace
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from common.choreography import Choreography
from common.envelope import derived_id, source_of, wrap
from common.events import OrderCancelled
from common.kernel.groups import Done, Duplicate
from common.message import Command, Priority
from common.messaging.dead_letters import ERROR_TYPE, Reason, attempts_in
from common.messaging.publisher import message_of
from common.messaging.topology import (
    EVENTS_EXCHANGE,
    dead_letter_queue,
    intake_queue,
    queues_of,
    topology_of,
    wait_queue,
)
from common.retry import RUNGS_MS
from common.service import Service
from common.settings import Settings
from notification_service import app as notification_app
from notification_service.mail import Mailer, Writer, address_book
from order_service.app import expire_overdue
from order_service.domain import CancelOrder, OrderStatus, UnknownOrder
from order_service.store import orders
from payment_service import app as payment_app
from saga import discovery
from saga.dlq import letters
from saga.reconcile.rules import Violation
from saga.simulation.broker import EPOCH, Message
from saga.simulation.database import Store
from saga.simulation.loop import Process, SimulatedLoop, settle
from saga.simulation.mailer import SimulatedMailer
from saga.simulation.network import Network, UnrulyBroker, describe
from saga.simulation.provider import SimulatedProvider
from saga.simulation.server import Parts, Server
from saga.simulation.trace import Trace
from saga.simulation.weather import Weather
from saga.simulation.workload import NEVER_SECONDS, Plan, PlannedOrder, plan

RESTART_MAX_SECONDS = 5.0
STARTING_SHARE = 0.1
"""How likely a process is killed while it starts, compared to when it has."""
FREEZE_MAX_SECONDS = 20.0
SKEW_MAX_SECONDS = 2.0
REPLY_TIMEOUT_SECONDS = 5.0
"""How long a customer waits for the answer to a request before trying again."""
EXPIRY_POLL_SECONDS = 5.0
OUTAGE_SHARE = 0.1
"""Runs in which a service that orders need is away for `OUTAGE_SECONDS`."""
OUTAGE_SECONDS = 120.0
OPERATOR_SECONDS = 4.0
"""How often the operator looks for dead letters."""
REST_SECONDS = 1.0
"""How often is looked whether everything has come to rest."""
PATIENCE_SECONDS = 1_000.0
"""How long after the storm everything must have come to rest: the longest wait for another try is
300 s."""
INFRASTRUCTURE_ERRORS = ("OperationalError", "VersionConflict", "ConnectionError", "TimeoutError")
"""What is nobody's fault and must not use up a message's tries."""
STEPS_MAX = 30_000
"""Steps after which a run is given up: one that goes well takes up to 10,000."""
TROUBLES_MAX = 20
"""Troubles after which a run is given up."""


class Scene:
    """What all runs share: made once, as that takes longer than a run."""

    def __init__(self) -> None:
        self.participants = discovery.participants()
        self.choreography = Choreography(self.participants.values())
        self.topology = topology_of(self.choreography)
        self.apps = {
            package: importlib.import_module(f"{package}.app") for package in self.participants
        }
        self.stores = {
            participant.name: Store(importlib.import_module(f"{package}.store").TABLES)
            for package, participant in self.participants.items()
        }
        """By participant."""
        self._writer = Writer("orders@shop.example", address_book("{customer}@shop.example"))

    def service(self, package: str, provider: SimulatedProvider, mailer: Mailer) -> Service:
        """The service of a package; where it asks the outside, that is simulated."""
        if package == payment_app.__package__:
            return payment_app.build_with(provider)
        if package == notification_app.__package__:
            return notification_app.build_with(self._writer, mailer)
        service: Service = self.apps[package].build(Settings.model_construct())
        # Looking less often for what is overdue saves a tenth of a run.
        patiently = partial(expire_overdue, poll_seconds=EXPIRY_POLL_SECONDS)
        tasks = (patiently if task is expire_overdue else task for task in service.tasks)
        return replace(service, tasks=tuple(tasks))

    def close(self) -> None:
        for store in self.stores.values():
            store.close()


class World:
    """A run, from the first order until everything is at rest."""

    def __init__(self, seed: int, scene: Scene, parts: Parts) -> None:
        self.seed = seed
        self.choreography = scene.choreography
        self.stores = scene.stores
        for store in self.stores.values():
            store.empty()
        chance = _stream(seed, "schedule")
        self.loop = SimulatedLoop(chance)
        self.trace = Trace(self.loop)
        self.weather = Weather(_stream(seed, "weather"))
        self.process = Process("world")
        self.broker = UnrulyBroker(self.loop, self.weather, self.trace)
        self.broker.apply(scene.topology)
        self.network = Network(self.loop, self.broker, self.weather, self.trace, self.process)
        self.plan: Plan = plan(_stream(seed, "plan"))
        self.provider = SimulatedProvider(
            self.loop, self.weather, self.trace, self.process, self.plan.declines
        )
        self.mailer = SimulatedMailer(self.loop, self.weather, self.trace, self.process)
        self.troubles: list[Violation] = []
        """What must not happen, and did."""
        self.cancelled: set[str] = set()
        """Orders whose customers were told that they are cancelled."""
        self.at_rest = False
        self._chance = chance
        self._busy = 0
        """Customers that still want something."""
        self._servers = self._build(scene, parts)
        self._until_crash = self.weather.steps_until(self.weather.rates.crash)
        self._until_freeze = self.weather.steps_until(self.weather.rates.freeze)
        self._doomed: set[Process] = set()
        self._tries: defaultdict[tuple[Process, bytes], set[int]] = defaultdict(set)
        """How often the messages that a process has got had failed before, by their bodies."""
        self.network.on_crash = self._doom
        self.loop.before_step = self._before_step
        self.loop.on_error = self._on_error
        self.network.on_publish = self._on_publish
        self.network.on_deliver = self._on_deliver

    @property
    def servers(self) -> Collection[Server]:
        """All replicas of all services."""
        return self._servers.values()

    def run(self) -> None:
        """Run to the end."""
        for server in self._servers.values():
            server.start()
        self.loop.spawn(self.process, self._live())
        try:
            self.loop.run(self.weather.storm_seconds + PATIENCE_SECONDS)
        finally:
            for process in (self.process, *(server.process for server in self.servers)):
                self.loop.end(process)
            self.loop.close()

    # --- services ----------------------------------------------------------------------------

    def _build(self, scene: Scene, parts: Parts) -> dict[str, Server]:
        ids = _stream(self.seed, "ids")
        replicas = self._chance.choice((1, 1, 2))
        skewed = self._chance.random() < 0.3
        prefetch = self._chance.choice((1, 3, 300))
        group_max = self._chance.choice((2, 128))
        # Renewing it is most of what replicas do when there is nothing to do.
        lease_seconds = self._chance.choice((10.0, 30.0))
        servers = {}
        for package, participant in scene.participants.items():
            for number in range(1, replicas + 1):
                name = participant.name if replicas == 1 else f"{participant.name}-{number}"
                skew = self._chance.uniform(-1, 1) * SKEW_MAX_SECONDS if skewed else 0.0
                servers[name] = Server(
                    name,
                    scene.service(package, self.provider, self.mailer),
                    self.stores[participant.name],
                    self.network,
                    parts=parts,
                    shared=replicas > 1,
                    prefetch=prefetch,
                    group_max=group_max,
                    lease_seconds=lease_seconds,
                    skew_seconds=skew,
                    new_id=lambda: UUID(int=ids.getrandbits(128), version=4),
                    jitter=self._chance.uniform,
                    on_end=self._on_end,
                )
        return servers

    def _before_step(self, process: Process) -> None:
        """A process is about to run a callback: the storm may kill or freeze it."""
        if self.weather.calm or process is self.process:
            return
        server = self._servers[process.name]
        # One that is killed again and again while it starts shows little.
        self._until_crash -= 1.0 if server.kernel is not None else STARTING_SHARE
        self._until_freeze -= 1
        if process in self._doomed:
            self._crash(server, "is killed, having sent something")
        elif self._until_crash <= 0:
            self._until_crash = self.weather.steps_until(self.weather.rates.crash)
            self._crash(server, "is killed")
        elif self._until_freeze <= 0:
            self._until_freeze = self.weather.steps_until(self.weather.rates.freeze)
            seconds = self.weather.seconds(FREEZE_MAX_SECONDS)
            self.trace.note(process.name, f"freezes for {seconds:.3f} s")
            self.loop.freeze(process, seconds)

    def _doom(self, process: Process) -> None:
        """Have a process killed before it does anything more."""
        if self._servers[process.name].kernel is not None or self._chance.random() < STARTING_SHARE:
            self._doomed.add(process)

    def _crash(self, server: Server, how: str) -> None:
        seconds = 0.0 if self.weather.calm else self.weather.seconds(RESTART_MAX_SECONDS)
        self._kill(server, how, seconds)

    def _take_away(self, participant: str) -> None:
        for server in self._replicas(participant):
            self._kill(server, "is killed, and away for minutes", OUTAGE_SECONDS)

    def _kill(self, server: Server, how: str, away_seconds: float) -> None:
        self.trace.note(server.name, how)
        server.kill()
        self.loop.call_later(away_seconds, server.start, context=self.process.context)

    def _replicas(self, participant: str) -> list[Server]:
        return [s for s in self.servers if s.service.participant.name == participant]

    def _on_end(self, server: Server, error: Exception) -> None:
        self._crash(server, f"ends: {type(error).__name__}: {error}")

    # --- what must not happen ----------------------------------------------------------------

    def _on_error(self, message: str, error: BaseException | None) -> None:
        self.trouble("unhandled", f"{message}: {error!r}" if error else message)

    def _on_deliver(self, process: Process, message: Message) -> None:
        self._tries[process, message.body].add(attempts_in(message.properties.headers))

    def _on_publish(self, process: Process, message: Message) -> None:
        """A message of a service arrives at the broker."""
        if message.exchange == EVENTS_EXCHANGE:
            self._check_event(self._servers[process.name], message)
        else:
            self._check_copy(process, message)

    def _check_event(self, server: Server, message: Message) -> None:
        """An event must have been committed before it is published."""
        event_id = message.properties.message_id or ""
        if not self.stores[server.service.participant.name].has_committed(event_id, message.body):
            self.trouble(
                "published_uncommitted",
                f"{message.routing_key} {event_id} of {server.name} was published, "
                f"and never committed so",
            )

    def _check_copy(self, process: Process, message: Message) -> None:
        """What is set aside must be a copy of what was delivered, with one try more, and not for
        something that no message can help."""
        headers = message.properties.headers or {}
        tries = attempts_in(headers)
        if tries - 1 not in self._tries[process, message.body]:
            self.trouble(
                "tries_not_counted", f"{describe(message)} was set aside after try {tries}"
            )
        if headers.get(ERROR_TYPE) in INFRASTRUCTURE_ERRORS:
            self.trouble(
                "infrastructure_blamed",
                f"{describe(message)} was set aside for {headers[ERROR_TYPE]!r}",
            )

    def trouble(self, kind: str, detail: str) -> None:
        self.trace.note("TROUBLE", f"{kind}: {detail}")
        self.troubles.append(Violation(kind, "", detail))
        if len(self.troubles) == TROUBLES_MAX:
            self.loop.stop()

    def queues(self) -> Iterator[str]:
        """The queues that are empty at rest."""
        yield from self._work_queues()
        yield from map(wait_queue, RUNGS_MS)

    def _work_queues(self) -> Iterator[str]:
        for participant in self.choreography.participants:
            yield from queues_of(participant)

    # --- customers and the operator ------------------------------------------------------------

    async def _live(self) -> None:
        for item in self.plan.stock:
            await self._ask("inventory", item, derived_id("stock", item.sku), Priority.NORMAL)
        self.trace.note("world", "the storm begins")
        self.weather.calm = False
        if self._chance.random() < OUTAGE_SHARE:
            self._take_away(self._chance.choice(("inventory", "payment")))
        for order in self.plan.orders:
            self._begin(partial(self._order, order))
        for key, body in self.plan.malformed:
            self._publish(EVENTS_EXCHANGE, key, body, Basic.Properties(message_id="malformed"))
        self._begin(self._operate)
        self._busy -= 1  # The operator is never done.
        self._look()
        await asyncio.sleep(self.weather.storm_seconds)
        self.trace.note("world", "the storm is over")
        self.weather.calm = True
        self.network.calm()

    def _look(self) -> None:
        """End the run once it is at rest, or goes round in circles."""
        self.at_rest = self._rests()
        if self.at_rest or self.loop.steps > STEPS_MAX:
            self.loop.stop()
        else:
            self.loop.call_later(REST_SECONDS, self._look)

    def _begin(self, work: Callable[[], Awaitable[None]]) -> None:
        async def begun() -> None:
            await work()
            self._busy -= 1

        self._busy += 1
        self.loop.spawn(self.process, begun())

    async def _order(self, order: PlannedOrder) -> None:
        """A customer places an order, and perhaps cancels it."""
        await asyncio.sleep(order.at_seconds)
        self.trace.note("customer", f"places {order.key}, {order.command.order_id}")
        if order.over_broker:
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
            self.trace.note("customer", f"has cancelled {order.key}")
            self.cancelled.add(order.command.subject)

    def _command(self, order: PlannedOrder) -> None:
        """Place an order over the broker, twice if the confirm is lost."""
        envelope = wrap(
            order.command,
            id=order.key,
            source=source_of("customer"),
            time=EPOCH + timedelta(seconds=self.loop.time()),
            priority=order.command.priority,
        )
        body = envelope.to_bytes()
        for _ in range(2 if self.weather.happens(self.weather.rates.reset) else 1):
            self._publish(
                "", intake_queue("order", envelope.priority), body, message_of(body).properties
            )

    def _publish(self, exchange: str, key: str, body: bytes, properties: Basic.Properties) -> None:
        self.trace.note("broker", f"{key} from outside")
        self.broker.publish(exchange, key, body, properties)

    async def _ask(
        self, participant: str, command: Command, id: str | None, priority: Priority
    ) -> Done | Duplicate:
        """Have a command carried out over HTTP, asked again until there is an answer."""
        while True:
            servers = [s for s in self._replicas(participant) if s.kernel is not None]
            if servers:
                answer: asyncio.Future[Any] = self.loop.create_future()
                server = self._chance.choice(servers)
                self.loop.spawn(server.process, self._serve(server, command, id, priority, answer))
                try:
                    async with asyncio.timeout(REPLY_TIMEOUT_SECONDS):
                        outcome = await answer
                except TimeoutError:
                    outcome = None
                if isinstance(outcome, Done | Duplicate):
                    return outcome
            await asyncio.sleep(self.weather.seconds(1.0))

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
        self.loop.call_later(
            self.weather.latency(), settle, answer, outcome, context=self.process.context
        )

    async def _operate(self) -> None:
        """Replay dead letters, over and over; leave those that nobody can read."""
        while True:
            await asyncio.sleep(OPERATOR_SECONDS)
            for participant in self.choreography.participants:
                self._replay(participant.name)

    def _replay(self, participant: str) -> None:
        channel = self.broker.channel()
        while (delivery := channel.get(dead_letter_queue(participant))) is not None:
            message = delivery.message
            copy = letters.copy_of(delivered(message), participant, EPOCH)
            if copy.reason != Reason.FAILED:
                continue
            self.trace.note("operator", f"replays {copy.type} {copy.key[:8]} to {copy.queue}")
            again = letters.message_of(copy, copy.replays + 1)
            self.broker.publish("", copy.queue, again.body, again.properties)
            if self.weather.happens(0.1):
                self.trace.note("operator", "is killed before the acknowledgement")
                break
            channel.ack(delivery.tag)
        channel.close()

    # --- the end -------------------------------------------------------------------------------

    def _rests(self) -> bool:
        """Whether nothing will happen any more."""
        return (
            not self._busy
            and not any(map(self.broker.load_of, self.queues()))
            and all(server.kernel and server.kernel.idle for server in self._servers.values())
            and not any(store.unpublished() for store in self.stores.values())
            and not self._replayable()
            and not self._pending()
        )

    def _replayable(self) -> bool:
        return any(
            letters.copy_of(delivered(message), participant.name, EPOCH).reason == Reason.FAILED
            for participant in self.choreography.participants
            for message in self.broker.messages_in(dead_letter_queue(participant.name))
        )

    def _pending(self) -> bool:
        """Whether an order will still be cancelled for its deadline."""
        ends = EPOCH + timedelta(seconds=NEVER_SECONDS / 2)
        query = sa.select(orders.c.order_id).where(
            orders.c.status == OrderStatus.PENDING, orders.c.deadline < ends
        )
        return (
            self.stores["order"].run(lambda connection: connection.execute(query).first())
            is not None
        )


def _stream(seed: int, name: str) -> random.Random:
    """Random numbers of their own for each purpose."""
    return random.Random(f"{seed}/{name}")


def delivered(message: Message) -> DeliveredMessage:
    """A message as whoever fetches it gets it."""
    return DeliveredMessage(
        delivery=Basic.GetOk(1, False, message.exchange, message.routing_key),
        header=ContentHeader(properties=message.properties, body_size=len(message.body)),
        body=message.body,
        channel=None,  # type: ignore[arg-type]  # nothing is asked of it
    )
