"""Questions to the history service: orders, timelines, the past, and figures by the hour."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import httpx
import pytest
import sqlalchemy as sa
from fastapi.routing import APIRoute
from sqlalchemy.engine import Connection

from inventory_service.domain import AddStock
from order_saga.archive import queries as orders
from order_saga.archive.routes import routes
from order_saga.archive.table import order_views
from order_saga.archive.view import Status
from order_service.domain import CancelOrder
from saga.archive import store
from saga.archive.routes import routes as routes_of_any
from saga.envelope import rfc3339
from saga.limits import TEXT_MAX_BYTES
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.tables import Utc, Word
from saga.runtime.readiness import Readiness
from saga.runtime.settings import HttpSettings
from saga.runtime.web import create_app
from tests.order_play import BROKE, SAGA, Play
from tests.stores import GRAPH, HISTORY, PROJECTION
from tests.unit.test_limits import BEYOND

FIVE_PAST_TEN = datetime(2030, 1, 1, 10, 5, tzinfo=UTC)


@pytest.fixture
async def history(database_url: str) -> AsyncIterator[Database]:
    database = await open_database(database_url, HISTORY)
    yield database
    await database.close()


@dataclass
class Asked:
    """The service's HTTP side, over a history that holds what was played."""

    play: Play
    http: httpx.AsyncClient
    orders: dict[str, str]

    async def get(self, path: str, **parameters: Any) -> Any:
        response = await self.http.get(path, params=parameters)
        assert response.status_code == 200, response.text
        return response.json()

    async def refused(self, expected: int, path: str, **parameters: Any) -> str:
        response = await self.http.get(path, params=parameters)
        assert response.status_code == expected, response.text
        assert response.headers["content-type"] == "application/problem+json"
        return str(response.json()["detail"])


@pytest.fixture
async def asked(history: Database) -> AsyncIterator[Asked]:
    """Five orders a quarter of an hour apart, by what became of them."""
    play = Play(at=FIVE_PAST_TEN, tick=timedelta(milliseconds=10), graph=SAGA)
    play.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=1), sku="tea", quantity=9, unit_price_cents=250, currency="EUR"
        ),
    )
    orders: dict[str, str] = {}

    def place(name: str, **how: Any) -> None:
        play.at += timedelta(minutes=15)
        orders[name] = play.place(**how)

    place("confirmed")
    play.deliver()
    place("declined", customer=BROKE)
    play.deliver()
    place("rejected", quantity=1_000)
    play.deliver()
    place("cancelled", customer="grace")
    play.give("order", CancelOrder(order_id=UUID(orders["cancelled"])))
    play.deliver()
    play.provider_down = True
    place("pending")
    play.deliver()
    facts = [store.Fact(e, e.to_bytes()) for e in play.events]
    await history.transaction(lambda c: store.append(c, facts, play.at, PROJECTION))
    async with asking(history, play) as http:
        yield Asked(play, http, orders)


@asynccontextmanager
async def asking(database: Database, play: Play) -> AsyncIterator[httpx.AsyncClient]:
    async def nothing() -> None: ...

    app = create_app("test", HttpSettings(), readiness=Readiness(), before_scrape=nothing)
    app.include_router(routes(database, GRAPH, clock=lambda: play.at + timedelta(minutes=1)))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


async def test_an_order_is_found_with_all_that_is_known_of_it(asked: Asked) -> None:
    found = await asked.get(f"/orders/{asked.orders['declined']}")

    assert (
        found.items()
        >= {
            "order_id": asked.orders["declined"],
            "status": "cancelled",
            "reason": "payment_declined",
            "customer": BROKE,
            "currency": "EUR",
            "total_cents": 500,
            "charged_cents": 0,
            "priority": "normal",
            "stock": "released",
            "payment": "declined",
            "settled": True,
            "events": 5,
        }.items()
    )
    assert found["duration_ms"] > 0


FILTERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "none": ({}, ["pending", "cancelled", "rejected", "declined", "confirmed"]),
    "status": ({"status": "cancelled"}, ["cancelled", "rejected", "declined"]),
    "reason": ({"reason": "out_of_stock"}, ["rejected"]),
    "customer": ({"customer": BROKE}, ["declined"]),
    "customer and status": ({"customer": "ada", "status": "pending"}, ["pending"]),
    "all of them": (
        {"customer": BROKE, "status": "cancelled", "reason": "payment_declined"},
        ["declined"],
    ),
    "what excludes each other": ({"status": "confirmed", "reason": "out_of_stock"}, []),
    "priority": ({"priority": "high"}, []),
    "currency": ({"currency": "USD"}, []),
    "least amount": ({"total_cents_min": 501}, ["rejected"]),
    "most amount": (
        {"total_cents_max": 500, "status": "cancelled"},
        ["cancelled", "declined"],
    ),
}


@pytest.mark.parametrize(("parameters", "names"), FILTERS.values(), ids=FILTERS.keys())
async def test_orders_are_found_by_what_they_have_the_latest_first(
    parameters: dict[str, Any], names: list[str], asked: Asked
) -> None:
    page = await asked.get("/orders", **parameters)

    assert [found["order_id"] for found in page["orders"]] == [asked.orders[n] for n in names]
    assert page["next"] is None


async def test_orders_are_found_by_their_time(asked: Asked) -> None:
    times = {name: asked.play.about(order)[0].time for name, order in asked.orders.items()}
    page = await asked.get(
        "/orders", since=rfc3339(times["declined"]), until=rfc3339(times["cancelled"])
    )

    names = ["rejected", "declined"]
    assert [found["order_id"] for found in page["orders"]] == [asked.orders[n] for n in names]


async def test_pages_follow_each_other_without_overlap_or_hole(asked: Asked) -> None:
    whole = (await asked.get("/orders"))["orders"]
    pages: list[Any] = []
    after: dict[str, str] = {}
    while True:
        page = await asked.get("/orders", limit=2, **after)
        pages.append(page["orders"])
        if page["next"] is None:
            break
        after = {"after": page["next"]}

    assert [len(page) for page in pages] == [2, 2, 1]
    assert [order for page in pages for order in page] == whole


async def test_a_timeline_has_every_event_after_its_cause_and_what_each_hop_took(
    asked: Asked,
) -> None:
    timeline = await asked.get(f"/orders/{asked.orders['confirmed']}/timeline")
    steps = timeline["steps"]

    assert [step["type"] for step in steps] == [
        "order.placed",
        "stock.reserved",
        "payment.charged",
        "order.confirmed",
    ]
    assert [step["causation_id"] for step in steps[1:]] == [step["id"] for step in steps[:-1]]
    assert (steps[0]["waited_ms"], steps[0]["worked_ms"]) == (None, 10.0)
    # A tick to come, a tick to decide; to be charged takes an answer, and one more.
    assert [(s["waited_ms"], s["worked_ms"]) for s in steps[1:]] == [
        (10.0, 10.0),
        (10.0, 20.0),
        (10.0, 10.0),
    ]
    assert steps[2]["data"]["amount_cents"] == 500


async def test_an_order_is_shown_as_it_was(asked: Asked) -> None:
    events = asked.play.about(asked.orders["confirmed"])
    path = f"/orders/{asked.orders['confirmed']}"
    told = [(await asked.get(path, at=rfc3339(event.time))) for event in events]

    assert [(view["status"], view["stock"], view["payment"]) for view in told] == [
        ("pending", "none", "none"),
        ("pending", "held", "none"),
        ("pending", "held", "charged"),
        ("confirmed", "held", "charged"),
    ]


async def test_the_hours_tell_outcomes_revenue_and_latencies(asked: Asked) -> None:
    stats = await asked.get("/stats")
    ten, eleven = stats["hours"]
    took = {
        name: (await asked.get(f"/orders/{order}"))["duration_ms"]
        for name, order in asked.orders.items()
    }
    slowest = max(took["confirmed"], took["declined"], took["rejected"])

    assert (ten["start"], eleven["start"]) == ("2030-01-01T10:00:00Z", "2030-01-01T11:00:00Z")
    assert (ten["placed"], ten["confirmed"]) == (3, 1)
    assert ten["cancelled"] == {"out_of_stock": 1, "payment_declined": 1}
    assert ten["revenue_cents"] == {"EUR": 500}
    assert ten["latency_ms"].keys() == {"50", "95", "99"}
    assert ten["latency_ms"]["99"] == slowest
    assert (eleven["placed"], eleven["confirmed"]) == (2, 0)
    assert eleven["cancelled"] == {"customer_request": 1}
    assert eleven["latency_ms"] == dict.fromkeys(("50", "95", "99"), took["cancelled"])


async def test_percentiles_are_those_of_the_hours_orders(history: Database) -> None:
    play = Play(at=FIVE_PAST_TEN, tick=timedelta(milliseconds=1))
    for number in range(1, 101):
        play.at = play.at.replace(second=0, microsecond=0) + timedelta(seconds=20)
        order = play.place()
        play.waiting.clear()
        play.at += timedelta(milliseconds=number)
        play.give("order", CancelOrder(order_id=UUID(order)))
        play.waiting.clear()
    facts = [store.Fact(e, e.to_bytes()) for e in play.events]
    await history.transaction(lambda c: store.append(c, facts, play.at, PROJECTION))
    (hour,) = await history.read(
        lambda c: orders.hours(c, play.at - timedelta(hours=1), play.at + timedelta(seconds=1))
    )

    assert hour.cancelled == {"customer_request": 100}
    # Each took its number of milliseconds, and the ticks to take and to decide.
    assert hour.latency_ms == {50: 52.0, 95: 97.0, 99: 101.0}


async def test_bad_questions_are_refused_with_a_reason(asked: Asked) -> None:
    order = asked.orders["confirmed"]
    unknown = uuid4()

    assert f"nothing is known of an order {unknown}" in await asked.refused(
        404, f"/orders/{unknown}"
    )
    await asked.refused(404, f"/orders/{unknown}/timeline")
    early = await asked.refused(404, f"/orders/{order}", at="2020-01-01T00:00:00Z")
    assert "had no event by 2020-01-01T00:00:00.000000Z; its first was at" in early
    assert "timezone" in await asked.refused(422, f"/orders/{order}", at="2020-01-01T00:00:00")
    for beyond in ("9999-12-31T23:59:59-14:00", "0001-01-01T00:00:00+14:00"):
        assert "at: Input should be" in await asked.refused(422, f"/orders/{order}", at=beyond)
        assert "since: Input should" in await asked.refused(422, "/orders", since=beyond)
        assert "until: Input should" in await asked.refused(422, "/stats", until=beyond)
        cursor = base64.urlsafe_b64encode(f"{beyond} {order}".encode()).decode()
        assert "no `next`" in await asked.refused(422, "/orders", after=cursor)
    assert "after: String should" in await asked.refused(422, "/orders", after="x" * 256)
    for name in ("total_cents_min", "total_cents_max"):
        assert f"{name}: Input should" in await asked.refused(422, "/orders", **{name: 2**63})
    assert "customer" in await asked.refused(422, "/orders", customer="x" * 2_000)
    assert "UUID" in await asked.refused(422, "/orders/17")
    assert "no `next`" in await asked.refused(422, "/orders", after="17")
    assert "colour" in await asked.refused(422, "/orders", colour="red")
    assert "limit" in await asked.refused(422, "/orders", limit=501)
    assert "status" in await asked.refused(422, "/orders", status="lost")
    assert "since has to be before until" in await asked.refused(
        422, "/stats", since="2030-01-02T00:00:00Z", until="2030-01-01T00:00:00Z"
    )
    assert "31 days" in await asked.refused(422, "/stats", since="2020-01-01T00:00:00Z")


async def test_amounts_of_orders_that_were_never_confirmed_do_not_add_up_to_an_error(
    asked: Asked, history: Database
) -> None:
    """A customer may order for any amount."""
    huge = order_views.update().values(total_cents=2**62)
    cancelled = order_views.c.status == Status.CANCELLED
    await history.transaction(lambda c: c.execute(huge.where(cancelled)))
    found = await asked.get("/stats", since="2030-01-01T00:00:00Z", until="2030-01-02T00:00:00Z")

    assert [hour["revenue_cents"] for hour in found["hours"] if hour["confirmed"]] == [{"EUR": 500}]


# --- what an older version, or another program, has kept --------------------------------------


def kept_by_another(connection: Connection, subject: str) -> list[str]:
    """Put down, as events about a subject, what is beyond any limit that holds now; the ids."""
    position = connection.scalar(sa.select(sa.func.max(store.events.c.position)))
    assert position is not None
    ids = []
    for number, body in enumerate(BEYOND.values(), start=1):
        ids.append(f"beyond-{number}")
        row = {
            "event_id": ids[-1],
            "position": position + number,
            "stream_offset": number,
            "recorded_at": sa.literal(2**62, sa.BigInteger),
            "type": "order.placed",
            "source": "/services/order",
            "subject": subject,
            "sequence": 2**53,
            "time": sa.literal(2**62, sa.BigInteger),
            "causation": None,
            "body": body,
        }
        connection.execute(store.events.insert().values(row))
    return ids


async def test_no_kept_event_makes_a_page_fail(asked: Asked, history: Database) -> None:
    order = asked.orders["confirmed"]
    day = {"since": "2030-01-01T00:00:00Z", "until": "2030-01-02T00:00:00Z"}
    pages = [route.path for route in routes(history, GRAPH).routes if isinstance(route, APIRoute)]
    asking_for = {path: day if path == "/stats" else {} for path in pages}
    before = {
        path: await asked.get(path.format(order_id=order), **parameters)
        for path, parameters in asking_for.items()
    }
    await history.transaction(lambda c: kept_by_another(c, order))

    assert len(before) > 3
    for path, parameters in asking_for.items():
        assert await asked.get(path.format(order_id=order), **parameters) == before[path]


TIMES = [column.name for column in order_views.columns if isinstance(column.type, Utc)]


@pytest.mark.parametrize("microseconds", [2**62, -(2**62)], ids=["far future", "far past"])
async def test_a_view_with_times_beyond_the_calendar_is_shown_and_kept_up(
    microseconds: int, asked: Asked, history: Database
) -> None:
    odd = asked.orders["pending"]
    beyond = dict.fromkeys(TIMES, sa.literal(microseconds, sa.BigInteger))
    of_odd = order_views.update().where(order_views.c.order_id == odd)
    await history.transaction(lambda c: c.execute(of_odd.values(beyond)))
    found: list[str] = []
    after: dict[str, str] = {}
    for _ in asked.orders:
        page = await asked.get("/orders", limit=1, **after)
        found += (one["order_id"] for one in page["orders"])
        after = {"after": page["next"]}
    assert sorted(found) == sorted(asked.orders.values())

    asked.play.provider_down = False
    asked.play.retry()
    facts = [store.Fact(e, e.to_bytes()) for e in asked.play.events]
    await history.transaction(lambda c: store.append(c, facts, asked.play.at, PROJECTION))
    (view,) = [one for one in (await asked.get("/orders"))["orders"] if one["order_id"] == odd]
    assert view["payment"] == "charged"


async def test_words_of_a_newer_version_do_not_make_a_page_fail(
    asked: Asked, history: Database
) -> None:
    """As after a version that was taken back."""
    for column in order_views.columns:
        if isinstance(column.type, Word):
            word = order_views.update().values({column: sa.literal("unheard-of", sa.String)})
            await history.transaction(lambda c, word=word: c.execute(word))  # type: ignore[misc]

    assert len((await asked.get("/orders"))["orders"]) == len(asked.orders)


# --- any subject ---------------------------------------------------------------------------------


@asynccontextmanager
async def asking_about_any(database: Database) -> AsyncIterator[Asked]:
    """The part of the service that any saga has."""

    async def nothing() -> None: ...

    app = create_app("test", HttpSettings(), readiness=Readiness(), before_scrape=nothing)
    app.include_router(routes_of_any(database, PROJECTION))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield Asked(Play(), http, {})


SUBJECTS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "none": ({}, ["pending", "cancelled", "rejected", "declined", "confirmed", "tea"]),
    "not ended": ({"ended": False}, ["pending", "tea"]),
    "by what ended them": ({"ended_by": "order.confirmed"}, ["confirmed"]),
    "by an event": ({"type": "payment.voided"}, ["cancelled", "rejected"]),
    "settled": (
        {"settled": True, "ended_by": "order.cancelled"},
        ["cancelled", "rejected", "declined"],
    ),
    "by no event there is": ({"type": "payment.%"}, []),
    "one": ({"subject": "tea"}, ["tea"]),
}


@pytest.mark.parametrize(("parameters", "names"), SUBJECTS.values(), ids=SUBJECTS.keys())
async def test_subjects_of_any_saga_are_found_the_latest_first(
    parameters: dict[str, Any], names: list[str], asked: Asked, history: Database
) -> None:
    keys = {**asked.orders, "tea": "tea"}
    async with asking_about_any(history) as any_:
        page = await any_.get("/subjects", **parameters)
        assert [found["subject"] for found in page["subjects"]] == [keys[name] for name in names]

        paged = await any_.get("/subjects", limit=2, **parameters)
        found = [*paged["subjects"]]
        while paged["next"] is not None:
            paged = await any_.get("/subjects", limit=2, after=paged["next"], **parameters)
            found += paged["subjects"]
        assert found == page["subjects"]


async def test_open_subjects_are_those_about_which_somebody_may_owe_something(
    asked: Asked, history: Database
) -> None:
    """The play has no participant that mails customers."""
    async with asking_about_any(history) as any_:
        page = await any_.get("/subjects", open=True)
        closed = await any_.get("/subjects", open=False)

    names = ["pending", "cancelled", "rejected", "declined", "confirmed"]
    assert [found["subject"] for found in page["subjects"]] == [asked.orders[n] for n in names]
    assert [found["subject"] for found in closed["subjects"]] == ["tea"]


async def test_a_subject_is_told_as_it_is_and_as_it_was(asked: Asked, history: Database) -> None:
    order = asked.orders["confirmed"]
    first, *_, last = asked.play.about(order)
    async with asking_about_any(history) as any_:
        now = await any_.get(f"/subjects/{order}")
        then = await any_.get(f"/subjects/{order}", at=rfc3339(first.time))
        timeline = await any_.get(f"/subjects/{order}/timeline")
        listed = await any_.get("/subjects", subject=order)
        early = rfc3339(first.time - timedelta(days=1))
        assert "had no event by" in await any_.refused(404, f"/subjects/{order}", at=early)
        assert await any_.refused(404, "/subjects/nothing") == "nothing is known of 'nothing'"

    assert listed["subjects"] == [now]
    assert (now["kind"], now["ended_by"], now["settled"]) == ("Order", "order.confirmed", True)
    assert now["types"] == [
        "order.confirmed",
        "order.placed",
        "payment.charged",
        "stock.reserved",
    ]
    assert now["duration_ms"] == (last.time - first.time) / timedelta(milliseconds=1)
    assert (then["events"], then["types"], then["ended_by"]) == (1, ["order.placed"], None)
    assert timeline["subject"] == order
    assert [step["type"] for step in timeline["steps"]] == [
        event.type for event in asked.play.about(order)
    ]


ODD_SUBJECTS = [
    "ROBERT's/order",
    "a/timeline",
    "/",
    "..",
    "ÄÖ€ 'x' %s",
    "50%25",
    "x" * TEXT_MAX_BYTES,
    "€" * (TEXT_MAX_BYTES // 3),
]


@pytest.mark.parametrize("subject", ODD_SUBJECTS, ids=range(len(ODD_SUBJECTS)))
async def test_any_text_may_be_a_subject(subject: str, history: Database) -> None:
    """With upper and lower case told apart."""
    play = Play(at=FIVE_PAST_TEN, graph=SAGA)
    play.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=1), sku="tea", quantity=9, unit_price_cents=250, currency="EUR"
        ),
    )
    (event,) = play.events
    facts = []
    for number, text in enumerate({subject, subject.swapcase(), "tea"}):
        other = event.model_copy(update={"subject": text, "id": f"{event.id}-{number}"})
        facts.append(store.Fact(other, other.to_bytes()))
    await history.transaction(lambda c: store.append(c, facts, play.at, PROJECTION))
    path = f"/subjects/{quote(subject, safe='')}"
    async with asking_about_any(history) as any_:
        (listed,) = (await any_.get("/subjects", subject=subject))["subjects"]
        assert listed["subject"] == subject
        if subject != "..":  # As a part of a path, that means another one.
            assert (await any_.get(f"{path}/timeline"))["subject"] == subject
            if not subject.endswith("/timeline"):
                assert await any_.get(path) == listed
        page = await any_.get("/subjects", limit=1)
        rest = await any_.get("/subjects", after=page["next"])
        assert len(rest["subjects"]) == len(facts) - 1


@pytest.mark.parametrize("subject", ["", "a\nb", "x" * (TEXT_MAX_BYTES + 1), "a\x00", "€" * 86])
async def test_what_no_event_may_be_about_is_a_bad_question(
    subject: str, history: Database
) -> None:
    async with asking_about_any(history) as any_:
        assert "subject" in await any_.refused(422, "/subjects", subject=subject)
        if subject and "\n" not in subject:
            path = f"/subjects/{quote(subject, safe='')}/timeline"
            assert "subject" in await any_.refused(422, path)
        for after in ("nonsense", "=", base64.urlsafe_b64encode(b"2030-01-01 x").decode()):
            assert "is no `next`" in await any_.refused(422, "/subjects", after=after)
