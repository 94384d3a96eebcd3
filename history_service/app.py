"""The history service: follows every event, and answers questions about orders."""

from __future__ import annotations

import base64
import binascii
import contextlib
from datetime import datetime, timedelta
from typing import Annotated, Any, Final, Self
from uuid import UUID

import sqlalchemy as sa
from fastapi import APIRouter, Query
from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import from_json

from common import metrics, process
from common.disk import Disks, Halt
from common.events import CancellationReason, Currency, Customer
from common.kernel.database import Database
from common.kernel.tables import Clock, utc_now
from common.limits import INTEGER_MAX, TEXT_MAX_BYTES, Moment
from common.message import Priority
from common.problem import Problem, problems
from common.readiness import Look, Missing, Readiness
from common.retry_loop import troubles
from common.service import disks_of
from common.settings import Settings
from common.web import answer_from, create_app
from history_service import queries
from history_service.domain import OBSERVER, OrderView, Payment, Status, Stock
from history_service.follower import Follower
from history_service.store import TABLES, Fact, places
from history_service.timeline import Step, steps_of

PAGE_DEFAULT: Final = 50
PAGE_MAX: Final = 500
STATS_DEFAULT: Final = timedelta(days=1)
STATS_MAX: Final = timedelta(days=31)


class OrderSummary(BaseModel):
    """An order as its events tell it. Times are UTC; amounts are 0 where nobody named one.

    `stock` and `payment` tell how far it has come, and `settled` whether nothing is left to do.
    `events` counts what was told of it.
    """

    model_config = ConfigDict(from_attributes=True)

    order_id: UUID = Field(validation_alias="key")
    status: Status
    reason: CancellationReason | None
    customer: str
    currency: str
    total_cents: int
    charged_cents: int
    refunded_cents: int
    priority: Priority
    stock: Stock
    payment: Payment
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
    def of(cls, view: OrderView) -> Self:
        return cls.model_validate(view)


class OrderPage(BaseModel):
    """Some orders, the latest first. `next` is to be given as `after` for those that follow."""

    orders: list[OrderSummary]
    next: str | None


class TimelineStep(BaseModel):
    """One event of an order. `waited_ms` is how long its cause was on its way to the participant,
    `worked_ms` how long that had it in its hands; null where the cause is no event."""

    id: str
    type: str
    source: str
    time: datetime
    causation_id: str | None
    sequence: int | None
    priority: Priority
    attempt: int
    waited_ms: float | None
    worked_ms: float | None
    stream_offset: int | None
    data: Any

    @classmethod
    def of(cls, step: Step) -> Self:
        attributes = step.attributes
        return cls(
            id=attributes.id,
            type=attributes.type,
            source=attributes.source,
            time=attributes.time,
            causation_id=attributes.causationid,
            sequence=attributes.sequence,
            priority=attributes.priority,
            attempt=attributes.attempt or 1,
            waited_ms=_ms(step.waited),
            worked_ms=_ms(step.worked),
            stream_offset=step.fact.stream_offset,
            data=from_json(step.fact.body).get("data"),
        )


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

    @property
    def search(self) -> queries.Search:
        return queries.Search(**self.model_dump(exclude={"limit", "after"}))


def routes(database: Database, clock: Clock = utc_now) -> APIRouter:
    """`/orders` and `/stats`."""
    router = APIRouter(tags=["history"])

    async def facts_of(order_id: UUID) -> list[Fact]:
        key = str(order_id)
        facts = await answer_from(
            database, lambda connection: queries.facts_about(connection, [key])
        )
        if not facts:
            raise Problem(404, f"nothing is known of an order {order_id}")
        return facts

    @router.get("/orders", responses=problems(422))
    async def search(wanted: Annotated[Wanted, Query()]) -> OrderPage:
        """Orders, the latest first. `since` and `until` are about their first event."""
        seen = None if wanted.after is None else _read_cursor(wanted.after)
        found = await answer_from(
            database,
            lambda connection: queries.search(connection, wanted.search, wanted.limit, seen),
        )
        more = len(found) == wanted.limit
        return OrderPage(
            orders=[OrderSummary.of(view) for view in found],
            next=_cursor(found[-1]) if more else None,
        )

    @router.get("/orders/{order_id}", responses=problems(404, 422))
    async def get(order_id: UUID, at: Moment | None = None) -> OrderSummary:
        """An order as it stands, or as it stood `at` some time."""
        facts = await facts_of(order_id)
        view = queries.view_at(str(order_id), facts, at)
        if not view.sequence:
            raise Problem(404, queries.nothing_yet(str(order_id), facts, at))
        return OrderSummary.of(view)

    @router.get("/orders/{order_id}/timeline", responses=problems(404, 422))
    async def timeline(order_id: UUID) -> Timeline:
        """Every event of an order, each after its cause, with the time that each hop took."""
        steps = steps_of(await facts_of(order_id))
        return Timeline(order_id=order_id, steps=[TimelineStep.of(step) for step in steps])

    @router.get("/stats", responses=problems(422))
    async def stats(since: Moment | None = None, until: Moment | None = None) -> Stats:
        """Outcomes, reasons, revenue and latencies by the hour; of the last day by default."""
        end = until or clock()
        begin = since or end - STATS_DEFAULT
        if not timedelta(0) < end - begin <= STATS_MAX:
            raise Problem(422, f"since has to be before until, by at most {STATS_MAX.days} days")
        found = await answer_from(
            database, lambda connection: queries.hours(connection, begin, end)
        )
        return Stats(
            since=begin, until=end, hours=[HourView.model_validate(hour) for hour in found]
        )

    return router


def _ms(time: timedelta | None) -> float | None:
    return None if time is None else time / timedelta(milliseconds=1)


def _cursor(view: OrderView) -> str:
    text = f"{view.first_event_at.isoformat()} {view.key}"
    return base64.urlsafe_b64encode(text.encode()).decode()


def _read_cursor(text: str) -> tuple[datetime, str]:
    try:
        time, order_id = base64.urlsafe_b64decode(text).decode().split(" ")
        moment = datetime.fromisoformat(time)
        # Beyond all limits it may be: it stands in a page that was given.
        if moment.utcoffset() == timedelta(0):
            return moment, str(UUID(order_id))
    except (ValueError, binascii.Error):
        pass
    raise Problem(422, f"after: {text!r} is no `next` of an earlier page")


def build(settings: Settings) -> process.Process:
    """The history service."""

    async def assemble(database: Database, _: contextlib.AsyncExitStack) -> process.Parts:
        follower = Follower(settings.broker_url, database)
        disks = disks_of(
            OBSERVER.name,
            settings,
            {},
            on_halt=lambda halt: follower.hold_back(halt is Halt.ALL_WORK),
        )
        await disks.look()
        readiness = Readiness(
            Look(lambda: _read(database), explain=lambda why: {"database": why}),
            known=lambda: _known(follower, disks),
            troubles=lambda: {"stream": why} if (why := follower.stream_lacks) else {},
        )
        app = create_app(
            f"{OBSERVER.name} service",
            settings,
            readiness=readiness,
            before_scrape=lambda: _read_figures(follower),
        )
        app.include_router(routes(database))
        return process.Parts(
            app,
            tasks=(follower.run(), readiness.run(), disks.run()),
            start=lambda: follower.start(settings.broker_patience_seconds),
            stop=follower.stop,
            finish=follower.finish,
        )

    return process.Process(OBSERVER.name, TABLES, assemble)


async def _read_figures(follower: Follower) -> None:
    metrics.tell_retry_loops(OBSERVER.name, follower.retry_loops)


async def _read(database: Database) -> Missing:
    """Read from the database. Raises what that raises."""
    query = sa.select(places.c.offset)
    await database.read(lambda connection: connection.execute(query).first())
    return {}


def _known(follower: Follower, disks: Disks) -> Missing:
    """What is missing as far as the service knows without asking anybody."""
    missing = troubles(follower.retry_loops)
    if disks.lack:
        missing["disk"] = disks.lack
    if follower.trouble:
        missing["stream"] = follower.trouble
    return missing


def serve() -> None:
    """Run the service with its settings from the environment."""
    process.main(build, Settings)


if __name__ == "__main__":
    serve()
