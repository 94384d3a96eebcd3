"""Where a message is that a participant owes an answer to: in a queue, waiting, dead, or
nowhere."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

import aiormq

from saga.choreography import Choreography
from saga.deployment import Deployment
from saga.dlq.letters import Copy, DeadLetter, copy_of, event_id_of
from saga.dlq.states import HERE, SETTLED
from saga.history import HistoryError
from saga.reconcile import broker
from saga.reconcile.facts import ReconcileError
from saga.retry import RUNGS_MS
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.messaging.dead_letters import Reason, attempts_in, ours_in
from saga.runtime.messaging.partitions import with_partitions
from saga.runtime.messaging.topology import dead_letter_queue, queues_of, wait_queue
from saga.runtime.urls import printable
from saga.wording import counted


class Place(StrEnum):
    """What kind of place it is."""

    DEAD = "dead"
    WAITING = "waiting"
    QUEUED = "queued"
    IN_HAND = "in_hand"
    SETTLED = "settled"
    NOWHERE = "nowhere"


@dataclass(frozen=True, slots=True)
class MessageLocation:
    """Where a message is; `detail` says what it is there."""

    place: Place
    detail: str


@dataclass
class MessageLocations:
    """What one look at the broker and at the store of dead letters has found."""

    found: dict[tuple[str, str], MessageLocation] = field(default_factory=dict)
    """Keyed by participant and event."""
    ready: dict[str, int] = field(default_factory=dict)
    """Keyed by participant whose queues are read: how many messages wait in them."""
    dead: list[Copy] = field(default_factory=list)
    """What is in the dead-letter queues."""

    def of(self, participant: str, event_id: str) -> MessageLocation:
        """Where an event is that this participant has not dealt with."""
        if where := self.found.get((participant, event_id)):
            return where
        if (ready := self.ready.get(participant)) is not None:
            return MessageLocation(
                Place.IN_HAND,
                f"in the hands of {participant}, or among {counted(ready, 'message')} in its "
                f"queues",
            )
        return MessageLocation(
            Place.NOWHERE,
            f"in no queue of {participant} and not dead: see `saga reconcile`",
        )


async def look(
    deployment: Deployment, graph: Choreography, letters: Iterable[DeadLetter]
) -> MessageLocations:
    """Look through the queues. Changes nothing, but what waits is in another order afterwards.

    Raises `BrokerError` and `HistoryError`.
    """
    seen = MessageLocations()
    connection = await connect(deployment.amqp_url, name="saga trace")
    try:
        # Each place before the one that a message goes to from there.
        for rung in RUNGS_MS:
            for message in await broker.look_through(connection, wait_queue(rung)):
                owner = message.routing_key.partition(".")[0]
                tries = attempts_in(ours_in(message)) + 1
                _put(seen, owner, message.body, Place.WAITING, f"waiting for try {tries}")
        for participant in graph.participants:
            name = participant.name
            queues = await with_partitions(connection, queues_of(participant))
            backlog = await broker.backlog(connection, queues)
            for key in backlog.waiting:
                queued = MessageLocation(
                    Place.QUEUED, f"waiting in the queues of {name}, which has no consumer"
                )
                seen.found.setdefault((name, key), queued)
            if backlog.read:
                seen.ready[name] = backlog.ready
        for participant in graph.participants:
            name = participant.name
            for message in await broker.look_through(connection, dead_letter_queue(name)):
                copy = copy_of(message, name, utc_now())
                seen.dead.append(copy)
                said = f"a dead letter in {dead_letter_queue(name)}: {_error(copy)}"
                if copy.reason != Reason.CONFLICTING:
                    _put(seen, name, message.body, Place.DEAD, said)
    except ReconcileError as error:
        raise HistoryError(str(error)) from error
    except (aiormq.exceptions.AMQPError, ConnectionError) as error:
        raise BrokerError(
            f"RabbitMQ at {printable(deployment.amqp_url)} failed while it was read: {error}"
        ) from error
    finally:
        await connection.close()
    seen.found |= in_store(letters)
    return seen


def in_store(letters: Iterable[DeadLetter]) -> dict[tuple[str, str], MessageLocation]:
    """Keyed by participant and event: where those are that the operator's store has, or an operator
    has settled."""
    found: dict[tuple[str, str], MessageLocation] = {}
    for letter in letters:
        if letter.state in HERE:
            where = MessageLocation(Place.DEAD, f"dead letter {letter.number}: {_error(letter)}")
        elif letter.state in SETTLED:
            where = MessageLocation(
                Place.SETTLED, f"dead letter {letter.number}, {letter.state} by an operator"
            )
        else:
            continue
        if letter.reason != Reason.CONFLICTING:  # That one only has an event's id.
            found[letter.participant, letter.message_id] = where
    return found


def _put(seen: MessageLocations, participant: str, body: bytes, place: Place, detail: str) -> None:
    if event_id := event_id_of(body):
        seen.found[participant, event_id] = MessageLocation(place, detail)


def _error(letter: Copy | DeadLetter) -> str:
    return f"{letter.error_type or letter.reason}: {letter.error}".rstrip(": ")
