"""Publishing: persistent, confirmed, unroutable is an error, many in flight at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from functools import lru_cache, partial
from typing import Protocol, TypeVar

from aiormq.exceptions import AMQPError, ChannelNotFoundEntity
from pamqp.commands import Queue
from pydantic_core import from_json

from saga.envelope import CONTENT_TYPE
from saga.runtime import tracing
from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.messaging import frames
from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.messaging.frames import Posting
from saga.runtime.messaging.topology import EVENTS_EXCHANGE, HISTORY_STREAM
from saga.runtime.retry_loop import RetryLoop

CONFIRM_TIMEOUT_SECONDS = 30.0
"""How long a confirm may take; a broker in alarm sends none."""

T = TypeVar("T")


class PublishChannel(Protocol):
    """What is needed of a channel, see `saga.runtime.messaging.wire.Channel`."""

    lost: str
    on_lost: list[Callable[[], None]]

    @property
    def frame_max(self) -> int: ...

    async def publish(
        self, exchange: str, postings: Sequence[Posting], timeout_seconds: float
    ) -> list[Exception | None]: ...

    async def look_at(self, queue: str) -> Queue.DeclareOk: ...

    async def close(self) -> None: ...


class PublishConnection(Protocol):
    """What is needed of a connection, see `saga.runtime.messaging.wire.Connection`."""

    @property
    def connected(self) -> asyncio.Event: ...

    async def open_channel(self, *, confirms: bool = False) -> PublishChannel: ...

    async def close(self) -> None: ...


class Connect(Protocol):
    """Opens a connection, as `saga.runtime.messaging.connection.connect` does."""

    def __call__(
        self, url: str, *, name: str, patience_seconds: float
    ) -> Awaitable[PublishConnection]: ...


_TYPICAL = frames.join(
    {
        "content_type": frames.short(CONTENT_TYPE),
        "delivery_mode": b"\x02",  # persistent
        **dict.fromkeys(("correlation_id", "message_id", "timestamp", "type", "app_id"), b""),
    }
)
"""The flags, and what is the same for all that we publish."""
_short = lru_cache(1_024)(partial(frames.short, cut=True))
"""Of types and sources, of which there are few."""


def properties_of(*, id: str, type: str, subject: str, source: str, time: datetime) -> bytes:
    """The property list that mirrors an envelope, as far as it fits, for broker tools to show."""
    return b"".join(
        (
            _TYPICAL,
            frames.short(subject, cut=True),
            frames.short(id, cut=True),
            int(time.timestamp()).to_bytes(8),
            _short(type),
            _short(source),
        )
    )


def posting_of(body: bytes, routing_key: str) -> Posting:
    """The message that carries an envelope in its JSON form."""
    document = from_json(body)
    properties = properties_of(
        id=document["id"],
        type=document["type"],
        subject=document["correlationid"],
        source=document["source"],
        time=datetime.fromisoformat(document["time"]),
    )
    return Posting(routing_key, properties, body)


def _posting(event: Outgoing) -> Posting:
    about = event.envelope
    if about is None:
        return posting_of(event.body, event.routing_key)
    properties = properties_of(
        id=about.id,
        type=about.type,
        subject=about.correlationid,
        source=about.source,
        time=about.time,
    )
    return Posting(event.routing_key, properties, event.body)


def _posting_or_error(event: Outgoing) -> Posting | Exception:
    """One row of the outbox that holds no event must not hold up the others."""
    try:
        if not isinstance(event.body, bytes):  # SQLite gives back text where it was written so.
            raise TypeError(f"{type(event.body).__name__}, not bytes")
        return _posting(event)
    except Exception as error:
        return ValueError(f"the row {event.event_id!r} of the outbox holds no event: {error!r}")


class BrokerPublisher:
    """Publishes over a connection of its own, so that consuming cannot hold it up.

    Opens the connection when it is needed and not there. (aio-pika's robust connections restore
    themselves, but a channel that is lost a second time while being restored stays closed.)
    Safe to call from many tasks.
    """

    def __init__(self, url: str, name: str, *, connect: Connect = connect) -> None:
        self._url = url
        self._name = name
        self._connect = connect
        self._opening = asyncio.Lock()
        self._connection: PublishConnection | None = None
        self._channel: PublishChannel | None = None
        self._recorded: PublishChannel | None = None
        """The channel known to reach the history as well."""
        self._connection_loop = RetryLoop(
            "publisher_connection", "hold the publisher's connection to the broker"
        )

    @property
    def retry_loops(self) -> tuple[RetryLoop, ...]:
        """The errors after which a publisher tries again."""
        return (self._connection_loop,)

    async def open(self, patience_seconds: float = 0.0) -> PublishChannel:
        """The open channel; connects if need be, waiting so long for a broker out of reach.

        Raises `BrokerError`.
        """
        if self._channel is not None and not self._channel.lost:
            return self._channel
        async with self._opening:
            try:
                channel = await unless_lost(self._open(patience_seconds))
            except Exception as error:
                self._connection_loop.failed(error)
                raise
            self._connection_loop.succeeded()
            return channel

    async def _open(self, patience_seconds: float) -> PublishChannel:
        # `is_closed` only says whether *we* closed it.
        if self._connection is None or not self._connection.connected.is_set():
            await self.close()
            self._connection = await self._connect(
                self._url, name=self._name, patience_seconds=patience_seconds
            )
        if self._channel is None or self._channel.lost:
            channel = self._channel = await self._connection.open_channel(confirms=True)
            channel.on_lost.append(lambda: self._lose(channel))
        return self._channel

    def _lose(self, channel: PublishChannel) -> None:
        if channel is self._channel:  # We have not closed it.
            self._connection_loop.lost(channel.lost)

    async def close(self) -> None:
        """Disconnect; what is not confirmed by now is not known to be published."""
        self._channel = None
        if self._connection is not None:
            with contextlib.suppress(AMQPError, ConnectionError):
                await self._connection.close()

    async def consumers_of(self, queue: str) -> int:
        """How many consumers a queue has; 0 if there is no such queue."""
        await self.open()
        found = await unless_lost(self._look_at(queue))
        return (found.consumer_count or 0) if found is not None else 0

    async def publish_events(self, events: Sequence[Outgoing]) -> list[Exception | None]:
        """See `saga.runtime.kernel.outgoing.Publisher`."""
        try:
            channel = await self.open()
            if self._recorded is not channel:
                await unless_lost(self._check_history())
            postings = [_posting_or_error(event) for event in events]
            good = [posting for posting in postings if isinstance(posting, Posting)]
            answers = iter(await self._publish_all(channel, good))
        except Exception as error:
            return [error] * len(events)
        return [next(answers) if isinstance(one, Posting) else one for one in postings]

    async def _publish_all(
        self, channel: PublishChannel, postings: Sequence[Posting]
    ) -> list[Exception | None]:
        if tracing.active is None:
            try:
                return await channel.publish(EVENTS_EXCHANGE, postings, CONFIRM_TIMEOUT_SECONDS)
            except ValueError:
                pass  # One of them does not fit into frames, which is no fault of the others.
        return await self._publish_each(channel, postings)

    async def _publish_each(
        self, channel: PublishChannel, postings: Sequence[Posting]
    ) -> list[Exception | None]:
        """Each on its own; with a span, if they are recorded, which takes more than publishing."""
        publish = _publish if tracing.active is None else _publish_traced
        answers: list[Exception | None] = []
        for answer in await asyncio.gather(
            *(publish(channel, EVENTS_EXCHANGE, posting) for posting in postings),
            return_exceptions=True,
        ):
            if isinstance(answer, BaseException) and not isinstance(answer, Exception):
                raise answer
            answers.append(answer)
        return answers

    async def publish(self, exchange: str, posting: Posting) -> None:
        """Publish one message; returns once the broker has confirmed it.

        Raises `Unroutable`, `NotTaken`, `ConnectionError`, `TimeoutError`, `BrokerError`; and
        ValueError for a message that does not fit into frames, where trying again is no use.
        """
        publish = _publish if tracing.active is None else _publish_traced
        await publish(await self.open(), exchange, posting)

    async def _check_history(self) -> None:
        """Raise `BrokerError` where the broker has no history, or does not have it again yet.

        A node that starts lets clients in before its streams are back. What is published then, it
        confirms, although only the work queues have got it (RabbitMQ 3.10).
        """
        channel = self._channel
        if await self._look_at(HISTORY_STREAM) is None:
            raise BrokerError(
                f"the broker lacks the stream {HISTORY_STREAM}: wait until it has started, or "
                f"declare it with `saga topology apply`, or, if it was there before, with "
                f"`saga recover broker`"
            )
        self._recorded = channel

    async def _look_at(self, queue: str) -> Queue.DeclareOk | None:
        """What the broker says of a queue, over the open connection; None if there is none."""
        assert self._connection is not None  # noqa: S101 - it has just been opened
        channel = await self._connection.open_channel()  # its own: a refusal closes it
        try:
            return await channel.look_at(queue)
        except ChannelNotFoundEntity:
            return None
        finally:
            await channel.close()


async def _publish(channel: PublishChannel, exchange: str, posting: Posting) -> None:
    (error,) = await channel.publish(exchange, [posting], CONFIRM_TIMEOUT_SECONDS)
    if error is not None:
        raise error


async def _publish_traced(channel: PublishChannel, exchange: str, posting: Posting) -> None:
    with tracing.send(exchange, posting):
        await _publish(channel, exchange, posting)


async def unless_lost(operation: Awaitable[T]) -> T:
    """What the operation returns. Of a connection that the broker has not answered on for long,
    aiormq cancels what waits for it, and that must not look as if it was us who were cancelled.
    What is begun on a connection or channel that has just closed, it refuses as a RuntimeError."""
    try:
        return await operation
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise _lost() from None
    except RuntimeError as error:
        raise _lost() from error


def _lost() -> ConnectionError:
    return ConnectionError("the connection was lost before the broker's answer")
