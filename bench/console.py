"""What the console costs those whom it shows, and how long its pages take.

`cost`: orders a second of the order system under a full load, with the console open in ten tabs and
with none, in turns. A tab listens to the console's ticks, and asks for its page again at each, as
the script of the pages does.

`pages`: how long each page takes at the server, and how large it is, with an archive of a million
events and a hundred thousand dead letters. Pages that have something looked for beside them, what
is stuck, say, begin no such inquiry then: it would work in the same process, and slow down the
pages that are asked for after them.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import statistics
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Final
from unittest import mock

import httpx
from pamqp import encode
from pamqp.common import FieldTable
from sqlalchemy.engine import Connection

from bench.compare import WARM_UP_ORDERS, Spread
from bench.history import facts
from bench.rig import SERVICES, SQLITE, Measured, Report, cpu_seconds, started
from order_saga import SAGA
from saga.archive import OBSERVER, queries, store
from saga.archive.store import Fact
from saga.console.inquiry import Inquiry
from saga.console.live import HEADER
from saga.console.serve import serving
from saga.console.settings import ConsoleSettings
from saga.console.site import segment
from saga.console.watched import Watched
from saga.dlq.collect import PREFETCH
from saga.dlq.letters import Copy, copy_of
from saga.dlq.store import Store
from saga.http import client
from saga.local.console import ConsoleProcess
from saga.local.node import RabbitNode
from saga.local.system import System
from saga.runtime.garbage import start_up_skipped
from saga.runtime.kernel.opening import open_database, read_database
from saga.runtime.messaging import frames
from saga.runtime.messaging.frames import Delivery
from saga.runtime.messaging.topology import DEAD_EXCHANGE
from tests.console.visits import PAGES
from tests.stores import HISTORY, PROJECTION

TABS: Final = 10
OPEN_PAGE: Final = "/"
RATIO_MIN: Final = 0.95
"""Of the orders a second without an open page, at least so many with ten."""
PAGE_MAX_MS: Final = 200.0
PAGE_MAX_BYTES: Final = 100_000
ASKED_TIMES: Final = 7
SLOW_MS: Final = 10_000.0
"""A page that takes longer is asked for once."""
_PATIENCE_SECONDS: Final = 60.0
FAILURES: Final = 20
"""Kinds of dead letters, each a group."""
PARTICIPANTS: Final = ("payment", "order", "inventory")
"""Those whose letters they are."""

OF_A_SAGA: Final = (
    "show=states",
    "show=messages",
    "show=future",
    "show=future&event=2",
    "show=what-if",
    "show=what-if&event=2&do=order+do+order.expire",
)
SEARCHES: Final = (
    "text=customer-4242",
    "text=nobody",  # Whom no order has: all that may be looked at is.
    "text=nobody&since=2000-01-01T00:00:00Z&ended_by=order.cancelled",
    "ended_by=order.cancelled",
    "type=payment.refunded",
    "settled=true&view.customer=customer-4242&text=4242",
)

WATCHED: Final = replace(SQLITE, name="watched", services=(*SERVICES, OBSERVER.name))
"""The product with its history, which the console reads."""


# --- what it costs ------------------------------------------------------------------------------


@dataclass
class Tabs:
    """Open pages, and what they have been given."""

    url: str
    pages: int = 0
    bytes: int = 0
    opened: asyncio.Event = field(default_factory=asyncio.Event)

    async def run(self) -> None:
        """One tab, until cancelled."""
        async with client(self.url, _PATIENCE_SECONDS) as asking:
            await self._ask(asking)
            live = httpx.Timeout(_PATIENCE_SECONDS, read=None)
            async with (
                client(self.url, _PATIENCE_SECONDS) as listening,
                listening.stream("GET", "/live", timeout=live) as ticks,
            ):
                self.opened.set()
                first = True
                async for line in ticks.aiter_lines():
                    if line.startswith("data:") and not first:
                        await self._ask(asking)
                    first = first and not line.startswith("data:")

    async def _ask(self, asking: httpx.AsyncClient) -> None:
        answer = await asking.get(OPEN_PAGE, headers={HEADER: "1"})
        answer.raise_for_status()
        self.pages += 1
        self.bytes += len(answer.content)


@contextlib.asynccontextmanager
async def open_tabs(url: str, count: int) -> AsyncIterator[Tabs]:
    """So many open pages, until the end of the block."""
    tabs = Tabs(url)
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(tabs.run()) for _ in range(count)]
        if tasks:
            await tabs.opened.wait()
        try:
            yield tabs
        finally:
            for task in tasks:
                task.cancel()


@dataclass(frozen=True)
class ConsoleCost:
    """What was measured with the console open, and without, slice by slice."""

    alone: Sequence[Measured]
    watched: Sequence[Measured]
    console_cpu: Sequence[float]
    """Of one core, what the console took in each slice in which it was open."""
    pages: Sequence[int]
    """In each of them, the pages that were given."""

    @property
    def ratio(self) -> Spread:
        """Orders a second with it, to those without."""
        pairs = zip(self.watched, self.alone, strict=True)
        return Spread.of([one.orders_per_second / other.orders_per_second for one, other in pairs])

    @property
    def met(self) -> bool:
        return self.ratio.median >= RATIO_MIN


async def cost(
    node: RabbitNode, folder: Path, *, rounds: int, orders: int, report: Report
) -> ConsoleCost:
    """Both in turn, there and back in every round. The console runs all the time."""
    alone: list[Measured] = []
    watched: list[Measured] = []
    shares: list[float] = []
    pages: list[int] = []
    async with (
        started(WATCHED, node, folder, seed=1) as bench,
        ConsoleProcess(bench.system.folder) as console,
    ):
        assert console.pid is not None
        await bench.load(WARM_UP_ORDERS)
        for number in range(1, rounds + 1):
            report(f"round {number} of {rounds}")
            for count in (0, TABS, TABS, 0):
                async with open_tabs(console.url, count) as tabs:
                    cpu, began = cpu_seconds(console.pid), time.monotonic()
                    measured = await bench.load(orders)
                    seconds = time.monotonic() - began
                if count:
                    watched.append(measured)
                    pages.append(tabs.pages)
                    shares.append((cpu_seconds(console.pid) - cpu) / seconds)
                else:
                    alone.append(measured)
    return ConsoleCost(alone, watched, shares, pages)


# --- how long pages take ------------------------------------------------------------------------


@dataclass(frozen=True)
class PageFigure:
    """How long a page took at the server, the median and the longest of some times, how much of the
    processor its process took for it (the median, which other processes disturb less), and how
    large it is."""

    path: str
    status: int
    first_ms: float
    median_ms: float
    longest_ms: float
    cpu_ms: float
    bytes: int

    @property
    def met(self) -> bool:
        small = self.bytes <= PAGE_MAX_BYTES
        return self.status == httpx.codes.OK and self.median_ms <= PAGE_MAX_MS and small


async def pages(folder: Path, *, events: int, letters: int, report: Report) -> list[PageFigure]:
    """Fill the archive of a system and its store of dead letters, and ask for each page."""
    async with System(folder) as system:  # Which makes the tables.
        url = system.deployment.database_urls[OBSERVER.name]
        dead_letters_url = system.deployment.dead_letters_url
    report(f"recording {events} events")
    await _fill(url, events, report)
    report(f"burying {letters} letters")
    bury(str(dead_letters_url), letters)
    report("starting the system")
    async with (
        System(folder),
        serving(Watched(folder, SAGA), ConsoleSettings(http_port=0)) as console,
    ):
        found = []
        with without_inquiries(), start_up_skipped():  # As the command does.
            for path in _addresses(url):
                found.append(await _figure(console, path))
                report(f"{path}: {found[-1].median_ms:.0f} ms")
        return found


@contextlib.contextmanager
def without_inquiries() -> Iterator[None]:
    """No page of this process begins one until the end of the block."""
    with mock.patch.object(Inquiry, "begin", return_value=False):
        yield


async def _fill(url: str, events: int, report: Report) -> None:
    database = await open_database(url, HISTORY)
    begin = datetime.now(UTC) - timedelta(days=2)
    made = 0
    for batch in facts(events, begin):
        await database.transaction(partial(_append, batch, datetime.now(UTC)))
        made += len(batch)
        if made % 100_000 < len(batch):
            report(f"{made} are recorded")
    await database.close()


def _append(batch: Sequence[Fact], now: datetime, connection: Connection) -> None:
    store.append(connection, batch, now, PROJECTION)


def bury(url: str, count: int) -> None:
    """Fill a store with so many dead letters of `FAILURES` kinds, each about a saga of its own."""
    now = datetime.now(UTC)
    store = Store(url)
    try:
        for first in range(0, count, PREFETCH):
            numbers = range(first, min(first + PREFETCH, count))
            for participant in PARTICIPANTS:
                mine = [n for n in numbers if PARTICIPANTS[n % len(PARTICIPANTS)] == participant]
                store.take([_dead(n, participant, now) for n in mine], now)
    finally:
        store.close()


def _dead(number: int, participant: str, now: datetime) -> Copy:
    """A copy as its participant left it in its queue, some minutes to two days ago."""
    failure = number % FAILURES
    died = now - timedelta(seconds=number * 7_919 % 172_800 + 600)
    headers: FieldTable = {
        "x-saga-reason": "failed",
        "x-saga-error-type": "Unavailable",
        "x-saga-error": f"the provider gave no answer: it is failure {failure}, which has no end",
        "x-saga-fingerprint": f"failure-{failure}",
        "x-saga-last-failed-at": died.isoformat(),
        "x-saga-attempts": 4,
    }
    id_ = f"buried-{number}"
    event = {"id": id_, "type": "stock.reserved", "subject": f"order-{number}", "data": {}}
    properties = {"headers": encode.field_table(headers), "message_id": frames.short(id_)}
    delivery = Delivery(
        1, False, DEAD_EXCHANGE, participant, frames.join(properties), json.dumps(event).encode()
    )
    return copy_of(delivery, participant, now)


def _addresses(url: str) -> Iterator[str]:
    """Those of the tests, and those that have to look far."""
    yield from PAGES
    confirmed = queries.Search(ended_by="order.confirmed")
    (last,) = read_database(url, lambda c: queries.search(c, confirmed, 1))
    yield f"/sagas/{segment(last.key)}"
    yield from (f"/sagas/{segment(last.key)}?{query}" for query in OF_A_SAGA)
    yield from (f"/sagas?{query}" for query in SEARCHES)
    now = datetime.now(UTC).timestamp()
    for minutes in (2, 5):
        yield f"/?at={now - minutes * 60:.0f}"
    yield "/messages?type=order.cancelled"
    yield "/messages?type=stock.added"  # There is none.
    yield "/messages?cause=order.cancelled"
    yield "/messages?attempt=2"
    yield "/messages?before=500000"
    yield "/messages?type=stock.reserved&taken_by=payment"
    yield "/letters?by=type"
    yield "/letters?by=service"


async def _figure(console: str, path: str) -> PageFigure:
    times: list[float] = []
    cpu: list[float] = []
    answers: list[httpx.Response] = []
    async with client(console, _PATIENCE_SECONDS) as asking:
        while len(times) < ASKED_TIMES:
            began, used = time.perf_counter(), time.process_time()
            answers.append(await asking.get(path))
            times.append((time.perf_counter() - began) * 1_000)
            cpu.append((time.process_time() - used) * 1_000)
            if times[-1] > SLOW_MS:  # That says enough.
                break
    first, *others = times
    others = others or times
    last = answers[-1]
    size = len(last.content)
    median, longest = statistics.median(others), max(others)
    return PageFigure(path, last.status_code, first, median, longest, statistics.median(cpu), size)
