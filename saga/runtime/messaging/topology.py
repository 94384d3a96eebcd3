"""What stands on the broker, derived from the choreography. Nothing else declares a route."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import aio_pika
from aio_pika.abc import AbstractChannel, AbstractQueue

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


DECLARE_SECONDS = 15.0
"""How long a broker may take to declare a queue. One whose queue has no leader never answers."""


class TopologyError(Explained):
    """The broker holds something else under one of our names. Names it and the way out."""


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
    """Messages published to `exchange` with a matching key go to `queue`."""

    exchange: str
    queue: str
    key: str


@dataclass(frozen=True, slots=True)
class Topology:
    """Durable topic exchanges, durable queues and the bindings between them."""

    exchanges: Sequence[str] = field(default_factory=list)
    queues: Sequence[Queue] = field(default_factory=list)
    bindings: Sequence[Binding] = field(default_factory=list)


def work_queue(participant: str, priority: Priority) -> str:
    """The queue of a participant's events of one priority."""
    return f"{participant}.{priority}"


def intake_queue(participant: str, priority: Priority) -> str:
    """The queue of the commands a participant takes over the broker."""
    return f"{participant}.intake.{priority}"


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
    """The queues a participant reads, each with the priority of what is in it."""
    queues = {work_queue(participant.name, priority): priority for priority in Priority}
    if participant.intake:
        queues |= {intake_queue(participant.name, priority): priority for priority in Priority}
    return queues


def topology_of(choreography: Choreography) -> Topology:
    """Everything the choreography needs on the broker."""
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
        bindings += [
            Binding(EVENTS_EXCHANGE, queue_of(participant, type_, priority), f"{type_}.{priority}")
            for type_ in types
            for priority in Priority
        ]
    for rung in RUNGS_MS:
        # What expires goes back, by the default exchange, to the queue its routing key names.
        arguments: Arguments = {"x-message-ttl": rung, "x-dead-letter-exchange": ""}
        queues.append(Queue(wait_queue(rung), {**quorum, **arguments}))
        bindings.append(Binding(wait_queue(rung), wait_queue(rung), "#"))
    # Last: no service publishes before there is a history, and by then there is all the rest.
    queues.append(stream)
    bindings.append(Binding(EVENTS_EXCHANGE, HISTORY_STREAM, "#"))
    exchanges = [EVENTS_EXCHANGE, DEAD_EXCHANGE, *map(wait_queue, RUNGS_MS)]
    return Topology(exchanges, queues, bindings)


async def apply(topology: Topology, channel: AbstractChannel) -> None:
    """Declare the topology on a broker, each queue with its bindings, in order; what is there
    already stays. Needs a user who may configure. Raises `TopologyError` if a name is taken by
    something else, `QueueDown`, and what aiormq raises."""
    try:
        for name in topology.exchanges:
            await channel.declare_exchange(name, aio_pika.ExchangeType.TOPIC, durable=True)
        for queue in topology.queues:
            declared = await _declared(queue, channel)
            for binding in topology.bindings:
                if binding.queue == queue.name:
                    await declared.bind(binding.exchange, binding.key)
    except aio_pika.exceptions.ChannelPreconditionFailed as error:
        raise TopologyError(
            f"the broker holds something else under one of the saga's names: {error}; "
            f"delete it there, or use another virtual host"
        ) from error


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
