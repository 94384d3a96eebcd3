"""Publishing: persistent, confirmed, unroutable is an error, many in flight at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from datetime import datetime
from typing import Any, Protocol, TypeVar

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractConnection, AbstractExchange
from aiormq.exceptions import AMQPError, ChannelNotFoundEntity
from pamqp.commands import Basic, Queue
from pydantic_core import from_json

from common import tracing
from common.envelope import CONTENT_TYPE
from common.kernel.outbox import Outgoing
from common.messaging.connection import BrokerError, connect
from common.messaging.pipeline import Posting, publish_all
from common.messaging.topology import EVENTS_EXCHANGE, HISTORY_STREAM

CONFIRM_TIMEOUT_SECONDS = 30.0
"""How long a confirm may take; a broker in alarm sends none."""

T = TypeVar("T")


class Connect(Protocol):
    """Opens a connection, as `common.messaging.connection.connect` does."""

    def __call__(
        self, url: str, *, name: str, patience_seconds: float
    ) -> Awaitable[AbstractConnection]: ...


class PublishAll(Protocol):
    """Publishes on a channel of that connection, as `common.messaging.pipeline.publish_all`."""

    def __call__(
        self,
        channel: AbstractChannel,
        exchange: str,
        postings: Sequence[Posting],
        timeout_seconds: float,
        /,
    ) -> Awaitable[list[object]]: ...


def properties_of(document: dict[str, Any]) -> dict[str, Any]:
    """The AMQP properties that mirror an envelope, so that broker tools show them."""
    return {
        "message_id": document["id"],
        "type": document["type"],
        "correlation_id": document["correlationid"],
        "app_id": document["source"],
        "timestamp": datetime.fromisoformat(document["time"]),
        "content_type": CONTENT_TYPE,
    }


def _posting(event: Outgoing) -> Posting:
    properties = properties_of(from_json(event.body))
    return Posting(
        event.event_id,
        event.routing_key,
        Basic.Properties(
            message_type=properties.pop("type"),
            delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
            **properties,
        ),
        event.body,
    )


def message_of(body: bytes) -> aio_pika.Message:
    """The AMQP message that carries an envelope in its JSON form."""
    return aio_pika.Message(
        body,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        **properties_of(from_json(body)),
    )


class BrokerPublisher:
    """Publishes over a connection of its own, so that consuming cannot hold it up.

    Opens the connection when it is needed and not there. (aio-pika's robust connections restore
    themselves, but a channel that is lost a second time while being restored stays closed.)
    Safe to call from many tasks; one message id must not be in flight twice.
    """

    def __init__(
        self,
        url: str,
        name: str,
        *,
        connect: Connect = connect,
        publish_all: PublishAll = publish_all,
    ) -> None:
        self._url = url
        self._name = name
        self._connect = connect
        self._publish_all = publish_all
        self._opening = asyncio.Lock()
        self._connection: AbstractConnection | None = None
        self._channel: AbstractChannel | None = None
        self._recorded: AbstractChannel | None = None
        """The channel known to reach the history as well."""

    async def open(self, patience_seconds: float = 0.0) -> AbstractChannel:
        """The open channel; connects if need be, waiting so long for a broker out of reach.

        Raises `BrokerError`.
        """
        async with self._opening:
            return await _unless_lost(self._open(patience_seconds))

    async def _open(self, patience_seconds: float) -> AbstractChannel:
        # `is_closed` only says whether *we* closed it.
        if self._connection is None or not self._connection.connected.is_set():
            await self.close()
            self._channel = None
            self._connection = await self._connect(
                self._url, name=self._name, patience_seconds=patience_seconds
            )
        if self._channel is None or self._channel.is_closed:
            self._channel = await self._connection.channel(
                publisher_confirms=True, on_return_raises=True
            )
        return self._channel

    async def close(self) -> None:
        """Disconnect; what is not confirmed by now is not known to be published."""
        if self._connection is not None:
            with contextlib.suppress(AMQPError, ConnectionError):
                await self._connection.close()

    async def consumers_of(self, queue: str) -> int:
        """How many consumers a queue has; 0 if there is no such queue."""
        await self.open()
        found = await _unless_lost(self._look_at(queue))
        return found.consumer_count or 0 if found is not None else 0

    async def publish_events(self, events: Sequence[Outgoing]) -> list[Exception | None]:
        """See `common.kernel.outbox.Publisher`."""
        try:
            channel = await self.open()
            if self._recorded is not channel:
                await _unless_lost(self._check_history())
            if tracing.active is None:
                answers = await _unless_lost(
                    self._publish_all(
                        channel,
                        EVENTS_EXCHANGE,
                        [_posting(event) for event in events],
                        CONFIRM_TIMEOUT_SECONDS,
                    )
                )
            else:
                answers = await self._publish_each(events)
        except Exception as error:
            return [error] * len(events)
        return [_error(answer) for answer in answers]

    async def _publish_each(self, events: Sequence[Outgoing]) -> list[object]:
        """With a span for each, which takes more than publishing it does."""
        exchange = await self._exchange(EVENTS_EXCHANGE)
        answers: list[object] = await asyncio.gather(
            *(
                _publish_traced(exchange, message_of(event.body), event.routing_key)
                for event in events
            ),
            return_exceptions=True,
        )
        return answers

    async def publish(self, message: aio_pika.Message, exchange: str, key: str) -> None:
        """Publish one message; returns once the broker confirmed it.

        Raises what aio-pika raises: unroutable, refused, timed out, not connected.
        """
        target = await self._exchange(exchange)
        publish = _publish if tracing.active is None else _publish_traced
        await _unless_lost(publish(target, message, key))

    async def _check_history(self) -> None:
        """Raise `BrokerError` where the broker has no history, or does not have it again yet.

        A node that starts lets clients in before its streams are back. What is published then, it
        confirms, although only the work queues have got it (RabbitMQ 3.10).
        """
        channel = self._channel
        if await self._look_at(HISTORY_STREAM) is None:
            raise BrokerError(
                f"the broker lacks the stream {HISTORY_STREAM}: wait until it has started, or "
                f"declare it with `saga topology apply`"
            )
        self._recorded = channel

    async def _look_at(self, queue: str) -> Queue.DeclareOk | None:
        """What the broker says of a queue, over the open connection; None if there is none."""
        assert self._connection is not None  # noqa: S101 - it has just been opened
        channel = await self._connection.channel()  # its own: a refusal closes it
        try:
            declared = await channel.declare_queue(queue, passive=True)
        except ChannelNotFoundEntity:
            return None
        finally:
            await channel.close()
        return declared.declaration_result

    async def _exchange(self, name: str) -> AbstractExchange:
        channel = await self.open()
        # Not declared, not even passively: a failing declaration closes the channel.
        return await channel.get_exchange(name, ensure=False) if name else channel.default_exchange


def _publish(exchange: AbstractExchange, message: aio_pika.Message, key: str) -> Awaitable[Any]:
    return exchange.publish(message, key, timeout=CONFIRM_TIMEOUT_SECONDS)


async def _publish_traced(exchange: AbstractExchange, message: aio_pika.Message, key: str) -> Any:
    with tracing.send(exchange.name, key, message):
        return await _publish(exchange, message, key)


async def _unless_lost(operation: Awaitable[T]) -> T:
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


def _error(result: object) -> Exception | None:
    if isinstance(result, asyncio.CancelledError):  # See `_unless_lost`.
        return _lost()
    if isinstance(result, Exception):
        return result
    if isinstance(result, BaseException):
        raise result
    if not isinstance(result, Basic.Ack):
        return ConnectionError(f"the broker answered {result!r} where a confirm was due")
    return None
