"""Moments in addresses: RFC 3339, or seconds since 1970 as a slider has them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from math import ceil
from typing import Final

from saga.limits import TIME_END, moment_of
from saga.runtime.problem import Problem, short

MINUTE: Final = timedelta(minutes=1)
_SECONDS: Final = re.compile(r"\d{1,11}(\.\d{1,6})?")


def read_moment(text: str | None) -> datetime | None:
    """The moment that an address names; None if it names none. Raises `Problem`."""
    if not text:
        return None
    if _SECONDS.fullmatch(text):
        seconds = float(text)
        if seconds < TIME_END.timestamp():
            return datetime.fromtimestamp(seconds, UTC)
    elif (moment := moment_of(text.replace(" ", "+"))) is not None:  # A plus that was not encoded.
        return moment
    raise Problem(
        422, f"at: {short(text)!r} is no time; write it like 2030-01-31T12:00:00Z, or as seconds"
    )


def in_seconds(moment: datetime) -> str:
    """A moment as it stands in addresses, to the millisecond, rounded up so that what was recorded
    then is not left out."""
    return f"{ceil(moment.timestamp() * 1_000) / 1_000:.3f}".removesuffix(".000")


@dataclass(frozen=True)
class Slider:
    """A row of minutes, one of which is shown. Numbers are seconds since 1970."""

    first: int
    last: int
    value: int
    before: datetime | None
    after: datetime | None

    @classmethod
    def over(cls, first: datetime, last: datetime, at: datetime) -> Slider:
        """From the first minute of something to the last; `at` need not be a whole one."""
        start = int(first.timestamp())
        minutes = max(1, ceil((last.timestamp() - start) / MINUTE.total_seconds()))
        end = start + minutes * 60
        value = min(max(start + round((at.timestamp() - start) / 60) * 60, start), end)
        before, after = at - MINUTE, at + MINUTE
        return cls(
            start,
            end,
            value,
            before if before >= first - MINUTE else None,
            after if at < last else None,
        )
