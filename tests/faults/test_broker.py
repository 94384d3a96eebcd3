"""The broker cutting connections, or choking, under load.

`ROUNDS` and `SEED` in the environment are as in `test_random_kills`.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from saga.demo import demo
from saga.discovery import choreography
from saga.node import RabbitNode
from saga.orders import plan
from saga.system import System
from tests.e2e.test_saga import as_predicted
from tests.faults.test_random_kills import ROUNDS, SEED
from tests.polling import until

ORDERS = 1_000
"""Enough that the fault strikes while they are on their way."""

Fault = Callable[[System], Awaitable[None]]


def node_of(system: System) -> RabbitNode:
    assert system.node is not None
    return system.node


async def close_all_connections(system: System) -> None:
    await asyncio.to_thread(node_of(system).ctl, "close_all_connections", "a fault test")


async def raise_the_memory_alarm(system: System) -> None:
    """Publishing stops until the alarm is over."""
    node = node_of(system)
    await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0")
    await asyncio.to_thread(node.ctl, "set_vm_memory_high_watermark", "0.4")


async def freeze_a_service(system: System) -> None:
    """It comes to again without its connections, and its messages are on their way again."""
    pid = system.pid("inventory")
    os.kill(pid, signal.SIGSTOP)
    await close_all_connections(system)
    os.kill(pid, signal.SIGCONT)


@pytest.mark.long
@pytest.mark.parametrize(
    "fault",
    [close_all_connections, raise_the_memory_alarm, freeze_a_service],
    ids=lambda fault: fault.__name__,
)
@pytest.mark.parametrize("seed", range(SEED, SEED + ROUNDS))
async def test_a_fault_of_the_broker_changes_no_outcome(
    fault: Fault, seed: int, tmp_path: Path
) -> None:
    ended = 0

    def count(orders: int) -> None:
        nonlocal ended
        ended += orders

    async with System(tmp_path, disposable=True) as system:
        load = asyncio.create_task(
            demo(system.deployment, choreography(), plan(ORDERS, seed), seed=seed, ended=count)
        )
        await until(lambda: ended >= 40 or load.done())
        await fault(system)
        as_predicted(await load)
