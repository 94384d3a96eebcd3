"""What takes longer than a page may: it is worked on beside the pages, once for everybody, and what
came of it last is kept."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any, Generic, TypeVar, cast

from saga.errors import Explained, InputError
from saga.runtime.kernel.tables import utc_now

log = logging.getLogger(__name__)

T = TypeVar("T")


class Inquiry(Generic[T]):
    """One at a time; each has a number, from 1. Belongs to one event loop."""

    def __init__(self, ask: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._ask = ask
        self._task: asyncio.Task[None] | None = None
        self.number = 0
        """Of the last one that was begun."""
        self.began_at: datetime | None = None
        self.last: T | None = None
        self.last_at: datetime | None = None
        """When the last one that came to an end was begun."""
        self.last_seconds = 0.0
        self.failed = ""
        """Why the last one came to nothing; empty if it did not."""

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    @property
    def age_seconds(self) -> float | None:
        """How old the last result is; None if there is none."""
        return None if self.last_at is None else (utc_now() - self.last_at).total_seconds()

    def begin(self) -> bool:
        """Begin one, unless one is under way; whether it did."""
        if self.running:
            return False
        self.number += 1
        self.began_at = utc_now()
        self._task = asyncio.create_task(self._run())
        return True

    def begin_if_older(self, seconds: float) -> bool:
        """Begin one, unless one was begun within so many seconds, whatever came of it; whether it
        did."""
        if self.began_at is not None and (utc_now() - self.began_at).total_seconds() <= seconds:
            return False
        return self.begin()

    def begin_number(self, number: int) -> bool:
        """Begin the one of that number, if it is the next one: so what asks again begins none."""
        return number == self.number + 1 and self.begin()

    def cancel(self) -> None:
        """Give up the one that is under way."""
        if self._task is not None:
            self._task.cancel()

    async def soon(self, patience_seconds: float) -> None:
        """Return once it is done, or so many seconds have passed."""
        if self._task is not None:
            await asyncio.wait({self._task}, timeout=patience_seconds)

    async def _run(self) -> None:
        began_at = utc_now()
        self.failed = ""
        try:
            self.last = await self._ask()
        except (Explained, InputError) as error:
            self.failed = str(error)
        except Exception as error:
            log.exception("an inquiry of the console failed")
            self.failed = f"{type(error).__name__}: {error}"
        else:
            self.last_at = began_at
            self.last_seconds = (utc_now() - began_at).total_seconds()


async def apart(ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine that works much between its waits on a thread and a loop of its own, so that
    pages go on meanwhile. A console that ends does not wait for it."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast("T", result))

    def work() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = asyncio.run(ask())
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # The loop is closed: nobody waits.
            loop.call_soon_threadsafe(settle, result, failure)

    threading.Thread(target=work, daemon=True).start()
    return await done
