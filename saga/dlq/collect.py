"""Moving dead letters from their queues into the store: committed first, then acknowledged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import aiormq

from saga.broker.ready import take_ready
from saga.dlq import DlqError
from saga.dlq.letters import copy_of
from saga.dlq.store import Store
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.topology import dead_letter_queue
from saga.runtime.messaging.wire import Connection
from saga.runtime.tasks import in_thread

PREFETCH: Final = 1_000
"""Messages committed together; a quorum queue gives a consumer no more than 2,000."""


async def collect(connection: Connection, store: Store, participants: Iterable[str]) -> int:
    """Move what is dead by now; returns how many copies were new to the store.

    Killed at any moment it loses nothing: what was committed and not acknowledged comes again, and
    is known then. Raises `DlqError`, and what aiormq raises when the broker goes away.
    """
    collected = 0
    for participant in participants:
        while (count := await _move_some(connection, store, participant)) is not None:
            collected += count
    return collected


async def _move_some(connection: Connection, store: Store, participant: str) -> int | None:
    """Move at most about `PREFETCH` messages; None if the queue was empty."""
    queue = dead_letter_queue(participant)
    # Its own channel: what it is left with when it closes goes back to the queue.
    channel = await connection.open_channel()
    try:
        found = await take_ready(channel, queue, PREFETCH)
        if not found:
            return None
        now = utc_now()
        kept = [copy_of(message, participant, now) for message in found]
        collected = await in_thread(store.take, kept, now)
        for message in found:
            channel.ack(message.tag)
        return collected
    except aiormq.exceptions.ChannelNotFoundEntity as error:
        raise DlqError(
            f"the broker has no queue {queue} in this virtual host; declare it with "
            f"`saga topology apply`"
        ) from error
    finally:
        await channel.close()
