"""Ending tasks of asyncio's, and doing several things side by side."""

from __future__ import annotations

import asyncio
import contextlib
import threading
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


class LoopThread:
    """An event loop in a thread of its own, asked from other threads.

    A loop that is closed with tasks on it leaves them to the garbage collector, which runs what
    cleans them up when there is no loop, and what waits for them waits for ever. Here they are
    cancelled, and have ended, before it is closed.
    """

    def __init__(self, name: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._ending = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    @property
    def is_closed(self) -> bool:
        return self._loop.is_closed()

    def ask(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine there; blocks until it has ended. Raises what it raises, and
        `concurrent.futures.CancelledError` where the loop is closed meanwhile."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Cancel what still runs, and end the thread; blocks until it has. May be called again."""
        if not self.is_closed:
            self._loop.call_soon_threadsafe(self._ending.set)
        self._thread.join()

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._until_closed())

    async def _until_closed(self) -> None:
        await self._ending.wait()
