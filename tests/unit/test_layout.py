"""The layout of a drawing: nothing overlaps, and every way can be followed."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from hypothesis import given as for_all
from hypothesis import settings
from hypothesis import strategies as st

from saga.graph.layout import Box, Layout, Placed, arrange

LANES = 3
boxes = st.builds(Box, st.integers(0, LANES - 1), st.floats(20, 200), st.sampled_from([26, 42]))


@st.composite
def graphs(draw: st.DrawFn) -> tuple[dict[int, Box], list[tuple[int, int]]]:
    nodes = dict(enumerate(draw(st.lists(boxes, min_size=1, max_size=12))))
    pairs = [(a, b) for a in nodes for b in nodes if a != b]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True, max_size=20)) if pairs else []
    return nodes, edges


def apart(one: Placed, other: Placed) -> bool:
    return (
        abs(one.x - other.x) >= (one.width + other.width) / 2
        or abs(one.y - other.y) >= (one.height + other.height) / 2
    )


def inside(layout: Layout[int], node: int, lane: int) -> bool:
    at, borders = layout.nodes[node], layout.lanes[lane]
    return (
        borders.x <= at.x - at.width / 2 and at.x + at.width / 2 <= borders.x + borders.width + 1e-6
    )


def on_a_side(at: Placed, point: tuple[float, float]) -> bool:
    x, y = point
    return abs(x - at.x) <= at.width / 2 and abs(abs(y - at.y) - at.height / 2) < 1e-6


@settings(max_examples=60)
@for_all(graph=graphs())
def test_nodes_lie_apart_and_each_in_its_own_lane(
    graph: tuple[dict[int, Box], list[tuple[int, int]]],
) -> None:
    layout = arrange(*graph, top=10)

    for one, other in itertools.combinations(layout.nodes.values(), 2):
        assert apart(one, other)
    for node, box in graph[0].items():
        assert inside(layout, node, box.lane)
    assert layout == arrange(*graph, top=10)


@settings(max_examples=60)
@for_all(graph=graphs())
def test_every_edge_leads_from_the_side_of_one_node_to_that_of_the_other_past_all_the_others(
    graph: tuple[dict[int, Box], list[tuple[int, int]]],
) -> None:
    layout = arrange(*graph)

    for (tail, head), points in layout.edges.items():
        assert on_a_side(layout.nodes[tail], points[0])
        assert on_a_side(layout.nodes[head], points[-1])
        assert_in_one_direction([y for _, y in points])
        for number, ((x0, y0), (x1, _)) in enumerate(itertools.pairwise(points)):
            if number % 2 == 0:  # straight through a row
                assert x0 == x1
                for node, at in layout.nodes.items():
                    if node not in (tail, head):
                        assert abs(x0 - at.x) >= at.width / 2 or abs(y0 - at.y) > at.height / 2


def assert_in_one_direction(values: Sequence[float]) -> None:
    assert list(values) in (sorted(values), sorted(values, reverse=True))


def test_only_an_edge_that_closes_a_cycle_leads_up() -> None:
    nodes = {name: Box(0, 50, 26) for name in "abc"}
    layout = arrange(nodes, [("a", "b"), ("b", "c"), ("c", "a")])

    assert layout.nodes["a"].y < layout.nodes["b"].y < layout.nodes["c"].y
    up = layout.edges["c", "a"]
    assert up[0][1] > up[-1][1]


def test_what_joins_from_the_side_comes_as_late_as_it_can() -> None:
    nodes = {name: Box(0, 50, 26) for name in "abcx"}
    layout = arrange(nodes, [("a", "b"), ("b", "c"), ("x", "c")])

    assert layout.nodes["x"].y == layout.nodes["b"].y


def test_of_the_edges_of_a_cycle_the_last_one_leads_up() -> None:
    nodes = {name: Box(0, 50, 26) for name in "abc"}
    layout = arrange(nodes, [("b", "c"), ("c", "a"), ("a", "b")])

    assert layout.nodes["b"].y < layout.nodes["c"].y < layout.nodes["a"].y
