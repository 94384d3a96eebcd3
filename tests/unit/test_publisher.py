"""What the publisher makes of a connection that is lost under it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import aio_pika
import pytest

from common.kernel.outbox import Outgoing
from common.messaging.publisher import BrokerPublisher


class Connection:
    """A connection, a channel and an exchange in one: it is given up while an answer is awaited."""

    def __init__(self, *, lost_when_opening: bool) -> None:
        self.connected = asyncio.Event()
        self.connected.set()
        self.is_closed = False
        self._lost_when_opening = lost_when_opening

    async def channel(self, **_: Any) -> Connection:
        if self._lost_when_opening:
            raise asyncio.CancelledError  # As aiormq ends what waits when heartbeats are missing.
        return self

    async def declare_queue(self, name: str, *, passive: bool) -> Connection:
        return self

    @property
    def declaration_result(self) -> Connection:
        return self

    async def get_exchange(self, name: str, *, ensure: bool) -> Connection:
        return self

    async def publish(self, *_: Any, timeout: float) -> None:
        raise asyncio.CancelledError

    async def close(self) -> None: ...


@pytest.fixture(params=["while publishing", "while opening the channel"])
def publisher(request: pytest.FixtureRequest) -> BrokerPublisher:
    async def connect(url: str, *, name: str, patience_seconds: float) -> Any:
        return Connection(lost_when_opening=request.param != "while publishing")

    async def publish_all(_: Any, __: str, postings: Sequence[Any], ___: float) -> list[object]:
        return [asyncio.CancelledError() for _ in postings]

    return BrokerPublisher("amqp://broker/", "test", connect=connect, publish_all=publish_all)


async def test_a_connection_given_up_is_an_error_and_no_cancellation(
    publisher: BrokerPublisher,
) -> None:
    with pytest.raises(ConnectionError, match="lost before"):
        await publisher.publish(aio_pika.Message(b""), "saga.retry.500", "toy.normal")


async def test_a_connection_given_up_fails_the_events_and_not_the_outbox(
    publisher: BrokerPublisher,
) -> None:
    body = b'{"id":"1","type":"t","correlationid":"c","source":"/s","time":"2026-01-01T00:00:00Z"}'
    (error,) = await publisher.publish_events([Outgoing("1", "t.normal", body)])
    assert isinstance(error, ConnectionError)


async def test_a_caller_that_is_cancelled_stays_cancelled() -> None:
    class Stuck(Connection):
        async def publish(self, *_: Any, timeout: float) -> None:
            await asyncio.Event().wait()

    async def connect(url: str, *, name: str, patience_seconds: float) -> Any:
        return Stuck(lost_when_opening=False)

    stuck = BrokerPublisher("amqp://broker/", "test", connect=connect)
    task = asyncio.create_task(stuck.publish(aio_pika.Message(b""), "saga.dead", "toy"))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
