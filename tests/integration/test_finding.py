"""Subjects found by whatever is known of them, on each database, a bounded number at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
import pytest_asyncio

from inventory_service.domain import AddStock
from saga.archive import finding, store
from saga.archive.finding import Findings, find, text_columns
from saga.archive.queries import Search
from saga.errors import InputError
from saga.past.production import production, unmodelled
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.opening import open_database
from tests.order_play import BROKE, SAGA, Play, confirmed, declined, out_of_stock
from tests.stores import HISTORY, PROJECTION

AT = datetime(2030, 1, 1, 10, tzinfo=UTC)
ORDERS = 12


class Found:
    """A history of orders, each a minute after the one before; the latest first."""

    def __init__(self, history: Database, keys: list[str], play: Play) -> None:
        self.history = history
        self.keys = keys
        self.play = play

    async def find(self, wanted: Search | None = None, limit: int = 5, **how: Any) -> Findings:
        view = PROJECTION.view
        return await self.history.read(
            lambda connection: find(connection, wanted or Search(), limit, view=view, **how)
        )

    async def all(self, wanted: Search | None = None, limit: int = 5, **how: Any) -> list[str]:
        """All that fit, page by page."""
        seen: list[str] = []
        after = None
        while True:
            page = await self.find(wanted, limit, after=after, **how)
            seen += (one.key for one in page.subjects)
            if page.next is None:
                return seen
            after = page.next


@pytest_asyncio.fixture
async def found(database_url: str) -> AsyncIterator[Found]:
    history = await open_database(database_url, HISTORY)
    play = Play(at=AT, tick=timedelta(milliseconds=10), graph=SAGA)
    play.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=1), sku="tea", quantity=50, unit_price_cents=250, currency="EUR"
        ),
    )
    keys: list[str] = []
    for number in range(ORDERS):
        play.at += timedelta(minutes=1)
        keys.insert(0, (confirmed, declined, out_of_stock)[number % 3](play))
    facts = [store.Fact(event, event.to_bytes()) for event in play.events]
    await history.transaction(lambda c: store.append(c, facts, play.at, PROJECTION))
    yield Found(history, keys, play)
    await history.close()


async def test_all_orders_come_page_by_page_the_latest_first(found: Found) -> None:
    everything = await found.all()
    assert [key for key in everything if key in found.keys] == found.keys
    assert len(everything) == ORDERS + 1  # and the delivery


async def test_orders_are_found_by_the_fields_of_their_view(found: Found) -> None:
    assert await found.all(fields={"status": "confirmed"}) == found.keys[2::3]
    assert await found.all(fields={"customer": BROKE}) == found.keys[1::3]
    both = {"status": "cancelled", "reason": "payment_declined"}
    assert await found.all(fields=both) == found.keys[1::3]
    assert await found.all(fields={"stock": "released"}) == found.keys[1::3]
    assert await found.all(fields={"total_cents": "500"}, limit=50) != []
    assert await found.all(fields={"status": "confirmed", "customer": BROKE}) == []


async def test_orders_are_found_by_text_in_whatever_case(found: Found) -> None:
    assert await found.all(containing=BROKE.upper()) == found.keys[1::3]
    assert await found.all(containing=found.keys[4][5:18].upper()) == [found.keys[4]]
    assert await found.all(containing="%") == []


async def test_text_is_not_looked_for_in_columns_that_are_masked(found: Found) -> None:
    assert await found.all(containing=BROKE[:3], unseen=["customer"]) == []
    assert await found.all(containing=found.keys[4][5:18], unseen=["customer"]) == [found.keys[4]]
    assert {*await found.all(containing="EUR", unseen=["customer"])} == {*found.keys}
    assert await found.all(containing="EUR", unseen=text_columns(PROJECTION.view)) == []
    assert await found.all(fields={"customer": BROKE}) == found.keys[1::3]


async def test_orders_are_found_by_how_they_stand(found: Found) -> None:
    assert await found.all(Search(ended_by="order.confirmed")) == found.keys[2::3]
    assert await found.all(Search(type="stock.rejected")) == found.keys[0::3]
    assert {*await found.all(Search(settled=True))} == {*found.keys}
    assert await found.all(Search(subject=found.keys[3])) == [found.keys[3]]
    fifth = AT + timedelta(minutes=5)
    since = await found.all(Search(since=fifth), fields={"status": "confirmed"})
    assert since == [key for key in found.keys[2::3] if found.keys.index(key) < ORDERS - 4]


async def test_rows_that_are_looked_at_have_a_limit_which_is_told(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "ROWS_MAX", 4)
    page = await found.find(Search(type="stock.rejected"), limit=5)

    assert page.unfinished
    assert page.next is not None
    assert page.next.key == found.keys[3]
    assert [one.key for one in page.subjects] == [found.keys[0], found.keys[3]]
    assert await found.all(Search(type="stock.rejected")) == found.keys[0::3]


async def test_the_time_of_a_search_has_a_limit_which_is_told(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "SECONDS_MAX", 0.0)
    monkeypatch.setattr(finding, "ROWS_AT_ONCE", 4)
    page = await found.find(containing=BROKE, limit=5)

    assert (page.unfinished, page.looked_at) == (True, 4)
    assert page.next is not None
    assert page.next.key == found.keys[3]
    assert await found.all(containing=BROKE) == found.keys[1::3]


async def test_a_search_goes_on_until_its_page_is_full(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(finding, "SECONDS_MAX", 60.0)
    monkeypatch.setattr(finding, "ROWS_AT_ONCE", 2)
    page = await found.find(containing=BROKE, limit=2)

    assert [one.key for one in page.subjects] == found.keys[1:5:3]
    assert not page.unfinished
    assert page.next is not None
    assert page.looked_at < ORDERS
    assert (await found.find(containing="nobody")).looked_at >= ORDERS


async def test_what_the_view_does_not_know_is_found_by_a_part_of_its_id(found: Found) -> None:
    assert {*await found.all()} - {*found.keys} == {"tea"}
    assert await found.all(containing="TEA") == ["tea"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"status": "eaten"}, "is none of"),
        ({"colour": "red"}, "there is no such field"),
        ({"total_cents": "1e3"}, "is no whole number"),
        ({"total_cents": "9" * 30}, "too large"),
    ],
)
async def test_a_field_that_cannot_hold_that_is_refused(
    found: Found, fields: dict[str, str], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        await found.find(fields=fields)


async def test_production_tells_what_was_taken_and_published(found: Found) -> None:
    seen = await found.history.read(lambda connection: production(connection, SAGA))
    taken = {each.key: each.count for each in seen.transitions}

    assert taken["order", None, "order.placed"] == ORDERS
    assert taken["inventory", "order.placed", "stock.reserved"] == 2 * ORDERS // 3
    assert taken["order", "payment.charged", "order.confirmed"] == ORDERS // 3
    assert seen.events == len(found.play.events)
    assert seen.lost == []
    known = [key for key in taken if key[0] != "payment"]
    assert {each.participant for each in unmodelled(seen.transitions, known)} == {"payment"}


async def test_a_cause_that_is_lost_is_no_command(database_url: str) -> None:
    history = await open_database(database_url, HISTORY)
    play = Play(at=AT, tick=timedelta(milliseconds=10), graph=SAGA)
    confirmed(play)
    lost = {event.id for event in play.events if event.type == "order.placed"}
    facts = [store.Fact(e, e.to_bytes()) for e in play.events if e.id not in lost]
    await history.transaction(lambda c: store.append(c, facts, play.at, PROJECTION))

    seen = await history.read(lambda connection: production(connection, SAGA))
    await history.close()

    assert [(each.participant, each.count) for each in seen.lost] == [("inventory", 1)]
    assert not [each for each in seen.transitions if each.participant == "inventory"]
