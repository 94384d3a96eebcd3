"""Putting the choreography's topology and users on a broker, and telling how they differ there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

import aiormq
import yarl
from aio_pika.abc import AbstractChannel, AbstractConnection

from saga.broker.drift import MISSING, Deviation, differences
from saga.broker.management import Management
from saga.choreography import PARTITIONS_MAX, Choreography
from saga.deployment import Deployment, write_secret
from saga.local.node import RabbitNode
from saga.message import Priority
from saga.runtime.disk import lack_of_room
from saga.runtime.messaging.connection import RETRY_SECONDS, BrokerError, connect
from saga.runtime.messaging.definitions import Definitions, definitions, text
from saga.runtime.messaging.partitions import LOOK_SECONDS, is_there, partitions_on
from saga.runtime.messaging.permissions import User, users_of
from saga.runtime.messaging.topology import (
    DECLARE_SECONDS,
    HASH_ARGUMENTS,
    HASH_TYPE,
    QueueDown,
    Topology,
    TopologyError,
    apply,
    divisible,
    intake_queue,
    partition_queue,
    topology_of,
    undivided,
)
from saga.runtime.messaging.wire import Connection
from saga.runtime.urls import printable
from saga.wording import counted

NODE_FOLDER: Final = "rabbitmq"
"""Where in a system's folder its private node is."""
USERS_FILE: Final = "users.json"
"""Where in that folder are its users, with hashes of their passwords."""
BACK_SECONDS: Final = 60.0
"""How long a broker that has started may take to have its queues back. What is down then is
damaged."""
MEND_ROOM_BYTES: Final = 5_000_000
"""Free bytes of the disk without which no queue counts as damaged: what fails there fails for want
of room."""
_LOST: Final = (ConnectionError, RuntimeError)
"""What is raised on a connection that the broker has left; aiormq's are the second."""
FOUND_SECONDS: Final = 6 * LOOK_SECONDS
"""How long services that run may take to find new partitions before messages are put into them."""
_AS_DESIGNED: Final = "as the choreography has it"


@dataclass(frozen=True, slots=True)
class Drift:
    """How the broker differs from the choreography, and what could not be compared."""

    broker: str
    differences: Sequence[Deviation]
    not_compared: Sequence[str] = ()


class DamagedQueue(BrokerError):
    """A queue of the saga's is there, and cannot be used, however long it is waited for."""

    def __init__(self, url: str, down: QueueDown) -> None:
        super().__init__(
            f"{down} (RabbitMQ at {printable(url)}); remove it there (`rabbitmqctl delete_queue "
            f"{down.queue}`, see docs/a-broker-is-gone.md), then `saga recover broker` makes it "
            f"again"
        )
        self.queue = down.queue


async def apply_topology(
    url: str,
    graph: Choreography,
    *,
    partitions: int | None = None,
    partitions_min: int = 1,
    patience_seconds: float = 0.0,
) -> Topology:
    """Declare on the broker at `url` what the choreography needs; what is there already stays.
    Returns what is there now.

    Queues get as many `partitions` as said, or as they have, and `partitions_min` then if those are
    more: so many they had before the broker lost some. A broker that is out of reach is
    waited for up to `patience_seconds`; and one that has just started and does not have all of its
    queues back yet, for `BACK_SECONDS`. Raises `BrokerError`, of which `DamagedQueue` is one, or
    `TopologyError` if a name is taken by something else, or there are more partitions than said.
    """
    connection = await connect(url, name="saga", patience_seconds=patience_seconds)
    deadline = time.monotonic() + BACK_SECONDS
    async with connection:
        while True:
            try:
                there = await partitions_on(connection, graph)
                number = _as_many(partitions, max(there, partitions_min), there, url)
                topology = topology_of(graph, number)
                if topology.partitions > there:
                    await _wait_for_readers(connection, topology)
                await apply(topology, await connection.channel())
                return topology
            except QueueDown as error:
                if time.monotonic() > deadline:
                    raise DamagedQueue(url, error) from error
            except aiormq.exceptions.AMQPError as error:
                raise BrokerError(
                    f"RabbitMQ at {printable(url)} refused to declare the topology: {error}; "
                    f"may the user in AMQP_URL configure exchanges and queues there?"
                ) from error
            except _LOST as error:
                raise _lost(url, error) from error
            await asyncio.sleep(RETRY_SECONDS)


async def _wait_for_readers(connection: Connection, topology: Topology) -> None:
    """Declare new partitions, and wait until services that run have found them, so that nothing is
    put into a queue without a consumer. Raises what `apply` raises, and `BrokerError` where they
    do not: nothing is routed to the new partitions then."""
    divided = set(topology.hashes)
    queues = [queue for queue in topology.queues if undivided(queue.name) in divided]
    channel = await connection.channel()
    await apply(Topology(queues=queues, hashes=topology.hashes), channel)

    async def read(name: str) -> bool:
        try:
            async with asyncio.timeout(DECLARE_SECONDS):
                queue = await channel.declare_queue(name, passive=True)
        except TimeoutError:
            raise QueueDown(name, f"no answer for {DECLARE_SECONDS:g} s") from None
        return bool(queue.declaration_result.consumer_count)

    served = [queue.name for queue in queues if await read(undivided(queue.name))]
    deadline = time.monotonic() + FOUND_SECONDS
    while served and time.monotonic() < deadline:
        served = [name for name in served if not await read(name)]
        await asyncio.sleep(RETRY_SECONDS)
    if served:
        raise BrokerError(
            f"no service reads {', '.join(served[:3])}{' ...' if len(served) > 3 else ''} within "
            f"{FOUND_SECONDS:g} s, so nothing is routed there: restart services of an older "
            f"version, look at /readyz of the others, then apply again"
        )


async def partitions_at(url: str, graph: Choreography, *, patience_seconds: float = 0.0) -> int:
    """The same of the broker at `url`. Raises `BrokerError`."""
    connection = await connect(url, name="saga", patience_seconds=patience_seconds)
    async with connection:
        try:
            return await partitions_on(connection, graph)
        except aiormq.exceptions.AMQPError as error:
            raise BrokerError(f"cannot look at the queues at {printable(url)}: {error}") from error
        except _LOST as error:
            raise _lost(url, error) from error


def _as_many(partitions: int | None, otherwise: int, there: int, url: str) -> int:
    if partitions is not None and partitions < there:
        raise TopologyError(
            f"the queues at {printable(url)} have {counted(there, 'partition')}, and cannot have "
            f"only "
            f"{partitions}: what is in the others, or returns to them, would not be read; say "
            f"{there} or more, or leave the number out"
        )
    return partitions or otherwise


async def mend_topology(
    url: str,
    graph: Choreography,
    node: RabbitNode | None,
    *,
    partitions_min: int = 1,
    patience_seconds: float = 0.0,
    before: Callable[[str], None] = lambda _: None,
    report: Callable[[str], None] = lambda _: None,
) -> Topology:
    """The same, and queues that are damaged are removed, with all they hold, where the broker is a
    private `node` and its disk has room.

    `before` is called, with the reason, before a queue is made that was not there, or is removed:
    what it held is to be put back into it. `report` is told of each removal. Raises what
    `apply_topology` raises, and `NodeError`.
    """
    missing = await missing_queues(
        url, graph, partitions_min=partitions_min, patience_seconds=patience_seconds
    )
    if missing:
        before(f"the broker had lost {counted(len(missing), 'queue')}")
    takers = [participant.name for participant in graph.participants if graph.given_to(participant)]
    intakes = {intake_queue(name, priority) for name in takers for priority in Priority}
    removed: set[str] = set()
    while True:
        try:
            return await apply_topology(
                url, graph, partitions_min=partitions_min, patience_seconds=patience_seconds
            )
        except DamagedQueue as damaged:
            queue = damaged.queue
            if node is None or queue in removed:
                raise
            if lack := lack_of_room(node.folder, MEND_ROOM_BYTES, 1):
                raise BrokerError(f"{damaged}; not while there is no room: {lack}") from damaged
            why = f"the queue {queue} is damaged, and is made again"
            before(why)
            taken = "; commands that waited in it are lost" if queue in intakes else ""
            report(f"{why}{taken}")
            await asyncio.to_thread(node.remove_queue, queue)
            removed.add(queue)


def private_node(folder: Path, deployment: Deployment) -> RabbitNode | None:
    """The private node of the system that runs in `folder`, if its broker is one."""
    if not deployment.amqp_urls or not (folder / NODE_FOLDER).is_dir():
        return None
    return RabbitNode(folder / NODE_FOLDER)


async def missing_queues(
    url: str, graph: Choreography, *, partitions_min: int = 1, patience_seconds: float = 0.0
) -> list[str]:
    """The queues of the topology that the broker does not know, the stream among them, and at
    least so many partitions. Raises `BrokerError`."""
    connection = await connect(url, name="saga", patience_seconds=patience_seconds)
    async with connection:
        try:
            there = await partitions_on(connection, graph)
            topology = topology_of(graph, max(there, partitions_min))
            names = [queue.name for queue in topology.queues]
            return [name for name in names if not await is_there(connection, name)]
        except aiormq.exceptions.AMQPError as error:
            raise BrokerError(f"cannot look at the queues at {printable(url)}: {error}") from error
        except _LOST as error:
            raise _lost(url, error) from error


def _lost(url: str, error: Exception) -> BrokerError:
    return BrokerError(f"RabbitMQ at {printable(url)} went away: {error}; try again later")


def write_users(folder: Path, graph: Choreography, passwords: Mapping[str, str]) -> Path:
    """Write the users of a system's private node where it can import them; returns the file."""
    node_folder = folder / NODE_FOLDER
    node_folder.mkdir(parents=True, exist_ok=True)
    file = node_folder / USERS_FILE
    write_secret(file, text(definitions(Topology(), users_of(graph), passwords=passwords)))
    return file


async def wait_for_nodes(management_url: str, nodes: int, *, patience_seconds: float) -> None:
    """Wait until so many nodes of the broker run: a queue gets its replicas on those that run when
    it is made. Raises `BrokerError` once that takes longer than `patience_seconds`."""
    deadline = time.monotonic() + patience_seconds
    async with Management(management_url) as management:
        while True:
            try:
                running = await management.running_nodes()
            except BrokerError:
                if time.monotonic() > deadline:
                    raise
            else:
                if running >= nodes:
                    return
                if time.monotonic() > deadline:
                    raise BrokerError(
                        f"{running} of {counted(nodes, 'node')} of RabbitMQ at "
                        f"{printable(management_url)} "
                        f"run; start the others, or say another number with --nodes"
                    )
            await asyncio.sleep(RETRY_SECONDS)


async def put_virtual_host(url: str, management_url: str | None) -> None:
    """Make the virtual host that `url` names where it is not there, if the management API's address
    is given. Raises `BrokerError`."""
    if management_url is not None:
        async with Management(management_url) as management:
            await management.put_virtual_host(virtual_host_of(url))


async def put_users(
    users: Sequence[User],
    url: str,
    management_url: str | None,
    passwords: Mapping[str, str],
    folder: Path | None,
) -> bool:
    """Give the users their permissions: through the management API, or on the private node of the
    system in `folder`; false where neither is given. Raises `BrokerError` or `NodeError`."""
    if management_url is not None:
        async with Management(management_url) as management:
            await management.put_users(users, passwords, virtual_host_of(url))
        return True
    if folder is None:
        return False
    deployment = Deployment.load(folder)
    node = private_node(folder, deployment)
    if node is None:
        return False
    known = {user: yarl.URL(url).password or "" for user, url in deployment.amqp_urls.items()}
    file = folder / NODE_FOLDER / USERS_FILE
    write_secret(file, text(definitions(Topology(), users, passwords=known)))
    await asyncio.to_thread(node.ctl, "import_definitions", str(file.absolute()))
    return True


async def drift(
    graph: Choreography,
    url: str | None,
    management_url: str | None,
    folder: Path,
    *,
    partitions_min: int = 1,
) -> Drift:
    """Compare a broker with the choreography: through the management API where its address is
    given, else as far as AMQP tells where `url` is given, else the private node of `folder`. Queues
    should have the partitions that there are, and at least `partitions_min`.

    Changes nothing. Raises `BrokerError` or `NodeError`.
    """
    virtual_host = virtual_host_of(url) if url else "/"
    if management_url is not None:
        async with Management(management_url) as management:
            found = await management.export(virtual_host)
        broker = printable(management_url)
    elif url is not None:
        there = max(await partitions_at(url, graph), partitions_min)
        topology = topology_of(graph, there)
        found_here = await _over_amqp(url, topology)
        return Drift(printable(url), found_here, ("bindings", "users", "permissions"))
    else:
        node = RabbitNode(folder / NODE_FOLDER)
        found = json.loads(await asyncio.to_thread(node.ctl, "export_definitions", "-"))
        broker = str(node.folder)
    there = max(_partitions_in(found, graph, virtual_host), partitions_min)
    topology = topology_of(graph, there)
    seen = "users" in found
    expected = definitions(
        _as_it_may_be(topology, found, virtual_host), users_of(graph), virtual_host=virtual_host
    )
    return Drift(
        broker,
        differences(expected, found, virtual_host=virtual_host, users=seen),
        () if seen else ("users", "permissions"),
    )


def virtual_host_of(url: str) -> str:
    """The virtual host an AMQP URL names."""
    try:
        return yarl.URL(url).path.removeprefix("/") or "/"
    except ValueError:
        return "/"  # connecting will say what is wrong with it


def _partitions_in(found: Definitions, graph: Choreography, virtual_host: str) -> int:
    there = {q["name"] for q in found["queues"] if q.get("vhost", virtual_host) == virtual_host}
    return max(
        [
            1,
            *(
                number + 1
                for participant in graph.participants
                for queue in divisible(graph, participant)
                for number in range(PARTITIONS_MAX)
                if partition_queue(queue, number) in there
            ),
        ]
    )


def _as_it_may_be(topology: Topology, found: Definitions, virtual_host: str) -> Topology:
    """The topology, with queues as an earlier version declared them where they are there so."""
    there = {
        queue["name"]: queue["arguments"]
        for queue in found["queues"]
        if queue.get("vhost", virtual_host) == virtual_host
    }
    queues = [
        replace(queue, arguments=there[queue.name])
        if there.get(queue.name) in queue.formerly
        else queue
        for queue in topology.queues
    ]
    return replace(topology, queues=queues)


async def _over_amqp(url: str, topology: Topology) -> list[Deviation]:
    """Declaring what is there with the arguments it should have changes nothing, or is refused."""
    connection = await connect(url, name="saga topology")
    found: list[Deviation] = []
    async with connection:
        for name in topology.exchanges:
            found += await _declared(connection, "exchange", name, _declare_exchange(name))
        for name in topology.hashes:
            declare = _declare_exchange(name, HASH_TYPE, HASH_ARGUMENTS)
            found += await _declared(connection, "exchange", name, declare)
        for queue in topology.queues:
            differs: list[Deviation] = []
            for arguments in (queue.arguments, *queue.formerly):
                declare = _declare_queue(queue.name, arguments)
                told = await _declared(connection, "queue", queue.name, declare)
                if not told or told[0].found == MISSING:
                    differs = told
                    break
                differs = differs or told
            found += differs
    return found


_Declare = Callable[[AbstractChannel, bool], Awaitable[Any]]


def _declare_exchange(
    name: str, type_: str = "topic", arguments: Mapping[str, Any] = MappingProxyType({})
) -> _Declare:
    return lambda channel, passive: channel.declare_exchange(
        name, type_, durable=True, passive=passive, arguments=dict(arguments)
    )


def _declare_queue(name: str, arguments: Mapping[str, Any]) -> _Declare:
    return lambda channel, passive: channel.declare_queue(
        name, durable=True, arguments=dict(arguments), passive=passive
    )


async def _declared(
    connection: AbstractConnection, kind: str, name: str, declare: _Declare
) -> list[Deviation]:
    channel = await connection.channel()  # its own: a refusal closes it
    try:
        await declare(channel, True)
        await declare(channel, False)
    except aiormq.exceptions.ChannelNotFoundEntity:
        return [Deviation(kind, name, _AS_DESIGNED, MISSING)]
    except aiormq.exceptions.ChannelPreconditionFailed as error:
        return [Deviation(kind, name, _AS_DESIGNED, str(error))]
    except aiormq.exceptions.AMQPError as error:
        raise BrokerError(
            f"cannot compare the {kind} {name}: {error}; "
            f"name a user in AMQP_URL who may configure it"
        ) from error
    finally:
        if not channel.is_closed:
            await channel.close()
    return []
