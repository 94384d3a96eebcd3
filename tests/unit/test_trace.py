"""What is told of one order: its sequence, who owes what, and what is missing."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID
from xml.etree import ElementTree

import pytest

from inventory_service.domain import AddStock
from order_service.domain import CancelOrder, ExpireOrder
from saga.archive.store import Fact
from saga.archive.timeline import steps_of
from saga.dlq.letters import DeadLetter
from saga.dlq.states import ItemState, LetterState
from saga.due import OVERDUE_SECONDS
from saga.envelope import Attributes, Envelope, derived_id
from saga.history.debts import LATE_SECONDS, Debt, coming_of, debts_of
from saga.history.drawing import as_mermaid, as_svg, as_text
from saga.history.letters import Death, Life
from saga.history.sequence import Diagram, Kind, Row, duration, owed_since, sequence_of
from saga.history.story import Story, tell
from saga.history.whereabouts import MessageLocation, MessageLocations, Place
from saga.runtime.messaging.dead_letters import ADDRESSEE
from saga.runtime.messaging.frames import NO_PROPERTIES
from saga.runtime.messaging.trust import EDITOR_SOURCE
from saga.testing import NOW
from saga.text import harmless
from tests.order_play import SAGA, Play, confirmed, declined, out_of_stock

GRAPH = SAGA
TICK = timedelta(milliseconds=5)


def play() -> Play:
    played = Play(at=NOW, tick=TICK, graph=GRAPH)
    played.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=1), sku="tea", quantity=9, unit_price_cents=250, currency="EUR"
        ),
    )
    return played


def story_of(events: Sequence[Envelope[Any]], order: str) -> Story:
    facts = [Fact(e, e.to_bytes(), position=n) for n, e in enumerate(events) if e.subject == order]
    return tell(GRAPH, order, facts)


def diagram_of(played: Play, order: str, now: datetime | None = None) -> Diagram:
    story = story_of(played.events, order)
    now = now or played.at
    return sequence_of(GRAPH, story, debts=debts_of(GRAPH, story, now), now=now)


def told(diagram: Diagram) -> list[tuple[str, str, tuple[str, ...]]]:
    return [(row.participant, row.label, row.to) for row in diagram.rows]


def unknown_sku(played: Play) -> str:
    order = played.place(sku="nothing")
    played.deliver()
    return order


def price_mismatch(played: Play) -> str:
    played.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=2), sku="tea", quantity=0, unit_price_cents=260, currency="EUR"
        ),
    )
    order = played.place()
    played.deliver()
    return order


def customer_request(played: Play) -> str:
    order = played.place()
    played.give("order", CancelOrder(order_id=UUID(order)))
    played.deliver()
    return order


def deadline_exceeded(played: Play) -> str:
    order = played.place()
    played.at += timedelta(days=1)
    played.give("order", ExpireOrder(order_id=UUID(order)))
    played.deliver()
    return order


PLACED = ("order", "order.placed", ("inventory",))
RESERVED = ("inventory", "stock.reserved", ("payment",))
RELEASED = ("inventory", "stock.released", ())
VOIDED = ("payment", "payment.voided", ())


def cancelled(reason: str) -> tuple[str, str, tuple[str, ...]]:
    return "order", f"order.cancelled ({reason})", ("inventory", "payment")


def rejected(reason: str) -> tuple[str, str, tuple[str, ...]]:
    return "inventory", f"stock.rejected ({reason})", ("order",)


LIVES: dict[Callable[[Play], str], list[tuple[str, str, tuple[str, ...]]]] = {
    confirmed: [
        PLACED,
        RESERVED,
        ("payment", "payment.charged", ("order",)),
        ("order", "order.confirmed", ()),
    ],
    declined: [
        PLACED,
        RESERVED,
        ("payment", "payment.declined (card_declined)", ("order",)),
        cancelled("payment_declined"),
        RELEASED,
    ],
    out_of_stock: [PLACED, rejected("out_of_stock"), cancelled("out_of_stock"), VOIDED],
    unknown_sku: [PLACED, rejected("unknown_sku"), cancelled("unknown_sku"), VOIDED],
    price_mismatch: [PLACED, rejected("price_mismatch"), cancelled("price_mismatch"), VOIDED],
    customer_request: [PLACED, cancelled("customer_request"), RESERVED, RELEASED, VOIDED],
    deadline_exceeded: [PLACED, cancelled("deadline_exceeded"), RESERVED, RELEASED, VOIDED],
}


@pytest.mark.parametrize("life", LIVES)
def test_the_sequence_is_what_happened_in_its_order(life: Callable[[Play], str]) -> None:
    played = play()
    order = life(played)

    assert told(diagram_of(played, order)) == LIVES[life]


@pytest.mark.parametrize("life", LIVES)
def test_of_an_order_at_rest_nobody_owes_anything_and_nothing_is_missing(
    life: Callable[[Play], str],
) -> None:
    played = play()
    order = life(played)
    story = story_of(played.events, order)

    assert debts_of(GRAPH, story, played.at + timedelta(days=2)) == []
    assert story.holes == []


def test_a_hop_tells_how_long_it_waited_and_worked_and_at_which_try() -> None:
    played = play()
    played.provider_down = True
    order = played.place()
    played.deliver()
    played.at += timedelta(seconds=2)
    played.provider_down = False
    played.retry()
    rows = {row.label: row for row in diagram_of(played, order).rows}

    assert rows["stock.reserved"].note == "waited 5 ms, worked 5 ms"
    assert rows["payment.charged"].note == "waited 2.02 s, worked 10 ms, try 2"


# --- who owes what ----------------------------------------------------------------------------


def owed(played: Play, order: str, now: datetime | None = None) -> list[Debt]:
    return debts_of(GRAPH, story_of(played.events, order), now or played.at)


def said(debts: Sequence[Debt]) -> list[tuple[str, str | None, tuple[str, ...]]]:
    return [(d.participant, d.event.type if d.event else None, d.answers) for d in debts]


def test_whoever_has_not_answered_the_last_event_owes_the_next() -> None:
    played = play()
    played.down = {"inventory"}
    order = played.place()
    played.deliver()
    assert said(owed(played, order)) == [
        ("inventory", "order.placed", ("stock.reserved", "stock.rejected"))
    ]

    played.down, played.provider_down = set(), True
    played.deliver()
    answers = ("payment.charged", "payment.declined", "payment.voided")
    assert said(owed(played, order)) == [("payment", "stock.reserved", answers)]

    played.down, played.provider_down = {"order"}, False
    played.retry()
    assert said(owed(played, order)) == [("order", "payment.charged", ("order.confirmed",))]


def test_a_debt_is_late_once_no_try_can_be_left() -> None:
    played = play()
    played.provider_down = True
    order = played.place()
    played.deliver()
    (debt,) = owed(played, order)
    reserved = played.about(order)[-1]
    # 500 ms, 1 s and 5 s are what payment waits between its four tries.
    by = reserved.time + timedelta(seconds=6.5 + LATE_SECONDS)

    assert (debt.since, debt.by) == (reserved.time, by)
    assert not debt.late(by)
    assert debt.late(by + TICK)


def test_after_a_cancellation_compensations_are_owed_by_those_who_did_something() -> None:
    played = play()
    order = played.place()
    played.down = {"order"}
    played.deliver()
    played.down = {"inventory", "payment"}
    played.give("order", CancelOrder(order_id=UUID(order)))

    assert said(owed(played, order)) == [
        ("inventory", "order.cancelled", ("stock.released",)),
        ("payment", "order.cancelled", ("payment.refunded",)),
    ]


def test_whoever_has_answered_in_part_owes_the_rest() -> None:
    played = play()
    played.provider_down = True
    order = played.place()
    played.deliver()
    played.provider_down, played.refunds_down = False, True
    played.give("order", CancelOrder(order_id=UUID(order)))
    played.deliver()
    assert "payment.charged" in {event.type for event in played.about(order)}

    assert said(owed(played, order)) == [("payment", "order.cancelled", ("payment.refunded",))]


def test_whoever_overtook_owes_nothing_more_to_what_comes_late() -> None:
    played = play()
    played.down = {"inventory"}
    order = played.place()
    played.give("order", CancelOrder(order_id=UUID(order)))
    late = played.waiting.popleft()
    played.down = set()
    played.deliver()
    assert late.event.type == "order.placed"

    assert said(owed(played, order)) == []


def test_past_its_deadline_an_order_s_end_is_owed() -> None:
    played = play()
    played.down = {"inventory"}
    order = played.place()
    deadline = played.about(order)[0].data.deadline
    debts = owed(played, order, deadline + timedelta(seconds=1))
    assert said(debts) == [
        ("inventory", "order.placed", ("stock.reserved", "stock.rejected")),
        ("order", None, ("order.cancelled",)),
    ]
    assert debts[1].by == deadline + timedelta(seconds=OVERDUE_SECONDS)
    assert debts[1].firing is not None
    now = deadline + timedelta(minutes=1)
    assert owed_since(debts[1], None, now) == "for 1 min; late by 55 s; order.expire is due"


def test_what_is_due_later_will_happen_and_is_owed_by_nobody() -> None:
    played = play()
    order = played.place()
    story = story_of(played.events, order)
    deadline = played.about(order)[0].data.deadline
    now = deadline - timedelta(minutes=4)
    (coming,) = coming_of(GRAPH, story, now)

    assert (coming.participant, coming.at) == ("order", deadline)
    assert coming.firing.due.command == ExpireOrder(order_id=UUID(order))
    assert coming.answers == ("order.cancelled",)
    assert not [debt for debt in debts_of(GRAPH, story, now) if debt.firing]
    row = sequence_of(GRAPH, story, coming=[coming], now=now).rows[-1]
    assert (row.kind, row.label) == (Kind.DUE, "order.expire is due")
    assert row.note == f"in 4 min, at {deadline:%Y-%m-%d %H:%M:%S}, unless something happens before"


def test_nothing_is_due_about_an_order_that_has_ended() -> None:
    played = play()
    order = confirmed(played)

    assert coming_of(GRAPH, story_of(played.events, order), played.at) == []


def test_a_debt_in_the_sequence_says_since_when_and_where_the_event_is() -> None:
    played = play()
    played.provider_down = True
    order = played.place()
    played.deliver()
    story = story_of(played.events, order)
    reserved = played.about(order)[-1]
    seen = MessageLocations(
        {("payment", reserved.id): MessageLocation(Place.WAITING, "waiting for try 3")}
    )

    def note(after_seconds: float) -> str:
        now = reserved.time + timedelta(seconds=after_seconds)
        debts = debts_of(GRAPH, story, now)
        diagram = sequence_of(GRAPH, story, debts=debts, whereabouts=seen, now=now)
        assert diagram.rows[-1].kind is Kind.OWED
        assert diagram.rows[-1].label == (
            "owes payment.charged, payment.declined or payment.voided"
        )
        return diagram.rows[-1].note

    assert note(2) == "for 2 s; due in 14.5 s; stock.reserved is waiting for try 3"
    assert note(60) == "for 1 min; late by 43.5 s; stock.reserved is waiting for try 3"


# --- what is missing --------------------------------------------------------------------------


def without(played: Play, order: str, type_: str) -> list[str]:
    events = [event for event in played.about(order) if event.type != type_]
    return [str(hole) for hole in story_of(events, order).holes]


def test_a_number_left_out_is_a_hole() -> None:
    played = play()
    order = confirmed(played)
    placed = played.about(order)[0]

    assert without(played, order, "order.placed") == [
        f"order.placed {placed.id}, to which inventory reacted, about {order} "
        f"is not in the history",
        f"event 1 of order about {order} is not in the history",
    ]


def test_what_a_corrected_copy_has_led_to_has_its_cause_in_the_history() -> None:
    played = play()
    order = confirmed(played)
    events = played.about(order)
    reserved = next(event for event in events if event.type == "stock.reserved")
    copy = reserved.to_bytes().replace(
        b'"/services/inventory"', f'"{EDITOR_SOURCE}","{ADDRESSEE}":"payment"'.encode()
    )
    original = reserved.model_copy(update={"id": "original"})
    facts = [Fact(e, e.to_bytes()) for e in (*(e for e in events if e is not reserved), original)]

    def holes(facts: Sequence[Fact]) -> list[str]:
        return [str(hole) for hole in tell(GRAPH, order, facts).holes]

    assert any("to which payment reacted" in hole for hole in holes(facts))
    assert holes([*facts, Fact(Attributes.of(copy), copy)]) == []


def squatted(played: Play, order: str, type_: str) -> tuple[Envelope[Any], Envelope[Any]]:
    """An event of this type, and one of another source that has used its id before."""
    real = next(event for event in played.about(order) if event.type == type_)
    other = next(event for event in played.about(order) if event.source != real.source)
    return real, other.model_copy(update={"id": real.id, "time": other.time + TICK / 2})


@pytest.mark.parametrize("type_", ["order.placed", "stock.reserved", "payment.charged"])
def test_an_event_is_told_though_another_source_has_used_its_id_before(type_: str) -> None:
    played = play()
    order = confirmed(played)
    real, squatter = squatted(played, order, type_)
    events = [squatter, *played.events]
    story = story_of(events, order)

    assert sorted(step.fact.body for step in story.steps) == sorted(
        event.to_bytes() for event in events if event.subject == order
    )
    assert story.events.keys() >= {real.key, squatter.key}
    assert debts_of(GRAPH, story, played.at) == []
    assert real.type in [row.label for row in diagram_of_story(story, played.at).rows]


def diagram_of_story(story: Story, now: datetime) -> Diagram:
    return sequence_of(GRAPH, story, debts=debts_of(GRAPH, story, now), now=now)


def test_very_many_missing_causes_are_told_in_one_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    played = play()
    order = confirmed(played)
    (event,) = [event for event in played.about(order) if event.type == "stock.reserved"]
    derived: list[str] = []

    def derive(cause: str, step: str) -> str:
        derived.append(step)
        return derived_id(cause, step)

    monkeypatch.setattr("saga.history.story.derived_id", derive)

    def holes(count: int) -> tuple[int, int]:
        causes = [str(UUID(int=number)) for number in range(count)]
        many = [
            event.model_copy(
                update={
                    "id": derived_id(cause, "inventory.reserve.stock.reserved"),
                    "causationid": cause,
                }
            )
            for cause in causes
        ]
        derived.clear()
        return len(story_of([*played.events, *many], order).holes), len(derived)

    few, steps_of_few = holes(50)
    many, steps_of_many = holes(500)
    assert (few, many) == (50, 500)
    assert steps_of_many < 12 * steps_of_few


def test_a_cause_that_is_missing_is_a_hole() -> None:
    played = play()
    order = confirmed(played)
    reserved, charged = played.about(order)[1:3]

    assert without(played, order, "stock.reserved") == [
        f"stock.reserved {reserved.id}, to which payment reacted, about {order} "
        f"is not in the history"
    ]
    assert charged.causationid == reserved.id
    assert without(played, order, "order.confirmed") == []


# --- order and drawing ------------------------------------------------------------------------


def test_no_event_comes_before_its_cause_whatever_the_clocks_say() -> None:
    played = play()
    order = confirmed(played)
    slow = timedelta(minutes=1)
    skewed = [
        event.model_copy(update={"time": event.time - slow}) if "stock" in event.type else event
        for event in played.about(order)
    ]
    facts = [Fact(event, event.to_bytes()) for event in reversed(skewed)]

    assert [step.attributes.type for step in steps_of(facts)] == [e.type for e in skewed]
    rows = diagram_of(replace(played, events=skewed), order).rows
    assert all(row.after >= timedelta(0) for row in rows)


def test_events_that_cause_each_other_end_nowhere() -> None:
    played = play()
    order = confirmed(played)
    one, other = played.about(order)[:2]
    circle = [
        one.model_copy(update={"causationid": other.id}),
        other.model_copy(update={"causationid": one.id}),
    ]
    steps = steps_of([Fact(event, event.to_bytes()) for event in circle])

    assert {step.attributes.id for step in steps} == {one.id, other.id}


@pytest.fixture
def letter_life() -> Callable[[str, Envelope[Any]], Life]:
    def life(order: str, event: Envelope[Any]) -> Life:
        died = event.time + timedelta(seconds=7)
        letter = DeadLetter(
            number=17,
            participant="payment",
            key=event.id,
            state=LetterState.DONE,
            event_id=event.id,
            type=event.type,
            subject=order,
            queue="payment.normal",
            reason="failed",
            error_type="GatewayUnavailable",
            error="away",
            fingerprint="f",
            attempts=4,
            replays=1,
            copies=1,
            first_failed_at=died,
            last_failed_at=died,
            note="",
            properties={},
            headers={},
            raw=NO_PROPERTIES,
            body=b"",
        )
        replayed = died + timedelta(seconds=5)
        return Life(
            letter,
            [Death(died, "GatewayUnavailable: away", 4)],
            [(3, replayed, ItemState.DONE)],
        )

    return life


def replayed_diagram(life: Callable[[str, Envelope[Any]], Life]) -> Diagram:
    played = play()
    played.provider_down = True
    order = played.place()
    played.deliver()
    reserved = played.about(order)[-1]
    played.at += timedelta(seconds=13)
    played.provider_down = False
    played.retry()
    story = story_of(played.events, order)
    return sequence_of(GRAPH, story, lives=[life(order, reserved)], now=played.at)


def test_dead_letters_and_replays_are_drawn_on_the_terminal(
    letter_life: Callable[[str, Envelope[Any]], Life],
) -> None:
    header, lines = as_text(replayed_diagram(letter_life))

    assert header == "order                 inventory             payment"
    assert [line.lanes for line in lines] == [
        " ●─ order.placed ──────▶                     │",
        " │                     ●─ stock.reserved ────▶",
        " │                     │                     "
        "✗ stock.reserved is dead letter 17 after 4 tries",
        " │                     │                     ↻ stock.reserved replayed (replay 3, done)",
        " ◀─────────────────────┼─── payment.charged ─●",
        " ■ order.confirmed     │                     │",
    ]
    assert [line.after for line in lines] == [
        "+0 ms",
        "+10 ms",
        "+7.01 s",
        "+12 s",
        "+13 s",
        "+13 s",
    ]
    assert lines[2].note == "GatewayUnavailable: away"


def test_arrows_go_both_ways_and_past_those_who_do_not_listen() -> None:
    played = play()
    order = declined(played)
    _, lines = as_text(diagram_of(played, order))
    cancelling = next(line.lanes for line in lines if "order.cancelled" in line.lanes)
    declining = next(line.lanes for line in lines if "declined (card" in line.lanes)

    assert cancelling.startswith(" ■─ order.cancelled (payment_declined) ─")
    assert cancelling.count("▶") == 2
    assert declining.startswith(" ◀─")
    assert declining.endswith(" payment.declined (card_declined) ─●")
    assert declining.count("┼") == 1


def test_the_sequence_as_mermaid(letter_life: Callable[[str, Envelope[Any]], Life]) -> None:
    assert as_mermaid(replayed_diagram(letter_life)).splitlines()[:9] == [
        "sequenceDiagram",
        "  participant p0 as order",
        "  participant p1 as inventory",
        "  participant p2 as payment",
        "  p0->>p1: order.placed +0 ms",
        "  Note over p0: worked 5 ms",
        "  p1->>p2: stock.reserved +10 ms",
        "  Note over p1: waited 5 ms, worked 5 ms",
        "  Note over p2: ✗ stock.reserved is dead letter 17 after 4 tries +7.01 s"
        "<br/>GatewayUnavailable: away",
    ]


@pytest.mark.parametrize(
    "text", ['<b>;#%%"', "[/b]", "end\n  p0->>p1: paid", "\x1b[2J\u202e", "&lt;"]
)
def test_a_text_of_others_is_text_in_every_drawing(text: str) -> None:
    row = Row(Kind.DEAD, "order", text, timedelta(0), note=text)
    diagram = Diagram(("order", text), (row, replace(row, participant=text, to=("order",))))

    mermaid = as_mermaid(diagram).splitlines()
    assert len(mermaid) == 6
    for line in mermaid:
        assert line.isprintable()
        assert not {*re.sub(r"#\d+;|<br/>|->>|-->>", "", line)} & {*'<>;#&%"\\'}
    picture = ElementTree.fromstring(as_svg(diagram, text))  # noqa: S314
    assert harmless(text, lines=True) in {each.text for each in picture.iter()}
    header, lines = as_text(diagram)
    assert all(part.isprintable() for line in lines for part in (header, line.lanes, line.note))


def test_the_sequence_as_a_picture_says_the_same(
    letter_life: Callable[[str, Envelope[Any]], Life],
) -> None:
    diagram = replayed_diagram(letter_life)
    picture = as_svg(diagram, "order <1> & more")
    root = ElementTree.fromstring(picture)  # noqa: S314 - our own
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    title = root.find("{http://www.w3.org/2000/svg}title")

    assert title is not None
    assert title.text == "order <1> & more"
    assert texts[:3] == ["order", "inventory", "payment"]
    assert [row.label for row in diagram.rows] == [
        text for text in texts if text in {row.label for row in diagram.rows}
    ]


def test_what_cannot_be_read_and_what_a_person_corrected_is_in_the_sequence_too() -> None:
    played = play()
    order = confirmed(played)
    reserved = played.about(order)[1]
    body = reserved.to_bytes()
    unreadable = body.replace(b"stock.reserved:1", b"stock.reserved:9").replace(
        reserved.id.encode(), b"newer"
    )
    document = body.replace(reserved.id.encode(), b"copy").replace(
        b'"/services/inventory"', f'"{EDITOR_SOURCE}","{ADDRESSEE}":"payment"'.encode()
    )
    facts = [Fact(e, e.to_bytes()) for e in played.about(order)]
    facts += (Fact(Attributes.of(odd), odd) for odd in (unreadable, document))
    story = tell(GRAPH, order, facts)
    rows = sequence_of(GRAPH, story, now=played.at).rows

    assert ("inventory", "stock.reserved, which this version cannot read") in [
        (row.participant, row.label) for row in rows
    ]
    assert ("payment", "stock.reserved again, corrected by an operator") in [
        (row.participant, row.label) for row in rows
    ]
    assert story.view is not None
    assert story.view.sequence == 4


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 ms"),
        (0.0004, "0.4 ms"),
        (0.1234, "123 ms"),
        (59.9, "59.9 s"),
        (90.0, "1.5 min"),
        (7200.0, "2 h"),
        (86_400.0 * 400, "400 d"),
        (-1.0, "0 ms"),
    ],
)
def test_a_duration_is_said_in_its_largest_unit(seconds: float, text: str) -> None:
    assert duration(timedelta(seconds=seconds)) == text
