"""Waiting lines by priority: urgent first, but normal ones always move."""

from __future__ import annotations

from collections import deque
from typing import Generic, TypeVar

from common.message import Priority

NORMAL_SHARE = 8
"""One place in so many goes to a normal item, however many urgent ones wait: with what is lost on
the way from service to service, normal orders still get a tenth of the work."""

T = TypeVar("T")


class Lanes(Generic[T]):
    """Items in the order they came, one line for each priority."""

    def __init__(self) -> None:
        self._lines: dict[Priority, deque[T]] = {priority: deque() for priority in Priority}

    def __len__(self) -> int:
        return sum(map(len, self._lines.values()))

    def append(self, item: T, priority: Priority) -> None:
        """Put an item behind those of its priority."""
        self._lines[priority].append(item)

    def put_first(self, item: T, priority: Priority) -> None:
        """Put an item ahead of those of its priority."""
        self._lines[priority].appendleft(item)

    def take(self, most: int) -> list[T]:
        """Remove and return up to `most` items: urgent ones first, yet a share of them normal."""
        high, normal = self._lines[Priority.HIGH], self._lines[Priority.NORMAL]
        of_normal = min(len(normal), -(-most // NORMAL_SHARE))
        of_high = min(len(high), most - of_normal)
        of_normal = min(len(normal), most - of_high)
        taken = [high.popleft() for _ in range(of_high)]
        taken += [normal.popleft() for _ in range(of_normal)]
        return taken
