"""A broker for one system alone: two on one virtual host would take each other's messages."""

from __future__ import annotations

import asyncio
import contextlib

import aiormq

from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.messaging.wire import Connection
from saga.runtime.urls import printable

CLAIM_QUEUE = "saga.broker.claim"
"""An exclusive queue: one connection at a time has it, and it goes with that."""


CLOSE_SECONDS = 5.0
"""How long a broker may take to answer that a connection is closed."""


class ClaimedError(BrokerError):
    """Another system has the broker."""


class Claim:
    """The right to run a system on a broker's virtual host; it ends with its connection."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: Connection | None = None

    @property
    def held(self) -> bool:
        # `is_closed` only says whether we closed it.
        return self._connection is not None and self._connection.connected.is_set()

    async def take(self, *, patience_seconds: float = 0.0) -> None:
        """Take it, in one step, so that of several that try at once exactly one has it.

        Raises `ClaimedError` if another has it, or `BrokerError`.
        """
        await self.give_up()
        connection = await connect(self._url, name="saga up", patience_seconds=patience_seconds)
        try:
            await self._declare(connection)
        except BaseException:
            await _close(connection)
            raise
        self._connection = connection

    async def _declare(self, connection: Connection) -> None:
        try:
            channel = await connection.channel()
            await channel.declare_queue(CLAIM_QUEUE, durable=False, exclusive=True)
        except aiormq.exceptions.ChannelLockedResource as error:
            raise ClaimedError(
                f"another system runs at {printable(self._url)}; stop it, or name another virtual "
                f"host in AMQP_URL"
            ) from error
        except aiormq.exceptions.AMQPError as error:
            raise BrokerError(
                f"RabbitMQ at {printable(self._url)} refused the queue {CLAIM_QUEUE}: {error}; "
                f"may the user in AMQP_URL configure queues there?"
            ) from error

    async def give_up(self) -> None:
        """Let others have it. May be called again."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await _close(connection)


async def _close(connection: Connection) -> None:
    """Close a connection, whether or not the broker still answers."""
    with contextlib.suppress(OSError, TimeoutError, aiormq.exceptions.AMQPError):
        async with asyncio.timeout(CLOSE_SECONDS):
            await connection.close()
