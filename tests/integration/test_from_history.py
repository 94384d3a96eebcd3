"""Recorded sagas on either kind of database, as the history service keeps them."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import UUID

import pytest

from common.events import OrderCancelled, StockReleased
from inventory_service import domain as inventory
from inventory_service.domain import AddStock, Reservation
from order_saga import SAGA
from saga.archive import store
from saga.history import HistoryError
from saga.past import recorded
from saga.past.against import Against, compare, totals
from saga.past.findings import DifferenceKind
from saga.runtime.kernel.opening import open_database
from saga.testing import NOW
from tests.order_play import BROKE, Play
from tests.recorded import archive_with, facts_of
from tests.stores import HISTORY, PROJECTION
from tests.swapping import swapped

DECLINED = 3


def played() -> Play:
    """Orders of which some are declined, and one is under way."""
    play = Play(at=NOW, tick=timedelta(milliseconds=5))
    play.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=1), sku="tea", quantity=99, unit_price_cents=250, currency="EUR"
        ),
    )
    for customer in ("ada", *(BROKE,) * DECLINED, "grace"):
        play.place(customer=customer)
        play.deliver()
    return play


def test_several_processes_find_what_one_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorded, "SUBJECTS_AT_ONCE", 2)
    play = played()
    play.down.add("payment")
    play.place()
    play.deliver()
    others = [
        event.model_copy(update={"data": event.data.model_copy(update={"total_cents": 1})})
        if event.type == "order.confirmed"
        else event
        for event in play.events
    ]
    url = archive_with(tmp_path, facts_of(others))

    def run(jobs: int) -> tuple[Against, Counter[str]]:
        seen: Counter[str] = Counter()

        def telling(name: str) -> Callable[[int], None]:
            return lambda count: seen.update({name: count})

        found = compare(
            SAGA,
            url,
            jobs=jobs,
            scenarios=False,
            progress={name: telling(name) for name in totals(SAGA, url, None)},
        )
        return found, seen

    (one, told_by_one), (two, told_by_two) = run(1), run(2)

    assert two.findings == one.findings
    assert one.findings.differences()
    assert (two.subjects, two.events) == (one.subjects, one.events)
    assert one.onward is not None
    assert two.onward is not None
    assert two.onward.states == one.onward.states
    assert two.onward.pending == one.onward.pending == 1
    bars = totals(SAGA, url, None)
    assert told_by_two == told_by_one == {**bars, "explored": 1}


def test_a_process_that_ends_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = archive_with(tmp_path, facts_of(played().events))
    monkeypatch.setenv("SAGA", "tests.no_such_saga")  # A process that cannot begin has ended.

    with pytest.raises(HistoryError, match="one of 2 processes has ended"):
        compare(SAGA, url, jobs=2, scenarios=False)


async def test_a_difference_is_found_on_either_database(database_url: str) -> None:
    def release(event: OrderCancelled, reservation: Reservation) -> StockReleased | None:
        return None

    play = played()
    database = await open_database(database_url, HISTORY)
    facts = facts_of(play.events)
    await database.transaction(lambda c: store.append(c, facts, play.at, PROJECTION))
    await database.close()
    changed = SAGA.with_(swapped(inventory.PARTICIPANT, release))

    unchanged = await asyncio.to_thread(partial(compare, SAGA, database_url, scenarios=False))
    sample = await asyncio.to_thread(
        partial(compare, SAGA, database_url, sample=2, scenarios=False)
    )
    found = await asyncio.to_thread(partial(compare, changed, database_url, scenarios=False))

    assert unchanged.ok
    assert (sample.subjects, sample.total) == (2, DECLINED + 3)
    (difference,) = found.findings.differences()
    assert (difference.group.kind, difference.count) == (DifferenceKind.SILENT, DECLINED)
