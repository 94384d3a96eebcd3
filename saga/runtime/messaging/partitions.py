"""Which partitions there are, and which of them this replica reads.

How many partitions a queue has is what the broker says, asked again and again: so they may become
more while services run. A partition belongs to one of the replicas that share the database, by the
leases they hold (`saga.runtime.kernel.leases`). That only spreads the work: two replicas that
disagree for a moment break nothing, since the broker gives a partition's messages to one consumer
at a time, and to the next one in their order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

from aiormq.exceptions import AMQPChannelError, AMQPError, ChannelNotFoundEntity

from saga.choreography import PARTITIONS_MAX, Choreography, Participant
from saga.message import Priority
from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.messaging.frames import Delivery
from saga.runtime.messaging.publisher import unless_lost
from saga.runtime.messaging.topology import (
    DECLARE_SECONDS,
    divisible,
    partition_queue,
    queues_of,
    telltale,
)
from saga.runtime.messaging.wire import Channel, Connection
from saga.runtime.retry_loop import RetryLoop

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 2.0
"""How often a replica looks at who else there is, and at what it reads."""
LOOK_SECONDS: Final = 10.0
"""How often the broker is asked for partitions that are new. (It logs each time that there are
none.)"""
NOT_THERE: Final = "no queue"
"""What RabbitMQ says of a queue that is not there. Of one that is and is down, it says something
else."""

Members = Callable[[], Awaitable[Sequence[str]]]
"""The replicas that share a database, those whose leases have not run out, in the same order for
all of them. Raises what reading the database raises."""


async def count_partitions(connection: Connection, queue: str, known: int = 0) -> int:
    """How many partitions the queue has, of which so many are known; 0 where it is not divided. One
    that is down is there. Raises what aiormq raises."""
    number = known
    while number < PARTITIONS_MAX and await is_there(connection, partition_queue(queue, number)):
        number += 1
    return number


async def is_there(connection: Connection, queue: str) -> bool:
    """Whether the broker has the queue; one that is down is there. Raises what aiormq raises."""
    async with asyncio.timeout(DECLARE_SECONDS):
        channel = await connection.open_channel()  # its own: a refusal closes it
    try:
        async with asyncio.timeout(DECLARE_SECONDS):
            await channel.look_at(queue)
    except ChannelNotFoundEntity as error:
        return NOT_THERE not in str(error)
    except TimeoutError:
        return True  # Damaged: it has no leader that could answer.
    finally:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(DECLARE_SECONDS):
                await channel.close()
    return True


async def partitions_on(connection: Connection, graph: Choreography) -> int:
    """How many partitions the queues of the saga have; 1 where they are not divided. The most that
    one has, where dividing them was interrupted. Raises what aiormq raises."""
    queues = [queue for p in graph.participants for queue in divisible(graph, p)]
    return max([1, *[await count_partitions(connection, queue) for queue in queues]])


async def with_partitions(
    connection: Connection, queues: Mapping[str, Priority]
) -> dict[str, Priority]:
    """The queues, each followed by its partitions. Raises what aiormq raises."""
    found: dict[str, Priority] = {}
    for queue, priority in queues.items():
        found[queue] = priority
        for number in range(await count_partitions(connection, queue)):
            found[partition_queue(queue, number)] = priority
    return found


def owned(partitions: Mapping[str, int], members: Sequence[str], replica: str) -> set[str]:
    """Of the queues' partitions, those that are this replica's: each replica has every so-manieth
    number, the same of all queues. None while it is no member."""
    if replica not in members:
        return set()
    return {
        partition_queue(queue, number)
        for queue, count in partitions.items()
        for number in range(members.index(replica), count, len(members))
    }


class PartitionTaker(Protocol):
    """What becomes of deliveries; see `saga.runtime.messaging.consumer.Deliveries`."""

    def taker(self, queue: str) -> Callable[[Channel, Delivery], None]: ...

    async def release(self, queue: str, seconds: float) -> None: ...


class PartitionReader:
    """Reads the partitions of a participant's queues that are this replica's, over a connection of
    its own. Belongs to one event loop; `run` may be called by one task."""

    def __init__(
        self,
        participant: Participant,
        url: str,
        deliveries: PartitionTaker,
        *,
        replica: str,
        members: Members | None,
        prefetch: int,
        drain_seconds: float,
    ) -> None:
        """`replica` is what this process is called among the `members`; without those, it has the
        database, and all partitions, to itself."""
        self._participant = participant
        self._url = url
        self._deliveries = deliveries
        self._replica = replica
        self._members = members
        self._prefetch = prefetch
        self._drain_seconds = drain_seconds
        self._connection: Connection | None = None
        self._partitions: dict[str, int] = {}
        """Keyed by queue."""
        self._look_at = 0.0
        self._mine: set[str] = set()
        self._read: dict[str, Channel] = {}
        """Keyed by partition: the channel that it is read on."""
        self._ended: set[str] = set()
        """Partitions whose consumer the broker has ended. What was taken from them is still to be
        settled on their channel, which is then closed; so their order is kept."""
        self._reading = False
        self._wake = asyncio.Event()
        self._loop = RetryLoop("partitions", "read the partitions")
        self._members_loop = RetryLoop("members", "see which replicas there are", vital=False)

    @property
    def retry_loops(self) -> tuple[RetryLoop, ...]:
        """What tries again and again here."""
        return self._loop, self._members_loop

    @property
    def read(self) -> set[str]:
        """Partitions that are read."""
        return {
            name
            for name, channel in self._read.items()
            if not channel.lost and name not in self._ended
        }

    @property
    def unread(self) -> list[str]:
        """Partitions that are this replica's, and that it does not read (yet)."""
        return sorted(self._mine - self.read)

    async def run(self) -> None:
        """Read what is this replica's, from `start` on, until cancelled."""
        while True:
            self._wake.clear()
            if self._reading:
                try:
                    await unless_lost(self._step())
                except AMQPChannelError as error:  # About one queue.
                    self._loop.failed(error)
                except (BrokerError, AMQPError, OSError) as error:
                    self._loop.failed(error)
                    await self.close()
                else:
                    if not self.unread:
                        self._loop.succeeded()
            try:
                async with asyncio.timeout(POLL_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass

    def start(self) -> None:
        """Begin to read."""
        self._reading = True
        self._wake.set()

    def stop(self) -> None:
        """Begin to read nothing more; what is in hand is for the caller to finish."""
        self._reading = False

    async def close(self) -> None:
        """Disconnect: what is not acknowledged goes back to the broker."""
        self._read.clear()
        self._ended.clear()
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                await unless_lost(connection.close())
            except (AMQPError, OSError) as error:
                log.info("the connection was lost before it was closed: %s", error)

    async def _step(self) -> None:
        connection = await self._connected()
        if time.monotonic() >= self._look_at:
            await self._look(connection)
            self._look_at = time.monotonic() + LOOK_SECONDS
        self._mine = await self._owned() if self._partitions else set()
        await self._keep(connection, self._mine)

    async def _connected(self) -> Connection:
        if self._connection is None or not self._connection.connected.is_set():
            await self.close()
            self._look_at = 0.0
            name = f"{self._participant.name} partitions"
            self._connection = await connect(self._url, name=name)
        return self._connection

    async def _look(self, connection: Connection) -> None:
        last = telltale(self._participant)
        known = self._partitions.get(last, 0)
        if await count_partitions(connection, last, known) == known:
            return
        found = {
            queue: await count_partitions(connection, queue, self._partitions.get(queue, 0))
            for queue in queues_of(self._participant)
        }
        self._partitions = {queue: count for queue, count in found.items() if count}
        log.info("the queues of %s have %d partitions", self._participant.name, found[last])

    async def _owned(self) -> set[str]:
        if self._members is None:
            return owned(self._partitions, [self._replica], self._replica)
        try:
            members = await self._members()
        except Exception as error:  # Until the database is back, things stay as they are.
            self._members_loop.failed(error)
            return self._mine
        self._members_loop.succeeded()
        return owned(self._partitions, members, self._replica)

    async def _keep(self, connection: Connection, mine: Collection[str]) -> None:
        for name in [name for name, channel in self._read.items() if channel.lost]:
            del self._read[name]
        self._ended &= self._read.keys()
        leaving = [name for name in self._read if name not in mine or name in self._ended]
        await asyncio.gather(*map(self._leave, leaving))
        if left := sorted(name for name in leaving if name not in mine):
            log.info("left to other replicas: %s", ", ".join(left))
        begun = [name for name in sorted(mine) if name not in self._read]
        failures: list[Exception] = []
        for name in begun:
            if not self._reading:
                return
            try:
                self._read[name] = await self._begin(connection, name)
            except (AMQPChannelError, TimeoutError) as error:  # The others are read all the same.
                if isinstance(error, ChannelNotFoundEntity) and NOT_THERE in str(error):
                    self._partitions, self._look_at = {}, 0.0  # The broker has lost some: count.
                failures.append(BrokerError(f"{name} cannot be read: {str(error) or 'no answer'}"))
        if begun:
            log.info("reading %s", ", ".join(name for name in begun if name in self._read))
        if failures:
            self._loop.failed(failures[0])

    async def _begin(self, connection: Connection, name: str) -> Channel:
        async with asyncio.timeout(DECLARE_SECONDS):
            channel = await connection.open_channel()
            channel.on_lost.append(self._wake.set)
            channel.on_cancelled.append(partial(self._cancelled, channel))
            await channel.consume(name, self._deliveries.taker(name), prefetch=self._prefetch)
        return channel

    def _cancelled(self, channel: Channel) -> None:
        """The broker has ended the consumer: its queue is gone, or has moved. The channel is open
        still, and holds what was taken."""
        self._ended.update(name for name, read in self._read.items() if read is channel)
        self._look_at = 0.0
        self._wake.set()

    async def _leave(self, name: str) -> None:
        """Finish what is in hand before another consumer gets what comes after it."""
        await self._deliveries.release(name, self._drain_seconds)
        channel = self._read.pop(name, None)
        self._ended.discard(name)
        if channel is not None and not channel.lost:
            await channel.close()
