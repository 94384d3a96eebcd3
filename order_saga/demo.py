"""A load from end to end: send it, wait until every order has ended, and check every end.

On the way the payment provider may go down: charges are tried again, and become dead letters. Once
it is back, these are replayed, and their orders have to end as if nothing had happened.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from common.events import CancellationReason
from order_saga.orders import OrderLoad
from order_saga.publish import CONCURRENCY, PublishedOrders, dead_letters_of, publish
from order_service.domain import OrderStatus
from order_service.store import orders as orders_table
from payment_service.domain import PARTICIPANT as PAYMENT
from payment_service.gateway import Fault, FaultMode, SandboxGateway
from saga.choreography import Choreography
from saga.clock import elapsed
from saga.deployment import Deployment
from saga.dlq.desk import DeadLetterDesk, open_desk
from saga.dlq.letters import DeadLetter
from saga.dlq.replay import ReplaySettings, replay
from saga.dlq.selection import Selection
from saga.dlq.states import HERE
from saga.message import Priority
from saga.reconcile import Report, dead_letters, reconcile
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.kernel.opening import read_database
from saga.runtime.tasks import cancel_all
from saga.status import status
from saga.wording import counted

ENDS_SECONDS: Final = 300.0
"""How long no order may end, once all are sent, before the wait is given up."""
REST_SECONDS: Final = 30.0
"""How long compensations and dead letters may take after the last order has ended."""
OUTAGE_AFTER: Final = 0.5
"""The share of the orders that end before the provider goes down."""
OUTAGE_MID_LOAD_MIN: Final = 500
"""Smaller loads, which may be over in an instant, begin with the provider down."""
OUTAGE_DEAD_SHARE: Final = 0.1
"""It comes back once the charges of so many of the orders are dead letters."""
OUTAGE_SECONDS: Final = 30.0
"""It comes back after this time in any case, if a single one is."""
OUTAGE_MAX_SECONDS: Final = 60.0
"""It comes back after this time in any case."""
LISTED_MAX: Final = 100
"""Surprises and violations that are listed one by one."""

_POLL_SECONDS: Final = 0.1
_OUTAGE_POLL_SECONDS: Final = 0.5
_LOOKED_AT_MAX: Final = 5_000
_IN_ONE_QUERY_MAX: Final = 500
_CONFIRMED: Final = "confirmed"
_MS: Final = 1_000

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class End:
    """How one order ended; `outcome` is `confirmed` or the reason for its cancellation."""

    outcome: str
    priority: Priority
    placed_at: datetime
    ended_at: datetime

    @property
    def latency_ms(self) -> float:
        return elapsed(self.placed_at, self.ended_at).total_seconds() * _MS


@dataclass(frozen=True, slots=True)
class DemoResult:
    """What came of a load."""

    seed: int
    plan: OrderLoad
    published: PublishedOrders
    ends: Mapping[UUID, End]
    dead_letters: int
    """Those that were not there before."""
    dead_letters_expected: int
    report: Report
    replayed: frozenset[str] | None = None
    """The orders whose dead letters were replayed; None if the provider stayed up."""
    outage: tuple[datetime, datetime] | None = None
    """From when to when the provider was down."""

    @property
    def unexpected(self) -> list[str]:
        """What is not as predicted, a line each; at most `LISTED_MAX` of the orders."""
        lines: list[str] = []
        for order_id, reason in self.published.expected.items():
            end = self.ends.get(order_id)
            found = end.outcome if end else "not ended"
            if found != _word(reason):
                lines.append(f"order {order_id}: expected {_word(reason)}, found {found}")
        if len(lines) > LISTED_MAX:
            lines[LISTED_MAX:] = [f"and {counted(len(lines) - LISTED_MAX, 'more order')}"]
        if self.replayed is not None and not self.healed:
            lines.append(
                "the provider was down, but no order was confirmed by replaying its letter"
            )
        if self.dead_letters != self.dead_letters_expected:
            lines.append(
                f"dead letters: expected {self.dead_letters_expected}, found {self.dead_letters}"
            )
        return lines

    @property
    def healed(self) -> int:
        """Orders that were confirmed because their dead letters were replayed."""
        return sum(
            (end := self.ends.get(UUID(order))) is not None and end.outcome == _CONFIRMED
            for order in self.replayed or ()
        )

    @property
    def ok(self) -> bool:
        """Whether all is as predicted, and the books are right."""
        return self.report.ok and not self.unexpected

    @property
    def orders_per_second(self) -> float:
        """Orders from the first one placed to the last one ended, before any outage."""
        ends = self._undisturbed(after=False)
        if not ends:
            return 0.0
        first = min(end.placed_at for end in ends)
        last = max(end.ended_at for end in ends)
        return len(ends) / max((last - first).total_seconds(), 0.001)

    def latency_ms(self) -> dict[str, dict[str, float]]:
        """Keyed by priority: the time from placed to ended: median and 99th percentile, of the
        orders that no outage held up."""
        ends = self._undisturbed()
        by_priority = {
            priority: sorted(end.latency_ms for end in ends if end.priority is priority)
            for priority in Priority
        }
        return {
            str(priority): {"p50": _percentile(values, 50), "p99": _percentile(values, 99)}
            for priority, values in by_priority.items()
            if values
        }

    @property
    def held_up(self) -> int:
        """Orders that were on their way while the provider was down."""
        if self.outage is None:
            return 0
        down, up = self.outage
        return sum(end.ended_at > down and end.placed_at < up for end in self.ends.values())

    def _undisturbed(self, *, after: bool = True) -> list[End]:
        """The ends of orders that no outage held up; of a load that it held up as a whole, all."""
        ends = list(self.ends.values())
        if self.outage is None:
            return ends
        down, up = self.outage
        return [
            end for end in ends if end.ended_at <= down or (after and end.placed_at >= up)
        ] or ends

    def to_json(self) -> dict[str, Any]:
        """The result as a JSON document."""
        outcomes = Counter(end.outcome for end in self.ends.values())
        confirmed = outcomes.pop(_CONFIRMED, 0)
        cancelled = {str(reason): outcomes[reason] for reason in CancellationReason}
        return {
            "ok": self.ok,
            "seed": self.seed,
            "orders": self.published.orders,
            "outcomes": {"confirmed": confirmed, "cancelled": cancelled},
            "malformed": self.published.malformed,
            "dead_letters": self.dead_letters,
            "healed": self.healed,
            "held_up": self.held_up,
            "cancelled_too_late": self.published.too_late,
            "latency_ms": self.latency_ms(),
            "orders_per_second": round(self.orders_per_second, 1),
            "reconcile": {
                "ok": self.report.ok,
                "checked": dict(self.report.checked),
                "violations": [
                    {"rule": v.rule, "subject": v.subject, "detail": v.detail}
                    for v in self.report.violations[:LISTED_MAX]
                ],
            },
            "unexpected": self.unexpected,
        }


async def demo(
    deployment: Deployment,
    graph: Choreography,
    plan: OrderLoad,
    *,
    seed: int,
    direct: bool = False,
    rate: float | None = None,
    concurrency: int = CONCURRENCY,
    outage: bool = False,
    tell: Callable[[str], None] = lambda _: None,
    sent: Progress = lambda _: None,
    ended: Progress = lambda _: None,
) -> DemoResult:
    """Send the plan to a running system and see it through.

    With `outage` the payment provider goes down on the way, and the dead letters this leads to are
    replayed once it is back; a plan of which no order is to be confirmed is run without. `tell` is
    told, a line at a time, what happens; `sent` and `ended` of each message sent and each order
    ended. What does not end within `ENDS_SECONDS` of the last that did is part of the result, not
    an error. Raises what `publish`, `status`, `reconcile` and `replay` raise.
    """
    before = await dead_letters(deployment, graph)
    story = _Outage(deployment, graph, plan, before, tell)
    outage = outage and any(order.reason is None for order in plan.orders)

    def count(orders: int) -> None:
        ended(orders)
        if outage:
            story.ended(orders)

    if outage:
        story.ended(0)
    sending: asyncio.Future[PublishedOrders] = asyncio.ensure_future(
        publish(deployment, plan, direct=direct, rate=rate, concurrency=concurrency, progress=sent)
    )
    ending = asyncio.ensure_future(_wait_for_ends(deployment, plan, sending, count))
    healing = asyncio.ensure_future(story.play(sending, ending) if outage else _nothing())
    try:
        both: set[asyncio.Future[Any]] = {ending, healing}
        await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
        if healing.done():
            healing.result()  # raises what ended it too early
        ends = await ending
        published = await sending
        await healing
    finally:
        await cancel_all(sending, ending, healing)
        story.heal()
    dead_letters_expected = dead_letters_of(plan, graph)
    await _wait_for_rest(deployment, graph, len(before) + dead_letters_expected)
    report = await _reconcile(deployment)
    after = await dead_letters(deployment, graph)
    return DemoResult(
        seed,
        plan,
        published,
        ends,
        len(after - before),
        dead_letters_expected,
        report,
        frozenset(story.replayed) if outage else None,
        (story.down_at, story.up_at) if story.down_at and story.up_at else None,
    )


async def _nothing() -> None:
    """In place of an outage."""


class _Outage:
    """The provider goes down in the middle of the load, and what that leaves behind is replayed."""

    def __init__(
        self,
        deployment: Deployment,
        graph: Choreography,
        plan: OrderLoad,
        before: Set[tuple[str, str]],
        tell: Callable[[str], None],
    ) -> None:
        self._deployment = deployment
        self._graph = graph
        self._orders = {str(order.order_id) for order in plan.orders}
        self._confirmed = {str(o.order_id) for o in plan.orders if o.reason is None}
        self._before = before
        self._tell = tell
        small = len(plan.orders) < OUTAGE_MID_LOAD_MIN
        self._until_down = 0.0 if small else len(plan.orders) * OUTAGE_AFTER
        self._down = asyncio.Event()
        self.down_at: datetime | None = None
        self.up_at: datetime | None = None
        self.replayed: set[str] = set()

    def ended(self, orders: int) -> None:
        """So many more orders have ended. Orders that are charged after this meet the outage."""
        self._until_down -= orders
        if self._until_down <= 0 and not self._down.is_set():
            self.down_at = datetime.now(UTC)
            self._set(FaultMode.UNAVAILABLE)
            self._down.set()
            self._tell("the payment provider goes down")

    def heal(self) -> None:
        """Bring the provider back, if it is down."""
        if self.down_at is not None and self.up_at is None:
            self._set(FaultMode.NONE)
            self.up_at = datetime.now(UTC)

    async def play(
        self, sending: asyncio.Future[PublishedOrders], ending: asyncio.Future[dict[UUID, End]]
    ) -> None:
        """Wait for the outage, end it, and replay what it left until every order has ended."""
        down = asyncio.ensure_future(self._down.wait())
        either: set[asyncio.Future[Any]] = {ending, down}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        down.cancel()
        if not self._down.is_set():
            return
        async with open_desk(self._deployment, self._graph) as desk:
            await self._let_collect(desk)
            self.heal()
            self._tell("the provider is back; replaying the dead letters")
            ended = False
            while not ended:
                ended = ending.done()  # and then once more, for what died last
                await desk.collect()
                if letters := self._letters(desk):
                    await self._replay(desk, letters)
                await asyncio.wait({ending}, timeout=_OUTAGE_POLL_SECONDS)

    async def _let_collect(self, desk: DeadLetterDesk) -> None:
        """Return once enough charges are dead letters, or after the longest outage there may be."""
        enough = max(1.0, len(self._orders) * OUTAGE_DEAD_SHARE)
        started = time.monotonic()
        told = 0
        while True:
            await desk.collect()
            dead = self._letters(desk)
            waits = (await status(self._deployment, self._graph)).waits
            if (waiting := sum(waits.values())) and not told:
                told = waiting
                waits_for = counted(waiting, "message waits", "messages wait")
                self._tell(f"{waits_for} to be tried again")
            down_seconds = time.monotonic() - started
            saved = any(letter.subject in self._confirmed for letter in dead)
            if saved and (len(dead) >= enough or down_seconds > OUTAGE_SECONDS):
                self._tell(
                    f"dead letters of charges: {len(dead)}; waiting for another try: {waiting}"
                )
                return
            if down_seconds > OUTAGE_MAX_SECONDS:
                return
            await asyncio.sleep(_OUTAGE_POLL_SECONDS)

    async def _replay(self, desk: DeadLetterDesk, letters: Sequence[DeadLetter]) -> None:
        selection = Selection(numbers=tuple(letter.number for letter in letters))
        result = await replay(desk, selection, ReplaySettings(), why="the demo's provider is back")
        self.replayed.update(letter.subject for letter in letters if letter.subject)
        self._tell(f"replay {result.run}: {counted(len(letters), 'letter')}, {result.sent} sent")

    def _letters(self, desk: DeadLetterDesk) -> list[DeadLetter]:
        """What the outage has left of the plan's orders."""
        return [
            letter
            for letter in desk.store.find(Selection(service=PAYMENT.name), HERE, contents=False)
            if letter.subject in self._orders
            and (letter.participant, letter.key) not in self._before
        ]

    def _set(self, mode: FaultMode) -> None:
        # Nothing may be sent meanwhile, so the event loop has to wait.
        with ThreadPoolExecutor(1) as thread:
            thread.submit(_switch, self._deployment.outside_urls["provider"], mode).result()


def _switch(url: str, mode: FaultMode) -> None:
    gateway = SandboxGateway(url)
    try:
        gateway.set_fault(Fault(mode))
    finally:
        asyncio.run(gateway.close())


async def _wait_for_ends(
    deployment: Deployment,
    plan: OrderLoad,
    sending: asyncio.Future[PublishedOrders],
    ended: Progress,
) -> dict[UUID, End]:
    """How the plan's orders ended; those that never do are missing."""
    url = deployment.database_urls["order"]
    open_ids = {str(order.order_id): None for order in plan.orders}  # in the order of sending
    ends: dict[UUID, End] = {}
    deadline = time.monotonic() + ENDS_SECONDS
    while open_ids:
        ids = list(open_ids)[:_LOOKED_AT_MAX]
        try:
            found = await asyncio.to_thread(read_database, url, partial(_ends, ids))
        except DatabaseError:  # It may be back soon.
            if time.monotonic() > deadline:
                raise
            found = {}
        for order_id, end in found.items():
            del open_ids[order_id]
            ends[UUID(order_id)] = end
        ended(len(found))
        if found or not sending.done():
            deadline = time.monotonic() + ENDS_SECONDS
        elif sending.done() and sending.exception() is not None:
            break  # the task that awaits the sending raises it
        elif time.monotonic() > deadline:
            break
        await asyncio.sleep(_POLL_SECONDS)
    return ends


def _ends(order_ids: Sequence[str], connection: Connection) -> dict[str, End]:
    table = orders_table.c
    found: dict[str, End] = {}
    for first in range(0, len(order_ids), _IN_ONE_QUERY_MAX):
        query = sa.select(
            table.order_id, table.reason, table.priority, table.placed_at, table.ended_at
        ).where(
            table.order_id.in_(order_ids[first : first + _IN_ONE_QUERY_MAX]),
            table.status.in_([OrderStatus.CONFIRMED, OrderStatus.CANCELLED]),
        )
        for row in connection.execute(query):
            outcome = _word(row.reason)
            found[row.order_id] = End(outcome, row.priority, row.placed_at, row.ended_at)
    return found


async def _wait_for_rest(deployment: Deployment, graph: Choreography, letters: int) -> None:
    """Wait until nothing is on its way any more; on a system with other load it may never be so,
    which the deadline is for."""
    deadline = time.monotonic() + REST_SECONDS
    while True:
        found = await status(deployment, graph, patience_seconds=REST_SECONDS)
        if found.at_rest and sum(found.dead_letters.values()) >= letters:
            return
        if time.monotonic() > deadline:
            return
        await asyncio.sleep(_POLL_SECONDS)


async def _reconcile(deployment: Deployment) -> Report:
    """Reconcile once what the last orders set off is done, refunds for instance."""
    deadline = time.monotonic() + REST_SECONDS
    while True:
        report = await reconcile(deployment, grace_seconds=0.0)
        if report.ok or time.monotonic() > deadline:
            return report
        await asyncio.sleep(_POLL_SECONDS)


def _word(reason: CancellationReason | None) -> str:
    return _CONFIRMED if reason is None else str(reason)


def _percentile(values: Sequence[float], percent: int) -> float:
    """The nearest-rank percentile of sorted values, to a tenth."""
    rank = -(-len(values) * percent // 100)
    return round(values[max(rank, 1) - 1], 1)
