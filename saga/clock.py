"""Times that several clocks have told."""

from __future__ import annotations

from datetime import datetime, timedelta


def elapsed(begin: datetime, end: datetime) -> timedelta:
    """The time from `begin` to `end`. Never negative: clocks differ from machine to machine, and
    are set back, so that what came later may bear an earlier time."""
    return max(end - begin, timedelta(0))
