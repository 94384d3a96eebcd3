"""Waiting lines by priority: urgent first, but normal ones always move."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from saga.message import Priority

NORMAL_SHARE = 8
"""One place in so many goes to a normal item, however many urgent ones wait: with what is lost on
the way from service to service, normal messages still get a tenth of the work."""

T = TypeVar("T")


class Share:
    """How two lines divide places: while both wait, the second gets one in so many.

    It adds up over all calls: of places given out one by one, or by fewer than that at a time, the
    second line gets as many in the end as of all of them at once.
    """

    def __init__(self, one_in: int) -> None:
        self._one_in = one_in
        self._due = 0
        """What the second line has not got yet, in parts of a place."""

    def of(self, places: int, first: int, second: int) -> tuple[int, int]:
        """How many of the places go to each line, given how many items wait in it; what one line
        does not need goes to the other."""
        if first and second:
            self._due += places
        of_second = min(second, self._due // self._one_in)
        of_first = min(first, places - of_second)
        of_second = min(second, places - of_first)
        # Once it waits no more, nothing is owed to it.
        waits = of_second < second
        self._due = max(0, self._due - of_second * self._one_in) if waits else 0
        return of_first, of_second


class Lanes(Generic[T]):
    """Items in the order they came, one line for each priority."""

    def __init__(self, normal_share: int = NORMAL_SHARE) -> None:
        """One place in `normal_share` goes to normal items while urgent ones wait."""
        self._high: deque[T] = deque()
        self._normal: deque[T] = deque()
        self._share = Share(normal_share)

    def __len__(self) -> int:
        return len(self._high) + len(self._normal)

    def __bool__(self) -> bool:
        return bool(self._high or self._normal)

    def append(self, item: T, priority: Priority) -> None:
        """Put an item behind those of its priority."""
        self._line(priority).append(item)

    def put_first(self, item: T, priority: Priority) -> None:
        """Put an item ahead of those of its priority."""
        self._line(priority).appendleft(item)

    def keep(self, wanted: Callable[[T], bool]) -> None:
        """Remove all other items."""
        self._high = deque(filter(wanted, self._high))
        self._normal = deque(filter(wanted, self._normal))

    def take(self, most: int) -> list[T]:
        """Remove and return up to `most` items: urgent ones first, yet a share of them normal."""
        high, normal = self._high, self._normal
        of_high, of_normal = self._share.of(most, len(high), len(normal))
        taken = [high.popleft() for _ in range(of_high)]
        taken += [normal.popleft() for _ in range(of_normal)]
        return taken

    def take_ahead(self, wanted: Callable[[T], bool], most: int) -> list[T]:
        """Remove and return up to `most` items: the wanted ones that stand ahead of all others of
        their priority."""
        taken: list[T] = []
        for line in (self._high, self._normal):
            while line and len(taken) < most and wanted(line[0]):
                taken.append(line.popleft())
        return taken

    def _line(self, priority: Priority) -> deque[T]:
        return self._high if priority is Priority.HIGH else self._normal
