"""When a failed message is tried again, and when it is dead."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

RUNGS_MS = (100, 500, 1_000, 5_000, 15_000, 60_000, 300_000, 900_000, 3_600_000)
"""The delays there are on the broker: each has a wait queue that all services share."""
CALLS_MAX = 100


class TransientError(Exception):
    """Base of the errors that may be gone next time: something outside was unavailable."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Try a message up to `max_calls` times, the first included.

    It waits `delay` seconds before the second call, and `backoff` times as long before each further
    one, at most `max_delay` seconds; each wait is rounded up to the next of `RUNGS_MS`. Only errors
    of the `transient` types are tried again: a reaction is pure, so whatever else it raises it
    would raise again, and the message is dead at once.

    Raises ValueError for values that make no policy.
    """

    max_calls: int = 3
    delay: float = 5.0
    backoff: float = 2.0
    max_delay: float = 300.0
    transient: tuple[type[Exception], ...] = (TransientError,)

    def __post_init__(self) -> None:
        longest = RUNGS_MS[-1] / 1_000
        if not 1 <= self.max_calls <= CALLS_MAX:
            raise ValueError(f"max_calls is {self.max_calls}; it takes 1 to {CALLS_MAX}")
        if not 0 < self.delay <= longest:
            raise ValueError(f"delay is {self.delay}; it takes up to {longest:g} seconds")
        if self.backoff < 1:
            raise ValueError(f"backoff is {self.backoff}; it takes 1 or more")
        if not self.delay <= self.max_delay <= longest:
            raise ValueError(
                f"max_delay is {self.max_delay}; it takes seconds from the delay, {self.delay:g}, "
                f"to {longest:g}"
            )

    def wait_ms(self, calls: int, error: Exception) -> int | None:
        """How long to wait, in milliseconds, after `calls` calls of which the last raised `error`;
        None if the message is dead."""
        if calls >= self.max_calls or not isinstance(error, self.transient):
            return None
        return self._rung_ms(calls)

    @property
    def waits_ms(self) -> tuple[int, ...]:
        """How long is waited after each call but the last, in milliseconds."""
        return _waits_ms(self)

    def _rung_ms(self, calls: int) -> int:
        return _waits_ms(self)[calls - 1]


@lru_cache(maxsize=256)
def _waits_ms(retry: Retry) -> tuple[int, ...]:
    # Grown step by step: a large exponent must not overflow before the cap applies.
    waits = []
    seconds = retry.delay
    for _ in range(1, retry.max_calls):
        waits.append(next(rung for rung in RUNGS_MS if rung >= seconds * 1_000))
        seconds = min(seconds * retry.backoff, retry.max_delay)
    return tuple(waits)
