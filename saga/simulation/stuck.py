"""Ending a step that does not end by itself."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Final

from saga.simulation.loop import SimulatedLoop

STUCK_SECONDS: Final = 10.0
"""How long a step may run, in seconds of this process's CPU time: most take less than one ms."""


class EndlessStep(BaseException):
    """Raised in a step that does not end. No `except Exception` holds it up."""


@contextlib.contextmanager
def watched(loop: SimulatedLoop, seconds: float, on_stuck: Callable[[str], None]) -> Iterator[None]:
    """End a step that runs for longer than `seconds` of CPU time, up to twice as long; `on_stuck`
    is called first, with the function it runs.

    Only in a process's main thread: in others, Python delivers no signals.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -1

    def look(_: int, frame: FrameType | None) -> None:
        nonlocal last
        if loop.steps != last:
            last = loop.steps
            return
        on_stuck(frame.f_code.co_qualname if frame is not None else "unknown code")
        raise EndlessStep

    before = signal.signal(signal.SIGVTALRM, look)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
