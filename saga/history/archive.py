"""Reading what the history service keeps, beside the service."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, TypeVar

import aiormq
from sqlalchemy.engine import Connection

from saga.archive import OBSERVER, queries
from saga.deployment import Deployment
from saga.history import HistoryError
from saga.runtime.kernel.opening import read_database
from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.messaging.stream import StreamError, last_offset
from saga.runtime.urls import printable
from saga.wording import counted

POLL_SECONDS: Final = 0.05

T = TypeVar("T")


class Archive:
    """The events that one system's history service keeps. Its methods may be called beside it."""

    def __init__(self, deployment: Deployment) -> None:
        """Raises `HistoryError` if the system has no history."""
        url = deployment.database_urls.get(OBSERVER.name)
        if url is None:
            raise HistoryError(
                "this system has no history service; start it again with this version of `saga up`"
            )
        self.url = url
        self._deployment = deployment

    async def read(self, query: Callable[[Connection], T]) -> T:
        """Run `query` on what is kept, as of one moment. Raises `DatabaseError`."""
        return await asyncio.to_thread(read_database, self.url, query)

    async def behind(self) -> int:
        """How many messages of the stream are not kept yet, counted by offsets; 0 if none is.

        Raises `HistoryError` and `BrokerError`.
        """
        before = await self.read(queries.place)
        connection = await connect(self._deployment.amqp_url, name="saga history")
        try:
            last = await last_offset(connection, written_to=before is not None)
        except StreamError as error:
            raise HistoryError(str(error)) from error
        except (aiormq.exceptions.AMQPError, ConnectionError) as error:
            raise BrokerError(
                f"RabbitMQ at {printable(self._deployment.amqp_url)} failed: {error}"
            ) from error
        finally:
            await connection.close()
        place = await self.read(queries.place)
        if last is None:
            return 0
        if place is None or (before is not None and last < before.offset):
            return last + 1  # It is not the stream that was read, or does not end where it did.
        return max(0, last - place.offset)

    async def caught_up(self, patience_seconds: float) -> bool:
        """Whether everything that was published by now is kept, waiting so long for it."""
        deadline = time.monotonic() + patience_seconds
        while await self.behind():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(POLL_SECONDS)
        return True

    async def catch_up(self, patience_seconds: float) -> None:
        """Wait until everything that was published by now is kept. Raises `HistoryError` if it is
        not by then."""
        if not await self.caught_up(patience_seconds):
            raise HistoryError(
                f"the history is {counted(await self.behind(), 'message')} behind the stream; "
                f"start its "
                f"service, and wait"
            )
