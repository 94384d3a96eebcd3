"""Where things go in a drawing of a directed graph: in lanes side by side, and from top to bottom.

The usual four steps: edges that close a cycle are turned round, nodes are put in rows so that every
edge leads down, nodes within a row are ordered so that few edges cross, and then moved next to what
they are linked with. What is special are the lanes: a node stays in its own. An edge over several
rows passes through a place of its own in each.

Numbers are added up by `fsum`: `sum` rounds differently from Python 3.12 on, and the last digit may
decide which of two nodes comes first.

https://en.wikipedia.org/wiki/Layered_graph_drawing
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from math import fsum
from typing import Final, Generic, TypeVar

SWEEPS: Final = 24
"""How often the rows are gone through to better the order."""
GAP_X: Final = 18.0
"""Pixels at least between two nodes of a row."""
GAP_Y: Final = 40.0
"""Pixels between two rows, through which edges go."""
LANE_PADDING: Final = 22.0
PORT_GAP: Final = 14.0
"""Pixels at most between two edges that end on one side of a node."""
PASSAGE: Final = 6.0
"""How wide the place is where an edge passes through a row."""
_STRAIGHT: Final = 6.0
"""How much more it matters that an edge passes straight through rows than that it is short."""

N = TypeVar("N", bound=Hashable)
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Box:
    """A node to be placed: its lane, counted from the left, and its size in pixels."""

    lane: int
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Placed:
    """A node's middle and size."""

    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True, slots=True)
class Lane:
    """The left edge and the width of a lane."""

    x: float
    width: float


@dataclass(frozen=True)
class Layout(Generic[N]):
    """Nodes, lanes, and for each edge the points it goes through, in its own direction.

    Between the points with even and the next odd number (0 and 1, 2 and 3, ...) an edge goes
    straight up or down, and elsewhere through the space between two rows.
    """

    nodes: Mapping[N, Placed]
    lanes: Sequence[Lane]
    edges: Mapping[tuple[N, N], Sequence[Point]]
    width: float
    height: float


@dataclass(eq=False, slots=True)
class _Place:
    """A node, or where an edge passes, in a row."""

    box: Box
    row: int
    x: float = 0.0
    above: list[_Link] = field(default_factory=list)
    below: list[_Link] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class _Link:
    """A piece of an edge, from one row to the next."""

    upper: _Place
    lower: _Place
    weight: float


def arrange(
    boxes: Mapping[N, Box], edges: Sequence[tuple[N, N]], *, top: float = 0.0, lane_width: float = 0
) -> Layout[N]:
    """Place the nodes below `top`; the same input gives the same layout. Lanes have at least
    `lane_width`. Of the edges that form a cycle, the last one leads up: so name first what the
    drawing is to tell from top to bottom."""
    down = _acyclic(edges)
    rows = _rows(list(boxes), [edge if down[edge] else edge[::-1] for edge in edges])
    places = {node: _Place(box, rows[node]) for node, box in boxes.items()}
    chains: dict[tuple[N, N], list[_Place]] = {}
    passing: list[_Place] = []
    for edge in edges:
        upper, lower = (places[node] for node in (edge if down[edge] else edge[::-1]))
        lane = Box(lower.box.lane, PASSAGE, 0.0)
        between = [_Place(lane, row) for row in range(upper.row + 1, lower.row)]
        passing += between
        chains[edge] = [upper, *between, lower]
        for one, other in zip(chains[edge], chains[edge][1:], strict=False):
            straight = one.box.height == 0 or other.box.height == 0
            link = _Link(one, other, _STRAIGHT if straight else 1.0)
            one.below.append(link)
            other.above.append(link)
    grid: defaultdict[tuple[int, int], list[_Place]] = defaultdict(list)
    for place in (*places.values(), *passing):
        grid[place.row, place.box.lane].append(place)
    lanes = _lanes(grid, 1 + max((box.lane for box in boxes.values()), default=-1), lane_width)
    _order(grid, lanes)
    y = _heights(grid, top)
    nodes = {
        node: Placed(place.x, y[place.row][0], place.box.width, place.box.height)
        for node, place in places.items()
    }
    return Layout(
        nodes,
        lanes,
        {
            edge: _points(chain, y) if down[edge] else _points(chain, y)[::-1]
            for edge, chain in chains.items()
        },
        fsum(lane.width for lane in lanes),
        max((middle + height / 2 for middle, height in y.values()), default=top),
    )


def _acyclic(edges: Sequence[tuple[N, N]]) -> dict[tuple[N, N], bool]:
    """Whether each edge leads down: all but those that close a cycle with the ones before them."""
    after: defaultdict[N, list[N]] = defaultdict(list)
    down: dict[tuple[N, N], bool] = {}
    for tail, head in edges:
        down[tail, head] = not _leads_to(after, head, tail)
        upper, lower = (tail, head) if down[tail, head] else (head, tail)
        after[upper].append(lower)
    return down


def _leads_to(after: Mapping[N, Sequence[N]], start: N, end: N) -> bool:
    waiting, seen = [start], {start}
    for node in waiting:  # grows
        if node == end:
            return True
        found = [head for head in after.get(node, ()) if head not in seen]
        seen.update(found)
        waiting += found
    return False


def _rows(nodes: Sequence[N], edges: Sequence[tuple[N, N]]) -> dict[N, int]:
    """The row of each node: below everything that leads to it, and no further down. What flows
    into the rest from the side comes as late as it can."""
    above: defaultdict[N, list[N]] = defaultdict(list)
    below: defaultdict[N, list[N]] = defaultdict(list)
    for tail, head in edges:
        above[head].append(tail)
        below[tail].append(head)
    rows: dict[N, int] = {}
    waiting = {node: len(above[node]) for node in nodes}
    ready = [node for node in nodes if not waiting[node]]
    for node in ready:  # grows
        rows[node] = 1 + max((rows[tail] for tail in above[node]), default=-1)
        for head in below[node]:
            waiting[head] -= 1
            if not waiting[head]:
                ready.append(head)
    from_the_side: set[N] = set()
    for node in ready:
        if len(below[node]) == 1 and from_the_side.issuperset(above[node]):
            from_the_side.add(node)
    for node in reversed(ready):
        if node in from_the_side:
            rows[node] = min(rows[head] for head in below[node]) - 1
    return rows


_Grid = Mapping[tuple[int, int], list[_Place]]


def _lanes(grid: _Grid, count: int, least: float) -> list[Lane]:
    """Wide enough for the fullest row of each."""
    widths = [least] * count
    for (_, lane), places in grid.items():
        width = fsum(place.box.width for place in places) + GAP_X * (len(places) - 1)
        widths[lane] = max(widths[lane], width + 2 * LANE_PADDING)
    return [Lane(fsum(widths[:lane]), width) for lane, width in enumerate(widths)]


def _order(grid: _Grid, lanes: Sequence[Lane]) -> None:
    """Order and place the rows, each by what the rows beside it hold, again and again; keeps the
    best there was."""
    for (_, lane), places in grid.items():
        _place(places, lanes[lane], [lanes[lane].x] * len(places))
    keys = sorted(grid)
    best: tuple[tuple[int, float], dict[_Place, float]] | None = None
    for sweep in range(SWEEPS):
        for key in keys if sweep % 2 == 0 else reversed(keys):
            places = grid[key]
            wanted = {place: _wanted(place, sweep) for place in places}
            places.sort(key=wanted.__getitem__)
            _place(places, lanes[key[1]], [wanted[place] for place in places])
        cost = _cost(grid)
        if best is None or cost < best[0]:
            best = cost, {place: place.x for places in grid.values() for place in places}
    for place, x in best[1].items() if best else ():
        place.x = x


def _wanted(place: _Place, sweep: int) -> float:
    """The middle of what a place is linked with: above it on the way down, below it on the way up,
    and all of it once the order has settled."""
    settled = sweep >= SWEEPS // 2
    links = (
        [(link.upper.x, link.weight) for link in place.above] if settled or sweep % 2 == 0 else []
    )
    if settled or sweep % 2 == 1:
        links += [(link.lower.x, link.weight) for link in place.below]
    weight = fsum(weight for _, weight in links)
    return fsum(x * weight for x, weight in links) / weight if weight else place.x


def _place(places: Sequence[_Place], lane: Lane, wanted: Sequence[float]) -> None:
    """Put a row's places as near as can be to where they are wanted, in order and apart.

    Those that would overlap form a block, which goes where its members want it on average.
    """
    offsets = [0.0]
    for left, right in itertools.pairwise(places):
        offsets.append(offsets[-1] + (left.box.width + right.box.width) / 2 + GAP_X)
    blocks: list[list[float]] = []  # sum of what is wanted, number of members
    for x, offset in zip(wanted, offsets, strict=True):
        blocks.append([x - offset, 1])
        while len(blocks) > 1 and blocks[-2][0] / blocks[-2][1] > blocks[-1][0] / blocks[-1][1]:
            total, members = blocks.pop()
            blocks[-1][0] += total
            blocks[-1][1] += members
    if not places:
        return
    first = lane.x + LANE_PADDING + places[0].box.width / 2
    last = lane.x + lane.width - LANE_PADDING - places[-1].box.width / 2 - offsets[-1]
    starts = [min(max(total / n, first), last) for total, n in blocks for _ in range(int(n))]
    for place, start, offset in zip(places, starts, offsets, strict=True):
        place.x = start + offset


def _cost(grid: _Grid) -> tuple[int, float]:
    """How many pieces of edges cross, and how far they go sideways."""
    between: defaultdict[int, list[_Link]] = defaultdict(list)
    for (row, _), places in grid.items():
        between[row] += [link for place in places for link in place.below]
    crossings = sum(
        (a.upper.x - b.upper.x) * (a.lower.x - b.lower.x) < 0
        for links in between.values()
        for number, a in enumerate(links)
        for b in links[:number]
    )
    sideways = fsum(
        abs(link.upper.x - link.lower.x) * link.weight
        for links in between.values()
        for link in links
    )
    return crossings, sideways


def _heights(grid: _Grid, top: float) -> dict[int, Point]:
    """The middle and the height of each row."""
    heights: defaultdict[int, float] = defaultdict(float)
    for (row, _), places in grid.items():
        heights[row] = max(heights[row], *(place.box.height for place in places))
    rows: dict[int, Point] = {}
    y = top
    for row in sorted(heights):
        rows[row] = (y + heights[row] / 2, heights[row])
        y += heights[row] + GAP_Y
    return rows


def _points(chain: Sequence[_Place], y: Mapping[int, Point]) -> list[Point]:
    """From the lower side of the first through those between to the upper side of the last."""
    points: list[Point] = []
    for number, place in enumerate(chain):
        middle, height = y[place.row]
        row_top, row_bottom = middle - height / 2, middle + height / 2
        if number > 0:
            x = _port(place, place.above, chain[number - 1], upper=True)
            points.append((x, row_top))
            if place is chain[-1]:
                points.append((x, middle - place.box.height / 2))
        if place is not chain[-1]:
            x = _port(place, place.below, chain[number + 1], upper=False)
            if number == 0:
                points.append((x, middle + place.box.height / 2))
            points.append((x, row_bottom))
    return points


def _port(place: _Place, links: Iterable[_Link], other: _Place, *, upper: bool) -> float:
    """Where on its side of a place the edge from or to `other` ends: beside one another."""
    ends = [link.upper if upper else link.lower for link in links]
    ends.sort(key=lambda end: end.x)
    gap = min(PORT_GAP, place.box.width * 0.6 / max(1, len(ends) - 1))
    return place.x + (ends.index(other) - (len(ends) - 1) / 2) * gap
