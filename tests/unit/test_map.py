"""The map: what belongs to which path, and that each way of drawing it shows everything."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import ClassVar
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

import saga.discovery
from common.events import OrderCancelled, OrderConfirmed, PaymentDeclined
from order_service.domain import Order
from saga.choreography import Choreography, Participant, State
from saga.cli import app
from saga.discovery import choreography
from saga.graph.canvas import canvas
from saga.graph.flow import Flow, Node, Path, Step, label, retry_said
from saga.graph.joins import joins_of
from saga.graph.listing import listing
from saga.graph.mermaid import mermaid
from saga.graph.svg import svg
from saga.message import Answer, Command, Event, Intent, Role
from saga.retry import Retry
from tests import errands

FLOW = Flow(choreography())
OURS = {"order", "inventory", "payment", "notification"}
"""The participants that are known here; there may be more."""


def node(name: str) -> Node:
    """Keyed by label; a command or an event before the reaction of the same name."""
    return next(node for node in FLOW.nodes if label(node) == name)


def step(name: str) -> Step:
    return next(step for step in FLOW.steps if step.name == name)


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (
            Path.HAPPY,
            "order.placed stock.reserved payment.charged order.confirmed stock.added "
            "order.place stock.add Charge notification.begun notification.sent "
            "notification.unconfirmed notification.dismissed notification.resend "
            "notification.dismiss notification.give_up_resending Resend PutOff Send",
        ),
        (
            Path.FAILURE,
            "stock.rejected payment.declined order.cancelled order.cancel order.expire",
        ),
        (
            Path.COMPENSATION,
            "stock.released payment.refunded payment.voided Refund SettleCharge",
        ),
    ],
)
def test_a_message_belongs_to_the_path_that_its_role_or_its_origin_says(
    path: Path, names: str
) -> None:
    found = (n for n in FLOW.nodes if not isinstance(n, Step) and FLOW.home(n) in OURS)

    assert {label(n) for n in found if FLOW.path(n) is path} == {*names.split()}


@pytest.mark.parametrize(
    ("path", "names"),
    [
        (
            Path.HAPPY,
            "order.place inventory.reserve payment.charge payment.record_charge order.confirm "
            "inventory.shelve notification.tell_confirmed notification.record "
            "notification.resend notification.dismiss notification.give_up_resending",
        ),
        (
            Path.FAILURE,
            "order.give_up order.give_up_unpaid order.cancel order.expire "
            "notification.tell_cancelled",
        ),
        (Path.COMPENSATION, "inventory.release payment.compensate payment.record_refund"),
    ],
)
def test_a_reaction_goes_with_what_it_takes_and_one_that_undoes_is_a_compensation(
    path: Path, names: str
) -> None:
    found = (s for s in FLOW.steps if FLOW.home(s) in OURS)

    assert {s.name for s in found if FLOW.path(s) is path} == {*names.split()}


@dataclass(frozen=True, slots=True)
class Letter(State):
    pass


class LetterSent(Event):
    type: ClassVar[str] = "letter.sent"
    final: ClassVar[bool] = True


def regret(event: OrderCancelled, letter: Letter) -> LetterSent | None: ...


def congratulate(event: OrderConfirmed, letter: Letter) -> LetterSent | None: ...


def test_a_reaction_to_a_cancellation_that_undoes_nothing_is_no_compensation() -> None:
    flow = Flow(Choreography([Participant("mail", regret, congratulate)]))

    assert [flow.path(s) for s in flow.steps] == [Path.FAILURE, Path.HAPPY]


def test_the_ways_into_and_out_of_a_cancellation_are_told_apart() -> None:
    cancelled, release = node("order.cancelled"), step("inventory.release")

    assert FLOW.edge_path(step("order.give_up"), cancelled) is Path.FAILURE
    assert FLOW.edge_path(cancelled, release) is Path.COMPENSATION
    assert FLOW.edge_path(node("SettleCharge"), step("payment.record_charge")) is Path.COMPENSATION
    assert FLOW.edge_path(step("payment.record_charge"), node("payment.charged")) is Path.HAPPY


def test_a_question_leads_to_the_reaction_to_its_answer() -> None:
    assert FLOW.following[node("Charge")] == [step("payment.record_charge")]
    assert node("payment.refunded") in FLOW.reachable([node("SettleCharge")])
    assert node("stock.added") not in FLOW.reachable([node("order.place")])


class ParcelLost(Event):
    """The second version."""

    type: ClassVar[str] = "parcel.lost"
    version: ClassVar[int] = 2
    role: ClassVar[Role] = Role.COMPENSATION


class ParcelLostV1(Event):
    type: ClassVar[str] = "parcel.lost"


def lose(event: PaymentDeclined, letter: Letter) -> ParcelLostV1: ...  # type: ignore[empty-body]


def search(event: ParcelLost, letter: Letter) -> LetterSent | None: ...


def test_versions_of_an_event_are_one_node() -> None:
    graph = Choreography([Participant("post", lose), Participant("search", search)])
    flow = Flow(graph)

    assert graph.events == (LetterSent, ParcelLost, PaymentDeclined)
    assert [s.name for s in flow.publishers(ParcelLost)] == ["post.lose"]
    assert flow.preceding[ParcelLost] == [flow.steps[0]]
    assert [s.name for s in flow.takers(ParcelLost)] == ["search.search"]


def test_every_drawing_shows_every_message_reaction_and_policy() -> None:
    drawn = mermaid(FLOW), svg(FLOW)
    for text in drawn:
        for n in FLOW.nodes:
            assert (n.reaction.name if isinstance(n, Step) else label(n)) in text
        assert retry_said(step("payment.compensate").retry or Retry()) in text
    said = listing(FLOW)
    assert {event["type"] for event in said["events"]} == {e.type for e in FLOW.choreography.events}
    assert len(said["edges"]) == len(FLOW.edges)


def test_mermaid_draws_each_edge_in_the_way_of_its_path() -> None:
    text = mermaid(FLOW)
    ids = dict(re.findall(r'^  (n\d+)\W+"(?:<b>|■ |◷ )?([\w.]+)', text, re.MULTILINE))
    arrows = [(ids[a], ids[b]) for a, b in re.findall(r"^  (n\d+) --> (n\d+)$", text, re.MULTILINE)]
    drawn = {
        path: {arrows[int(number)] for number in numbers.split(",")}
        for numbers, path in zip(
            re.findall(r"linkStyle ([\d,]+)", text),
            ("happy", "failure", "compensation"),
            strict=True,
        )
    }

    for edge in FLOW.edges:
        assert tuple(map(label, edge)) in drawn[FLOW.edge_path(*edge)]
    assert sum(map(len, drawn.values())) == len(FLOW.edges)
    assert re.search(r"class n\d+,n\d+ ends$", text, re.MULTILINE)


def test_what_the_clock_gives_is_marked_and_is_not_asked_for() -> None:
    expire = node("order.expire")

    assert expire not in FLOW.commands
    assert FLOW.due_about(expire) is Order
    assert '[/"◷ order.expire"/]' in mermaid(FLOW)
    assert "◷ order.expire" in svg(FLOW)
    assert "▸ order.expire" not in svg(FLOW)
    assert {"type": "order.expire", "path": "failure", "about": "Order"}.items() <= next(
        due for due in listing(FLOW)["due"] if due["type"] == "order.expire"
    ).items()


SVG = "{http://www.w3.org/2000/svg}"


def test_the_picture_is_well_formed_needs_nothing_from_elsewhere_and_marks_the_ends() -> None:
    text = svg(FLOW)
    picture = ElementTree.fromstring(text)  # noqa: S314 - our own

    ends = [
        group.findtext(f"{SVG}text")
        for group in picture.iter(f"{SVG}g")
        if any("end" in (r.get("class") or "").split() for r in group.iter(f"{SVG}rect"))
    ]
    assert sorted(filter(None, ends)) == ["order.cancelled", "order.confirmed"]
    assert "url(" not in text
    assert "href" not in text
    assert "<script" not in text


def test_a_choreography_of_nothing_can_be_drawn() -> None:
    flow = Flow(Choreography([]))

    assert mermaid(flow) == "flowchart TB\n"
    assert ElementTree.fromstring(svg(flow)) is not None  # noqa: S314 - our own


@pytest.mark.parametrize(
    ("retry", "said"),
    [
        (Retry(max_calls=1), "1 call"),
        (Retry(max_calls=2, delay=5), "2 calls, 5 s"),
        (Retry(max_calls=4, delay=0.5, max_delay=5), "4 calls, 0.5–5 s"),
        (Retry(max_calls=12, delay=0.5, max_delay=300), "12 calls, 0.5 s – 5 min"),
        (Retry(max_calls=3, delay=3_600, max_delay=3_600), "3 calls, 1 h"),
    ],
)
def test_a_retry_policy_is_said_with_the_waits_there_are_on_the_broker(
    retry: Retry, said: str
) -> None:
    assert retry_said(retry) == said


def test_a_reaction_whose_message_comes_from_within_has_no_policy() -> None:
    assert step("order.cancel").retry is None
    assert step("payment.record_charge").retry is None
    assert step("order.place").retry is not None


def test_saga_map_prints_each_format() -> None:
    def shown(*options: str) -> str:
        result = CliRunner().invoke(app, ["map", *options])
        assert result.exit_code == 0, result.output
        return result.output

    assert "payment.compensate" in shown()
    assert shown("--format", "mermaid") == mermaid(FLOW)
    assert shown("--format", "svg") == svg(FLOW)
    assert json.loads(shown("--json")) == json.loads(shown("--format", "json")) == listing(FLOW)


# --- commands between participants, private facts, joins ------------------------------------------

ERRANDS = Flow(errands.GRAPH)


def test_a_command_is_drawn_with_its_receiver_and_on_the_path_of_its_sender() -> None:
    paths = {label(n): ERRANDS.path(n) for n in ERRANDS.nodes if not isinstance(n, Step)}

    assert [command.type for command in ERRANDS.given] == ["errand.ask"]
    assert {paths["ride.start"], paths["stamp.give"]} == {Path.HAPPY}
    assert paths["stamp.take_off"] is Path.COMPENSATION
    assert ERRANDS.home(errands.StartRide) == "rider"
    assert {
        (label(tail), label(head))
        for tail, head in ERRANDS.edges
        if errands.StartRide in (tail, head)
    } == {("desk.ask", "ride.start"), ("ride.start", "rider.ride")}


class TakeBack(Command):
    """End with nothing."""

    type: ClassVar[str] = "parcel.take_back"
    intake: ClassVar[bool] = True


class HaveItBack(Intent):
    """Ask a shop to take it back."""

    answer: ClassVar[type[Answer]] = Answer


def take_back(command: TakeBack, letter: Letter) -> ParcelLost | HaveItBack | None: ...


def cancel_letter(event: LetterSent, letter: Letter) -> TakeBack | None: ...


def test_a_command_is_a_compensation_also_where_its_receiver_has_to_ask_first() -> None:
    flow = Flow(
        Choreography([Participant("post", cancel_letter), Participant("parcels", take_back)])
    )

    assert flow.path(TakeBack) is Path.COMPENSATION
    assert flow.path(HaveItBack) is Path.COMPENSATION


def test_a_join_is_what_any_of_its_legs_completes_or_waits_for_with_a_private_fact() -> None:
    (join,) = joins_of(ERRANDS)

    assert join.participant is errands.DESK
    assert (join.state, join.completes) == (errands.Errand, errands.ErrandEnded)
    assert {leg.step.name: leg.keeps for leg in join.legs} == {
        "desk.ridden": (errands.ErrandRidden,),
        "desk.stamped": (errands.ErrandStamped,),
    }
    assert joins_of(FLOW) == ()


def test_every_drawing_marks_joins_and_private_facts() -> None:
    picture = svg(ERRANDS)
    text = mermaid(ERRANDS)
    data = listing(ERRANDS)

    ElementTree.fromstring(picture)  # noqa: S314 - our own
    assert "⋈ errand.ended" in picture
    assert "joins ride.done and stamp.given" in picture
    assert picture.count('class="event happy private"') == 3  # two facts, and the legend
    assert "completes a join" in picture
    assert "private" not in svg(FLOW)
    assert '(["■ ⋈ errand.ended"])' in text
    assert "classDef private" in text
    assert data["joins"] == [
        {
            "participant": "desk",
            "state": "Errand",
            "completes": "errand.ended",
            "legs": [
                {"reaction": "desk.ridden", "takes": "ride.done", "keeps": ["errand.ridden"]},
                {"reaction": "desk.stamped", "takes": "stamp.given", "keeps": ["errand.stamped"]},
            ],
        }
    ]
    assert [e["type"] for e in data["events"] if e["private"]] == [
        "errand.ridden",
        "errand.stamped",
    ]
    assert {c["type"]: c["sent_by"] for c in data["commands"]} == {
        "errand.ask": [],
        "ride.start": ["desk.ask"],
        "stamp.give": ["desk.ask"],
        "stamp.take_off": ["desk.refused"],
    }


def test_the_map_in_the_terminal_says_who_is_told_and_what_is_joined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(saga.discovery, "choreography", lambda: errands.GRAPH)

    shown = CliRunner().invoke(app, ["map"]).output

    assert "ride.start ▸" in shown
    assert "errand.ended ■ ⋈" in shown
    assert "errand.ridden ○" in shown
    assert "▸ tells a participant   ○ its participant's own   ⋈ completes a join" in shown


def test_the_page_of_a_service_says_what_it_sends_and_who_sends_what_it_takes() -> None:
    desk, rider = (canvas(ERRANDS, participant) for participant in (errands.DESK, errands.RIDER))

    assert "| `ride.start` v1 | Ride there. | `rider.ride` |" in desk
    assert (
        "| `errand.ridden` v1 | The rider is back, and the stamp is not. "
        "| step | none: it is private |"
    ) in desk
    assert "| `ride.start`, a command of desk | `ride` |" in rider
    assert "| bound to | `ride.start.*` |" in rider
