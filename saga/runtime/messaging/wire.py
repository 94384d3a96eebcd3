"""What lies between the socket and the AMQP client: hot frames are ours, all others the client's.

A `Wire` is a transport of aiormq's. The client opens, authenticates, tunes, declares, consumes,
beats and closes through it. What a connection carries for each message never reaches the client:
deliveries, gets, publishes, confirms, returns and acknowledgements are read and written by
`saga.runtime.messaging.frames`, in one pass over all that has arrived, without a task, a queue or a
lock.

So no message can close a connection or stop a queue, whatever its properties and headers are, and
each costs a fraction. The client is not patched: the wire knows what belongs to whom from the
frames that pass through it. See docs/decisions/0020.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, cast

import aio_pika
import pamqp.frame
from aio_pika.robust_connection import RobustConnection
from aiormq.abc import AbstractChannel, DeliveredMessage
from aiormq.connection import TransportFactory
from aiormq.exceptions import AMQPConnectionError, InvalidFrameError
from pamqp.commands import Queue
from yarl import URL

from saga.runtime.messaging import frames
from saga.runtime.messaging.frames import Delivery, Posting
from saga.runtime.retry_loop import RetryLoop

log = logging.getLogger(__name__)

_BEAT_SECONDS: Final = 1.0
"""How often the client is told that the connection lives, while it sees nothing of what comes."""

Taker = Callable[["Channel", Delivery], None]
"""Takes a delivery, at once. What waiting there is to do, it starts a task for."""


class ChannelLost(ConnectionError):
    """The channel or its connection is gone. What was under way may be done or not.

    `code` is what the broker has closed it with, 0 where it has not said anything: see
    https://www.rabbitmq.com/docs/channels#error-handling
    """

    def __init__(self, why: str, code: int = 0) -> None:
        super().__init__(why)
        self.code = code


class Unroutable(Exception):
    """No queue takes a message that was published there."""


class NotTaken(Exception):
    """The broker has refused to take a message over."""


class Channel:
    """The hot half of a channel; `client` is its cold half.

    Belongs to one event loop. What is sent is written at once, in the order of the calls.
    """

    def __init__(self, wire: Wire, number: int) -> None:
        self.number = number
        self.client: AbstractChannel | None = None
        """The client's channel of this number, where `Connection.open_channel` has opened it."""
        self.lost = ""
        """Why it is no more, once it is closed."""
        self._code = 0
        self.on_lost: list[Callable[[], None]] = []
        """Called once, when it is closed, by either side."""
        self.on_cancelled: list[Callable[[], None]] = []
        """Called when the broker has ended a consumer, because its queue is gone for instance."""
        self._wire = wire
        self._takers: dict[bytes, Callable[[Delivery], None]] = {}
        self._numbers = itertools.count(1)
        self._getting: asyncio.Future[Delivery | None] | None = None
        self._published = 0
        self._batches: deque[_Batch] = deque()

    @property
    def frame_max(self) -> int:
        """The longest frame that may be sent. Bytes."""
        return self._wire.frame_max

    # --- consuming -----------------------------------------------------------------------------

    async def consume(
        self,
        queue: str,
        taker: Taker,
        *,
        prefetch: int,
        arguments: Mapping[str, Any] | None = None,
    ) -> str:
        """Start delivery of a queue's messages, at most so many not acknowledged; returns what to
        `cancel` it by. Raises what aiormq raises."""
        client = self._client()
        consumer_tag = f"saga-{self.number}-{next(self._numbers)}"
        self.take(consumer_tag.encode(), taker)
        await client.basic_qos(prefetch_count=prefetch)
        await client.basic_consume(
            queue, _never, consumer_tag=consumer_tag, arguments=dict(arguments or {})
        )
        return consumer_tag

    async def cancel(self, consumer_tag: str) -> None:
        """Stop delivery. What came before the broker's answer has been taken by now."""
        await self._client().basic_cancel(consumer_tag)

    def take(self, consumer_tag: bytes, taker: Taker) -> None:
        """Hand over the deliveries of a consumer that the client begins."""

        def take(delivery: Delivery) -> None:
            try:
                taker(self, delivery)
            except Exception:
                log.exception("a delivery with the key %r was not taken", delivery.routing_key)

        self._takers[consumer_tag] = take

    def ack(self, tag: int, *, multiple: bool = False) -> None:
        """Acknowledge a delivery, or all up to it. Raises `ChannelLost`."""
        self._write(frames.acknowledged(self.number, tag, multiple=multiple))

    def nack(self, tag: int, *, multiple: bool = False, requeue: bool = True) -> None:
        """Give back a delivery, or all up to it; tag 0 with `multiple` is all there are. Raises
        `ChannelLost`."""
        self._write(frames.refused(self.number, tag, multiple=multiple, requeue=requeue))

    async def get(self, queue: str) -> Delivery | None:
        """The next message of a queue, not acknowledged; None if it is empty. One at a time.

        Raises `ChannelLost`, for instance if there is no such queue.
        """
        if self._getting is not None:
            raise RuntimeError("the answer to an earlier `get` is still to come")
        self._write(frames.asked(self.number, queue))
        self._getting = asyncio.get_running_loop().create_future()
        return await self._getting

    @property
    def getter(self) -> Callable[[Delivery | None], None] | None:
        """Who takes what `get` has asked for; None where the client has asked."""
        return None if self._getting is None else self._got

    def _got(self, delivery: Delivery | None) -> None:
        getting, self._getting = self._getting, None
        if getting is not None and not getting.done():
            getting.set_result(delivery)

    # --- publishing ----------------------------------------------------------------------------

    async def publish(
        self, exchange: str, postings: Sequence[Posting], timeout_seconds: float
    ) -> list[Exception | None]:
        """Publish in order, all in one write, as mandatory; the channel must have confirms.

        For each, None once the broker has confirmed it, or why it is not known to be taken:
        `Unroutable`, `NotTaken`, `TimeoutError`, `ChannelLost`. Raises `ChannelLost` where nothing
        was sent, and ValueError where that is impossible.
        """
        if not postings:
            return []
        payload = frames.published(self.number, exchange, postings, self._wire.frame_max)
        until = asyncio.get_running_loop().time() + timeout_seconds
        if not self._wire.is_writable:
            try:
                async with asyncio.timeout_at(until):
                    await self._wire.writable()
            except TimeoutError:
                late = TimeoutError("the broker takes nothing: is it in alarm?")
                return [late] * len(postings)
        # Without an `await` between, so that what is sent and what is counted agree.
        self._write(payload)
        batch = _Batch(self._published + 1, postings)
        self._published += len(postings)
        self._batches.append(batch)
        try:
            await batch.wait(until)
        finally:
            if batch.left:  # Late or cancelled: what is not confirmed by now must not pile up.
                batch.give_up(TimeoutError("no confirm in time"))
                self._drop_settled()
        return batch.answers

    @property
    def publishes(self) -> bool:
        """Whether anything was published here, so that confirms are ours."""
        return self._published > 0

    def confirmed(self, tag: int, multiple: bool, ack: bool) -> None:
        """See `saga.runtime.messaging.frames.Confirms`."""
        for batch in self._batches:
            if tag < batch.first:
                break
            if multiple:
                batch.settle_up_to(tag, ack)
            elif tag < batch.beyond:
                batch.settle(tag, ack)
                break
        self._drop_settled()

    def _drop_settled(self) -> None:
        while self._batches and not self._batches[0].left:
            self._batches.popleft()

    def returned(self, code: int, text: str, delivery: Delivery) -> None:
        """See `saga.runtime.messaging.frames.Confirms`. The confirm comes as well, after this."""
        error = Unroutable(
            f"no queue takes {delivery.routing_key!r} of exchange {delivery.exchange!r}: "
            f"{code} {text}"
        )
        for same in (_is_same, _is_alike):
            if any(batch.refuse(delivery, error, same) for batch in self._batches):
                return
        log.error("a message came back that is not under way: %s", error)

    # --- the rest ------------------------------------------------------------------------------

    async def look_at(self, queue: str) -> Queue.DeclareOk:
        """What the broker says of a queue. Raises what aiormq raises; a refusal closes the
        channel."""
        return await self._client().queue_declare(queue, passive=True)

    def hold(self) -> None:
        """Read nothing that the broker sends, on any channel of this connection, until `go_on`.

        For a few seconds at most: heartbeats are not read either, nor what others wait for.
        """
        self._wire.hold()

    def go_on(self) -> None:
        """Read on."""
        self._wire.go_on()

    async def close(self) -> None:
        """Close the channel; what was not acknowledged goes back."""
        client = self._client()
        if not client.is_closed:
            await client.close()

    def _client(self) -> AbstractChannel:
        assert self.client is not None  # noqa: S101 - only FastStream's channels have none
        return self.client

    def cancelled(self, _: object) -> None:
        """The broker has ended a consumer."""
        for callback in self.on_cancelled:
            callback()

    def taker(self, consumer_tag: bytes) -> Callable[[Delivery], None] | None:
        return self._takers.get(consumer_tag)

    def _write(self, payload: bytes) -> None:
        if self.lost:
            raise ChannelLost(self.lost, self._code)
        self._wire.write(payload)

    def lose(self, why: str, code: int) -> None:
        """The channel is closed: what waits for an answer gets an error."""
        if self.lost:
            return
        self.lost, self._code = why, code
        self._takers.clear()
        if self._getting is not None and not self._getting.done():
            self._getting.set_exception(ChannelLost(why, code))
        for batch in self._batches:
            batch.give_up(ChannelLost(why, code))
        self._batches.clear()
        callbacks, self.on_lost = self.on_lost, []
        for callback in callbacks:
            try:
                callback()
            except Exception:
                log.exception("not everything was told that channel %d is lost", self.number)


class _Batch:
    """Messages that were published together, and what became of each."""

    __slots__ = ("_floor", "_pending", "_waiter", "answers", "beyond", "first", "left", "postings")

    def __init__(self, first: int, postings: Sequence[Posting]) -> None:
        self.first = first
        self.beyond = first + len(postings)
        """Their delivery tags, from the first on and below this."""
        self.postings = postings
        self.answers: list[Exception | None] = [None] * len(postings)
        self.left = len(postings)
        self._pending = bytearray(b"\x01" * len(postings))
        """Those whose confirm is still to come, by position."""
        self._floor = 0
        """The position below which none is pending, as far as is known."""
        self._waiter: asyncio.Future[None] | None = None

    async def wait(self, until: float) -> None:
        """Wait for all confirms, at most until that time of the loop's clock."""
        if not self.left:
            return
        loop = asyncio.get_running_loop()
        self._waiter = loop.create_future()
        timer = loop.call_at(until, _wake, self._waiter)
        try:
            await self._waiter
        finally:
            timer.cancel()
            self._waiter = None

    def settle(self, tag: int, ack: bool) -> None:
        """One is confirmed."""
        self._settle(tag - self.first, tag - self.first + 1, ack)

    def settle_up_to(self, tag: int, ack: bool) -> None:
        """All up to this tag are confirmed."""
        upper = min(tag + 1, self.beyond) - self.first
        if upper > self._floor:
            self._settle(self._floor, upper, ack)
            self._floor = upper

    def _settle(self, lower: int, upper: int, ack: bool) -> None:
        pending = self._pending
        if not ack:
            for position in range(lower, upper):
                if pending[position]:
                    self.answers[position] = NotTaken("the broker has refused the message")
        self.left -= pending.count(1, lower, upper)
        pending[lower:upper] = bytes(upper - lower)
        if not self.left and self._waiter is not None:
            _wake(self._waiter)

    def refuse(
        self, delivery: Delivery, error: Exception, same: Callable[[Posting, Delivery], bool]
    ) -> bool:
        """Whether the returned message is one of these; its confirm is still to come."""
        for position, posting in enumerate(self.postings):
            if (
                self._pending[position]
                and self.answers[position] is None
                and same(posting, delivery)
            ):
                self.answers[position] = error
                return True
        return False

    def give_up(self, error: Exception) -> None:
        """What is not confirmed by now will not be."""
        for position, pending in enumerate(self._pending):
            if pending:
                self.answers[position] = self.answers[position] or error
        self._settle(0, len(self.postings), ack=True)


def _is_same(posting: Posting, delivery: Delivery) -> bool:
    return posting.properties == delivery.raw and _is_alike(posting, delivery)


def _is_alike(posting: Posting, delivery: Delivery) -> bool:
    """Whether it is the same but for the properties, which a broker may write in another way."""
    return posting.routing_key == delivery.routing_key and posting.body == delivery.body


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class Wire(asyncio.StreamReaderProtocol):
    """One connection, between the socket and the client."""

    def __init__(
        self,
        takers: Mapping[str, Taker],
        loop: asyncio.AbstractEventLoop,
        retry_loop: RetryLoop | None = None,
    ) -> None:
        """`retry_loop` is told when it is lost before it was open, and of channels that the broker
        closes."""
        self.reader = asyncio.StreamReader(loop=loop)
        """Where the client gets its frames from."""
        super().__init__(self.reader, loop=loop)
        self._takers = takers
        self._retry_loop = retry_loop
        self._now = loop.time
        self._parser = frames.Parser(self)
        self._channels: dict[int, Channel] = {}
        self._socket: asyncio.Transport
        self._writable = asyncio.Event()
        self._writable.set()
        self._beat_at = 0.0
        self._opened = False
        self._lost = ""
        self._close_reason = 0, ""
        """What the broker has said when it closed the connection."""

    @property
    def frame_max(self) -> int:
        """The longest frame that either side may send. Bytes."""
        return self._parser.frame_max

    def channel(self, number: int) -> Channel:
        """The hot half of a channel that the client has opened. Raises `ChannelLost`."""
        channel = self._channels.get(number)
        if channel is None:
            raise ChannelLost(self._lost or f"channel {number} is closed")
        return channel

    # --- to the broker -------------------------------------------------------------------------

    def write(self, payload: bytes) -> None:
        """Send whole frames. Raises `ChannelLost` once either side has begun to close."""
        if self._socket.is_closing():
            raise ChannelLost(self._lost or "the connection is being closed")
        self._socket.write(payload)

    @property
    def is_writable(self) -> bool:
        """Whether the broker reads what is sent; one in alarm does not."""
        return self._writable.is_set()

    async def writable(self) -> None:
        """Wait until it does, or the connection is lost."""
        await self._writable.wait()

    def hold(self) -> None:
        """See `Channel.hold`."""
        if not self._socket.is_closing():
            self._socket.pause_reading()

    def go_on(self) -> None:
        """See `Channel.go_on`."""
        if not self._socket.is_closing():
            self._socket.resume_reading()

    def sends(self, payload: bytes) -> None:
        """The client is about to send whole frames."""
        for number, method, arguments in frames.methods_in(payload):
            if method == frames.CONSUME:
                queue, consumer_tag = frames.consumed(arguments)
                channel = self._channels.get(number)
                if channel is not None and (taker := self._takers.get(queue)) is not None:
                    channel.take(consumer_tag, taker)
            elif method == frames.CHANNEL_OPEN:
                self._channels[number] = Channel(self, number)
            elif method in (frames.CHANNEL_CLOSE, frames.CHANNEL_CLOSE_OK):
                self._lose_channel(number, "the channel was closed")
            elif method == frames.TUNE_OK:
                self._parser.agree(frames.frame_max_in(arguments))

    # --- from the broker -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._socket = cast(asyncio.Transport, transport)  # uvloop's are of no such class
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed(data)
        except frames.FrameError as error:
            log.error("what the broker sends cannot be read: %s", error)
            self.reader.set_exception(InvalidFrameError(str(error)))
            self._socket.abort()
            return
        # While a connection is being opened, the client expects nothing of the kind.
        if self._channels and (now := self._now()) > self._beat_at:
            self._beat_at = now + _BEAT_SECONDS
            super().data_received(frames.HEARTBEAT_FRAME)

    def connection_lost(self, exc: Exception | None) -> None:
        code, text = self._close_reason
        said = f"the broker closed it: {code} {text}" if code else exc or "closed"
        self._lost = f"the connection was lost: {said}"
        try:
            if self._retry_loop is not None and not self._opened:
                self._retry_loop.failed(self._lost)
            for number in list(self._channels):
                self._lose_channel(number, self._lost, code)
            self._writable.set()
        finally:
            super().connection_lost(exc)

    def pause_writing(self) -> None:
        self._writable.clear()
        super().pause_writing()

    def resume_writing(self) -> None:
        self._writable.set()
        super().resume_writing()

    # What `saga.runtime.messaging.frames.Receiver` asks for.

    def taker(self, channel: int, consumer_tag: bytes) -> Callable[[Delivery], None] | None:
        found = self._channels.get(channel)
        # Of a channel that is being closed something may still come.
        return _discard if found is None else found.taker(consumer_tag)

    def getter(self, channel: int) -> Callable[[Delivery | None], None] | None:
        found = self._channels.get(channel)
        return _discard if found is None else found.getter

    def confirms(self, channel: int) -> frames.Confirms | None:
        found = self._channels.get(channel)
        if found is None:
            return _NO_RECEIVER
        return found if found.publishes else None

    def cold(self, frame: bytes) -> None:
        if frame[0] == frames.HEADER:
            frame = _bearable(frame)
        for number, method, arguments in frames.methods_in(frame):
            if method == frames.CHANNEL_CLOSE:
                code, text = frames.closed(arguments)
                why = f"the broker closed the channel: {code} {text}"
                self._lose_channel(number, why, code)
                if self._retry_loop is not None:
                    self._retry_loop.lost(why)
            elif method == frames.CONNECTION_OPEN_OK:
                self._opened = True
            elif method == frames.CONNECTION_CLOSE:
                self._close_reason = frames.closed(arguments)
        super().data_received(frame)

    def _lose_channel(self, number: int, why: str, code: int = 0) -> None:
        self._parser.forget(number)
        if (channel := self._channels.pop(number, None)) is not None:
            channel.lose(why, code)


class _Writer(asyncio.StreamWriter):
    """What the client writes to."""

    def __init__(
        self, transport: asyncio.Transport, wire: Wire, loop: asyncio.AbstractEventLoop
    ) -> None:
        super().__init__(transport, wire, wire.reader, loop)
        self._wire = wire

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self._wire.sends(bytes(data))
        super().write(data)


class WireFactory(TransportFactory):
    """Makes the client's transports; `wire` is the newest."""

    def __init__(
        self, takers: Mapping[str, Taker] | None = None, retry_loop: RetryLoop | None = None
    ) -> None:
        """`takers` is keyed by queue: who takes the deliveries of its consumer.
        `retry_loop` is told why no connection could be opened."""
        self.takers = takers or {}
        self._retry_loop = retry_loop
        self.wire: Wire | None = None

    async def create(
        self, url: URL, **kwargs: Any
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        loop = asyncio.get_running_loop()
        provider = kwargs.pop("ssl_context_provider")
        context = await provider.get_context() if url.scheme == "amqps" else None
        wire = Wire(self.takers, loop, self._retry_loop)
        try:
            transport, _ = await loop.create_connection(
                lambda: wire, url.host or "", url.port or 0, ssl=context, **kwargs
            )
        except OSError as error:
            if self._retry_loop is not None:
                self._retry_loop.failed(error)
            raise AMQPConnectionError(*error.args) from error
        self.wire = wire
        return wire.reader, _Writer(transport, wire, loop)


class Connection(aio_pika.Connection):
    """aio-pika's, over a wire. Does not reconnect."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._factory = WireFactory()
        self.kwargs["transport_factory"] = self._factory

    async def open_channel(self, *, confirms: bool = False) -> Channel:
        """Open a channel. Raises what aiormq raises, and `ConnectionError`."""
        # Not one of aio-pika's: of those, some start to read again after a reconnect.
        if self.transport is None or self._factory.wire is None:
            raise ConnectionError("not connected to the broker")
        client = await self.transport.connection.channel(publisher_confirms=confirms)
        channel = self._factory.wire.channel(client.number)
        channel.client = client
        client.on_consumer_cancel_callbacks.add(channel.cancelled)
        return channel


class ReconnectingConnection(RobustConnection):
    """aio-pika's that restores itself, over a wire each time."""

    def __init__(
        self, *args: Any, takers: Mapping[str, Taker], retry_loop: RetryLoop, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._retry_loop = retry_loop
        self.kwargs["transport_factory"] = WireFactory(takers, retry_loop)
        self.close_callbacks.add(self._lose)

    def _lose(self, _: object, why: BaseException | None) -> None:
        if not self.close_called:
            self._retry_loop.lost(why or "it was closed")

    async def _on_connected(self) -> None:
        await super()._on_connected()
        self._retry_loop.succeeded()


class _NoReceiver:
    """Takes the answers to what was published on a channel that is closed."""

    def confirmed(self, tag: int, multiple: bool, ack: bool) -> None: ...

    def returned(self, code: int, text: str, delivery: Delivery) -> None: ...


_NO_RECEIVER: Final = _NoReceiver()


def _discard(_: Delivery | None) -> None:
    """No consumer takes it any more; what is not acknowledged goes back with its channel."""


async def _never(message: DeliveredMessage) -> None:
    """What the client is told to call with deliveries, of which it gets none."""
    raise AssertionError(f"the client got {message}")


def _bearable(frame: bytes) -> bytes:
    """The content header, without its properties where they would kill the client's connection."""
    try:
        pamqp.frame.unmarshal(frame)
    except Exception as error:
        log.warning("properties of a message that the client consumes left out: %s", error)
        return frames.without_properties(frame)
    return frame
