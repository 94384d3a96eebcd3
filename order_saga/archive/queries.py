"""The view of orders: how they are found, their figures by the hour, and what the archive is given
of all that."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from common.events import CancellationReason, OrderEvent
from order_saga.archive.table import ORDERS, SCHEMA, order_views
from order_saga.archive.view import ArchivedOrder, Status
from saga.archive.view import SubjectView
from saga.choreography import Choreography
from saga.message import Priority
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.tables import Clock, Utc

if TYPE_CHECKING:
    from fastapi import APIRouter

PERCENTILES: Final = (50, 95, 99)
_HOUR: Final = timedelta(hours=1)
_HOUR_MICROSECONDS: Final = 3_600_000_000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class OrderSearch:
    """Which orders: those that fit everything that is given. Times are of their first event, from
    `since` to before `until`; amounts are of their total."""

    customers: tuple[str, ...] = ()
    """The texts that one customer goes by: their name, and what it is sealed as."""
    status: Status | None = None
    reason: CancellationReason | None = None
    priority: Priority | None = None
    currency: str | None = None
    total_cents_min: int | None = None
    total_cents_max: int | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Hour:
    """What happened to orders in one hour.

    `cancelled` is by reason, `revenue_cents` (of what was confirmed) by currency. `latency_ms` is
    from placed to ended, by percentile; each is the time that some order took.
    """

    start: datetime
    placed: int
    confirmed: int
    cancelled: Mapping[str, int]
    revenue_cents: Mapping[str, int]
    latency_ms: Mapping[int, float]


def search(
    connection: Connection,
    wanted: OrderSearch,
    limit: int,
    after: tuple[datetime, str] | None = None,
) -> list[ArchivedOrder]:
    """At most `limit` orders, the latest first; `after` is first event and id of the last one that
    was seen already."""
    table = order_views.c
    conditions: list[sa.ColumnElement[bool]] = [
        column == value
        for column, value in ((table.priority, wanted.priority), (table.currency, wanted.currency))
        if value is not None
    ]
    indexed: tuple[tuple[sa.ColumnElement[Any], tuple[Any, ...]], ...] = (
        (table.customer, wanted.customers),
        (table.reason, () if wanted.reason is None else (wanted.reason,)),
        (table.status, () if wanted.status is None else (wanted.status,)),
    )
    given = [(column, values) for column, values in indexed if values]
    for number, (column, values) in enumerate(given):
        sought = _without_index(column) if number else column
        conditions.append(sought == values[0] if len(values) == 1 else sought.in_(values))
    if wanted.total_cents_min is not None:
        conditions.append(table.total_cents >= wanted.total_cents_min)
    if wanted.total_cents_max is not None:
        conditions.append(table.total_cents <= wanted.total_cents_max)
    if wanted.since is not None:
        conditions.append(table.first_event_at >= wanted.since)
    if wanted.until is not None:
        conditions.append(table.first_event_at < wanted.until)
    if after is not None:
        seen = sa.tuple_(sa.literal(after[0], Utc), sa.literal(after[1]))
        conditions.append(sa.tuple_(table.first_event_at, table.order_id) < seen)
    newest = table.first_event_at.desc(), table.order_id.desc()
    query = sa.select(table.order_id).where(*conditions).order_by(*newest).limit(limit)
    ids = list(connection.scalars(query))
    views = ORDERS.load(connection, ids)
    return [views[id][0] for id in ids]


def _without_index(column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
    """The column, as no index has it. SQLite, without statistics, does not know the best of several
    indexes, and would go through all confirmed orders to find a customer's."""
    return sa.func.coalesce(column, column)


def hours(connection: Connection, since: datetime, until: datetime) -> list[Hour]:
    """Each hour in which an order was placed or ended, from `since` to before `until`."""
    table = order_views.c
    found: defaultdict[int, dict[str, Any]] = defaultdict(
        lambda: {"placed": 0, "confirmed": 0, "cancelled": {}, "revenue": {}, "latency": {}}
    )
    placed_in = _hour_of(table.placed_at)
    placed = (
        sa.select(placed_in, sa.func.count())
        .where(table.placed_at >= since, table.placed_at < until)
        .group_by(placed_in)
    )
    for hour, count in connection.execute(placed):
        found[hour]["placed"] = count
    ended_in = _hour_of(table.ended_at)
    in_time = table.ended_at >= since, table.ended_at < until
    outcome = (ended_in, table.status, table.reason, table.currency)
    # Only of what was paid: a customer may order for any amount, and SQLite fails where sums
    # overflow.
    revenue = sa.case((table.status == Status.CONFIRMED, table.total_cents), else_=0)
    ended = (
        sa.select(*outcome, sa.func.count(), sa.func.sum(revenue))
        .where(*in_time)
        .group_by(*outcome)
    )
    for hour, status, reason, currency, count, cents in connection.execute(ended):
        if status is Status.CONFIRMED:
            found[hour]["confirmed"] += count
            found[hour]["revenue"][currency] = int(cents)
        else:
            reasons = found[hour]["cancelled"]
            reasons[str(reason)] = reasons.get(str(reason), 0) + count
    for hour, took, rank, count in connection.execute(_latencies(*in_time)):
        for percent in PERCENTILES:
            if rank == _rank(count, percent):
                found[hour]["latency"][percent] = took / 1_000
    return [
        Hour(
            start=_EPOCH + hour * _HOUR,
            placed=said["placed"],
            confirmed=said["confirmed"],
            cancelled=said["cancelled"],
            revenue_cents=said["revenue"],
            latency_ms=said["latency"],
        )
        for hour, said in sorted(found.items())
    ]


def _latencies(*conditions: sa.ColumnElement[bool]) -> sa.Select[Any]:
    """Of each hour the orders at its percentiles: hour, microseconds, rank, orders in the hour."""
    placed, ended = (_microseconds(order_views.c[name]) for name in ("placed_at", "ended_at"))
    hour = _hour_of(order_views.c.ended_at)
    took = ended - placed
    ranked = (
        sa.select(
            hour.label("hour"),
            took.label("took"),
            sa.func.row_number().over(partition_by=hour, order_by=took).label("rank"),
            sa.func.count().over(partition_by=hour).label("orders"),
        )
        .where(*conditions, order_views.c.placed_at.is_not(None))
        .subquery()
    )
    wanted = [ranked.c.rank == _rank(ranked.c.orders, percent) for percent in PERCENTILES]
    return sa.select(ranked).where(sa.or_(*wanted))


def _rank(count: Any, percent: int) -> Any:
    """The nearest rank, counted from 1, of a percentile; of a number or of a column."""
    return (count * percent + 99) // 100


def _hour_of(column: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    return _microseconds(column) // _HOUR_MICROSECONDS


def _microseconds(column: sa.ColumnElement[Any]) -> sa.ColumnElement[int]:
    return sa.type_coerce(column, sa.BigInteger)


def _routes(database: Database, choreography: Choreography, clock: Clock) -> APIRouter:
    from order_saga.archive.routes import routes  # Commands need no web framework.

    return routes(database, choreography, clock)


def _headline(view: ArchivedOrder, took: str) -> str:
    said = [view.status.value]
    if view.reason:
        said.append(f"({view.reason})")
    if took:
        said.append(f"after {took}")
    if view.total_cents:
        said.append(f"over {view.total_cents / 100:.2f} {view.currency}")
    if view.customer:
        said.append(f"for {view.customer}")
    return " ".join(said) + f", priority {view.priority}"


ORDER_VIEW: Final = SubjectView(
    name="order",
    events=OrderEvent,
    table=ORDERS,
    schema=SCHEMA,
    routes=_routes,
    headline=_headline,
)
