"""Sagas in a real browser: found, told, at any moment, and what can still come of them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from urllib.parse import parse_qs, quote, urlsplit
from zoneinfo import ZoneInfo

import httpx
import pytest
import pytest_asyncio
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser

from order_saga.archive.table import ORDERS
from saga.archive import queries
from saga.archive.subjects import Subject
from saga.console.lookout import Lag, SystemWatcher
from saga.deployment import Deployment
from saga.history.archive import Archive
from saga.local.system import System
from tests.console.typing_in import typed
from tests.console.visits import assert_axe_finds_nothing, follow, opened, text

TABS = ("story", "states", "messages", "message", "future", "what-if")

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def orders(console_system: System, orders_ended: None) -> list[Subject]:
    """Orders, all of which have ended."""
    archive = Archive(Deployment.load(console_system.folder))
    found = await archive.read(lambda c: queries.search(c, queries.Search(settled=True), 100))
    return [one for one in found if one.kind == "Order"]


def address(subject: str, **query: object) -> str:
    given = "&".join(f"{name}={value}" for name, value in query.items())
    return f"/sagas/{quote(subject, safe='')}" + (f"?{given}" if given else "")


async def test_a_saga_is_found_by_a_field_of_its_view_without_scripts(
    browser: Browser, reading: str, orders: list[Subject]
) -> None:
    wanted = [one.key for one in orders if one.ended_by == "order.confirmed"]
    async with opened(browser, reading + "/sagas", scripts=False) as page:
        await page.select_option("[name='view.status']", "confirmed")
        await follow(page, page.get_by_role("button", name="Search"))

        assert "view.status=confirmed" in page.url
        rows = await page.locator("#subjects a.row").all_inner_texts()
        assert {*wanted} <= {*rows}
        statuses = await page.locator("#subjects tbody tr td:nth-child(2)").all_inner_texts()
        assert {*statuses} == {"confirmed"}
        await follow(page, page.locator("#subjects a.row").first)
        assert "confirmed" in await text(page, "h1")


async def test_a_saga_is_found_by_a_part_of_its_id(
    browser: Browser, reading: str, orders: list[Subject]
) -> None:
    key = orders[0].key
    async with opened(browser, f"{reading}/sagas?text={key[3:20].upper()}") as page:
        assert await page.locator("#subjects a.row").all_inner_texts() == [key]


async def test_a_text_is_not_looked_for_in_masked_names_and_the_page_says_so(
    browser: Browser, reading: str, orders: list[Subject]
) -> None:
    async with opened(browser, f"{reading}/sagas?text=a") as page:
        assert "was not looked for in customer, currency" in await text(page, "#unseen")
    async with opened(browser, f"{reading}/sagas") as page:
        assert await page.locator("#unseen").count() == 0


@pytest.mark.parametrize("zone", ["America/New_York", "Australia/Adelaide"])
@pytest.mark.parametrize("scripts", [True, False])
async def test_times_are_typed_in_the_zone_in_which_they_are_shown(
    browser: Browser, reading: str, orders: list[Subject], zone: str, scripts: bool
) -> None:
    began = {one.key: one.first_event_at for one in orders}
    until = max(began.values()).replace(microsecond=0)
    earlier = {key for key, at in began.items() if at < until}
    typed_in = until.astimezone(ZoneInfo(zone) if scripts else UTC)
    async with opened(browser, reading + "/sagas", scripts=scripts, zone=zone) as page:
        field = page.get_by_label(f"until, {zone if scripts else 'UTC'}")
        await field.fill(f"{typed_in:%Y-%m-%dT%H:%M:%S}")
        await follow(page, page.get_by_role("button", name="Search"))

        (asked,) = parse_qs(urlsplit(page.url).query)["until"]
        # A browser leaves seconds out that are none.
        assert datetime.fromisoformat(asked) == (until if scripts else until.replace(tzinfo=None))
        rows = await page.locator("#subjects a.row").all_inner_texts()
        known = {*rows} & began.keys()  # Of many, a page has the newest.
        assert known <= earlier
        assert bool(known) == bool(earlier)
        field = page.get_by_label(f"until, {zone if scripts else 'UTC'}")
        shown = datetime.fromisoformat(await field.input_value())
        assert shown == typed_in.replace(tzinfo=None)


async def test_a_time_that_nobody_changed_is_sent_as_it_came(
    browser: Browser, reading: str, orders_ended: None
) -> None:
    # In Berlin, this half past two was half past two for the second time.
    moment = datetime(2024, 10, 27, 1, 30, 0, 250_000, UTC)
    url = f"{reading}/sagas?since={quote(moment.isoformat())}"
    async with opened(browser, url, zone="Europe/Berlin") as page:
        assert await page.get_by_label("since").input_value() == "2024-10-27T02:30"
        await page.select_option("[name=stands]", "ended")
        await follow(page, page.get_by_role("button", name="Search"))
        (asked,) = parse_qs(urlsplit(page.url).query)["since"]
        assert datetime.fromisoformat(asked) == moment
        await page.get_by_label("since").fill("")
        await follow(page, page.get_by_role("button", name="Search"))
        assert parse_qs(urlsplit(page.url).query).get("since") is None


async def test_messages_are_looked_for_up_to_a_time_of_the_viewers_zone(
    browser: Browser, reading: str, orders: list[Subject]
) -> None:
    zone = "America/New_York"
    last = max(one.last_event_at for one in orders)
    typed_in = last.astimezone(ZoneInfo(zone))
    async with opened(browser, reading + "/messages", zone=zone) as page:
        await page.get_by_label(f"up to, {zone}").fill(f"{typed_in:%Y-%m-%dT%H:%M:%S}")
        await follow(page, page.get_by_role("button", name="Search"))
        (asked,) = parse_qs(urlsplit(page.url).query)["at"]
        assert datetime.fromisoformat(asked) == last.replace(microsecond=0)
        assert "Recorded up to" in await text(page, "main")


async def test_pages_of_sagas_follow_each_other_and_none_is_twice(
    browser: Browser, reading: str, orders: list[Subject]
) -> None:
    seen: list[str] = []
    async with opened(browser, f"{reading}/sagas?limit=5", scripts=False) as page:
        while True:
            seen += await page.locator("#subjects a.row").all_inner_texts()
            if not await page.locator("a[rel=next]").count():
                break
            await follow(page, page.locator("a[rel=next]"))
    assert {one.key for one in orders} <= {*seen}
    assert len(seen) == len({*seen})


@pytest.mark.parametrize(
    ("query", "said"),
    [
        ("after=nonsense", "is no `next` of an earlier page"),
        ("view.status=eaten", "is none of"),
        ("view.nothing=1", "there is no such field"),
        ("view.total_cents=many", "is no whole number"),
        ("view.customer=%00", "has a NUL character"),
        ("text=%00", "has a NUL character"),
        ("since=yesterday", "is no time"),
        ("limit=100000", "limit"),
        ("limit=101", "up to 100 sagas"),
        ("stands=upright", "is none of"),
    ],
)
async def test_a_search_that_makes_no_sense_says_what_would(
    reading: str, query: str, said: str
) -> None:
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"{reading}/sagas?{query}")
    assert answer.status_code == 422
    assert said in answer.text.replace("&#39;", "'")


@pytest.mark.parametrize("scripts", [True, False])
async def test_a_saga_is_told_as_the_command_tells_it(
    browser: Browser,
    reading: str,
    console_system: System,
    orders: list[Subject],
    scripts: bool,
) -> None:
    key = orders[0].key
    document = json.loads(await typed(console_system.folder, "trace", key, "--json"))
    async with opened(browser, reading + address(key), scripts=scripts) as page:
        labels = await page.locator("#rows tbody tr td:nth-child(3)").all_inner_texts()
        assert [label.strip() for label in labels] == [row["label"] for row in document["rows"]]
        assert await page.locator("#sequence svg").count() == 1
        assert "o participant owes anything." in await text(page, "#stands")
        assert "Notification mail server notification status sent" in await text(page, "#asked")


async def test_the_states_at_any_moment_are_those_of_saga_show(
    browser: Browser, reading: str, console_system: System, orders: list[Subject]
) -> None:
    key = next(one.key for one in orders if one.ended_by == "order.confirmed")
    async with opened(browser, reading + address(key, show="states"), scripts=False) as page:
        await page.locator("input[name=event]").fill("2")
        await follow(page, page.get_by_role("button", name="Show"))
        assert "event=2" in page.url
        command_line = (await text(page, "footer code")).split()

        rows = await page.locator("#states tbody tr").all_inner_texts()
        changed = await page.locator("#states tr.changed").all_inner_texts()
    assert command_line[:2] == ["saga", "show"]
    then = json.loads(await typed(console_system.folder, *command_line[1:], "--json"))
    assert then["participants"]["order"][0]["status"] == "pending"
    assert any("order" in row and "status" in row and "pending" in row for row in rows)
    assert any("Reservation" in row and "held" in row for row in changed)
    assert not any("customer-" in row for row in rows)  # masked


async def test_the_slider_moves_by_itself_where_there_are_scripts(
    browser: Browser, reading: str, orders: list[Subject]
) -> None:
    url = reading + address(orders[0].key, show="states", event=3)
    async with opened(browser, url) as page:
        slider = page.locator("input[name=event]")
        await slider.focus()
        await slider.press("ArrowLeft")
        await page.wait_for_url("**event=2*")
        assert "event 2 of" in await text(page, "form.slider")


async def test_bodies_are_masked_and_their_structure_is_shown(
    browser: Browser, reading: str, orders: list[Subject]
) -> None:
    url = reading + address(orders[0].key, show="messages")
    async with opened(browser, url, scripts=False) as page:
        body = await page.locator("#messages pre").first.text_content() or ""
        assert '"customer": "‹text of' in body
        assert "‹number of" in body
        assert "customer-" not in body
        await follow(page, page.locator("#messages a.row").first)
        assert "order.placed" in await text(page, "h2")


async def test_what_a_view_says_is_masked_and_found_all_the_same(
    reading: str, console_system: System, orders: list[Subject]
) -> None:
    one = orders[0]
    view = await Archive(Deployment.load(console_system.folder)).read(
        lambda connection: ORDERS.load(connection, [one.key])[one.key][0]
    )
    async with httpx.AsyncClient() as client:
        found = await client.get(f"{reading}/sagas?view.customer={quote(view.customer)}")
        told = await client.get(reading + address(one.key))
    for answer in (found, told):
        assert one.key in answer.text
        shown = answer.text.replace(f'value="{view.customer}"', "")
        assert view.customer not in shown
        assert view.status in shown
    assert f"‹text of {len(view.customer)}›" in told.text
    assert f"order {one.key} {view.status}" in told.text


@pytest.mark.parametrize(
    ("lag", "said"),
    [
        (Lag(7), "7 messages behind"),
        (Lag(why_not="the stream is away"), "the stream is away"),
        (Lag(0), "had all that was published"),
    ],
    ids=["behind", "unknown", "caught up"],
)
async def test_nothing_is_called_fine_by_a_history_that_may_be_behind(
    reading: str, orders: list[Subject], monkeypatch: pytest.MonkeyPatch, lag: Lag, said: str
) -> None:
    async def known(_: SystemWatcher) -> Lag:
        return lag

    monkeypatch.setattr(SystemWatcher, "lag", known)
    caught_up = lag.behind == 0
    async with httpx.AsyncClient() as client:
        pages = {tab: await client.get(reading + address(orders[0].key, show=tab)) for tab in TABS}
    for tab, page in pages.items():
        assert said in page.text, tab
    assert ('class="fine"' in pages["story"].text) == caught_up
    assert ("after what the history has" not in pages["future"].text) == caught_up


async def test_what_could_still_happen_is_computed_for_a_moment(
    browser: Browser, reading: str, console_system: System, orders: list[Subject]
) -> None:
    key = next(one.key for one in orders if one.ended_by == "order.confirmed")
    async with opened(browser, reading + address(key, show="future", event=2)) as page:
        said = await text(page, "#future")
        assert "all of what can happen" in said
        ends = await page.locator("#future table").first.locator("tbody th").all_inner_texts()
        assert "order.confirmed (confirmed)" in ends
        assert "order.cancelled (deadline_exceeded)" in ends
        assert "confirmed_unpaid" in said
        command_line = (await text(page, "footer code")).split()
        await follow(page, page.get_by_role("link", name="as it is now"))
        assert "It cannot end by any of these any more: order.cancelled" in await text(
            page, "#future"
        )
    assert command_line == ["saga", "future", key, "--event", "2"]
    told = json.loads(await typed(console_system.folder, *command_line[1:], "--json"))
    assert [[event["type"] for event in end["events"]] for end in told["ends"]] == [
        [end.split(" ")[0]] for end in ends
    ]


async def test_what_if_is_asked_by_links_and_answered_by_the_domains(
    browser: Browser, reading: str, orders: list[Subject]
) -> None:
    key = next(one.key for one in orders if one.ended_by == "order.confirmed")
    url = reading + address(key, show="what-if", event=2)
    async with opened(browser, url, scripts=False) as page:
        assert "order.confirmed (confirmed)" in await text(page, "#usual")
        await follow(
            page, page.get_by_role("link", name="its time comes now: order does order.expire")
        )
        said = await text(page, "#asked")
        assert "It would come to: order.cancelled (deadline_exceeded)" in said
        assert "Otherwise it would come to order.confirmed" in said
        assert "publishes payment.refunded" in said
        command = await text(page, "footer code")
        permalink = page.url
    async with opened(browser, permalink) as page:
        assert await text(page, "#asked") == said
    assert command == f"saga future {key} --event 2 --if 'order do order.expire'"


async def test_axe_finds_nothing_on_a_saga(
    browser: Browser, reading: str, orders: list[Subject]
) -> None:
    context = await browser.new_context(color_scheme="light")
    try:
        page = await context.new_page()
        for tab in TABS:
            answer = await page.goto(reading + address(orders[0].key, show=tab, event=2))
            assert answer is not None
            assert len(await answer.body()) <= 100_000
            await assert_axe_finds_nothing(page)
    finally:
        await context.close()


async def test_a_saga_that_nobody_knows_is_said_to_be_unknown(
    reading: str, orders: list[Subject]
) -> None:
    hostile = "<script>alert(1)</script>\u202e" + "x" * 100
    async with httpx.AsyncClient() as client:
        answer = await client.get(reading + address(hostile))
        step = await client.get(reading + address(orders[0].key, show="upside-down"))
    assert answer.status_code == 404
    assert "no events about" in answer.text
    assert "<script>alert" not in answer.text
    assert "\u202e" not in answer.text
    assert step.status_code == 422


# --- another saga --------------------------------------------------------------------------------


@pytest.mark.long
async def test_sagas_of_another_kind_are_shown_without_a_line_for_them(
    browser: Browser, moving: str
) -> None:
    async with opened(browser, moving + "/sagas?stands=ended", scripts=False) as page:
        assert await page.locator("#subjects a.row").count() > 0
        await follow(page, page.locator("#subjects a.row").first)
        assert "Move household" in await text(page, "h1")
        assert await page.locator("#sequence svg").count() == 1
        await follow(page, page.get_by_role("link", name="States"))
        await follow(page, page.get_by_role("link", name="One earlier"))
        assert "stage" in await text(page, "#states")
        await follow(page, page.get_by_role("link", name="what could still happen then"))
        said = await text(page, "#future")
        assert "move.given_up" in said or "move.arranged" in said
        await follow(page, page.get_by_role("link", name="What if"))
        assert "As it usually goes on" in await text(page, "#usual")


@pytest.mark.long
@pytest.mark.parametrize("path", ["/stuck", "/books", "/proof"])
async def test_pages_about_all_sagas_know_another_one(
    browser: Browser, moving: str, path: str
) -> None:
    async with opened(browser, moving + path) as page:
        found = await Axe().run(page)
        assert not found.response["violations"], found.generate_report()
