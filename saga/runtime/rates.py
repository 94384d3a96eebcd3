"""How often each of many callers may ask."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import Final

BURST_SECONDS: Final = 10.0
"""A caller who has been quiet may send the requests of so many seconds at once."""
CALLERS_REMEMBERED_MAX: Final = 10_000
"""Some 2 MB. Beyond, the one that has been quiet for longest is forgotten."""


class CallerRates:
    """A limit of `per_second` for each caller, and of `BURST_SECONDS` as much at once (the generic
    cell rate algorithm: one time per caller, from which on they have their whole burst again).

    What is turned away does not count, so a caller who goes on too fast still gets their share.
    """

    def __init__(self, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_second = per_second
        self._clock = clock
        # At least one, also where that is a request in many seconds.
        self._burst_seconds = max(BURST_SECONDS - 1 / per_second, 0.0)
        self._free_at: OrderedDict[str, float] = OrderedDict()
        """Keyed by caller; the latest one last."""

    def wait_seconds(self, caller: str) -> float:
        """How long until the caller may ask; if they may now, this request is counted."""
        now = self._clock()
        free_at = max(self._free_at.get(caller, now), now)
        if (wait_seconds := free_at - now - self._burst_seconds) > 0:
            return wait_seconds
        self._free_at[caller] = free_at + 1 / self._per_second
        self._free_at.move_to_end(caller)
        if len(self._free_at) > CALLERS_REMEMBERED_MAX:
            self._free_at.popitem(last=False)
        return 0.0
