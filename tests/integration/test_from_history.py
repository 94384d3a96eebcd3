"""Recorded sagas on either kind of database, as the history service keeps them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from uuid import UUID

from common.events import OrderCancelled, StockReleased
from inventory_service import domain as inventory
from inventory_service.domain import AddStock, Reservation
from order_saga import SAGA
from saga.archive import store
from saga.past.against import compare
from saga.past.findings import DifferenceKind
from saga.runtime.kernel.opening import open_database
from saga.testing import NOW
from tests.order_play import BROKE, Play
from tests.recorded import facts_of
from tests.stores import HISTORY, PROJECTION
from tests.swapping import swapped

DECLINED = 3


async def test_a_difference_is_found_on_either_database(database_url: str) -> None:
    def release(event: OrderCancelled, reservation: Reservation) -> StockReleased | None:
        return None

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
