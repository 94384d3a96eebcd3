"""Reading the history stream, over AMQP 0.9.1, which keeps no place for its readers.

What RabbitMQ 3.10 and 4.0 do (measured): an offset that retention has removed starts the reading at
the oldest there is, and one beyond the end delivers nothing, not even what is published next, until
the stream has grown to it. A stream says neither its length (its message count lags by seconds) nor
where it ends; its last chunk does. The broker itself uses an offset wherever a segment begins, so
offsets go up but not always by one.

The broker puts the offset into a header of its own. Where a publisher has sent some of that name,
3.10 writes over the first and leaves the others behind it; 4.0 removes them.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Final

import aiormq

from saga.runtime.messaging import frames
from saga.runtime.messaging.dead_letters import (
    ORIGIN_EXCHANGE,
    ORIGIN_ROUTING_KEY,
    RESTORED,
    key_of,
)
from saga.runtime.messaging.frames import Delivery, Posting
from saga.runtime.messaging.topology import HISTORY_STREAM
from saga.runtime.messaging.wire import Channel, ChannelLost, Connection
from saga.wording import counted

FIRST: Final = "first"
"""Where the oldest event is that retention has left."""
LAST: Final = "last"
"""Where the newest chunk of events begins."""
PREFETCH: Final = 2_000
"""Messages on their way at once; a quorum queue would give a consumer no more either."""
TAKE_MAX_BYTES: Final = 32_000_000
"""Bodies taken at once, beyond which none is added: they go into one transaction."""
HELD_MAX_BYTES: Final = 64_000_000
"""Bodies that have arrived and were not taken, beyond which the broker has to wait: it counts
messages only, and a message may have a hundred megabytes."""
QUIET_SECONDS: Final = 0.1
"""A pause after which what the broker had ready has arrived."""
END_SECONDS: Final = 1.0
"""How long a stream's end is looked for. One that sends nothing in this time is empty, unless
something tells that it is not."""
STALL_SECONDS: Final = 10.0
"""How long a broker may take that has something to send."""

_OFFSET: Final = "x-stream-offset"
_OF_RESTORED: Final = (ORIGIN_EXCHANGE, ORIGIN_ROUTING_KEY, RESTORED)


class StreamError(Exception):
    """The stream cannot be read. Names it and the way out."""


@dataclass(frozen=True, slots=True)
class Record:
    """One message of the stream. `exchange` and `routing_key` are what it was published with."""

    offset: int
    exchange: str
    routing_key: str
    message_id: str | None
    sent_at: datetime | None
    body: bytes
    unreadable: str = ""
    """Why its headers cannot be read up to its offset; that is taken to follow the last one's."""
    restored: str = ""
    """The run that has put it back into the stream, see `restored`; empty if it was published."""

    @property
    def key(self) -> str:
        """What the message is recognised by, wherever it is."""
        return key_of(self.message_id, self.body)


class StreamReader:
    """One reading of the stream, in its order. See `reading`."""

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._arrived: deque[Delivery] = deque()
        self._size = 0
        """Of the bodies of what has arrived. Bytes."""
        self._holds = False
        self._closed = False
        self._something = asyncio.Event()
        self._lost = ""
        self._before = -1
        """The offset of the record taken last."""

    async def start(self, at: int | str) -> None:
        """Read from an offset on, or from `FIRST` or `LAST`."""
        if isinstance(at, int):
            self._before = at - 1
        self._channel.on_lost.append(lambda: self._lose(self._channel.lost))
        self._channel.on_cancelled.append(lambda: self._lose("the stream is gone"))
        await self._channel.consume(
            HISTORY_STREAM, self._take_in, prefetch=PREFETCH, arguments={_OFFSET: at}
        )

    async def take(self, most: int, wait_seconds: float | None = None) -> list[Record]:
        """The next records, at most so many, and few where they are long, see `TAKE_MAX_BYTES`: at
        least one, or none when so much time has passed.

        Raises `ConnectionError` once the broker has gone away and everything it sent was taken, and
        `StreamError`.
        """
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_seconds):
                while not self._arrived and not self._lost:
                    self._something.clear()
                    await self._something.wait()
        if not self._arrived and self._lost:
            raise ConnectionError(f"the broker stopped sending {HISTORY_STREAM}: {self._lost}")
        deliveries: list[Delivery] = []
        size = 0
        while self._arrived and len(deliveries) < most and size < TAKE_MAX_BYTES:
            deliveries.append(self._arrived.popleft())
            size += len(deliveries[-1].body)
        self._size -= size
        self._go_on()
        if deliveries:
            # What is acknowledged makes room for more; the stream keeps it all the same.
            with suppress(ChannelLost):
                self._channel.ack(deliveries[-1].tag, multiple=True)
        return [self._record(delivery) for delivery in deliveries]

    def _record(self, delivery: Delivery) -> Record:
        record = record_of(delivery, self._before)
        self._before = record.offset
        return record

    def close(self) -> None:
        """Take nothing more. What still comes is dropped: the stream keeps it."""
        self._closed = True
        self._arrived.clear()
        self._size = 0
        self._go_on()

    def _take_in(self, channel: Channel, delivery: Delivery) -> None:
        if self._closed:
            return
        self._arrived.append(delivery)
        self._size += len(delivery.body)
        self._something.set()
        if self._size > HELD_MAX_BYTES:
            self._holds = True
            channel.hold()

    def _go_on(self) -> None:
        if self._holds and self._size <= HELD_MAX_BYTES // 2:
            self._holds = False
            self._channel.go_on()

    def _lose(self, why: str) -> None:
        self._lost = self._lost or why
        self._something.set()


@asynccontextmanager
async def reading(connection: Connection, at: int | str) -> AsyncIterator[StreamReader]:
    """A reading of the stream on a channel of its own, from `at` on: an offset, `FIRST`, `LAST`.

    While it is not taken from, the connection may have nothing of what the broker sends, see
    `HELD_MAX_BYTES`. So what else is to be asked meanwhile, takes another connection.

    Raises `StreamError` if there is no such stream, and what aiormq raises.
    """
    channel = await connection.open_channel()
    reader = StreamReader(channel)
    try:
        await reader.start(at)
        yield reader
    except aiormq.exceptions.ChannelNotFoundEntity as error:
        raise StreamError(
            f"the broker has no stream {HISTORY_STREAM} in this virtual host, or its node is "
            f"down; is this the saga's broker, and has its topology been applied?"
        ) from error
    finally:
        reader.close()
        await channel.close()


async def last_offset(connection: Connection, *, written_to: bool = False) -> int | None:
    """The newest offset of the stream; None if it is empty.

    An empty stream says nothing, and neither does a slow broker. The latter is waited for where the
    stream has messages by the broker's count, which lags by seconds, or where it was `written_to`,
    as far as the caller knows.

    Raises what `reading` raises, and `StreamError` if the broker does not send what it has.
    """
    async with reading(connection, LAST) as reader:
        records = await reader.take(PREFETCH, END_SECONDS)
        if not records and (written_to or await _count(connection)):
            records = await reader.take(PREFETCH, STALL_SECONDS)
            if not records and (count := await _count(connection)):
                raise StreamError(
                    f"the broker has {counted(count, 'message')} in {HISTORY_STREAM} and sends "
                    f"none; look at "
                    f"the broker's log, then try again"
                )
        last: int | None = None
        # Where events keep coming there is no quiet; any end that is not older than this will do.
        deadline = time.monotonic() + END_SECONDS
        while records:
            last = records[-1].offset
            quiet = min(QUIET_SECONDS, deadline - time.monotonic())
            records = await reader.take(PREFETCH, quiet) if quiet > 0 else []
        return last


async def _count(connection: Connection) -> int:
    """How many messages the broker counts in the stream, some seconds ago."""
    channel = await connection.open_channel()
    try:
        return (await channel.look_at(HISTORY_STREAM)).message_count or 0
    finally:
        await channel.close()


def record_of(delivery: Delivery, before: int) -> Record:
    """The record in a delivery that came after the one at the offset `before`.

    Raises `StreamError` for what is from no stream.
    """
    unreadable = ""
    field = frames.first_of(delivery.raw, _OFFSET.encode())
    offset = None if field is None else frames.value_of(field)
    if not isinstance(offset, int):
        values, problem = frames.split(delivery.raw)
        if not problem and not frames.fields_in(values.get("headers", b""))[1]:
            raise StreamError(
                f"{HISTORY_STREAM} is no stream on this broker; delete it, and apply the topology"
            )
        offset = before + 1
        unreadable = problem or "; ".join(delivery.properties.unreadable)
    exchange, routing_key, run = delivery.exchange, delivery.routing_key, ""
    if (exchange, routing_key) == ("", HISTORY_STREAM) and not unreadable:
        # Only operators may publish there, so that headers of ours are ours.
        said = {name: delivery.headers.get(name) for name in _OF_RESTORED}
        if all(isinstance(value, str) for value in said.values()):
            exchange, routing_key, run = map(str, said.values())
    return Record(
        offset=offset,
        exchange=exchange,
        routing_key=routing_key,
        message_id=delivery.properties.message_id,
        sent_at=delivery.properties.timestamp,
        body=delivery.body,
        unreadable=unreadable,
        restored=run,
    )


def restored(
    body: bytes, properties: bytes, exchange: str, routing_key: str, *, run: str
) -> Posting:
    """What puts a message back into the stream, and nowhere else, as it was published once; to be
    published to the default exchange, by an operator. `run` tells its place from that of the same
    message in another stream."""
    values, _ = frames.split(properties)
    said = zip(_OF_RESTORED, (exchange, routing_key, run), strict=True)
    values["headers"] = frames.table_of([frames.field(*field) for field in said])
    return Posting(HISTORY_STREAM, frames.join(values), body)
