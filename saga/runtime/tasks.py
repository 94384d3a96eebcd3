"""Ending tasks of asyncio's, and doing several things side by side."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")

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


async def in_thread(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call a function that blocks in a thread. It has ended when this does, also by cancellation:
    what it changes is changed by then, and what it uses may be closed."""
    call = asyncio.ensure_future(asyncio.to_thread(partial(function, *args, **kwargs)))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        while not call.done():
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.wait({call})
        raise


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
