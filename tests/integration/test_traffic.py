"""What went along the map within some seconds, as an archive has it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any
from uuid import UUID

import pytest

from inventory_service.domain import AddStock
from order_service.domain import CancelOrder
from saga.archive import store, traffic
from saga.archive.messages import MessageSearch, find_messages
from saga.archive.queries import Search, count_open, search
from saga.archive.traffic import Passing, Traffic, Ways, excerpt, open_at, position_before, span
from saga.archive.views import projection_of
from saga.envelope import Envelope
from saga.graph.flow import Flow, label
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.opening import open_database
from saga.runtime.messaging.trust import EDITOR_SOURCE
from tests.order_play import SAGA, Play
from tests.stores import HISTORY

TEN = datetime(2030, 1, 1, 10, tzinfo=UTC)
TICK = timedelta(milliseconds=10)
WAYS = Ways(Flow(SAGA))
PLAYED = projection_of(SAGA)


@pytest.fixture
async def history(database_url: str) -> AsyncIterator[Database]:
    database = await open_database(database_url, HISTORY)
    yield database
    await database.close()


@dataclass
class Recording:
    """Orders, recorded as they are played."""

    history: Database
    play: Play = field(default_factory=lambda: Play(at=TEN, tick=TICK, graph=SAGA))
    recorded: int = 0

    def shelve(self) -> None:
        command = AddStock(
            delivery_id=UUID(int=1), sku="tea", quantity=99, unit_price_cents=250, currency="EUR"
        )
        self.play.give("inventory", command)

    def cancel_unpaid(self) -> str:
        """An order ten minutes after ten, which is not charged since the provider is down, and is
        cancelled ten minutes later; no other participant has heard of that yet."""
        play = self.play
        play.provider_down = True
        play.at = TEN + timedelta(minutes=10)
        order = play.place()
        play.deliver()
        play.at = TEN + timedelta(minutes=20)
        play.give("order", CancelOrder(order_id=UUID(order)))
        return order

    async def record(self) -> None:
        """Keep in the archive what was published since, each at its own time."""
        for event in self.play.events[self.recorded :]:
            await self.keep(event)
        self.recorded = len(self.play.events)

    async def keep(self, event: Envelope[Any]) -> None:
        fact = store.Fact(event, event.to_bytes())
        await self.history.transaction(lambda c: store.append(c, [fact], event.time, PLAYED))

    async def traffic(self, at: datetime) -> Traffic:
        return traffic.traffic(await self.history.read(lambda c: excerpt(c, at)), WAYS)


@pytest.fixture
async def recording(history: Database) -> Recording:
    """A delivery at ten, and an order in each of the next two minutes."""
    recording = Recording(history)
    recording.shelve()
    for minute in (1, 2):
        recording.play.at = TEN + timedelta(minutes=minute, seconds=30)
        recording.play.place()
        recording.play.deliver()
    await recording.record()
    return recording


def counts(passed: Mapping[Any, Passing]) -> dict[str, int]:
    return {label(node): passing.count for node, passing in passed.items()}


async def test_each_node_and_edge_that_an_order_passed_has_it_once(recording: Recording) -> None:
    found = await recording.traffic(TEN + timedelta(minutes=2))

    once = ("order.placed", "inventory.reserve", "stock.reserved", "payment.charge", "Charge")
    assert {name: counts(found.nodes)[name] for name in once} == dict.fromkeys(once, 1)
    assert counts(found.nodes)["order.place"] == 1  # The command, which is in no archive, too.
    edges = {
        (label(tail), label(head)): passing.count for (tail, head), passing in found.edges.items()
    }
    assert edges["order.placed", "inventory.reserve"] == 1
    assert edges["payment.charge", "Charge"] == edges["Charge", "payment.record_charge"] == 1
    assert edges["payment.record_charge", "payment.charged"] == 1
    assert "stock.added" not in counts(found.nodes)  # That was two minutes before.


async def test_a_minute_without_messages_has_none(recording: Recording) -> None:
    for at in (TEN - timedelta(hours=1), TEN + timedelta(seconds=80), TEN + timedelta(hours=1)):
        found = await recording.traffic(at)
        assert not found.nodes
        assert found.excerpt.seconds == 60


async def test_what_waited_and_what_worked_is_told_apart(recording: Recording) -> None:
    found = await recording.traffic(TEN + timedelta(minutes=2))
    by_name = {label(node): passing for node, passing in found.nodes.items()}

    assert by_name["order.placed"].waited == TICK
    assert by_name["inventory.reserve"].worked == TICK
    assert by_name["payment.record_charge"].worked == 2 * TICK  # To ask takes its time.
    assert by_name["inventory.reserve"].again == 0


async def test_what_came_of_another_attempt_is_counted_where_it_was_tried_again(
    recording: Recording,
) -> None:
    play = recording.play
    play.at = TEN + timedelta(minutes=5)
    play.provider_down = True
    play.place()
    play.deliver()
    play.provider_down = False
    play.retry()
    await recording.record()

    found = await recording.traffic(TEN + timedelta(minutes=6))

    again = {label(node): passing.again for node, passing in found.nodes.items() if passing.again}
    assert again == {"payment.charge": 1}


async def test_of_too_many_messages_the_last_ones_are_looked_at(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traffic, "ROWS_MAX", 3)
    monkeypatch.setattr(traffic, "BODIES_MAX", 1)

    found = await recording.traffic(TEN + timedelta(minutes=3))

    assert found.excerpt.shortened
    assert [row.type for row in found.excerpt.rows] == [
        "stock.reserved",
        "payment.charged",
        "order.confirmed",
    ]
    assert found.excerpt.since > TEN + timedelta(minutes=2, seconds=30)
    assert found.excerpt.every == 3


async def test_a_moment_is_found_wherever_it_is(recording: Recording) -> None:
    def around(at: datetime) -> Any:
        return recording.history.read(lambda connection: position_before(connection, at))

    last = len(recording.play.events)
    assert await around(TEN - timedelta(days=1)) == 0
    assert await around(TEN + timedelta(minutes=1)) == 1
    assert await around(TEN + timedelta(days=1)) == last
    assert await around(recording.play.events[-1].time) == last - 1
    there = await recording.history.read(span)
    assert there is not None
    assert (there.first, there.last) == (
        recording.play.events[0].time,
        recording.play.events[-1].time,
    )


async def test_sagas_are_open_until_they_have_ended_and_are_settled(
    recording: Recording,
) -> None:
    play = recording.play
    recording.cancel_unpaid()
    play.deliver()
    play.at = TEN + timedelta(minutes=30)
    play.place()
    play.deliver()
    await recording.record()

    for minutes, expected in ((0, 0), (2, 0), (11, 1), (21, 1), (31, 2)):
        at = TEN + timedelta(minutes=minutes)
        assert await recording.history.read(partial(open_at, at=at)) == (expected, False)


async def test_an_archive_without_messages_has_neither_figures_nor_an_end(
    history: Database,
) -> None:
    assert await history.read(span) is None
    assert await history.read(lambda c: open_at(c, TEN)) == (0, False)
    assert not (await Recording(history).traffic(TEN)).nodes


async def test_messages_are_found_by_what_a_figure_counts(recording: Recording) -> None:
    async def found(**wanted: Any) -> list[str]:
        page = await recording.history.read(
            lambda c: find_messages(c, MessageSearch(**wanted), limit=50)
        )
        assert page.before is None
        return [message.type for message in page.messages]

    since, until = TEN + timedelta(minutes=1), TEN + timedelta(minutes=2)
    assert await found(types=["order.placed", "stock.added"]) == [
        "order.placed",
        "order.placed",
        "stock.added",
    ]
    assert await found(types=["order.placed"], since=since, until=until) == ["order.placed"]
    assert await found(source="/services/payment") == ["payment.charged"] * 2
    assert await found(cause="order.placed", until=until) == ["stock.reserved"]
    assert await found(attempt=2) == []


async def test_pages_of_messages_have_each_of_them_once(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saga.archive.messages.LOOKED_AT_MAX", 3)
    seen: list[int] = []
    before: int | None = None
    while True:
        page = await recording.history.read(
            partial(find_messages, wanted=MessageSearch(), limit=2, before=before)
        )
        assert page.looked_at <= 3
        seen += [message.position for message in page.messages]
        if (before := page.before) is None:
            break

    assert seen == list(range(len(recording.play.events), 0, -1))


async def test_a_minute_in_which_only_edited_copies_were_recorded_has_no_message(
    recording: Recording, monkeypatch: pytest.MonkeyPatch
) -> None:
    event = recording.play.events[-1]
    at = TEN + timedelta(minutes=7)
    for number in (1, 2):
        copy = {"id": f"copy-{number}", "source": EDITOR_SOURCE, "time": at}
        await recording.keep(event.model_copy(update=copy))

    for rows_max in (3_000, 2):
        monkeypatch.setattr(traffic, "ROWS_MAX", rows_max)
        found = await recording.traffic(at)
        assert found.excerpt.rows == ()
        assert not found.nodes


async def test_those_open_now_are_the_ones_that_a_search_for_open_ones_lists(
    recording: Recording,
) -> None:
    order = recording.cancel_unpaid()
    await recording.record()

    listed = await recording.history.read(lambda c: search(c, Search(open=True), 50))

    assert [(one.key, one.ended_by) for one in listed] == [(order, "order.cancelled")]
    assert await recording.history.read(count_open) == 1
    now = TEN + timedelta(minutes=21)
    assert await recording.history.read(partial(open_at, at=now)) == (1, False)


async def test_what_went_along_an_edge_is_what_its_receiver_has_taken(
    recording: Recording,
) -> None:
    play = recording.play
    play.at = TEN + timedelta(minutes=3)
    play.down = {"payment"}
    waits = play.place()
    play.deliver()
    await recording.record()
    until = TEN + timedelta(minutes=10)
    wanted = MessageSearch(
        types=["stock.reserved"], taken_by="/services/payment", since=TEN, until=until
    )

    page = await recording.history.read(lambda c: find_messages(c, wanted, limit=50))

    assert [message.type for message in page.messages] == ["stock.reserved"] * 2
    assert waits not in {message.subject for message in page.messages}
    found = traffic.traffic(
        await recording.history.read(lambda c: excerpt(c, until, timedelta(minutes=10))), WAYS
    )
    edges = {(label(tail), label(head)): p.count for (tail, head), p in found.edges.items()}
    assert edges["stock.reserved", "payment.charge"] == len(page.messages)
    first = await recording.history.read(lambda c: find_messages(c, wanted, limit=1))
    rest = await recording.history.read(
        lambda c: find_messages(c, wanted, limit=5, before=first.before)
    )
    assert [*first.messages, *rest.messages] == list(page.messages)
