"""Waiting for something to become true, never for a guessed time."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable

DEADLINE_SECONDS = 60.0
_POLL_SECONDS = 0.02
_PAUSE_SHARE = 2.0
"""How many times as long as a look the pause after it takes: a test that looks all the time, by a
command for instance, keeps the processor from what it waits for."""
_PAUSE_MAX_SECONDS = 1.0


async def until(
    condition: Callable[[], bool | Awaitable[bool]], *, seconds: float = DEADLINE_SECONDS
) -> None:
    """Return once `condition` holds; fail, showing it, when it still does not at the deadline."""
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        holds = condition()
        if inspect.isawaitable(holds):
            holds = await holds
        if holds:
            return
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"still not so after {seconds} s: {_said(condition)}")
        await asyncio.sleep(_pause_seconds(now - began))


def wait_until(condition: Callable[[], bool], *, seconds: float = DEADLINE_SECONDS) -> None:
    """The same where no event loop runs."""
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if condition():
            return
        now = time.monotonic()
        if now > deadline:
            raise AssertionError(f"still not so after {seconds} s: {_said(condition)}")
        time.sleep(_pause_seconds(now - began))


def _pause_seconds(look_seconds: float) -> float:
    return min(max(_POLL_SECONDS, look_seconds * _PAUSE_SHARE), _PAUSE_MAX_SECONDS)


def _said(condition: Callable[[], object]) -> str:
    try:
        return inspect.getsource(condition).strip()
    except TypeError:  # No function with a source: a partial, say.
        return repr(condition)
