"""Waiting for something to become true, never for a guessed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

DEADLINE_SECONDS = 60.0
_POLL_SECONDS = 0.02


async def until(
    condition: Callable[[], bool | Awaitable[bool]], *, seconds: float = DEADLINE_SECONDS
) -> None:
    """Return once `condition` holds; fail, showing it, when it still does not at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        holds = condition()
        if inspect.isawaitable(holds):
            holds = await holds
        if holds:
            return
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {seconds} s: {_said(condition)}")
        await asyncio.sleep(_POLL_SECONDS)


def wait_until(condition: Callable[[], bool], *, seconds: float = DEADLINE_SECONDS) -> None:
    """The same where no event loop runs."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"still not so after {seconds} s: {_said(condition)}")
        time.sleep(_POLL_SECONDS)


def _said(condition: Callable[[], object]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except TypeError:  # No function with a source: a partial, say.
        return repr(condition)
