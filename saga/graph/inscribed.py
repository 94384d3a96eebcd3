"""Where on a drawing there is room for what is written at its edges."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeVar

from saga.graph.layout import Layout, Point

N = TypeVar("N")

ALONG: Final = (0.7, 0.5, 0.84, 0.36, 0.24)
"""Where between two rows it may stand, as shares of the way, best first: nearer to the end, where
fewer edges lie side by side."""
_STRAIGHT_MIN: Final = 24.0
"""Pixels of a straight piece that something is written at."""


@dataclass(frozen=True, slots=True)
class _Area:
    left: float
    top: float
    right: float
    bottom: float

    def shared_with(self, other: _Area) -> float:
        """Pixels that both cover."""
        if self.bottom <= other.top or other.bottom <= self.top:
            return 0.0
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)


def spots(
    layout: Layout[N], widths: Mapping[tuple[N, N], float], height: float
) -> dict[tuple[N, N], Point]:
    """The middle of what is written at each edge, so wide: on the edge, as near to its end as there
    is room, where it covers least of the nodes and of what else is written. The same input gives
    the same places, so nothing moves while figures change."""
    taken = [_area((at.x, at.y), at.width, at.height) for at in layout.nodes.values()]
    found: dict[tuple[N, N], Point] = {}
    for edge, width in widths.items():
        best: tuple[float, Point, _Area] | None = None
        for x, y in _along(layout.edges[edge]):
            x = min(max(x, width / 2), max(layout.width - width / 2, width / 2))
            area = _area((x, y), width, height)
            covered = sum(area.shared_with(other) for other in taken)
            if best is None or covered < best[0] - 0.01:
                best = covered, (x, y), area
            if not covered:
                break
        if best is not None:
            found[edge] = best[1]
            taken.append(best[2])
    return found


def _area(middle: Point, width: float, height: float) -> _Area:
    x, y = middle
    return _Area(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def _along(points: Sequence[Point]) -> Iterator[Point]:
    """Places on an edge, those nearest to its end first; see `Layout.edges`."""
    for number in range(len(points) - 2, -1, -1):
        (x0, y0), (x1, y1) = points[number], points[number + 1]
        if number % 2 == 0:
            if abs(y1 - y0) >= _STRAIGHT_MIN:
                yield x1, (y0 + y1) / 2
            continue
        for share in ALONG:
            # The curve of `saga.graph.svg`, which leaves and arrives upright.
            towards = share * share * (3 - 2 * share)
            rest = 1 - share
            bend = 0.55
            up = 3 * rest * rest * share * bend + 3 * rest * share * share * (1 - bend) + share**3
            yield x0 + (x1 - x0) * towards, y0 + (y1 - y0) * up
