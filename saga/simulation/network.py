"""Connections between processes and the broker, and all that can go wrong with them.

To a process they look like those of `saga.runtime.messaging.wire`. Frames of one connection arrive
in the order they were sent, as long as it lasts.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import aiormq

from saga.runtime.messaging.connection import RETRY_SECONDS, BrokerError
from saga.runtime.messaging.frames import FRAME_MAX_BYTES, Delivery, Posting
from saga.runtime.messaging.wire import ChannelLost, NotTaken, Unroutable
from saga.simulation.broker import (
    BrokerChannel,
    BrokerDelivery,
    ChannelClosed,
    PublishedMessage,
)
from saga.simulation.faults import fault, is_fault
from saga.simulation.loop import SimulatedLoop, SimulatedProcess, current_process, settle
from saga.simulation.trace import SimulationTrace
from saga.simulation.unruly import UnrulyBroker, describe
from saga.simulation.weather import FaultSchedule

Taker = Callable[[Any, Delivery], None]
"""See `saga.runtime.messaging.wire.Taker`."""
OnDeliver = Callable[[SimulatedProcess, object, int, str, PublishedMessage], None]
SLOW_SECONDS = 45.0
"""What a slow frame may take: longer than a publisher waits for its confirm."""
NOTICE_MAX_SECONDS = 33.0
"""How long it may take either side to know that a connection is stuck: three heartbeats."""
AWAY_MAX_SECONDS = 15.0
"""How long the broker, or the way to it, may be away."""


class _Line:
    """One direction of a connection."""

    def __init__(self, connection: SimulatedConnection, receiver: SimulatedProcess) -> None:
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
        if weather.hits("slow_frame"):
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
        weather: FaultSchedule,
        trace: SimulationTrace,
        world: SimulatedProcess,
    ) -> None:
        self.loop = loop
        self.broker = broker
        self.weather = weather
        self.trace = trace
        self.world = world
        """The process that the broker's side of things belongs to."""
        self.on_crash: Callable[[SimulatedProcess], None] = lambda _: None
        """Called with a process that is to be killed before it does anything more."""
        self.on_publish: Callable[[SimulatedProcess, PublishedMessage], None] = lambda _, __: None
        """Called with what arrives at the broker, and from whom."""
        self.on_taken: Callable[[PublishedMessage], None] = lambda _: None
        """Called with what the broker takes of that."""
        self.on_deliver: OnDeliver = lambda *_: None
        """Called with what a process gets, and its channel, tag and queue."""
        self.on_channel_lost: Callable[[SimulatedProcess, object], None] = lambda _, __: None
        """Called with a process that gets to know that its channel is no more."""
        self.on_loss: Callable[[float], None] = lambda _: None
        """Called when the broker is lost, with the time at which an empty one lets clients in."""
        self._connections: dict[SimulatedConnection, None] = {}
        self._away_until: dict[SimulatedProcess | None, float] = {}
        """Until when a process cannot connect; None is for all of them."""

    async def connect(self, url: str, *, name: str, patience_seconds: float) -> Any:
        """A connection for the process that asks; see `saga.runtime.messaging.connection.connect`.

        (Typed as `Any` because it is no subclass of aio-pika's.)
        """
        process = current_process()
        deadline = self.loop.time() + patience_seconds
        while True:
            await asyncio.sleep(self.weather.latency())
            if not self._is_away(process):
                return SimulatedConnection(self, process, name)
            if self.loop.time() >= deadline:
                raise fault(BrokerError("cannot reach the simulated broker"))
            await asyncio.sleep(RETRY_SECONDS)

    def on_frame(self, connection: SimulatedConnection, receiver: SimulatedProcess) -> None:
        """A frame is on its way: something may happen to its connection, or its sender."""
        weather = self.weather
        if receiver is self.world and weather.hits("crash_at_frame"):
            self.on_crash(connection.process)
        if weather.hits("reset"):
            connection.reset()
        if weather.hits("stuck"):
            connection.stick()
        if weather.hits("partition"):
            self.trace.note("network", f"{connection.process.name} is cut off")
            self._away(connection.process)
            for other in list(self._connections):
                if other.process is connection.process:
                    other.stick()
        if weather.hits("broker_restart"):
            self.trace.note("broker", "is restarted")
            self._away(None)
            self.broker.starts(self._away_until[None])
            self._reset_all()
        if weather.hits("broker_forgets"):
            self.trace.note("broker", "is lost")
            self._away(None)
            self.on_loss(self._away_until[None])
            self._reset_all()

    def _reset_all(self) -> None:
        for connection in list(self._connections):
            connection.reset()

    def _away(self, process: SimulatedProcess | None) -> None:
        self._away_until[process] = self.loop.time() + self.weather.seconds(AWAY_MAX_SECONDS)

    def _is_away(self, process: SimulatedProcess) -> bool:
        return self.loop.time() < max(self._away_until.get(who, 0.0) for who in (process, None))

    def calm(self) -> None:
        """Let all processes reach the broker."""
        self._away_until.clear()

    def ended(self, process: SimulatedProcess) -> None:
        """A process was killed: its machine closes its connections."""
        for connection in list(self._connections):
            if connection.process is process:
                connection.end(what_was_sent_arrives=self.weather.happens(0.5))


class SimulatedConnection:
    """A connection, with both its sides."""

    def __init__(self, network: Network, process: SimulatedProcess, name: str) -> None:
        self.network = network
        self.process = process
        self.name = name
        self.connected = asyncio.Event()
        self.connected.set()
        self.lost = asyncio.Event()
        self.up = _Line(self, network.world)
        self.down = _Line(self, process)
        self.channels: list[ClientChannel] = []
        self._server_channels: list[BrokerChannel] = []
        network._connections[self] = None
        network.trace.note(process.name, f"connects ({name})")

    # The process's side.

    async def open_channel(self, *, confirms: bool = False) -> ClientChannel:
        """Open a channel. Raises `ChannelLost` on a connection that is lost by now."""
        if self.lost.is_set():
            raise fault(ChannelLost("the connection is lost"))
        channel = ClientChannel(self)
        self.channels.append(channel)
        await channel.ask(self._open, channel)
        return channel

    async def close(self) -> None:
        """Disconnect."""
        if not self.lost.is_set():
            self._lose(ChannelLost("closed by us"))
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

    def _open(self, channel: ClientChannel, answer: asyncio.Future[None]) -> None:
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
        error = fault(ChannelLost("the connection was reset"))
        self._later(self.network.weather.latency(), self.process, self._lose, error)

    def stick(self) -> None:
        """Either side knows only after a while, each for itself."""
        if self.up.cut:
            return
        self.network.trace.note("network", f"{self.process.name}'s {self.name} is stuck")
        self._cut()
        for receiver, notice in (
            (self.network.world, self._disconnect),
            (self.process, lambda: self._lose(fault(ChannelLost("no heartbeat came")))),
        ):
            self._later(self.network.weather.seconds(NOTICE_MAX_SECONDS), receiver, notice)

    def _cut(self) -> None:
        self.up.cut = self.down.cut = True

    def _later(
        self,
        seconds: float,
        process: SimulatedProcess,
        callback: Callable[..., None],
        *arguments: Any,
    ) -> None:
        self.network.loop.call_later(seconds, callback, *arguments, context=process.context)


class ClientChannel:
    """A channel as a process has it."""

    def __init__(self, connection: SimulatedConnection) -> None:
        self.connection = connection
        self.lost = ""
        self._is_fault = False
        self.on_lost: list[Callable[[], None]] = []
        self.server: BrokerChannel
        self._answers: list[asyncio.Future[Any]] = []
        """What was asked of the broker."""

    @property
    def frame_max(self) -> int:
        return FRAME_MAX_BYTES

    def ask(self, receive: Callable[..., None], *arguments: Any) -> asyncio.Future[Any]:
        """Send a frame to the broker's side; return what its answer will be."""
        if self.lost:
            lost = ChannelLost(self.lost)
            raise fault(lost) if self._is_fault else lost
        answer: asyncio.Future[Any] = self.connection.network.loop.create_future()
        self._answers.append(answer)
        self.connection.up.send(receive, *arguments, answer)
        return answer

    def lose(self, error: BaseException) -> None:
        """The channel is no more: what waits for an answer gets an error."""
        if self.lost:
            return
        self._is_fault = is_fault(error)
        self.connection.network.on_channel_lost(self.connection.process, self)
        self.lost = str(error) or "the connection was stuck"
        for answer in self._answers:
            settle(answer, error)
        callbacks, self.on_lost = self.on_lost, []
        for callback in callbacks:
            callback()

    async def look_at(self, queue: str) -> Any:
        """Say how many consumers a queue has."""
        return await self.ask(self._look_at, queue)

    def _look_at(self, name: str, answer: asyncio.Future[Any]) -> None:
        broker = self.connection.network.broker
        if not broker.has(name):
            self._refuse(aiormq.exceptions.ChannelNotFoundEntity(f"no queue '{name}'"))
            return
        found = SimpleNamespace(consumer_count=broker.consumers_of(name))
        self.connection.down.send(settle, answer, found)

    def _refuse(self, error: Exception) -> None:
        """The broker closes the channel."""
        self.server.close()
        self.connection.down.send(self.lose, error)

    async def close(self) -> None:
        if not self.lost:
            self.lose(ChannelLost("closed by us"))
            self.connection.up.send(self.server.close)

    # Consuming.

    async def consume(self, queue: str, taker: Taker, prefetch: int) -> None:
        """Start the delivery of a queue's messages."""

        def deliver(delivery: BrokerDelivery) -> None:
            self.connection.down.send(self._deliver, taker, queue, delivery)

        def start(answer: asyncio.Future[None]) -> None:
            self.connection.down.send(settle, answer, None)
            self.server.consume(queue, deliver, prefetch=prefetch)

        await self.ask(start)

    def _deliver(self, taker: Taker, queue: str, delivery: BrokerDelivery) -> None:
        if self.lost:
            return
        network = self.connection.network
        network.trace.note(
            self.connection.process.name,
            f"gets {describe(delivery.message)} from {queue}, tag {delivery.tag}"
            f"{', again' if delivery.redelivered else ''}",
        )
        network.on_deliver(self.connection.process, self, delivery.tag, queue, delivery.message)
        try:
            taker(self, _incoming(delivery))
        except Exception as error:
            network.loop.on_error("a delivery's taker failed", error)

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        if self.lost:
            raise ChannelLost(self.lost)
        self.connection.up.send(self._acknowledge, tag, multiple)

    def nack(self, tag: int, *, multiple: bool = False, requeue: bool = True) -> None:
        if self.lost:
            raise ChannelLost(self.lost)
        self.connection.up.send(self._give_back, tag, multiple, requeue)

    def _give_back(self, tag: int, multiple: bool, requeue: bool) -> None:
        if not self.server.is_closed:
            self.server.nack(tag, multiple=multiple, requeue=requeue)

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

    async def publish(
        self, exchange: str, postings: Sequence[Posting], timeout_seconds: float
    ) -> list[Exception | None]:
        """See `saga.runtime.messaging.wire.Channel.publish`."""
        answers = [
            self.ask(
                self._publish,
                PublishedMessage(exchange, posting.routing_key, posting.properties, posting.body),
            )
            for posting in postings
        ]
        await asyncio.wait(answers, timeout=timeout_seconds)
        return [_error(answer) for answer in answers]

    def _publish(self, published: PublishedMessage, answer: asyncio.Future[Any]) -> None:
        """What the broker does with what was published to it."""
        network, down = self.connection.network, self.connection.down
        weather = network.weather
        if self.server.is_closed:
            return
        refused = weather.strikes(
            "refused_publish", self.connection.process.name, published.properties.type or ""
        )
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
            network.on_taken(published)
            try:
                routed = network.broker.publish(
                    published.exchange,
                    published.routing_key,
                    published.body,
                    published.raw,
                )
            except ChannelClosed as error:
                self._refuse(ChannelLost(error.text))
                return
        if refused:
            down.send(settle, answer, NotTaken("refused"))
        elif not routed:
            network.loop.on_error(f"{published.routing_key} is unroutable", None)
            down.send(settle, answer, Unroutable(published.routing_key))
        else:
            down.send(settle, answer, None)


async def read(network: Network, name: str, takers: Mapping[str, Taker], prefetch: int) -> None:
    """Read queues, for ever: what FastStream and aio-pika's robust connection do."""
    while True:
        try:
            connection = await network.connect("", name=name, patience_seconds=0)
            for queue, taker in takers.items():
                channel = await connection.open_channel()
                await channel.consume(queue, taker, prefetch)
        except (BrokerError, ConnectionError, aiormq.exceptions.AMQPError):
            await asyncio.sleep(RETRY_SECONDS)
            continue
        await connection.lost.wait()
        await asyncio.sleep(RETRY_SECONDS)


def delivered(message: PublishedMessage) -> Delivery:
    """A message as its reader gets it."""
    return Delivery(1, False, message.exchange, message.routing_key, message.raw, message.body)


def _incoming(delivery: BrokerDelivery) -> Delivery:
    message = delivery.message
    return Delivery(
        delivery.tag,
        delivery.redelivered,
        message.exchange,
        message.routing_key,
        message.raw,
        message.body,
    )


def _error(answer: asyncio.Future[None]) -> Exception | None:
    if not answer.done():
        return TimeoutError("no confirm in time")
    error = answer.exception()
    assert error is None or isinstance(error, Exception)  # noqa: S101 - it is not cancelled
    return error
