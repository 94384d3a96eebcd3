"""Python's garbage collector, set for a service: it runs seldom, and skips what start-up made.

Reference counting frees nearly everything: a message that is done, or has failed, leaves no
reference cycle (`tests/integration/test_costs.py`). The collector is there for the rest. As Python
sets it, it looks through the messages in hand several times a second, and finds nothing.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from saga.runtime.metrics import GarbageMetrics

YOUNG_OBJECTS: Final = 100_000
"""How many container objects are made, less those freed, before the young generation is collected.
Python's own values are 700 (3.11) and 2,000 (from 3.12). Messages in hand do not reach this number,
and so much garbage is 18 MB, which take 80 ms to free.

The other two thresholds stay Python's, because they mean different things: how often the older
generations are collected up to 3.13 and from 3.14.5, how much of the old one each collection scans
in 3.14.0 to 3.14.4."""


@contextmanager
def collected_seldom(participant: str) -> Iterator[None]:
    """Set the collector for a process, and measure its pauses, until the end.

    It never frees what exists by now: enter this when everything is imported and made, but before
    connections are open that may be lost. Blocks for a full collection, 70 ms in a service.
    """
    metrics = GarbageMetrics(participant)
    before = gc.get_threshold()
    with start_up_skipped():
        gc.set_threshold(YOUNG_OBJECTS)
        gc.callbacks.append(metrics.collecting)
        try:
            yield
        finally:
            gc.callbacks.remove(metrics.collecting)
            gc.set_threshold(*before)
            metrics.close()


@contextmanager
def start_up_skipped() -> Iterator[None]:
    """Make the collector skip what exists by now, until the end: to look through all that was
    imported takes it 150 ms, again and again. Blocks for a full collection."""
    gc.collect()  # What is garbage by now would be kept for ever.
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()
