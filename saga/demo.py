"""A load from end to end: send it, wait until every order has ended, and check every end."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from common.choreography import Choreography
from common.events import CancellationReason
from common.message import Priority
from order_service.domain import OrderStatus
from order_service.store import orders as orders_table
from saga.deployment import Deployment
from saga.orders import Plan
from saga.publish import CONCURRENCY, Published, dead_letters_of, publish
from saga.reconcile import Report, dead_letters, reconcile
from saga.status import read, status

ENDS_SECONDS: Final = 300.0
"""How long no order may end, once all are sent, before the wait is given up."""
REST_SECONDS: Final = 30.0
"""How long compensations and dead letters may take after the last order has ended."""
LISTED_MAX: Final = 100
"""Surprises and violations that are listed one by one."""

_POLL_SECONDS: Final = 0.1
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
        return (self.ended_at - self.placed_at).total_seconds() * _MS


@dataclass(frozen=True, slots=True)
class Result:
    """What came of a load."""

    seed: int
    plan: Plan
    published: Published
    ends: Mapping[UUID, End]
    dead_letters: int
    """Those that were not there before."""
    dead_letters_expected: int
    report: Report

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
            lines[LISTED_MAX:] = [f"and {len(lines) - LISTED_MAX} more orders"]
        if self.dead_letters != self.dead_letters_expected:
            lines.append(
                f"dead letters: expected {self.dead_letters_expected}, found {self.dead_letters}"
            )
        return lines

    @property
    def ok(self) -> bool:
        """Whether all is as predicted, and the books are right."""
        return self.report.ok and not self.unexpected

    @property
    def orders_per_second(self) -> float:
        """Orders from the first one placed to the last one ended."""
        if not self.ends:
            return 0.0
        first = min(end.placed_at for end in self.ends.values())
        last = max(end.ended_at for end in self.ends.values())
        return len(self.ends) / max((last - first).total_seconds(), 0.001)

    def latency_ms(self) -> dict[str, dict[str, float]]:
        """By priority, the time from placed to ended: median and 99th percentile."""
        by_priority = {
            priority: sorted(e.latency_ms for e in self.ends.values() if e.priority is priority)
            for priority in Priority
        }
        return {
            str(priority): {"p50": _percentile(values, 50), "p99": _percentile(values, 99)}
            for priority, values in by_priority.items()
            if values
        }

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
    plan: Plan,
    *,
    seed: int,
    direct: bool = False,
    rate: float | None = None,
    concurrency: int = CONCURRENCY,
    sent: Progress = lambda _: None,
    ended: Progress = lambda _: None,
) -> Result:
    """Send the plan to a running system and see it through.

    `sent` and `ended` are told of each message sent and each order ended. What does not end within
    `ENDS_SECONDS` of the last that did is part of the result, not an error. Raises what `publish`,
    `status` and `reconcile` raise.
    """
    before = await dead_letters(deployment, graph)
    sending = asyncio.ensure_future(
        publish(deployment, plan, direct=direct, rate=rate, concurrency=concurrency, progress=sent)
    )
    try:
        ends = await _wait_for_ends(deployment, plan, sending, ended)
        published = await sending
    finally:
        sending.cancel()
        await asyncio.gather(sending, return_exceptions=True)
    dead_letters_expected = dead_letters_of(plan, graph)
    await _wait_for_rest(deployment, graph, len(before) + dead_letters_expected)
    report = await _reconcile(deployment)
    after = await dead_letters(deployment, graph)
    return Result(
        seed,
        plan,
        published,
        ends,
        len(after - before),
        dead_letters_expected,
        report,
    )


async def _wait_for_ends(
    deployment: Deployment, plan: Plan, sending: asyncio.Future[Published], ended: Progress
) -> dict[UUID, End]:
    """How the plan's orders ended; those that never do are missing."""
    url = deployment.database_urls["order"]
    open_ids = {str(order.order_id): None for order in plan.orders}  # in the order of sending
    ends: dict[UUID, End] = {}
    deadline = time.monotonic() + ENDS_SECONDS
    while open_ids:
        ids = list(open_ids)[:_LOOKED_AT_MAX]
        found = await asyncio.to_thread(read, url, lambda c, ids=ids: _ends(c, ids))
        for order_id, end in found.items():
            del open_ids[order_id]
            ends[UUID(order_id)] = end
        ended(len(found))
        if found or not sending.done():
            deadline = time.monotonic() + ENDS_SECONDS
        elif sending.done() and sending.exception() is not None:
            break  # whoever awaits the sending hears of it
        elif time.monotonic() > deadline:
            break
        await asyncio.sleep(_POLL_SECONDS)
    return ends


def _ends(connection: Connection, order_ids: Sequence[str]) -> dict[str, End]:
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
