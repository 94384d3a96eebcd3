"""What takes longer than a page may: it is computed beside the pages, once for all users, and its
last result is kept."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from datetime import datetime
from typing import Any, Final, Generic, TypeVar, cast

from fastapi.responses import RedirectResponse, Response
from starlette.requests import Request

from saga.console.forms import asked_here
from saga.console.live import is_live
from saga.errors import Explained, InputError
from saga.runtime.kernel.tables import utc_now

log = logging.getLogger(__name__)

T = TypeVar("T")

SHOWN_SECONDS: Final = 0.1
"""How long a page waits for what it has begun, before it says that it is under way."""


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


def begun_by(
    request: Request, inquiry: Inquiry[Any], run: int | None, page: str
) -> Response | None:
    """Begin the run whose number an address has, and lead to the `page` without it; None if it has
    none. What is asked for again, by a refresh say, begins no other one. Raises `InputError` for a
    page of another site."""
    if run is None:
        return None
    if not asked_here(request):
        raise InputError("run: a page of another site begins nothing here")
    inquiry.begin_number(run)
    return RedirectResponse(page, status_code=303)


async def begun_for(
    request: Request, inquiry: Inquiry[Any], *, fresh_seconds: float, live_seconds: float
) -> None:
    """Begin one for a page that is shown, and wait a moment for it; unless one was begun within
    `fresh_seconds`, or, where the page brings itself up to date, within `live_seconds`. A page of
    another site begins none."""
    age_seconds = live_seconds if is_live(request) else min(fresh_seconds, live_seconds)
    if asked_here(request) and inquiry.begin_if_older(age_seconds):
        await inquiry.soon(SHOWN_SECONDS)


async def apart(ask: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run a coroutine that works much between its waits on a thread and a loop of its own, so that
    pages go on meanwhile. To be cancelled is passed on to it; it is not waited for then, nor by a
    console that ends."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()
    asking: list[tuple[asyncio.AbstractEventLoop, asyncio.Task[Any]]] = []
    given_up = threading.Event()

    def settle(result: T | None, error: BaseException | None) -> None:
        if done.done():
            return
        if error is not None:
            done.set_exception(error)
        else:
            done.set_result(cast("T", result))

    async def run() -> T:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - it is one
        asking.append((asyncio.get_running_loop(), task))
        if given_up.is_set():
            raise asyncio.CancelledError
        return await ask()

    def work() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = asyncio.run(run())
        except BaseException as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # The loop is closed: no task waits.
            loop.call_soon_threadsafe(settle, result, failure)

    # Whose doing it is goes along (`saga.dlq.audit.acting_as`).
    threading.Thread(target=copy_context().run, args=(work,), daemon=True).start()
    try:
        return await done
    except asyncio.CancelledError:
        given_up.set()
        for its_loop, task in asking:
            with contextlib.suppress(RuntimeError):  # It has ended.
                its_loop.call_soon_threadsafe(task.cancel)
        raise
