"""What is written over the map is beside the drawing, which stays as it is."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from saga.graph.flow import Flow, label
from saga.graph.overlay import LinePart, Overlay
from saga.graph.svg import svg
from tests.circle import GRAPH

FLOW = Flow(GRAPH)
SVG = "{http://www.w3.org/2000/svg}"
HOSTILE = '<b onclick="x">&\'\N{RIGHT-TO-LEFT OVERRIDE}\x1b[2J'


def drawn(overlay: Overlay) -> ElementTree.Element:
    return ElementTree.fromstring(svg(FLOW, overlay))  # noqa: S314 - just drawn


def places(picture: str) -> list[str]:
    return re.findall(r'<rect class="[a-z ]*" x="([-\d.]+)"', picture)


def test_figures_are_links_with_names_and_no_part_of_an_image() -> None:
    node = FLOW.in_order[0]
    piece = LinePart("3/s", "/messages?type=a&at=1", "three a second", "bad")

    picture = drawn(Overlay(nodes={node: [piece, LinePart("idle")]}))

    assert picture.get("role") == "group"
    (link,) = picture.iter(f"{SVG}a")
    assert link.get("href") == "/messages?type=a&at=1"
    assert link.get("aria-label") == "three a second"
    assert "".join(link.itertext()) == "3/s"


def test_a_lane_that_is_down_and_a_node_that_is_wrong_stand_out() -> None:
    node, participant = FLOW.in_order[0], FLOW.participants[0]

    picture = drawn(
        Overlay(
            lanes={participant: [[LinePart("down: no answer", kind="bad")]]},
            down={participant},
            marked={node: "its binding is missing"},
        )
    )

    assert len([r for r in picture.iter(f"{SVG}rect") if r.get("class") == "down"]) == 1
    titles = [title.text or "" for title in picture.iter(f"{SVG}title")]
    assert any(title.startswith("its binding is missing\n") for title in titles)


def test_an_edge_that_something_went_along_says_so_on_hover() -> None:
    edge = FLOW.edges[0]

    line = [LinePart("2/s", "/messages", about="two a second"), LinePart("7 waiting")]
    picture = drawn(Overlay(edges={edge: line}))

    (flowing,) = [p for p in picture.iter(f"{SVG}path") if "flows" in (p.get("class") or "")]
    assert "".join(flowing.itertext()) == "two a second; 7 waiting"
    (link,) = picture.iter(f"{SVG}a")
    assert link.get("tabindex") is None  # The keyboard comes to it.
    assert (link.get("href"), link.get("aria-label")) == ("/messages", "two a second")


def test_what_is_written_at_edges_lies_on_no_node_and_stays_where_it_is() -> None:
    few = {edge: [LinePart("0/s")] for edge in FLOW.edges}
    many = {edge: [LinePart("99/s"), LinePart("99 waiting")] for edge in FLOW.edges[::2]}

    first, second = (at_edges(svg(FLOW, Overlay(edges=edges))) for edges in (few, many))

    assert len(first) == len(FLOW.edges)
    assert set(second) <= set(first)
    nodes = [
        [float(each) for each in found]
        for found in re.findall(
            r'<rect class="(?:step|event|command)[a-z ]*" x="([-\d.]+)" y="([-\d.]+)" '
            r'width="([-\d.]+)" height="([-\d.]+)"',
            svg(FLOW, Overlay()),
        )
    ]
    assert nodes
    for x, y in first:
        assert not any(
            left < x < left + width and top < y < top + height for left, top, width, height in nodes
        )


def at_edges(picture: str) -> list[tuple[float, float]]:
    found = re.findall(r'<text class="small on-edge" x="([-\d.]+)" y="([-\d.]+)"', picture)
    return [(float(x), float(y)) for x, y in found]


def test_nodes_stay_in_their_places_while_figures_change() -> None:
    few = svg(FLOW, Overlay(nodes={node: [LinePart("0/s")] for node in FLOW.nodes}))
    many = svg(FLOW, Overlay(nodes={node: [LinePart("12.3/s · 450 ms")] for node in FLOW.nodes}))

    assert places(few) == places(many)
    assert places(few)


def test_what_others_wrote_is_text() -> None:
    about = {node: [LinePart(HOSTILE, HOSTILE, HOSTILE)] for node in FLOW.nodes}

    picture = svg(FLOW, Overlay(nodes=about, marked=dict.fromkeys(FLOW.nodes, HOSTILE)))

    assert "<b" not in picture
    assert "\x1b" not in picture
    assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in picture
    ElementTree.fromstring(picture)  # noqa: S314 - just drawn


def test_without_an_overlay_the_drawing_is_an_image_of_the_policies() -> None:
    picture = svg(FLOW)

    assert 'role="img"' in picture
    assert "<a " not in picture
    assert all(label(step) for step in FLOW.steps)
