"""What can still come of a subject that shares something with others: what is left out is said."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from common.events import OrderLine, PlaceOrder
from inventory_service.domain import AddStock
from order_service.domain import CancelOrder
from saga.archive.store import Fact
from saga.choreography import Choreography
from saga.declaration import Saga
from saga.discovery import saga
from saga.future import moment
from saga.future.ends import Outlook, outlook
from saga.future.moment import modelled, moment_after
from saga.future.present import ModelledSubject, SubjectModels, shared_keys
from saga.future.whatif import beside_courses
from saga.history.debts import coming_of, debts_of
from saga.history.sequence import sequence_of
from saga.history.story import Story, tell
from saga.history.trace import Trace
from saga.message import Answer, Intent
from saga.testing import NOW
from tests.play import Play

EXAMPLES = Path(__file__).parents[2] / "examples"
MINUTE_SECONDS = 60.0
TICK = timedelta(milliseconds=5)


@dataclass
class AskingPlay(Play):
    """Any saga played in memory, whose outsides say what they usually say."""

    saga: Saga = field(kw_only=True)
    graph: Choreography = field(init=False)
    books: dict[str, Any] = field(init=False)

    def __post_init__(self) -> None:
        self.graph = self.saga.choreography
        self.books = {outside.name: outside.blank for outside in self.saga.outside}
        super().__post_init__()

    def _answer(self, intent: Intent | None) -> Answer | None:
        if intent is None:
            return None
        outside = self.saga.answering(type(intent))
        assert outside is not None
        known, usual = self.books[outside.name], outside.decisions[0]
        answer, self.books[outside.name], _ = outside.hear(known, intent, usual)
        return answer

    def trace(self, subject: str) -> Trace:
        facts = [
            Fact(event, event.to_bytes(), position=n)
            for n, event in enumerate(self.events)
            if event.subject == subject
        ]
        story, now = tell(self.graph, subject, facts), self.at
        return Trace(
            story=story,
            diagram=sequence_of(self.graph, story, now=now),
            debts=debts_of(self.graph, story, now),
            coming=coming_of(self.graph, story, now),
            whereabouts=None,
            gaps=(),
            now=now,
            facts=facts,
        )

    def shared(self, story: Story) -> dict[Any, Any]:
        """What the participants' databases would have of what others share."""
        return {
            (name, (kind, key)): self.states[name].get((kind, key)) or kind(key)
            for (name, kind), keys in shared_keys(self.graph, story).items()
            for key in keys
        }

    def future(
        self,
        monkeypatch: pytest.MonkeyPatch,
        subject: str,
        event: int | None = None,
        *,
        states_max: int = 20_000,
    ) -> tuple[ModelledSubject, Outlook]:
        found = self.trace(subject)
        at = moment_after(self.graph, found, event)
        monkeypatch.setattr(moment, "read_shared", lambda *_: self.shared(at.story))
        foresight = SubjectModels(self.saga)
        debts = at.open_debts(None)
        present: Any = modelled(Any, foresight, at, debts, influential_only=True)  # type: ignore[arg-type]
        judged = foresight.judged(present)
        seen = outlook(present, judged, states_max=states_max, seconds_max=MINUTE_SECONDS)
        return present, seen


def ends_of(seen: Outlook) -> set[str]:
    return {outcome for end in seen.ends for _, outcome in end.name}


def two_units(down: set[str]) -> AskingPlay:
    played = AskingPlay(at=NOW, tick=TICK, down=down, saga=saga())
    two = AddStock(
        delivery_id=UUID(int=1), sku="tea", quantity=2, unit_price_cents=250, currency="EUR"
    )
    played.give("inventory", two)
    return played


def ordered(played: AskingPlay, number: int) -> str:
    """An order over two units of tea."""
    line = OrderLine(sku="tea", quantity=2, unit_price_cents=250)
    order = PlaceOrder(order_id=UUID(int=number), customer="ada", currency="EUR", lines=(line,))
    played.give("order", order)
    played.deliver()
    return str(order.order_id)


def test_what_another_order_may_give_back_is_not_said_to_be_out_of_reach_for_good(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    played = two_units(down={"payment", "notification"})
    first = ordered(played, 1)
    played.down.add("inventory")
    second = ordered(played, 2)

    present, seen = played.future(monkeypatch, second)
    assert seen.whole
    assert ends_of(seen) == {"out_of_stock", "customer_request", "deadline_exceeded"}
    assert seen.out_of_reach == ["order.confirmed"]
    # It is, as long as the first one keeps what it holds.
    assert seen.depends_on == ["StockItem of inventory"]
    assert "stock_not_conserved" in present.unjudged

    played.give("order", CancelOrder(order_id=UUID(first)))
    played.waiting = deque(d for d in played.waiting if d.event.subject == first)
    played.down.remove("inventory")
    played.deliver()
    assert "confirmed" in ends_of(played.future(monkeypatch, second)[1])


def test_what_is_shared_is_not_said_to_be_as_it_was_then(monkeypatch: pytest.MonkeyPatch) -> None:
    played = two_units(down=set())
    order = ordered(played, 1)

    present, seen = played.future(monkeypatch, order, event=1)

    # It was confirmed from here; but the shelf is empty by now, by what it took itself.
    assert ends_of(seen) == {"out_of_stock", "customer_request", "deadline_exceeded"}
    assert seen.depends_on == ["StockItem of inventory"]
    assert any("not as it was then" in remark for remark in present.remarks)
    present, _ = played.future(monkeypatch, order)
    assert not any("not as it was then" in remark for remark in present.remarks)


# --- a saga of its own that shares seats --------------------------------------------------------


@pytest.fixture
def trips(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.syspath_prepend(EXAMPLES / "trips")
    yield import_module("trips")
    for name in [name for name in sys.modules if name.partition(".")[0] == "trips"]:
        del sys.modules[name]


def test_a_seat_that_others_may_have_taken_is_left_out_and_that_is_said(
    trips: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    played = AskingPlay(at=NOW, tick=TICK, down={"car"}, saga=trips.SAGA)
    played.give("trip", trips._wish(trips.A, f"LX 40, {trips.LAST}"))
    played.deliver()

    present, seen = played.future(monkeypatch, trips.A, states_max=2_000)
    assert not seen.whole
    assert seen.states > 2_000
    assert seen.ends
    assert seen.out_of_reach == []
    assert not seen.broken
    # What is near was seen first; what usually comes of it is among the ends all the same.
    assert "trip.booked" not in ends_of(seen)
    beside = beside_courses(present, seen)
    booked = next(end for end in beside.ends if ("trip.booked", "trip.booked") in end.name)
    assert not booked.shortest
    assert "trip: publishes trip.booked" in [
        f"{step.receiver}: {said}" for step in booked.way for said in step.results
    ]
    assert ends_of(seen) < ends_of(beside)
    (said,) = [remark for remark in present.remarks if "what others have asked" in remark]
    assert said.startswith("airline, hotel chain, rental: known by what was answered about this")
    assert seen.depends_on == []  # No state of the participants is about more than one trip.
