"""What the archive of the order saga answers about orders."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Final, Self
from uuid import UUID

from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field

from common.events import CancellationReason, Currency, Customer
from order_saga.archive import queries as orders
from order_saga.archive.table import ORDERS
from order_saga.archive.view import ArchivedOrder, PaymentProgress, Status, Stock
from saga.archive import queries
from saga.archive.routes import PAGE_DEFAULT, PAGE_MAX, TimelineStep, cursor, read_cursor
from saga.archive.store import Fact
from saga.archive.timeline import steps_of
from saga.auth.caller import Caller
from saga.auth.scopes import needs, theirs
from saga.choreography import Choreography
from saga.limits import INTEGER_MAX, TEXT_MAX_BYTES, Moment
from saga.message import Priority
from saga.personal import Personal
from saga.personal.masks import Masks
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.tables import Clock, utc_now
from saga.runtime.personal import texts_of
from saga.runtime.problem import Problem, problems
from saga.runtime.web import answer_from

STATS_DEFAULT: Final = timedelta(days=1)
STATS_MAX: Final = timedelta(days=31)


class OrderSummary(BaseModel):
    """An order as its events tell it. Times are UTC; amounts are 0 where no event names one.

    `stock` and `payment` tell how far it has come, and `settled` whether nothing is left to do.
    `events` counts what was told of it.
    """

    model_config = ConfigDict(from_attributes=True)

    order_id: UUID = Field(validation_alias="key")
    status: Status
    reason: CancellationReason | None
    customer: Annotated[str, Personal]
    currency: str
    total_cents: int
    charged_cents: int
    refunded_cents: int
    priority: Priority
    stock: Stock
    payment: PaymentProgress
    settled: bool
    events: int = Field(validation_alias="sequence")
    deadline: datetime | None
    placed_at: datetime | None
    stock_at: datetime | None
    payment_at: datetime | None
    ended_at: datetime | None
    first_event_at: datetime
    last_event_at: datetime
    duration_ms: float | None
    """From placed to ended."""

    @classmethod
    def of(cls, view: ArchivedOrder) -> Self:
        return cls.model_validate(view)


class OrderPage(BaseModel):
    """Some orders, the latest first. `next` is to be given as `after` for those that follow."""

    orders: list[OrderSummary]
    next: str | None


class Timeline(BaseModel):
    """Every event of an order, each after its cause."""

    order_id: UUID
    steps: list[TimelineStep]


class HourView(BaseModel):
    """What happened to orders in the hour that began at `start`.

    `cancelled` is by reason; `revenue_cents` is of what was confirmed, by currency; `latency_ms`,
    from placed to ended, by percentile.
    """

    model_config = ConfigDict(from_attributes=True)

    start: datetime
    placed: int
    confirmed: int
    cancelled: dict[str, int]
    revenue_cents: dict[str, int]
    latency_ms: dict[int, float]


class Stats(BaseModel):
    """The hours in which something happened, the first one first."""

    since: datetime
    until: datetime
    hours: list[HourView]


class Wanted(BaseModel):
    """Which orders, and how many; all that is given has to fit."""

    model_config = ConfigDict(extra="forbid")

    customer: Customer | None = None
    status: Status | None = None
    reason: CancellationReason | None = None
    priority: Priority | None = None
    currency: Currency | None = None
    total_cents_min: Annotated[int, Field(ge=0, le=INTEGER_MAX)] | None = None
    total_cents_max: Annotated[int, Field(ge=0, le=INTEGER_MAX)] | None = None
    since: Moment | None = None
    until: Moment | None = None
    limit: Annotated[int, Field(ge=1, le=PAGE_MAX)] = PAGE_DEFAULT
    after: Annotated[str, Field(max_length=TEXT_MAX_BYTES)] | None = None

    async def search(self) -> orders.OrderSearch:
        """What to look for: a customer by the name, and by what it is sealed as."""
        given = self.model_dump(exclude={"limit", "after", "customer"})
        customers = () if self.customer is None else await texts_of(self.customer)
        return orders.OrderSearch(customers=customers, **given)


def routes(database: Database, choreography: Choreography, clock: Clock = utc_now) -> APIRouter:
    """`/orders` and `/stats`."""
    router = APIRouter(tags=["history"])
    masks = Masks(choreography.recorded)

    async def facts_of(order_id: UUID, caller: Caller) -> list[Fact]:
        key = str(order_id)
        missing = Problem(404, f"nothing is known of an order {order_id}")
        if caller.owner is not None:
            # The view's row tells whose it is. To load the events of another's order would take
            # longer than to find none, and the time would tell that there is one.
            view = await answer_from(database, lambda connection: ORDERS.find(connection, key))
            if view is None:
                raise missing
            theirs(caller, view.customer, missing)
        facts = await answer_from(
            database, lambda connection: queries.facts_about(connection, [key])
        )
        if not facts:
            raise missing
        return facts

    @router.get("/orders", responses=problems(422))
    async def search(
        wanted: Annotated[Wanted, Query()],
        caller: Annotated[Caller, needs("orders:read", own=True, personal=True)],
    ) -> OrderPage:
        """Orders, the latest first. `since` and `until` are about their first event. A customer
        finds their own."""
        if caller.owner is not None:
            if wanted.customer not in (None, caller.owner):
                return OrderPage(orders=[], next=None)
            wanted = wanted.model_copy(update={"customer": caller.owner})
        seen = None if wanted.after is None else _read_cursor(wanted.after)
        search = await wanted.search()
        found = await answer_from(
            database, lambda connection: orders.search(connection, search, wanted.limit, seen)
        )
        more = len(found) == wanted.limit
        return OrderPage(
            orders=[OrderSummary.of(view) for view in found],
            next=cursor(found[-1].first_event_at, found[-1].key) if more else None,
        )

    @router.get("/orders/{order_id}", responses=problems(404, 422))
    async def get(
        order_id: UUID,
        caller: Annotated[Caller, needs("orders:read", own=True, personal=True)],
        at: Moment | None = None,
    ) -> OrderSummary:
        """An order as it stands, or as it stood `at` some time."""
        facts = await facts_of(order_id, caller)
        told = queries.events_until(facts, choreography, at)
        view = orders.ORDER_VIEW.of(str(order_id), told)
        if not view.sequence:
            raise Problem(404, queries.nothing_yet(f"order {order_id}", facts, choreography, at))
        return OrderSummary.of(view)

    @router.get("/orders/{order_id}/timeline", responses=problems(404, 422))
    async def timeline(
        order_id: UUID,
        caller: Annotated[Caller, needs("orders:read", own=True, personal=True)],
    ) -> Timeline:
        """Every event of an order, each after its cause, with the time that each hop took."""
        steps = steps_of(await facts_of(order_id, caller))
        shown = [await TimelineStep.of(step, masks) for step in steps]
        return Timeline(order_id=order_id, steps=shown)

    @router.get("/stats", responses=problems(422), dependencies=[needs("stats:read")])
    async def stats(since: Moment | None = None, until: Moment | None = None) -> Stats:
        """Outcomes, reasons, revenue and latencies by the hour; of the last day by default."""
        end = until or clock()
        begin = since or end - STATS_DEFAULT
        if not timedelta(0) < end - begin <= STATS_MAX:
            raise Problem(422, f"since has to be before until, by at most {STATS_MAX.days} days")
        found = await answer_from(database, lambda connection: orders.hours(connection, begin, end))
        return Stats(
            since=begin, until=end, hours=[HourView.model_validate(hour) for hour in found]
        )

    return router


def _read_cursor(text: str) -> tuple[datetime, str]:
    moment, key = read_cursor(text)
    try:
        return moment, str(UUID(key))
    except ValueError:
        raise Problem(422, f"after: {text!r} is no `next` of an earlier page") from None
