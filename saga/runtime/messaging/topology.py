"""What stands on the broker, derived from the choreography. Nothing else declares a route.

Each queue that events are routed to may be divided into *partitions*: further queues, `Q.0` to
`Q.N-1`, behind an exchange named `Q` that picks one by a consistent hash of the saga's id. How many
there are is the broker's own fact: no setting says it, and tools and services look it up
(`saga.runtime.messaging.partitions`).
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractExchange, AbstractQueue

from saga.choreography import Choreography, Participant
from saga.errors import Explained
from saga.message import Priority
from saga.retry import RUNGS_MS

EVENTS_EXCHANGE = "saga.events"
DEAD_EXCHANGE = "saga.dead"
HISTORY_STREAM = "saga.history"

HISTORY_DAYS = 30
HISTORY_MAX_AGE = f"{HISTORY_DAYS}D"
HISTORY_MAX_BYTES = 10_000_000_000
SEGMENT_ARGUMENT = "x-stream-max-segment-size-bytes"
HISTORY_SEGMENT_BYTES = 10_000_000
"""Retention takes whole segments, and only where a new one begins: so events are kept for
`HISTORY_MAX_AGE`, and for as long as it takes to publish two segments. There may be a thousand."""
HISTORY_SEGMENT_BYTES_BEFORE = 100_000_000
"""What earlier versions declared. A stream that is there cannot be changed, and does as well."""

# -1 destroys messages on RabbitMQ 3.10 and unset means 20 on 4.x; this means "never" on both.
DELIVERY_LIMIT = 1_000_000

Arguments = Mapping[str, str | int]

HASH_TYPE: Final = "x-consistent-hash"
HASH_PLUGIN: Final = "rabbitmq_consistent_hash_exchange"
"""Comes with RabbitMQ, and has to be enabled for exchanges of `HASH_TYPE`."""
HASH_ARGUMENTS: Final[Arguments] = {"hash-property": "correlation_id"}
"""The hash is of the saga's id, which every message has in this property."""
HASH_WEIGHT: Final = "1"
"""The key of each partition's binding: all get the same share."""
ONE_AT_A_TIME: Final = "x-single-active-consumer"
"""The argument of a queue that only one consumer gets messages from, however many there are."""
PARTITION_PATTERN: Final = r"(\.[0-9]{1,3})?"
"""What may follow a queue's name: nothing, or the number of a partition."""
_PARTITION: Final = re.compile(rf"(\.(?:{'|'.join(Priority)}))\.[0-9]{{1,3}}$")
"""Wait queues end in a number as well; only what has a priority is divided."""

DECLARE_SECONDS = 15.0
"""How long a broker may take to declare a queue. One whose queue has no leader never answers."""


class TopologyError(Explained):
    """The broker holds something else under one of our names. Names it and the way out."""


class NoPlugin(TopologyError):
    """The broker cannot hash. Names the plugin and the way out."""


class QueueDown(Exception):
    """The broker has a queue of that name, and cannot use it: it has just started, or the queue is
    damaged."""

    def __init__(self, queue: str, why: str) -> None:
        super().__init__(f"the queue {queue} is down: {why}")
        self.queue = queue


@dataclass(frozen=True, slots=True)
class Queue:
    """A durable queue.

    One that is there already with the arguments that an earlier version gave it, those of
    `formerly`, may stay as it is: the broker changes no queue.
    """

    name: str
    arguments: Arguments
    formerly: Sequence[Arguments] = ()


@dataclass(frozen=True, slots=True)
class Binding:
    """Messages published to `exchange` with a matching key go to `queue`; or, with `hashed`, to one
    of its partitions, by way of the exchange of its name."""

    exchange: str
    queue: str
    key: str
    hashed: bool = False


@dataclass(frozen=True, slots=True)
class Topology:
    """Durable exchanges, durable queues and the bindings between them."""

    exchanges: Sequence[str] = field(default_factory=list)
    """Those of the type topic."""
    queues: Sequence[Queue] = field(default_factory=list)
    bindings: Sequence[Binding] = field(default_factory=list)
    hashes: Sequence[str] = field(default_factory=list)
    """Exchanges that divide the queues of the same names. None of the bindings to such a queue
    itself is to be there any more."""
    partitions: int = 1
    """How many each of those queues has."""


def work_queue(participant: str, priority: Priority) -> str:
    """The queue of a participant's events of one priority."""
    return f"{participant}.{priority}"


def intake_queue(participant: str, priority: Priority) -> str:
    """The queue of the commands a participant takes over the broker."""
    return f"{participant}.intake.{priority}"


def partition_queue(queue: str, number: int) -> str:
    """One of the partitions of a queue, counted from 0."""
    return f"{queue}.{number}"


def undivided(queue: str) -> str:
    """The queue that this one is a partition of; or the queue itself."""
    return _PARTITION.sub(r"\1", queue)


def is_partition(queue: str) -> bool:
    """Whether a queue is a partition of another one."""
    return undivided(queue) != queue


def dead_letter_queue(participant: str) -> str:
    """Where a participant's dead letters rest."""
    return f"{participant}.dlq"


def wait_queue(wait_ms: int) -> str:
    """The exchange, and the queue bound to it, where messages wait so long. Published there with
    a queue's name as routing key, a message returns to that queue."""
    return f"saga.retry.{wait_ms}"


def queue_of(participant: Participant, type_: str, priority: Priority) -> str:
    """The queue that a participant takes messages of this type from."""
    taken = any(command.type == type_ for command in participant.intake)
    return (intake_queue if taken else work_queue)(participant.name, priority)


def queues_of(participant: Participant) -> dict[str, Priority]:
    """The queues a participant reads, each with the priority of what is in it: without partitions,
    which it reads as well."""
    queues = {work_queue(participant.name, priority): priority for priority in Priority}
    if participant.intake:
        queues |= {intake_queue(participant.name, priority): priority for priority in Priority}
    return queues


def reads(participant: Participant, queue: str) -> bool:
    """Whether the participant reads this queue, a partition maybe."""
    return undivided(queue) in queues_of(participant)


def divisible(choreography: Choreography, participant: Participant) -> dict[str, Priority]:
    """The queues of a participant that may have partitions: those that events, or commands of
    other participants, are routed to. The last one is `telltale`, if there is any.

    None of a participant in another language: it reads the queues it was written to read.
    """
    if participant.foreign:
        return {}
    types = [event.type for event in participant.consumes]
    types += [command.type for command in choreography.sent_to(participant)]
    found = {queue_of(participant, t, priority) for t in types for priority in Priority}
    queues = {queue: p for queue, p in queues_of(participant).items() if queue in found}
    last = telltale(participant)
    return {queue: queues[queue] for queue in sorted(queues, key=lambda name: name == last)}


def telltale(participant: Participant) -> str:
    """The queue of a participant whose partitions are made last: a service that sees those
    finds the others too."""
    queue = work_queue if participant.consumes else intake_queue
    return queue(participant.name, Priority.NORMAL)


def topology_of(choreography: Choreography, partitions: int = 1) -> Topology:
    """Everything the choreography needs on the broker. With several `partitions`, each queue that
    is `divisible` has so many; it stays itself, for what is put into it by its name."""
    kept: Arguments = {
        "x-queue-type": "stream",
        "x-max-age": HISTORY_MAX_AGE,
        "x-max-length-bytes": HISTORY_MAX_BYTES,
    }
    stream = Queue(
        HISTORY_STREAM,
        {**kept, SEGMENT_ARGUMENT: HISTORY_SEGMENT_BYTES},
        formerly=[{**kept, SEGMENT_ARGUMENT: HISTORY_SEGMENT_BYTES_BEFORE}],
    )
    quorum: Arguments = {"x-queue-type": "quorum", "x-delivery-limit": DELIVERY_LIMIT}
    queues: list[Queue] = []
    bindings: list[Binding] = []
    hashes: list[str] = []
    for participant in choreography.participants:
        name = participant.name
        dead: Arguments = {
            "x-dead-letter-exchange": DEAD_EXCHANGE,
            "x-dead-letter-routing-key": name,
        }
        queues += [Queue(queue, {**quorum, **dead}) for queue in queues_of(participant)]
        queues.append(Queue(dead_letter_queue(name), quorum))
        bindings.append(Binding(DEAD_EXCHANGE, dead_letter_queue(name), name))
        types = [event.type for event in participant.consumes]
        types += [command.type for command in choreography.sent_to(participant)]
        divided = divisible(choreography, participant) if partitions > 1 else {}
        bindings += [
            Binding(EVENTS_EXCHANGE, queue, f"{type_}.{priority}", hashed=queue in divided)
            for type_ in types
            for priority in Priority
            for queue in [queue_of(participant, type_, priority)]
        ]
        for queue in divided:
            hashes.append(queue)
            for number in range(partitions):
                part = partition_queue(queue, number)
                queues.append(Queue(part, {**quorum, **dead, ONE_AT_A_TIME: True}))
                bindings.append(Binding(queue, part, HASH_WEIGHT))
    for rung in RUNGS_MS:
        # What expires goes back, by the default exchange, to the queue its routing key names.
        arguments: Arguments = {"x-message-ttl": rung, "x-dead-letter-exchange": ""}
        queues.append(Queue(wait_queue(rung), {**quorum, **arguments}))
        bindings.append(Binding(wait_queue(rung), wait_queue(rung), "#"))
    # Last: no service publishes before there is a history, and by then there is all the rest.
    queues.append(stream)
    bindings.append(Binding(EVENTS_EXCHANGE, HISTORY_STREAM, "#"))
    exchanges = [EVENTS_EXCHANGE, DEAD_EXCHANGE, *map(wait_queue, RUNGS_MS)]
    return Topology(exchanges, queues, bindings, hashes, partitions if hashes else 1)


async def apply(topology: Topology, channel: AbstractChannel) -> None:
    """Declare the topology on a broker, each queue with its bindings, in order; what is there
    already stays, but for the bindings of a queue that is divided. Those go when its partitions
    are bound: for a moment a message goes both ways, and at no moment neither. Needs a user who may
    configure. Raises `TopologyError` if a name is taken by something else, or the broker cannot
    hash; `QueueDown`, and what aiormq raises."""
    try:
        for name in topology.exchanges:
            await channel.declare_exchange(name, aio_pika.ExchangeType.TOPIC, durable=True)
        hashes = {name: await _hash(name, channel) for name in topology.hashes}
        undivided: dict[str, AbstractQueue] = {}
        for queue in topology.queues:
            if queue.arguments.get("x-queue-type") == "stream":
                # Is the last one, after which services publish.
                await _divide(topology, hashes, undivided)
            declared = await _declared(queue, channel)
            if queue.name in hashes:
                undivided[queue.name] = declared
            for binding in topology.bindings:
                if binding.queue == queue.name and not binding.hashed:
                    await declared.bind(binding.exchange, binding.key)
    except aio_pika.exceptions.ChannelPreconditionFailed as error:
        raise TopologyError(
            f"the broker holds something else under one of the saga's names: {error}; "
            f"delete it there, or use another virtual host"
        ) from error


async def _hash(name: str, channel: AbstractChannel) -> AbstractExchange:
    try:
        return await channel.declare_exchange(
            name, HASH_TYPE, durable=True, arguments=dict(HASH_ARGUMENTS)
        )
    except aio_pika.exceptions.AMQPError as error:
        if "exchange type" not in str(error):
            raise
        raise NoPlugin(
            f"the broker cannot divide {name}: its plugin {HASH_PLUGIN} is off; enable it on every "
            f"node (`rabbitmq-plugins enable {HASH_PLUGIN}`), then apply again"
        ) from error


async def _divide(
    topology: Topology,
    hashes: Mapping[str, AbstractExchange],
    undivided: Mapping[str, AbstractQueue],
) -> None:
    """Route to the partitions what has been routed to their queue until now."""
    hashed = [binding for binding in topology.bindings if binding.hashed]
    for binding in hashed:
        await hashes[binding.queue].bind(binding.exchange, binding.key)
    for binding in hashed:
        await undivided[binding.queue].unbind(binding.exchange, binding.key)


async def _declared(queue: Queue, channel: AbstractChannel) -> AbstractQueue:
    refusals: list[aio_pika.exceptions.ChannelPreconditionFailed] = []
    for arguments in (queue.arguments, *queue.formerly):
        try:
            async with asyncio.timeout(DECLARE_SECONDS):
                return await channel.declare_queue(
                    queue.name, durable=True, arguments=dict(arguments)
                )
        except TimeoutError:
            raise QueueDown(queue.name, f"no answer for {DECLARE_SECONDS:g} s") from None
        except aio_pika.exceptions.ChannelNotFoundEntity as error:
            raise QueueDown(queue.name, str(error)) from error
        except aio_pika.exceptions.ChannelPreconditionFailed as error:
            refusals.append(error)
            await channel.reopen()  # The broker has closed it.
    raise refusals[0]
