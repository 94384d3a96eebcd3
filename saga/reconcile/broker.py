"""Looking at what rests on the broker, and leaving it there."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager

import aiormq

from saga.broker.ready import take_alone, take_ready
from saga.dlq.letters import event_id_of
from saga.reconcile.facts import Backlog, ReconcileError, RestingMessage
from saga.reconcile.history import History
from saga.retry import RUNGS_MS
from saga.runtime.messaging.dead_letters import REASON, Reason, key_of, ours_in
from saga.runtime.messaging.frames import Delivery
from saga.runtime.messaging.stream import (
    FIRST,
    StreamError,
    StreamReader,
    last_offset,
    reading,
)
from saga.runtime.messaging.topology import HISTORY_STREAM, is_partition, undivided, wait_queue
from saga.runtime.messaging.wire import Channel, Connection

PREFETCH = 2_000
"""Deliveries on one channel at once; a quorum queue gives a consumer no more."""
FILLING_SECONDS = 5.0
"""How long a queue that is being filled is looked through beyond what was in it at first."""
STALL_SECONDS = 30.0
"""How long the broker may send nothing of what it is known to have."""
LETTERS_MAX = 200_000
"""Messages looked at in one queue; each is kept from all consumers until all have been seen."""


async def read_history(
    connection: Connection, history: History, *, written_to: bool = False
) -> None:
    """Take everything that is in the stream by now; `written_to` says that something was published.
    Raises `ReconcileError`."""
    try:
        last = await last_offset(connection, written_to=written_to)
        if last is not None:
            async with reading(connection, FIRST) as reader:
                await _read_until(last, reader, history)
    except StreamError as error:
        raise ReconcileError(str(error)) from error


async def _read_until(last: int, reader: StreamReader, history: History) -> None:
    first: int | None = None
    while records := await reader.take(PREFETCH, STALL_SECONDS):
        if first is None:
            first = history.first_offset = records[0].offset
        for record in records:
            if record.offset <= last:
                history.take(record.routing_key, record.message_id, record.sent_at, record.body)
        if records[-1].offset >= last:
            return
    raise ReconcileError(
        f"the broker stopped sending {HISTORY_STREAM} before its offset {last}; "
        f"look at the broker's log, then try again"
    )


async def browse(connection: Connection, queue: str) -> list[RestingMessage]:
    """What rests in a quorum queue, in no order, given back when all of it has been seen.

    Meanwhile no consumer gets these messages, and afterwards they are in another order: RabbitMQ
    keeps none among more than 32 messages given back, one by one or together.

    Raises `ReconcileError` if there are too many.
    """
    return [letter_of(message) for message in await look_through(connection, queue)]


async def waiting(
    connection: Connection, owners: Mapping[str, str]
) -> dict[str, list[RestingMessage]]:
    """What waits to be tried again, by participant; `owners` says whose each queue is.

    A message in a wait queue has the name of the queue it returns to as its routing key.
    """
    found: defaultdict[str, list[RestingMessage]] = defaultdict(list)
    for rung in RUNGS_MS:
        for message in await look_through(connection, wait_queue(rung)):
            if owner := owners.get(undivided(message.routing_key)):
                found[owner].append(letter_of(message))
    return found


async def backlog(connection: Connection, queues: Iterable[str]) -> Backlog:
    """What waits in a participant's work queues. Queues without consumers are looked through."""
    ready, read, waiting = 0, False, set[str]()
    for queue in queues:
        async with _channel(connection, queue) as channel:
            declared = await channel.look_at(queue)
        ready += declared.message_count or 0
        if declared.consumer_count:
            read = True
            continue
        for message in await look_through(connection, queue):
            waiting.add(key_of(message.properties.message_id, message.body))
            if event_id := event_id_of(message.body):
                waiting.add(event_id)
    return Backlog(ready, read, waiting)


async def look_through(connection: Connection, queue: str) -> list[Delivery]:
    """Everything ready in a queue, given back when all of it has been seen. Raises `ReconcileError`
    if that is too much."""
    async with _channel(connection, queue) as channel:
        ready = (await channel.look_at(queue)).message_count or 0
    started_at = time.monotonic()
    found: list[Delivery] = []
    channels: list[Channel] = []
    try:
        while True:
            channel = await connection.open_channel()
            channels.append(channel)
            take = take_alone if is_partition(queue) else take_ready
            part = await take(channel, queue, PREFETCH)
            found += part
            # A queue that is being filled may never be empty; what was there must have been seen.
            # (The count alone is not to be trusted: it may lag behind.)
            overlong = time.monotonic() - started_at > FILLING_SECONDS
            if not part or (len(found) >= ready and overlong):
                return found
            if len(found) > LETTERS_MAX:
                raise ReconcileError(
                    f"more than {LETTERS_MAX} messages are in {queue}; "
                    f"start what reads it, or replay or discard its dead letters"
                )
    finally:
        for channel in channels:
            if not channel.lost:
                # All of the channel's, before it closes: on some versions a lost channel counts as
                # a failed delivery, and this does not.
                channel.nack(0, multiple=True)
                await channel.close()


@asynccontextmanager
async def _channel(connection: Connection, queue: str) -> AsyncIterator[Channel]:
    """A channel for work on one queue."""
    channel = await connection.open_channel()
    try:
        yield channel
    except aiormq.exceptions.ChannelNotFoundEntity as error:
        raise _not_there(queue) from error
    finally:
        await channel.close()


def _not_there(queue: str) -> ReconcileError:
    return ReconcileError(
        f"the broker has no queue {queue} in this virtual host; "
        f"is this the saga's broker, and has its topology been applied?"
    )


def letter_of(message: Delivery) -> RestingMessage:
    """What rests in a queue of messages that failed."""
    properties = message.properties
    reason = str(ours_in(message).get(REASON, "rejected"))
    key = key_of(properties.message_id, message.body)
    if reason == Reason.CONFLICTING:
        key = key_of(None, message.body)  # What it conflicts with has its id.
    elif reason != Reason.UNDECODABLE:
        key = event_id_of(message.body) or key
    return RestingMessage(key, properties.correlation_id, reason)
