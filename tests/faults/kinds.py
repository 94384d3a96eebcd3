"""The kinds of faults: each strikes a system under load once, and ends with everything up again.

What it does exactly is up to the dice. None waits for the load to recover.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sqlite3
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import closing
from random import Random
from typing import Final

import aio_pika
import asyncpg
from aio_pika.abc import AbstractIncomingMessage

from payment_service.gateway import Fault, FaultMode, SandboxGateway
from saga.discovery import choreography, participants
from saga.local import SystemFault
from saga.local.system import Database
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import HISTORY_STREAM, queues_of
from tests.e2e.test_saga import deliver_again
from tests.faults.load import Load, package_of
from tests.faults.proxy import Proxy
from tests.polling import until

SILENT_SECONDS: Final = 1.5
SLOW_SECONDS: Final = 0.01
"""What every few kilobytes are held up for."""
AWAY_SECONDS: Final = 1.0
"""How long a database takes no writes."""
LOST_ANSWERS_SECONDS: Final = 0.5
"""Shorter than the waits between two charges, of which there are few until one is dead."""
SEAM_SECONDS: Final = 5.0
"""How long a seam is waited for that the service may never come to again."""
BACKLOG: Final = 20
BACKLOG_SECONDS: Final = 1.0
DOUBLED_SHARE: Final = 0.2

Kind = Callable[[Load, Random], Awaitable[None]]

SEAMS: Final[Mapping[str, tuple[str, ...]]] = {
    "before-commit": ("order", "inventory", "payment"),
    "between-commit-and-ack": ("order", "inventory", "payment"),
    "between-commit-and-publish": ("order", "inventory", "payment"),
    "in-the-middle-of-publishing": ("order", "inventory", "payment"),
    "between-publish-and-forget": ("order", "inventory", "payment"),
    "between-intent-and-call": ("payment",),
    "between-call-and-commit": ("payment",),
    "between-refund-intent-and-call": ("payment",),
    "between-refund-and-commit": ("payment",),
    "between-setting-aside-and-ack": ("order", "inventory", "payment"),
}
"""Keyed by crash point: the services that come to it."""


# --- services ----------------------------------------------------------------------------------


async def service_killed(load: Load, dice: Random) -> None:
    victim = dice.choice(load.stage.system.services)
    load.stage.system.kill(victim)
    await load.stage.system.start(victim)


async def service_killed_at_a_seam(load: Load, dice: Random) -> None:
    point = dice.choice(sorted(SEAMS))
    participant = dice.choice(SEAMS[point])
    victim = dice.choice(load.stage.replicas_of(participant))
    package = package_of(participant)
    program = load.stage.program(
        victim, "tests.faults.crash", package, point, str(dice.randint(1, 10))
    )
    await run_until_it_dies(load, victim, program, SEAM_SECONDS)


async def run_until_it_dies(
    load: Load, victim: str, program: tuple[str, ...], seconds: float
) -> bool:
    """Run a service as a program that kills itself; whether it did. Then it is back as it was."""
    load.stage.system.kill(victim)
    load.stage.system.programs[victim] = program
    with contextlib.suppress(SystemFault):  # It may die before it is ready.
        await load.stage.system.start(victim)
    with contextlib.suppress(AssertionError):
        await until(lambda: load.over or not load.stage.system.alive(victim), seconds=seconds)
    died = not load.stage.system.alive(victim)
    load.stage.system.kill(victim)
    load.stage.system.programs[victim] = load.stage.program(victim)
    await load.stage.system.start(victim)
    return died


async def service_frozen(load: Load, dice: Random) -> None:
    """It comes to again without its connections, and its messages are on their way again."""
    pid = load.stage.system.pid(dice.choice(load.stage.system.services))
    os.kill(pid, signal.SIGSTOP)
    try:
        await connections_closed_by_the_broker(load, dice)
    finally:
        os.kill(pid, signal.SIGCONT)


# --- the broker --------------------------------------------------------------------------------


async def broker_killed(load: Load, dice: Random) -> None:
    load.stage.node.kill()
    await asyncio.to_thread(load.stage.node.start)


async def connections_closed_by_the_broker(load: Load, dice: Random) -> None:
    await asyncio.to_thread(load.stage.node.ctl, "close_all_connections", "a fault test")


async def memory_alarm(load: Load, dice: Random) -> None:
    """Publishing stops until the alarm is over."""
    await asyncio.to_thread(load.stage.node.ctl, "set_vm_memory_high_watermark", "0")
    await asyncio.to_thread(load.stage.node.ctl, "set_vm_memory_high_watermark", "0.4")


# --- the network -------------------------------------------------------------------------------


def _some(ways: Mapping[str, Proxy], dice: Random) -> list[Proxy]:
    """One service's way, or that of all."""
    return dice.choice([list(ways.values()), [ways[dice.choice(sorted(ways))]]])


async def _for_a_while(ways: Sequence[Proxy], ail: Callable[[Proxy], None]) -> None:
    for way in ways:
        ail(way)
    await asyncio.sleep(SILENT_SECONDS)
    for way in ways:
        way.heal()


async def network_cut(load: Load, dice: Random) -> None:
    for way in _some(load.stage.brokers, dice):
        way.cut()


async def network_silent(load: Load, dice: Random) -> None:
    """Nothing arrives, neither end is told, and then it all does."""
    await _for_a_while(_some(load.stage.brokers, dice), Proxy.silence)


async def network_half_open(load: Load, dice: Random) -> None:
    """The broker gives a service up, and its messages to others, before the service knows."""
    await _for_a_while(_some(load.stage.brokers, dice), Proxy.strand)


async def network_slow(load: Load, dice: Random) -> None:
    """And so it stays, until something else heals it."""
    for way in _some(load.stage.brokers, dice):
        way.slow(SLOW_SECONDS)


# --- messages ----------------------------------------------------------------------------------


async def events_repeated(load: Load, dice: Random) -> None:
    """Every event there was, delivered again in any order."""
    await until(lambda: _history_is_back(load))  # The broker may just have been killed.
    await deliver_again(load.stage.system.deployment, choreography(), dice)


async def _history_is_back(load: Load) -> bool:
    url = load.stage.system.deployment.amqp_url
    async with await connect(url, name="test", patience_seconds=10) as connection:
        channel = await connection.channel()
        try:
            await channel.declare_queue(HISTORY_STREAM, passive=True)
        except aio_pika.exceptions.ChannelNotFoundEntity:
            return False
        return True


async def deliveries_reordered(load: Load, dice: Random) -> None:
    """What waits for a service, it gets in another order, and some of it twice."""
    participant = dice.choice(list(participants().values()))
    victims = load.stage.replicas_of(participant.name)
    for victim in victims:
        load.stage.system.kill(victim)
    url = load.stage.system.deployment.amqp_url
    async with await connect(url, name="test", patience_seconds=10) as connection:
        channel = await connection.channel(on_return_raises=True)

        async def backlog() -> bool:
            depths = [
                (await channel.declare_queue(name, passive=True)).declaration_result.message_count
                for name in queues_of(participant)
            ]
            return load.over or sum(depth or 0 for depth in depths) >= BACKLOG

        with contextlib.suppress(AssertionError):  # then there are fewer
            await until(backlog, seconds=BACKLOG_SECONDS)
        for name in queues_of(participant):
            queue = await channel.get_queue(name, ensure=False)
            taken: list[AbstractIncomingMessage] = []
            while (message := await queue.get(fail=False)) is not None:
                taken.append(message)
            again = taken + [message for message in taken if dice.random() < DOUBLED_SHARE]
            for message in dice.sample(again, len(again)):
                # Through the default exchange, as what waited to be tried again comes back.
                await channel.default_exchange.publish(_copy(message), name)
            for message in taken:
                await message.ack()
    await load.stage.system.start(*victims)


def _copy(message: AbstractIncomingMessage) -> aio_pika.Message:
    return aio_pika.Message(
        message.body,
        headers=message.headers,
        content_type=message.content_type,
        delivery_mode=message.delivery_mode,
        correlation_id=message.correlation_id,
        message_id=message.message_id,
        timestamp=message.timestamp,
        type=message.type,
        app_id=message.app_id,
    )


async def provider_loses_answers(load: Load, dice: Random) -> None:
    """The payment provider does what it is asked, and says nothing of it."""
    url = load.stage.system.deployment.outside_urls["provider"]
    await asyncio.to_thread(_set_fault, url, FaultMode.LOST_ANSWER)
    await asyncio.sleep(LOST_ANSWERS_SECONDS)
    await asyncio.to_thread(_set_fault, url, FaultMode.NONE)


def _set_fault(url: str, mode: FaultMode) -> None:
    gateway = SandboxGateway(url)
    try:
        gateway.set_fault(Fault(mode))
    finally:
        asyncio.run(gateway.close())


# --- databases ---------------------------------------------------------------------------------


async def database_locked(load: Load, dice: Random) -> None:
    """Another process writes to a service's file and takes its time."""
    service = dice.choice(load.stage.system.services)
    path = load.stage.system.deployment.database_urls[service].removeprefix("sqlite:///")
    writer = sqlite3.connect(path, timeout=10, isolation_level=None, check_same_thread=False)
    with closing(writer):
        await asyncio.to_thread(writer.execute, "BEGIN IMMEDIATE")
        await asyncio.sleep(AWAY_SECONDS)


async def disk_full(load: Load, dice: Random, seconds: float = AWAY_SECONDS) -> None:
    """A service can write no further in its files. (Not payment: its process also is the provider,
    and what ails that uses up attempts.)"""
    pid = load.stage.system.pid(dice.choice(["order", "inventory"]))
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (1, before[1]))
    try:
        await asyncio.sleep(seconds)
    finally:
        resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


async def database_killed(load: Load, dice: Random) -> None:
    await asyncio.to_thread(load.stage.cluster.kill)
    await asyncio.to_thread(load.stage.cluster.start)


async def database_restarted(load: Load, dice: Random) -> None:
    await asyncio.to_thread(load.stage.cluster.restart)


async def database_cut_off(load: Load, dice: Random) -> None:
    for way in _some(load.stage.databases, dice):
        way.cut()


async def database_half_open(load: Load, dice: Random) -> None:
    """The server gives a service's transactions up before the service knows."""
    await _for_a_while(_some(load.stage.databases, dice), Proxy.strand)


async def inbox_locked(load: Load, dice: Random) -> None:
    """Another session locks all of a service's inbox. (Holding two tables would now and then be a
    deadlock with a service, and PostgreSQL might end either.)"""
    participant = dice.choice(list(participants().values()))
    connection = await asyncpg.connect(load.stage.system.deployment.database_urls[participant.name])
    try:
        async with connection.transaction():
            await connection.execute("LOCK TABLE inbox")
            await asyncio.sleep(AWAY_SECONDS)
    finally:
        await connection.close()


_EVERYWHERE: Final = (
    service_killed,
    service_killed_at_a_seam,
    service_frozen,
    broker_killed,
    connections_closed_by_the_broker,
    memory_alarm,
    network_cut,
    network_silent,
    network_half_open,
    network_slow,
    events_repeated,
    deliveries_reordered,
    provider_loses_answers,
)
KINDS: Final[Mapping[Database, tuple[Kind, ...]]] = {
    "sqlite": (*_EVERYWHERE, database_locked, disk_full),
    "postgresql": (
        *_EVERYWHERE,
        database_killed,
        database_restarted,
        database_cut_off,
        database_half_open,
        inbox_locked,
    ),
}


def name_of(kind: Kind) -> str:
    return kind.__name__.replace("_", " ")
