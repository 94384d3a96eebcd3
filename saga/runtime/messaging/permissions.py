"""Who may do what on the broker, derived from the choreography: least privilege by its own source.

Each participant has a user of its name, which declares nothing, reads its own queues, and writes
its own event types, the commands it sends, its own dead letters, and its own queues' names on the
wait exchanges. The default exchange reaches every queue, so no participant may write it.

RabbitMQ takes a permission as a regular expression that may match anywhere: each one here is
anchored and escaped. Routing keys are checked for topic exchanges only, and only where the user
has a record for that exchange: without one everything is allowed. So a user has a record for every
topic exchange that it may write to. https://www.rabbitmq.com/docs/access-control
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from saga.choreography import Choreography, Participant
from saga.message import Command, Event, Priority
from saga.retry import RUNGS_MS
from saga.runtime.messaging.topology import (
    DEAD_EXCHANGE,
    EVENTS_EXCHANGE,
    HISTORY_STREAM,
    PARTITION_PATTERN,
    dead_letter_queue,
    divisible,
    queues_of,
    topology_of,
    wait_queue,
)

OPERATOR = "saga-operator"
"""Applies the topology, publishes test loads, reads queues and the history to judge them."""
REPLAY = "saga-replay"
"""Takes dead letters, and puts them back into any work queue or notes them in the history."""

DEFAULT_VIRTUAL_HOST = "/"
DEFAULT_EXCHANGE = "amq.default"
"""What permissions call the exchange with the empty name."""
NOTHING = "^$"
EVERYTHING = "^.*$"


@dataclass(frozen=True, slots=True)
class TopicPermission:
    """Which routing keys a user may publish to a topic exchange (`write`), and bind (`read`)."""

    exchange: str
    write: str
    read: str = NOTHING


@dataclass(frozen=True, slots=True)
class User:
    """A user of the broker: regular expressions over names of exchanges and queues."""

    name: str
    configure: str = NOTHING
    write: str = NOTHING
    read: str = NOTHING
    topics: Sequence[TopicPermission] = ()


def users_of(choreography: Choreography) -> tuple[User, ...]:
    """Every user the choreography needs: one per service, and the operators' two."""
    services = (_service(choreography, participant) for participant in choreography.participants)
    observers = (
        User(observer.name, read=only([HISTORY_STREAM])) for observer in choreography.observers
    )
    return (*services, *observers, _operator(choreography), _replay(choreography))


def name_on_broker(user: str, virtual_host: str) -> str:
    """What a user is called on the broker, all of whose virtual hosts have the same users: as it is
    in the default one, and `moves.history` in the virtual host `moves`, so that each saga of
    several on one broker has users, and passwords, of its own."""
    return user if virtual_host == DEFAULT_VIRTUAL_HOST else f"{virtual_host}.{user}"


def only(names: Iterable[str], *, divided: Iterable[str] = ()) -> str:
    """The regular expression that matches exactly these names, and those of the partitions that the
    queues `divided` may have now or later."""
    alternatives = [re.escape(name) for name in names]
    if parts := "|".join(re.escape(name) for name in divided):
        alternatives.append(f"({parts}){PARTITION_PATTERN}")
    return f"^({'|'.join(alternatives)})$" if alternatives else NOTHING


def _service(choreography: Choreography, participant: Participant) -> User:
    divided = divisible(choreography, participant)
    queues = only((q for q in queues_of(participant) if q not in divided), divided=divided)
    topics = (
        TopicPermission(EVENTS_EXCHANGE, write=_keys(participant.emits)),
        TopicPermission(DEAD_EXCHANGE, write=only([participant.name])),
        *(TopicPermission(wait_queue(rung), write=queues) for rung in RUNGS_MS),
    )
    return User(
        participant.name,
        write=only(topic.exchange for topic in topics),
        read=queues,
        topics=topics,
    )


def _operator(choreography: Choreography) -> User:
    topology = topology_of(choreography)
    divided = [q for p in choreography.participants for q in divisible(choreography, p)]
    queues = [queue.name for queue in topology.queues if queue.name not in divided]
    ours = only([*topology.exchanges, *queues], divided=divided)
    # To declare a queue that dead-letters to an exchange takes the right to write there, and to
    # bind a queue takes writing the queue and reading the exchange.
    return User(
        OPERATOR,
        configure=ours,
        write=only([EVENTS_EXCHANGE, DEAD_EXCHANGE, DEFAULT_EXCHANGE, *queues], divided=divided),
        read=ours,
        topics=[
            TopicPermission(EVENTS_EXCHANGE, _keys(choreography.events), EVERYTHING),
            *(
                TopicPermission(exchange, NOTHING, EVERYTHING)
                for exchange in topology.exchanges
                if exchange != EVENTS_EXCHANGE
            ),
        ],
    )


def _replay(choreography: Choreography) -> User:
    dead = [dead_letter_queue(participant.name) for participant in choreography.participants]
    return User(
        REPLAY,
        write=only([DEFAULT_EXCHANGE]),
        read=only([*dead, HISTORY_STREAM]),
    )


def _keys(messages: Iterable[type[Event | Command]]) -> str:
    return only(f"{message.type}.{priority}" for message in messages for priority in Priority)
