"""How a running system is: queues, dead letters, outboxes, sagas, and what is wrong with it."""

from __future__ import annotations

import asyncio
import re
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, Final

import aiormq
import httpx
import sqlalchemy as sa
from aio_pika.abc import AbstractChannel
from sqlalchemy.engine import Connection

from saga.choreography import Choreography
from saga.deployment import Deployment
from saga.discovery import tables_in
from saga.dlq.lookup import count_stored
from saga.due import OVERDUE_SECONDS
from saga.generate.naming import Owned, names_of
from saga.http import client, said_by
from saga.local.supervision import Supervision
from saga.personal.requests import problems_in
from saga.retry import RUNGS_MS
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.tables import Tables, utc_now
from saga.runtime.messaging.connection import BrokerError, connect
from saga.runtime.messaging.partitions import with_partitions
from saga.runtime.messaging.topology import (
    DECLARE_SECONDS,
    dead_letter_queue,
    queues_of,
    wait_queue,
)
from saga.runtime.urls import printable
from saga.wording import counted

REQUEST_TIMEOUT_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True)
class QueueStatus:
    """A queue: messages that wait in it, and who reads it. Delivered ones do not wait any more."""

    messages: int
    consumers: int


@dataclass(frozen=True, slots=True)
class Dues:
    """States about which something is due: `pending`, and of these `overdue`."""

    pending: int
    overdue: int


@dataclass(frozen=True, slots=True)
class SystemStatus:
    """A system at one moment, read part by part while it runs."""

    services: Mapping[str, str] = field(default_factory=dict)
    """Keyed by service: `ready`, or what it lacks, or what an operator should look into
    nevertheless."""
    crash_loops: Sequence[str] = ()
    """A line for each process that keeps ending."""
    forgetting: Sequence[str] = ()
    """A line about requests to forget a person that wait, if any do."""
    queues: Mapping[str, QueueStatus] = field(default_factory=dict)
    """Keyed by name: the queues that participants read."""
    waits: Mapping[str, int] = field(default_factory=dict)
    """Keyed by wait queue: the messages that are to be tried again; without empty ones."""
    dead_letters: Mapping[str, int] = field(default_factory=dict)
    """Keyed by participant, in its queue and in the operator's store."""
    stored_dead_letters: Mapping[str, int] = field(default_factory=dict)
    """Keyed by participant: those of them in the store; without participants that have none."""
    outboxes: Mapping[str, int] = field(default_factory=dict)
    """Keyed by participant: the events that are not known to be published."""
    dues: Mapping[Owned, Dues] = field(default_factory=dict)
    """Keyed by participant and table of states: what is due about them."""

    @property
    def dues_by_name(self) -> dict[str, Dues]:
        """Keyed by what a table is called among those of all participants: what is due."""
        return {name: self.dues[owned] for owned, name in names_of(self.dues).items()}

    @property
    def at_rest(self) -> bool:
        """Whether nothing waits to be read or published. (A delivery may still be worked on.)"""
        waiting = sum(queue.messages for queue in self.queues.values())
        waiting += sum(self.waits.values())
        pending = sum(dues.pending for dues in self.dues.values())
        return not (waiting or sum(self.outboxes.values()) or pending)

    def beside(self, other: SystemStatus) -> SystemStatus:
        """Both, of which each tells a part. Dead letters of a participant add up."""
        dead = Counter(self.dead_letters)
        dead.update(other.dead_letters)
        return SystemStatus(
            services={**self.services, **other.services},
            crash_loops=(*self.crash_loops, *other.crash_loops),
            forgetting=(*self.forgetting, *other.forgetting),
            queues={**self.queues, **other.queues},
            waits={**self.waits, **other.waits},
            dead_letters=dict(dead),
            stored_dead_letters={**self.stored_dead_letters, **other.stored_dead_letters},
            outboxes={**self.outboxes, **other.outboxes},
            dues={**self.dues, **other.dues},
        )

    @property
    def uncollected(self) -> dict[str, int]:
        """Keyed by participant: the dead letters in its queue, if there are any."""
        return {
            name: count
            for name, letters in self.dead_letters.items()
            if (count := letters - self.stored_dead_letters.get(name, 0))
        }

    @property
    def problems(self) -> list[str]:
        """What an operator should look into, a line each."""
        return [
            *(
                f"the {name} service: {said}"
                for name, said in self.services.items()
                if said != READY
            ),
            *self.crash_loops,
            *(
                f"no consumer reads {name}"
                for name, queue in self.queues.items()
                if not queue.consumers
            ),
            *(
                f"{counted(count, 'dead letter')} in {dead_letter_queue(name)}"
                for name, count in self.uncollected.items()
            ),
            *(
                f"{counted(count, 'dead letter')} of {name} in the store; see `saga dlq list`"
                for name, count in self.stored_dead_letters.items()
            ),
            *(
                f"{table}: {dues.overdue} overdue"
                for table, dues in self.dues_by_name.items()
                if dues.overdue
            ),
            *self.forgetting,
        ]

    def to_json(self) -> dict[str, Any]:
        """The status as a JSON document.

        What is due is under `dues`, by participant and table; and under the table's name, where it
        was before there was that (see `names_of` for names that are not one table's).
        """
        document: dict[str, Any] = {
            "ok": not self.problems,
            "problems": self.problems,
            "services": dict(self.services),
            "queues": {
                name: {"messages": queue.messages, "consumers": queue.consumers}
                for name, queue in self.queues.items()
            },
            "waits": dict(self.waits),
            "dead_letters": dict(self.dead_letters),
            "stored_dead_letters": dict(self.stored_dead_letters),
            "outboxes": dict(self.outboxes),
            "forgetting": list(self.forgetting),
            "dues": {},
        }
        for (participant, table), dues in self.dues.items():
            document["dues"].setdefault(participant, {})[table] = asdict(dues)
        for owned, name in names_of(self.dues, taken=document.keys()).items():
            document[name] = asdict(self.dues[owned])
        return document


READY: Final = "ready"
READY_BUT: Final = "ready, but"
"""The prefix for a service that works, but has something an operator should look into."""
NO_ANSWER: Final = "no answer"
_BUILD: Final = re.compile(r'^saga_build_info\{[^}\n]*\bversion="([^"\n]{1,100})"', re.MULTILINE)


async def status(
    deployment: Deployment,
    graph: Choreography,
    supervision: Supervision | None = None,
    *,
    folder: Path | None = None,
    patience_seconds: float = 0.0,
) -> SystemStatus:
    """Read the status; changes nothing. `supervision` is what a `saga up` tells of its processes;
    in the data `folder` are requests to forget their owners.

    Of participants that the deployment does not have, only their queues are told. Waits up to
    `patience_seconds` for a broker out of reach. Raises `BrokerError` or
    `DatabaseError`.
    """
    services = SystemStatus(
        services=await readiness_of_all(deployment, graph),
        crash_loops=supervision.problems(time.time()) if supervision else (),
        forgetting=() if folder is None else await asyncio.to_thread(problems_in, folder),
    )
    waiting = await at_broker(deployment, graph, patience_seconds=patience_seconds)
    return services.beside(waiting).beside(await in_databases(deployment, graph))


async def at_broker(
    deployment: Deployment, graph: Choreography, *, patience_seconds: float = 0.0
) -> SystemStatus:
    """What of the status the broker tells: queues, waits, and the dead letters in their queues.
    Raises `BrokerError`."""
    connection = await connect(
        deployment.amqp_url, name="saga status", patience_seconds=patience_seconds
    )
    try:
        async with connection:
            channel = await connection.channel()
            queues = {
                name: await _queue(channel, name)
                for participant in graph.participants
                for name in await with_partitions(connection, queues_of(participant))
            }
            waits = {
                wait_queue(rung): (await _queue(channel, wait_queue(rung))).messages
                for rung in RUNGS_MS
            }
            dead = {
                participant.name: (
                    await _queue(channel, dead_letter_queue(participant.name))
                ).messages
                for participant in graph.participants
            }
    except (aiormq.exceptions.AMQPError, ConnectionError) as error:
        raise BrokerError(
            f"RabbitMQ at {printable(deployment.amqp_url)} failed: {error}"
        ) from error
    return SystemStatus(
        queues=queues,
        waits={name: count for name, count in waits.items() if count},
        dead_letters=dead,
    )


async def in_databases(deployment: Deployment, graph: Choreography) -> SystemStatus:
    """What of the status databases tell: the dead letters in the store, outboxes, what is due.
    Raises `DatabaseError` and `DlqError`."""
    stored = await asyncio.to_thread(count_stored, deployment.dead_letters_url)
    outboxes = {
        participant.name: await asyncio.to_thread(
            read_database, deployment.database_urls[participant.name], _count_outbox
        )
        for participant in graph.in_python
        if participant.name in deployment.database_urls
    }
    late = utc_now() - timedelta(seconds=OVERDUE_SECONDS)
    dues: dict[Owned, Dues] = {}
    for participant in graph.participants:
        if participant.dues and participant.name in deployment.database_urls:
            url = deployment.database_urls[participant.name]
            tables = tables_in(participant.package)
            found = await asyncio.to_thread(read_database, url, partial(_dues, tables, late))
            dues |= {(participant.name, table): counts for table, counts in found.items()}
    names = {participant.name for participant in graph.participants}
    return SystemStatus(
        dead_letters={name: count for name, count in stored.items() if name in names},
        stored_dead_letters=dict(stored),
        outboxes=outboxes,
        dues=dues,
    )


@dataclass(frozen=True, slots=True)
class Replica:
    """One process of a service: where it serves, what it says of itself (`ready`, or what it
    lacks), and its version, if it tells that."""

    url: str
    said: str
    version: str | None


async def readiness_of_all(deployment: Deployment, graph: Choreography) -> dict[str, str]:
    """What each service says of itself, see `readiness`."""
    names = [service.name for service in graph.services if service.name in deployment.http_urls]
    said = await asyncio.gather(*(readiness(deployment.http_urls[name]) for name in names))
    by_name = dict(zip(names, said, strict=True))
    return {name: by_name[name] for name in deployment.http_urls if name in by_name}


async def replicas(deployment: Deployment, graph: Choreography) -> dict[str, Sequence[Replica]]:
    """The processes of each service that has an address."""

    async def of(name: str) -> Sequence[Replica]:
        return await asyncio.gather(*(_replica(url) for url in deployment.http_urls[name]))

    names = [service.name for service in graph.services if service.name in deployment.http_urls]
    return dict(zip(names, await asyncio.gather(*map(of, names)), strict=True))


async def _replica(url: str) -> Replica:
    said = await _readiness(url)
    version = None if said.startswith(NO_ANSWER) else await _version(url)
    return Replica(url, said, version)


async def _version(url: str) -> str | None:
    """What a process tells of itself among its metrics; None if it does not."""
    try:
        async with client(url, REQUEST_TIMEOUT_SECONDS) as service:
            response = await service.get("/metrics")
    except httpx.HTTPError:
        return None
    found = _BUILD.search(response.text) if response.is_success else None
    return found and found[1]


async def readiness(urls: Iterable[str]) -> str:
    """What the replicas of a service say of themselves: `ready`, or what the first one lacks."""
    said = await asyncio.gather(*map(_readiness, urls))
    return next((each for each in said if each != READY), READY)


async def _readiness(url: str) -> str:
    try:
        async with client(url, REQUEST_TIMEOUT_SECONDS) as service:
            response = await service.get("/readyz")
    except httpx.TransportError as error:
        return f"{NO_ANSWER} from {url}: {said_by(error)}"
    try:
        if response.status_code != httpx.codes.OK:
            return str(response.json()["detail"])
        troubles = response.json().get("troubles")  # An exporter, or an older service, has none.
        if not troubles:
            return READY
        return f"{READY_BUT} " + "; ".join(f"{thing}: {why}" for thing, why in troubles.items())
    except (AttributeError, ValueError, KeyError, TypeError):
        return f"{response.status_code} from {url}/readyz"


async def _queue(channel: AbstractChannel, name: str) -> QueueStatus:
    """Raises `BrokerError` for a queue that is missing, and the channel is closed then."""
    try:
        async with asyncio.timeout(DECLARE_SECONDS):
            found = (await channel.declare_queue(name, passive=True)).declaration_result
    except (aiormq.exceptions.ChannelClosed, TimeoutError) as error:
        why = str(error) or f"no answer for {DECLARE_SECONDS:g} s"
        raise BrokerError(
            f"cannot look at the queue {name}: {why}; `saga recover broker` makes it again"
        ) from error
    return QueueStatus(found.message_count or 0, found.consumer_count or 0)


def _dues(tables: Tables, late: datetime, connection: Connection) -> dict[str, Dues]:
    found = {}
    for state in tables.with_dues:
        at = state.table.c.due_at
        overdue = sa.func.coalesce(sa.func.sum(sa.case((at < late, 1), else_=0)), 0)
        query = sa.select(sa.func.count(), overdue).where(at.is_not(None))
        pending, over = connection.execute(query).one()
        found[state.table.name] = Dues(pending, int(over))
    return found


def _count_outbox(connection: Connection) -> int:
    # The kernel gives each service an outbox of this shape; the metadata is only for the query.
    outbox = Tables(sa.MetaData()).outbox
    return connection.scalar(sa.select(sa.func.count()).select_from(outbox)) or 0
