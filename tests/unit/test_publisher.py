"""What the publisher makes of a connection that is lost under it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.messaging.frames import FRAME_MAX_BYTES, NO_PROPERTIES, Posting
from saga.runtime.messaging.publisher import BrokerPublisher
from saga.runtime.messaging.wire import ChannelLost

POSTING = Posting("toy.normal", NO_PROPERTIES, b"")


class Connection:
    """A connection and a channel in one: it is given up while an answer is awaited."""

    lost = ""
    frame_max = FRAME_MAX_BYTES

    def __init__(self, *, when_opening: BaseException | None) -> None:
        self.on_lost: list[Callable[[], None]] = []
        self.connected = asyncio.Event()
        self.connected.set()
        self._when_opening = when_opening

    async def open_channel(self, *, confirms: bool = False) -> Connection:
        if self._when_opening is not None:
            raise self._when_opening
        return self

    async def look_at(self, queue: str) -> Connection:
        return self

    async def publish(self, _: str, postings: Sequence[Posting], __: float) -> list[Any]:
        return [ChannelLost("lost before the answer")] * len(postings)

    async def close(self) -> None: ...


# What aiormq says: it ends what waits when heartbeats are missing, and refuses a closed connection.
WHEN_OPENING: dict[str, BaseException | None] = {
    "while publishing": None,
    "while opening the channel": asyncio.CancelledError(),
    "before opening the channel": RuntimeError("closed"),
}


@pytest.fixture(params=WHEN_OPENING)
def publisher(request: pytest.FixtureRequest) -> BrokerPublisher:
    async def connect(url: str, *, name: str, patience_seconds: float) -> Any:
        return Connection(when_opening=WHEN_OPENING[request.param])

    return BrokerPublisher("amqp://broker/", "test", connect=connect)


async def test_a_connection_given_up_is_an_error_and_no_cancellation(
    publisher: BrokerPublisher,
) -> None:
    with pytest.raises(ConnectionError, match="lost before"):
        await publisher.publish("saga.retry.500", POSTING)


async def test_a_connection_given_up_fails_the_events_and_not_the_outbox(
    publisher: BrokerPublisher,
) -> None:
    body = b'{"id":"1","type":"t","correlationid":"c","source":"/s","time":"2026-01-01T00:00:00Z"}'
    (error,) = await publisher.publish_events([Outgoing("1", "t.normal", body)])
    assert isinstance(error, ConnectionError)


async def test_a_caller_that_is_cancelled_stays_cancelled() -> None:
    class Stuck(Connection):
        async def publish(self, *_: Any) -> list[Any]:
            await asyncio.Event().wait()
            return []

    async def connect(url: str, *, name: str, patience_seconds: float) -> Any:
        return Stuck(when_opening=None)

    stuck = BrokerPublisher("amqp://broker/", "test", connect=connect)
    task = asyncio.create_task(stuck.publish("saga.dead", POSTING))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_is_cancelled_while_the_connection_opens_stays_cancelled() -> None:
    opening = asyncio.Event()

    async def connect(url: str, *, name: str, patience_seconds: float) -> Any:
        opening.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(BrokerPublisher("amqp://broker/", "test", connect=connect).open())
    await opening.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_each_new_channel_is_asked_for_the_history() -> None:
    """A broker that has started again may not have its streams back yet."""
    looked_at: list[int] = []
    channels: list[Connection] = []

    class Restarted(Connection):
        """A broker whose channels are lost one after the other."""

        async def open_channel(self, *, confirms: bool = False) -> Connection:
            channel = Restarted(when_opening=None)
            if confirms:
                channels.append(channel)
            return channel

        async def look_at(self, queue: str) -> Connection:
            looked_at.append(len(channels))
            return self

        async def publish(self, _: str, postings: Sequence[Posting], __: float) -> list[Any]:
            return [ChannelLost("gone") if self.lost else None] * len(postings)

    async def connect(url: str, *, name: str, patience_seconds: float) -> Any:
        return Restarted(when_opening=None)

    body = b'{"id":"1","type":"t","correlationid":"c","source":"/s","time":"2026-01-01T00:00:00Z"}'
    publisher = BrokerPublisher("amqp://broker/", "test", connect=connect)
    for _ in range(2):
        for _ in range(2):
            assert await publisher.publish_events([Outgoing("1", "t.normal", body)]) == [None]
        channels[-1].lost = "the broker has started again"

    assert looked_at == [1, 2]
