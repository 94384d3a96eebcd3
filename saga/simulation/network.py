"""Connections between processes and the broker, and all that can go wrong with them.

To a process they look like aio-pika's and aiormq's, as far as the saga uses those. Frames of one
connection arrive in the order they were sent, as long as it lasts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import aio_pika
import aiormq
from aiormq.abc import DeliveredMessage
from pamqp.commands import Basic
from pamqp.header import ContentHeader

from common.messaging.connection import RETRY_SECONDS, BrokerError
from common.messaging.consumer import Handler
from common.messaging.pipeline import Posting
from saga.simulation.broker import Channel as BrokerChannel
from saga.simulation.broker import ChannelClosed, Delivery, Message
from saga.simulation.loop import Process, SimulatedLoop, current_process, settle
from saga.simulation.trace import Trace
from saga.simulation.unruly import UnrulyBroker, describe
from saga.simulation.weather import Weather

SLOW_SECONDS = 45.0
"""What a slow frame may take: longer than a publisher waits for its confirm."""
NOTICE_MAX_SECONDS = 33.0
"""How long it may take either side to know that a connection is stuck: three heartbeats."""
AWAY_MAX_SECONDS = 15.0
"""How long the broker, or the way to it, may be away."""


class _Line:
    """One direction of a connection."""

    def __init__(self, connection: Connection, receiver: Process) -> None:
        self._connection = connection
        self._network = connection.network
        self._receiver = receiver
        self._frames: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._slow_until = 0.0
        self.cut = False

    def send(self, receive: Callable[..., None], *arguments: Any) -> None:
        if self.cut:
            return
        weather, loop = self._network.weather, self._network.loop
        self._frames.append((receive, arguments))
        if weather.happens(weather.rates.slow_frame):
            self._slow_until = loop.time() + weather.seconds(SLOW_SECONDS)
        latency = max(weather.latency(), self._slow_until - loop.time())
        loop.call_later(latency, self._arrive, context=self._receiver.context)
        self._network.on_frame(self._connection, self._receiver)

    def _arrive(self) -> None:
        if not self.cut:
            # Whichever timer it is that ends: the order is that of sending.
            receive, arguments = self._frames.popleft()
            receive(*arguments)


class Network:
    """All connections there are."""

    def __init__(
        self,
        loop: SimulatedLoop,
        broker: UnrulyBroker,
        weather: Weather,
        trace: Trace,
        world: Process,
    ) -> None:
        self.loop = loop
        self.broker = broker
        self.weather = weather
        self.trace = trace
        self.world = world
        """The process that the broker's side of things belongs to."""
        self.on_crash: Callable[[Process], None] = lambda _: None
        """Called with a process that is to be killed before it does anything more."""
        self.on_publish: Callable[[Process, Message], None] = lambda _, __: None
        """Called with what arrives at the broker, and from whom."""
        self.on_deliver: Callable[[Process, Message], None] = lambda _, __: None
        """Called with what a process gets."""
        self._connections: dict[Connection, None] = {}
        self._away_until: dict[Process | None, float] = {}
        """Until when a process cannot connect; None is for all of them."""

    async def connect(self, url: str, *, name: str, patience_seconds: float) -> Any:
        """A connection for the process that asks; see `common.messaging.connection.connect`.

        (Typed as `Any` because it is no subclass of aio-pika's.)
        """
        process = current_process()
        deadline = self.loop.time() + patience_seconds
        while True:
            await asyncio.sleep(self.weather.latency())
            if not self._is_away(process):
                return Connection(self, process, name)
            if self.loop.time() >= deadline:
                raise BrokerError("cannot reach the simulated broker")
            await asyncio.sleep(RETRY_SECONDS)

    def on_frame(self, connection: Connection, receiver: Process) -> None:
        """A frame is on its way: something may happen to its connection, or its sender."""
        weather, rates = self.weather, self.weather.rates
        if receiver is self.world and weather.happens(rates.crash_at_frame):
            self.on_crash(connection.process)
        if weather.happens(rates.reset):
            connection.reset()
        if weather.happens(rates.stuck):
            connection.stick()
        if weather.happens(rates.partition):
            self.trace.note("network", f"{connection.process.name} is cut off")
            self._away(connection.process)
            for other in list(self._connections):
                if other.process is connection.process:
                    other.stick()
        if weather.happens(rates.broker_restart):
            self.trace.note("broker", "is restarted")
            self._away(None)
            self.broker.starts(self._away_until[None])
            for other in list(self._connections):
                other.reset()

    def _away(self, process: Process | None) -> None:
        self._away_until[process] = self.loop.time() + self.weather.seconds(AWAY_MAX_SECONDS)

    def _is_away(self, process: Process) -> bool:
        return self.loop.time() < max(self._away_until.get(who, 0.0) for who in (process, None))

    def calm(self) -> None:
        """Let everybody reach the broker."""
        self._away_until.clear()

    def ended(self, process: Process) -> None:
        """A process was killed: its machine closes its connections."""
        for connection in list(self._connections):
            if connection.process is process:
                connection.end(what_was_sent_arrives=self.weather.happens(0.5))


class Connection:
    """A connection, with both its sides."""

    def __init__(self, network: Network, process: Process, name: str) -> None:
        self.network = network
        self.process = process
        self.name = name
        self.connected = asyncio.Event()
        self.connected.set()
        self.lost = asyncio.Event()
        self.up = _Line(self, network.world)
        self.down = _Line(self, process)
        self.channels: list[Channel] = []
        self._server_channels: list[BrokerChannel] = []
        network._connections[self] = None
        network.trace.note(process.name, f"connects ({name})")

    # The process's side.

    async def channel(self, **_: bool) -> Channel:
        """Open a channel, with confirms."""
        channel = Channel(self)
        self.channels.append(channel)
        await channel.ask(self._open, channel)
        return channel

    async def close(self) -> None:
        """Disconnect."""
        if not self.lost.is_set():
            self._lose(aiormq.exceptions.ConnectionClosed(200, "closed by us"))
            self.end()

    def _lose(self, error: BaseException) -> None:
        """The process gets to know that the connection is no more."""
        if self.lost.is_set():
            return
        self.connected.clear()
        self.lost.set()
        for channel in self.channels:
            channel.lose(error)

    # The broker's side.

    def _open(self, channel: Channel, answer: asyncio.Future[None]) -> None:
        channel.server = self.network.broker.channel()
        self._server_channels.append(channel.server)
        self.down.send(settle, answer, None)

    def _disconnect(self) -> None:
        """The broker gets to know that the connection is no more."""
        self.network._connections.pop(self, None)
        for channel in self._server_channels:
            channel.close()

    # The way between them.

    def end(self, *, what_was_sent_arrives: bool = False) -> None:
        """The process's side is closed."""
        if what_was_sent_arrives:
            self.up.send(self._disconnect)
            self.down.cut = True
        else:
            self._cut()
            self._later(self.network.weather.latency(), self.network.world, self._disconnect)

    def reset(self) -> None:
        """Either side soon knows that nothing comes through any more."""
        if self.up.cut:
            return
        self.network.trace.note("network", f"{self.process.name} loses its {self.name}")
        self.end()
        error = aiormq.exceptions.ConnectionClosed(320, "CONNECTION_FORCED")
        self._later(self.network.weather.latency(), self.process, self._lose, error)

    def stick(self) -> None:
        """Either side knows only after a while, each for itself."""
        if self.up.cut:
            return
        self.network.trace.note("network", f"{self.process.name}'s {self.name} is stuck")
        self._cut()
        for receiver, notice in (
            (self.network.world, self._disconnect),
            # What waits is cancelled by aiormq when heartbeats are missing.
            (self.process, lambda: self._lose(asyncio.CancelledError())),
        ):
            self._later(self.network.weather.seconds(NOTICE_MAX_SECONDS), receiver, notice)

    def _cut(self) -> None:
        self.up.cut = self.down.cut = True

    def _later(
        self, seconds: float, process: Process, callback: Callable[..., None], *arguments: Any
    ) -> None:
        self.network.loop.call_later(seconds, callback, *arguments, context=process.context)


class Channel:
    """A channel as a process has it."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.default_exchange = Exchange(self, "")
        self.is_closed = False
        self.server: BrokerChannel
        self._answers: list[asyncio.Future[Any]] = []
        """What was asked of the broker."""
        self._handling: dict[asyncio.Task[None], None] = {}

    def ask(self, receive: Callable[..., None], *arguments: Any) -> asyncio.Future[Any]:
        """Send a frame to the broker's side; return what its answer will be."""
        if self.is_closed or self.connection.lost.is_set():
            raise aiormq.exceptions.ChannelInvalidStateError("the channel is closed")
        answer: asyncio.Future[Any] = self.connection.network.loop.create_future()
        self._answers.append(answer)
        self.connection.up.send(receive, *arguments, answer)
        return answer

    def lose(self, error: BaseException) -> None:
        """The channel is no more: what waits for an answer gets an error, and what is being handled
        is cancelled."""
        self.is_closed = True
        for answer in self._answers:
            settle(answer, error)
        for task in self._handling:
            task.cancel()

    async def get_exchange(self, name: str, *, ensure: bool) -> Exchange:
        return Exchange(self, name)

    async def declare_queue(self, name: str, *, passive: bool) -> Any:
        """Say how many consumers a queue has."""
        return await self.ask(self._look_at, name)

    def _look_at(self, name: str, answer: asyncio.Future[Any]) -> None:
        broker = self.connection.network.broker
        if not broker.has(name):
            self._refuse(aiormq.exceptions.ChannelNotFoundEntity(f"no queue '{name}'"))
            return
        found = SimpleNamespace(consumer_count=broker.consumers_of(name))
        self.connection.down.send(settle, answer, SimpleNamespace(declaration_result=found))

    def _refuse(self, error: Exception) -> None:
        """The broker closes the channel."""
        self.server.close()
        self.connection.down.send(self.lose, error)

    async def close(self) -> None:
        self.is_closed = True
        self.connection.up.send(self.server.close)

    # Consuming.

    async def consume(self, queue: str, handler: Handler, prefetch: int) -> None:
        """Have a queue's messages handled, each in a task."""

        def deliver(delivery: Delivery) -> None:
            self.connection.down.send(self._deliver, handler, queue, delivery)

        def start(answer: asyncio.Future[None]) -> None:
            self.connection.down.send(settle, answer, None)
            self.server.consume(queue, deliver, prefetch=prefetch)

        await self.ask(start)

    def _deliver(self, handler: Handler, queue: str, delivery: Delivery) -> None:
        if self.is_closed:
            return
        network = self.connection.network
        network.trace.note(
            self.connection.process.name,
            f"gets {describe(delivery.message)} from {queue}, tag {delivery.tag}"
            f"{', again' if delivery.redelivered else ''}",
        )
        network.on_deliver(self.connection.process, delivery.message)
        task = network.loop.create_task(handler(incoming(delivery, self)))
        self._handling[task] = None
        task.add_done_callback(self._handled)

    def _handled(self, task: asyncio.Task[None]) -> None:
        del self._handling[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self.connection.network.loop.on_error("a delivery's handler failed", error)

    async def basic_ack(self, delivery_tag: int, multiple: bool = False, wait: bool = True) -> None:
        if self.is_closed:
            raise aiormq.exceptions.ChannelInvalidStateError("the channel is closed")
        self.connection.up.send(self._acknowledge, delivery_tag, multiple)

    def _acknowledge(self, tag: int, multiple: bool) -> None:
        network = self.connection.network
        if self.server.is_closed:
            return
        try:
            self.server.ack(tag, multiple=multiple)
        except ChannelClosed as error:
            network.loop.on_error(f"{self.connection.process.name} acknowledged wrongly", error)
            self._refuse(aiormq.exceptions.ChannelPreconditionFailed())
        else:
            network.trace.note(
                "broker", f"ack {tag}{' and below' if multiple else ''} of {self.connection.name}"
            )

    # Publishing.

    def publish(self, published: Message, answer: asyncio.Future[Any]) -> None:
        """What the broker does with what was published to it."""
        network, down = self.connection.network, self.connection.down
        weather = network.weather
        if self.server.is_closed:
            return
        refused = weather.happens(weather.rates.refused_publish)
        taken = not refused or weather.happens(0.5)
        network.trace.note(
            "broker",
            f"{describe(published)} from {self.connection.process.name} "
            f"to {published.exchange or published.routing_key}"
            f"{' refused' if refused else ''}{' and not kept' if not taken else ''}",
        )
        network.on_publish(self.connection.process, published)
        routed = True
        if taken:
            try:
                routed = network.broker.publish(
                    published.exchange,
                    published.routing_key,
                    published.body,
                    published.properties,
                )
            except ChannelClosed as error:
                self._refuse(aiormq.exceptions.ChannelNotFoundEntity(error.text))
                return
        if refused:
            down.send(settle, answer, aiormq.exceptions.DeliveryError(None, Basic.Nack()))
        elif not routed:
            network.loop.on_error(f"{published.routing_key} is unroutable", None)
            down.send(settle, answer, aiormq.exceptions.DeliveryError(None, Basic.Return()))
        else:
            down.send(settle, answer, Basic.Ack())


class Exchange:
    """An exchange as a process has it."""

    def __init__(self, channel: Channel, name: str) -> None:
        self._channel = channel
        self._name = name

    async def publish(
        self, message: aio_pika.Message, routing_key: str, *, timeout: float | None = None
    ) -> Any:
        """Publish, and wait for the confirm."""
        async with asyncio.timeout(timeout):
            published = Message(self._name, routing_key, message.properties, message.body)
            return await self._channel.ask(self._channel.publish, published)


async def publish_all(
    channel: Any, exchange: str, postings: Sequence[Posting], timeout_seconds: float
) -> list[object]:
    """See `common.messaging.pipeline.publish_all`."""
    answers = [
        channel.ask(
            channel.publish,
            Message(exchange, posting.routing_key, posting.properties, posting.body),
        )
        for posting in postings
    ]
    await asyncio.wait(answers, timeout=timeout_seconds)
    return [
        answer.exception() or answer.result()
        if answer.done()
        else TimeoutError("no confirm in time")
        for answer in answers
    ]


async def read(network: Network, name: str, handlers: Mapping[str, Handler], prefetch: int) -> None:
    """Have queues read, for ever: what FastStream and aio-pika's robust connection do."""
    while True:
        try:
            connection = await network.connect("", name=name, patience_seconds=0)
            for queue, handler in handlers.items():
                channel = await connection.channel()
                await channel.consume(queue, handler, prefetch)
        except (BrokerError, aiormq.exceptions.AMQPError, asyncio.CancelledError):
            # Nobody cancels this task; see `Connection.stick`.
            await asyncio.sleep(RETRY_SECONDS)
            continue
        await connection.lost.wait()
        await asyncio.sleep(RETRY_SECONDS)


def incoming(delivery: Delivery, channel: Any) -> aio_pika.IncomingMessage:
    """A delivery as a consumer gets it."""
    message = delivery.message
    return aio_pika.IncomingMessage(
        DeliveredMessage(
            delivery=Basic.Deliver(
                consumer_tag="consumer",
                delivery_tag=delivery.tag,
                redelivered=delivery.redelivered,
                exchange=message.exchange,
                routing_key=message.routing_key,
            ),
            header=ContentHeader(properties=message.properties, body_size=len(message.body)),
            body=message.body,
            channel=channel,
        )
    )


def delivered(message: Message) -> DeliveredMessage:
    """A message as whoever fetches it gets it."""
    return DeliveredMessage(
        delivery=Basic.GetOk(1, False, message.exchange, message.routing_key),
        header=ContentHeader(properties=message.properties, body_size=len(message.body)),
        body=message.body,
        channel=None,  # type: ignore[arg-type]  # nothing is asked of it
    )
