"""What the history answers how fast, with a million events: a timeline, pages of orders, the views
folded again.

    .venv/bin/python bench/history.py
    .venv/bin/python bench/history.py --events 100000 --database postgresql

The events are those of orders of all kinds, and go into the database as the follower puts them
there. Times are those of the service's own queries, deep pages included; of 200 of each kind, the
limit is for 99 of 100. Exit status 1 beyond a limit.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TypeVar
from uuid import UUID

from rich.progress import Progress
from sqlalchemy.engine import Connection

from common.events import CancellationReason
from inventory_service.domain import AddStock
from order_saga.archive import queries as orders
from order_saga.archive.queries import OrderSearch
from order_saga.archive.view import Status
from order_service.domain import CancelOrder
from saga.archive import queries, store
from saga.archive.store import Fact
from saga.archive.timeline import steps_of
from saga.history.rebuild import rebuild_views
from saga.local.postgres import PostgresCluster
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.opening import open_database
from saga.runtime.urls import sqlite_url
from tests.order_play import BROKE, SAGA, Play
from tests.stores import GRAPH, HISTORY, PROJECTION

EVENTS = 1_000_000
SEED = 7
BEGIN = datetime(2030, 1, 1, tzinfo=UTC)
TIMELINE_LIMIT_MS = 50.0
PAGE_LIMIT_MS = 100.0
VIEWS_LIMIT_MINUTES = 10.0
QUESTIONS = 200
PAGE = 50
BATCH = 1_000
KINDS = 500
"""Different orders that are played; the others are like them, but for ids and times."""

T = TypeVar("T")

PAGES: dict[str, OrderSearch] = {
    "all": OrderSearch(),
    "confirmed": OrderSearch(status=Status.CONFIRMED),
    "out of stock": OrderSearch(reason=CancellationReason.OUT_OF_STOCK),
    "of a customer": OrderSearch(customers=("customer-42",)),
    "cancelled, by amount": OrderSearch(status=Status.CANCELLED, total_cents_min=1_000),
    "a customer's, confirmed": OrderSearch(customers=("customer-42",), status=Status.CONFIRMED),
    "in a currency that none has": OrderSearch(currency="GBP"),
    "of a price that none has": OrderSearch(status=Status.CONFIRMED, total_cents_min=1_000_000),
    "pending, of which there are none": OrderSearch(status=Status.PENDING),
}


@dataclass
class HistoryFigure:
    """One measured figure; `limit` is in the same unit, as is what is `besides` worth knowing."""

    name: str
    value: float
    unit: str
    limit: float | None = None
    besides: str = ""

    @property
    def ok(self) -> bool:
        return self.limit is None or self.value <= self.limit


def templates(dice: random.Random) -> list[list[Fact]]:
    """The events of some orders."""
    play = Play(at=BEGIN, tick=timedelta(milliseconds=7), graph=SAGA)
    play.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=1), sku="tea", quantity=9_999, unit_price_cents=250, currency="EUR"
        ),
    )
    orders = []
    for number in range(KINDS):
        customer = BROKE if number % 20 == 0 else "customer-0"
        quantity = 10_000 if number % 20 == 1 else dice.randrange(1, 9)
        orders.append(play.place(customer=customer, quantity=quantity))
        if number % 20 == 2:
            play.give("order", CancelOrder(order_id=UUID(orders[-1])))
        play.deliver()
    return [[Fact(e, e.to_bytes()) for e in play.about(order)] for order in orders]


def facts(count: int, begin: datetime = BEGIN) -> Iterator[list[Fact]]:
    """So many events, some at a time: an order a second, from a time on."""
    dice = random.Random(SEED)
    kinds = templates(dice)
    batch: list[Fact] = []
    made = number = 0
    while made < count:
        kind = kinds[number % KINDS]
        at = begin - BEGIN + timedelta(seconds=number)
        number += 1
        ids: dict[str, str] = {kind[0].attributes.subject: str(UUID(int=dice.getrandbits(128)))}
        for fact in kind:
            ids[fact.attributes.id] = str(UUID(int=dice.getrandbits(128)))
        for fact in kind:
            body = fact.body.decode()
            for old, new in ids.items():
                body = body.replace(old, new)
            body = body.replace("customer-0", f"customer-{number % 5_000}")
            moved = fact.attributes.time + at
            body = body.replace(_wire(fact.attributes.time), _wire(moved))
            encoded = body.encode()
            batch.append(Fact(type(fact.attributes).of(encoded), encoded, made))
            made += 1
        if len(batch) >= BATCH:
            yield batch
            batch = []
    yield batch


def _wire(moment: datetime) -> str:
    return moment.isoformat(timespec="microseconds").replace("+00:00", "Z")


def _append(batch: Sequence[Fact], now: datetime, connection: Connection) -> None:
    store.append(connection, batch, now, PROJECTION)


async def fill(database: Database, count: int, progress: Progress) -> float:
    """Put the events in; returns how many in a second, the making of them left out."""
    bar = progress.add_task("recording", total=count)
    seconds = 0.0
    for batch in facts(count):
        began = time.perf_counter()
        now = datetime.now(UTC)
        await database.transaction(partial(_append, batch, now))
        seconds += time.perf_counter() - began
        progress.advance(bar, len(batch))
    return count / seconds


async def asked(
    database: Database,
    name: str,
    questions: Sequence[Callable[[Connection], object]],
    limit_ms: float | None,
) -> HistoryFigure:
    """How long 99 of 100 questions take. Each is asked once before: a database that has just been
    filled has not read its own pages yet."""
    times: list[float] = []
    for warm in (False, True):
        for question in questions:
            began = time.perf_counter()
            await database.read(question)
            if warm:
                times.append((time.perf_counter() - began) * 1_000)
    times.sort()
    nearly_all = times[(len(times) * 99 + 99) // 100 - 1]
    besides = f"median {statistics.median(times):.1f}, slowest {times[-1]:.1f}"
    return HistoryFigure(name, nearly_all, "ms", limit_ms, besides)


def timeline(order: str) -> Callable[[Connection], object]:
    return lambda connection: steps_of(queries.facts_about(connection, [order]))


def page(wanted: OrderSearch, after: tuple[datetime, str] | None) -> Callable[[Connection], object]:
    return lambda connection: orders.search(connection, wanted, PAGE, after)


async def measure(url: str, count: int) -> list[HistoryFigure]:
    results: list[HistoryFigure] = []
    with Progress() as progress:
        database = await open_database(url, HISTORY)
        rate = await fill(database, count, progress)
        results.append(HistoryFigure("recording", rate, "events/s"))
        dice = random.Random(SEED)
        some = await database.read(lambda c: orders.search(c, OrderSearch(), 100_000))
        chosen = [dice.choice(some) for _ in range(QUESTIONS)]
        timelines = [timeline(view.key) for view in chosen]
        results.append(await asked(database, "a timeline", timelines, TIMELINE_LIMIT_MS))
        deep = [None, *((view.first_event_at, view.key) for view in chosen[1:])]
        for name, wanted in PAGES.items():
            pages = [page(wanted, after) for after in deep]
            results.append(await asked(database, f"a page: {name}", pages, PAGE_LIMIT_MS))
        until = some[0].first_event_at
        day = [lambda c: orders.hours(c, until - timedelta(days=1), until)]
        results.append(await asked(database, "figures of a day", day, None))
        await database.close()
        bar = progress.add_task("rebuilding the views", total=count)
        began = time.perf_counter()
        await rebuild_views(url, GRAPH, lambda events: progress.advance(bar, events))
        minutes = (time.perf_counter() - began) / 60
        results.append(HistoryFigure("rebuilding the views", minutes, "min", VIEWS_LIMIT_MINUTES))
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--events", type=int, default=EVENTS)
    parser.add_argument("--database", choices=["sqlite", "postgresql"], default="sqlite")
    chosen = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if chosen.database == "postgresql":
            cluster = stack.enter_context(PostgresCluster(folder / "postgresql"))
            url = cluster.create_database("history")
        else:
            url = sqlite_url(folder / "history.db")
        results = asyncio.run(measure(url, chosen.events))
    print(f"{chosen.events} events in {chosen.database}")
    for result in results:
        limit = f" (limit {result.limit:g})" if result.limit is not None else ""
        besides = f"; {result.besides}" if result.besides else ""
        print(f"  {result.name:<40}{result.value:>8.1f} {result.unit}{limit}{besides}")
    sys.exit(not all(result.ok for result in results))


if __name__ == "__main__":
    main()
