"""Waiting lines by priority: urgent first, but normal ones always move."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

from common.message import Priority

NORMAL_SHARE = 8
"""One place in so many goes to a normal item, however many urgent ones wait: with what is lost on
the way from service to service, normal orders still get a tenth of the work."""

T = TypeVar("T")


class Lanes(Generic[T]):
    """Items in the order they came, one line for each priority."""

    def __init__(self) -> None:
        self._high: deque[T] = deque()
        self._normal: deque[T] = deque()

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
        if not (high or normal):
            return []
        of_normal = min(len(normal), -(-most // NORMAL_SHARE))
        of_high = min(len(high), most - of_normal)
        of_normal = min(len(normal), most - of_high)
        taken = [high.popleft() for _ in range(of_high)]
        taken += [normal.popleft() for _ in range(of_normal)]
        return taken

    def _line(self, priority: Priority) -> deque[T]:
        return self._high if priority is Priority.HIGH else self._normal
