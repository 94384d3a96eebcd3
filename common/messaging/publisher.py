"""Publishing: persistent, confirmed, unroutable is an error, many in flight at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import datetime
from typing import Any

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractRobustConnection
from pydantic_core import from_json

from common.envelope import CONTENT_TYPE
from common.kernel.outbox import Outgoing
from common.messaging.connection import connect
from common.messaging.topology import EVENTS_EXCHANGE

CONFIRM_TIMEOUT_SECONDS = 30.0
"""How long a confirm may take; a broker in alarm sends none."""


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


def message_of(body: bytes) -> aio_pika.Message:
    """The AMQP message that carries an envelope in its JSON form."""
    return aio_pika.Message(
        body,
        delivery_mode=aio_pika.DeliveryMode.PERSISTENT,
        **properties_of(from_json(body)),
    )


class BrokerPublisher:
    """Publishes over a connection of its own, so that consuming cannot hold it up.

    Safe to call from many tasks; one message id must not be in flight twice.
    """

    def __init__(self, url: str, name: str) -> None:
        self._url = url
        self._name = name
        self._connection: AbstractRobustConnection | None = None
        self._channel: AbstractChannel | None = None
        self._exchanges: dict[str, AbstractExchange] = {}

    async def open(self, patience_seconds: float) -> None:
        """Connect, waiting so long for a broker out of reach. Raises `BrokerError`."""
        self._connection = await connect(
            self._url, name=self._name, patience_seconds=patience_seconds
        )
        self._channel = await self._connection.channel(
            publisher_confirms=True, on_return_raises=True
        )

    async def close(self) -> None:
        """Disconnect; what is not confirmed by now is not known to be published."""
        if self._connection is not None:
            await self._connection.close()

    @property
    def ready(self) -> bool:
        """Whether the broker is connected."""
        return self._connection is not None and self._connection.connected.is_set()

    async def publish_events(self, events: Sequence[Outgoing]) -> list[Exception | None]:
        """See `common.kernel.outbox.Publisher`."""
        try:
            exchange = await self._exchange(EVENTS_EXCHANGE)
        except Exception as error:
            return [error] * len(events)
        results = await asyncio.gather(
            *(
                exchange.publish(
                    message_of(event.body), event.routing_key, timeout=CONFIRM_TIMEOUT_SECONDS
                )
                for event in events
            ),
            return_exceptions=True,
        )
        return [_error(result) for result in results]

    async def publish(self, message: aio_pika.Message, exchange: str, key: str) -> None:
        """Publish one message; returns once the broker confirmed it.

        Raises what aio-pika raises: unroutable, refused, timed out, not connected.
        """
        target = await self._exchange(exchange)
        await target.publish(message, key, timeout=CONFIRM_TIMEOUT_SECONDS)

    async def _exchange(self, name: str) -> AbstractExchange:
        if self._channel is None:
            raise ConnectionError("not connected to the broker yet")
        if not name:
            return self._channel.default_exchange
        if name not in self._exchanges:
            # Not declared, not even passively: a failing declaration closes the channel.
            self._exchanges[name] = await self._channel.get_exchange(name, ensure=False)
        return self._exchanges[name]


def _error(result: object) -> Exception | None:
    if isinstance(result, asyncio.CancelledError):  # The channel closed under it.
        return ConnectionError("the connection was lost before the confirm")
    if isinstance(result, Exception):
        return result
    if isinstance(result, BaseException):
        raise result
    return None
