"""Ending tasks of asyncio's, and doing several things side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

AGAIN_SECONDS: Final = 5.0
"""How long a task may take to clean up before it is cancelled once more."""


async def cancel_all(*tasks: asyncio.Future[Any]) -> None:
    """Cancel the tasks, and return once all have ended, however they did.

    Each is cancelled again until it has: on Python 3.11 `asyncio.wait_for`, with which aio-pika
    connects, loses a cancellation that comes in the moment in which what it waits for is done.
    """
    running = {task for task in tasks if not task.done()}
    while running:
        for task in running:
            task.cancel()
        _, running = await asyncio.wait(running, timeout=AGAIN_SECONDS)
    await asyncio.gather(*tasks, return_exceptions=True)


async def side_by_side(*works: Coroutine[Any, Any, None]) -> None:
    """Do all of them. The first that fails ends the others, and is raised.

    Instead of `asyncio.TaskGroup`, which passes a cancellation on once and no more: one of the
    tasks loses it (see `cancel_all`), and the group never ends.
    """
    tasks = [asyncio.create_task(work) for work in works]
    try:
        await asyncio.gather(*tasks)
    finally:
        await cancel_all(*tasks)
