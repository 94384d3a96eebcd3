"""What is written over the map of any saga."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta

import pytest

from saga.archive.traffic import Excerpt, Passing, Recorded, Traffic
from saga.broker.drift import Deviation
from saga.broker.setup import Drift
from saga.choreography import Choreography
from saga.console.lookout import Compared, SystemSnapshot, Untaken
from saga.console.map_figures import MapFigures, briefly, rate_said
from saga.graph.flow import Flow, Step, label
from saga.graph.overlay import LANE_LINES
from saga.graph.svg import svg
from saga.history.waiting import UntakenMessage, WaitingMessages
from saga.runtime.messaging.topology import queues_of
from saga.status import QueueStatus, SystemStatus
from saga.testing import NOW
from tests.circle import GRAPH as CIRCLE
from tests.errands import GRAPH as ERRANDS
from tests.moving import SAGA as MOVING
from tests.parcels import GRAPH as PARCELS

SAGAS = {
    "circle": CIRCLE,
    "errands": ERRANDS,
    "moving": MOVING.choreography,
    "parcels": PARCELS,
}
EXCERPT = Excerpt(NOW - timedelta(seconds=60), NOW)


def url(path: str, **query: object) -> str:
    given = "&".join(f"{name}={value}" for name, value in query.items() if value is not None)
    return f"{path}?{given}" if given else path


def busy(flow: Flow) -> Traffic:
    """Something went by everywhere."""
    passing = Passing(600, [12.0], [3_400.0], again=2)
    return Traffic(EXCERPT, dict.fromkeys(flow.nodes, passing), dict.fromkeys(flow.edges, passing))


def at_work(graph: Choreography, **services: str) -> SystemSnapshot:
    names = [participant.name for participant in graph.participants]
    queues = {name: QueueStatus(7, 1) for p in graph.participants for name in queues_of(p)}
    return SystemSnapshot(
        SystemStatus(
            services=dict.fromkeys(names, "ready") | services,
            queues=queues,
            dead_letters=dict.fromkeys(names, 3),
            outboxes=dict.fromkeys(names, 4),
        )
    )


@pytest.mark.parametrize("name", SAGAS)
def test_every_node_of_any_saga_has_its_figures_and_links(name: str) -> None:
    flow = Flow(SAGAS[name])
    letters = {
        (step.participant.name, getattr(step.reaction.consumes, "type", "")): 5
        for step in flow.steps
    }
    figures = MapFigures(flow, url, busy(flow), letters, at_work(flow.choreography))

    picture = svg(flow, figures.overlay)

    assert picture.count("10/s · ") >= len(flow.nodes) - len(flow.steps)
    assert picture.count(">2 again<") == len(flow.steps)
    assert picture.count(">5 dead<") == len([n for n in flow.steps if dead(figures, n)])
    assert picture.count(">14 waiting<") + picture.count(">28 waiting<") == len(flow.participants)
    assert len(picture) < 90_000
    assert all(row.name and row.participant for row in figures.rows)


def dead(figures: MapFigures, step: Step) -> bool:
    return any(piece.text == "5 dead" for piece in figures.overlay.nodes[step])


def test_a_figure_leads_to_the_messages_that_it_counts() -> None:
    flow = Flow(CIRCLE)
    figures = MapFigures(flow, url, busy(flow), {})

    links = {label(node): line[0].href for node, line in figures.overlay.nodes.items() if line}

    begun = next(name for name in links if name.endswith("begun"))
    assert links[begun] == f"/messages?type={begun}&at={NOW.timestamp():.0f}&seconds=60"
    hold = links["keeper.hold"]
    assert hold is not None
    assert "participant=keeper&type=['part.held', 'part.refused']" in hold
    assert f"cause={begun}" in hold


def test_what_went_along_an_edge_leads_to_these_messages() -> None:
    flow = Flow(CIRCLE)
    edges = MapFigures(flow, url, busy(flow), {}).overlay.edges
    links = {(label(tail), label(head)): line[0].href or "" for (tail, head), line in edges.items()}

    assert {*edges} == {*flow.edges}
    assert all(link.startswith("/messages?") for link in links.values())
    taken = next(link for (_, head), link in links.items() if head == "keeper.hold")
    begun = next(tail for tail, head in links if head == "keeper.hold")
    assert taken.startswith(f"/messages?type={begun}&taken_by=keeper&")
    published = links["keeper.hold", "part.held"]
    assert published.startswith(f"/messages?participant=keeper&type=part.held&cause={begun}&")
    abouts = [line[0].about for line in edges.values()]
    assert len({*abouts}) == len(abouts)  # By which a screen reader tells them apart.


def test_what_waits_for_a_participant_is_at_the_edge_of_its_type() -> None:
    flow = Flow(CIRCLE)
    (edge,) = [edge for edge in flow.edges if label(edge[1]) == "keeper.hold"]
    type_ = label(edge[0])
    message = UntakenMessage("keeper", type_, "a", "1", "/services/starter", NOW)
    other = replace(message, participant="teller", type="no.such")
    waiting = Untaken(WaitingMessages([message, replace(message, id="2"), other], 3))

    overlay = MapFigures(flow, url, Traffic(EXCERPT, {}, {}), {}, at_work(CIRCLE), None, waiting)
    overlay_edges = overlay.overlay.edges

    assert {*overlay_edges} == {edge}
    (piece,) = overlay_edges[edge]
    assert (piece.text, piece.href) == ("2 waiting", f"/waiting?participant=keeper&type={type_}")
    lane = overlay.overlay.lanes["keeper"]
    assert any(
        piece.href == "/waiting?participant=keeper" and "waiting" in piece.text for piece in lane[1]
    )


def test_what_is_down_is_red_and_what_only_has_a_trouble_is_not() -> None:
    flow = Flow(CIRCLE)
    glance = at_work(CIRCLE, keeper="no answer from http://x", asker="ready, but disk: nearly full")

    overlay = MapFigures(flow, url, busy(flow), {}, glance).overlay

    assert {*overlay.down} == {"keeper"}
    kinds = {name: lines[0][0].kind for name, lines in overlay.lanes.items()}
    assert kinds == {"keeper": "bad", "asker": "warn", "starter": "good", "teller": "good"}


def test_a_broker_that_cannot_be_asked_is_no_empty_one() -> None:
    flow = Flow(CIRCLE)
    glance = SystemSnapshot(SystemStatus(), "the broker is away")

    overlay = MapFigures(flow, url, busy(flow), {}, glance).overlay

    said = [piece.text for lines in overlay.lanes.values() for line in lines for piece in line]
    assert said.count("backlog not known") == len(flow.participants)
    assert not any("waiting" in text for text in said)


def test_of_the_past_no_lane_says_how_it_is_now() -> None:
    flow = Flow(CIRCLE)

    overlay = MapFigures(flow, url, busy(flow), {}).overlay

    assert {*map(tuple, overlay.lanes.values())} == {()}
    assert not overlay.down


def test_a_deviation_is_shown_at_the_reaction_that_it_concerns() -> None:
    flow = Flow(CIRCLE)
    hold = next(step for step in flow.steps if step.name == "keeper.hold")
    name = f"saga.events {hold.reaction.consumes.type}.high keeper.high"  # type: ignore[union-attr]  # an event
    drift = Drift("here", [Deviation("binding", name, "there", "-")])

    figures = MapFigures(flow, url, busy(flow), {}, at_work(CIRCLE), Compared(drift))

    assert figures.overlay.marked.keys() == {hold}
    assert [participant for _, participant in figures.deviations] == ["keeper"]


def test_figures_are_short() -> None:
    rates: Mapping[float, str] = {
        0: "0/s",
        0.01: "<0.05/s",
        0.25: "0.2/s",
        9.9: "9.9/s",
        1e3: "1000/s",
    }
    assert {rate: rate_said(rate) for rate in rates} == rates
    lengths = {0.25: "0.2 ms", 12.4: "12 ms", 1_500: "1.5 s"}
    assert {ms: briefly(timedelta(milliseconds=ms)) for ms in lengths} == lengths


def test_rows_that_went_by_most_come_first() -> None:
    flow = Flow(CIRCLE)
    last = flow.in_order[-1]
    traffic = Traffic(
        Excerpt(NOW - timedelta(seconds=1), NOW, [Recorded(1, "a", "b", "c", None, 0, 0)] * 30),
        {last: Passing(30)},
        {},
    )

    figures = MapFigures(flow, url, traffic, {})

    assert figures.rows[0].name == label(last)
    assert figures.per_second == "30/s"


def test_dead_letters_that_no_reaction_counts_are_told_as_such() -> None:
    flow = Flow(CIRCLE)
    glance = at_work(CIRCLE)
    glance = replace(glance, status=replace(glance.status, stored_dead_letters={"keeper": 1}))

    lanes = MapFigures(flow, url, busy(flow), {}, glance).overlay.lanes

    said = {
        name: [piece.text for line in lines[2:] for piece in line] for name, lines in lanes.items()
    }
    assert said["keeper"] == ["2 dead not collected yet"]
    assert said["asker"] == ["3 dead not collected yet"]
    status = replace(glance.status, stored_dead_letters=glance.status.dead_letters)
    collected = MapFigures(flow, url, busy(flow), {}, replace(glance, status=status)).overlay
    assert not any(lines[2] for lines in collected.lanes.values())
    assert all(len(lines) <= LANE_LINES for lines in lanes.values())
