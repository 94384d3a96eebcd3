"""Ending tasks of asyncio's."""

from __future__ import annotations

import asyncio
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
