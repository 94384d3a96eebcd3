"""The map, the messages behind its figures, and the services."""

from __future__ import annotations

import asyncio
import re
from urllib.parse import urlsplit
from uuid import uuid4

import aio_pika
import pytest
from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Locator, Page

from order_saga import SAGA
from saga.console.serve import serving
from saga.console.settings import ConsoleSettings
from saga.console.watched import Watched
from saga.http import client
from saga.local.system import System
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import EVENTS_EXCHANGE
from saga.status import status
from saga.version import engine_version
from tests.console.visits import follow, opened
from tests.polling import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

SECONDS = 30.0
HOSTILE = "<script>alert(1)</script>\N{RIGHT-TO-LEFT OVERRIDE}"


async def place(system: System, customer: str = "ada") -> str:
    """An order for what no shelf has: it ends by itself."""
    (url, *_) = system.deployment.http_urls["order"]
    line = {"sku": f"sku-{uuid4().hex[:8]}", "quantity": 1, "unit_price_cents": 100}
    order = {"customer": customer, "currency": "EUR", "lines": [line]}
    async with client(url, SECONDS) as service:
        answer = await service.post("/orders", json=order)
    assert answer.status_code in (201, 202), answer.text
    return str(answer.json()["order_id"])


async def get(console: str, path: str) -> str:
    async with client(console, SECONDS) as asking:
        answer = await asking.get(path)
    assert answer.status_code == 200, answer.text
    return answer.text


async def refused(console: str, path: str) -> str:
    async with client(console, SECONDS) as asking:
        answer = await asking.get(path)
    assert answer.status_code == 422, answer.text
    return answer.text


def figure(page: Page, name: str) -> Locator:
    """The link below a message's name on the map."""
    return page.locator(f'#map a[aria-label^="{name}: "]').first


async def test_figures_change_without_a_reload_and_lead_to_the_messages(
    console_system: System, reading: str, browser: Browser
) -> None:
    async with opened(browser, f"{reading}/") as page:
        await page.evaluate("window.stays = true")
        order = await place(console_system)
        link = figure(page, "order.placed")

        async def leads_to_it() -> bool:
            path = await link.get_attribute("href") if await link.count() else None
            return path is not None and order in await get(reading, path)

        await until(leads_to_it)  # Earlier tests have placed others.
        assert await page.evaluate("window.stays")

        await follow(page, link)

        assert urlsplit(page.url).path == "/messages"
        assert "type=order.placed" in page.url
        row = page.locator("tbody tr", has_text=order)
        await row.wait_for()
        await row.locator("summary").click()
        said = await row.locator("pre").inner_text()
        assert '"customer": "‹text of 3›"' in said
        assert '"ada"' not in said
        await follow(page, row.locator("a.row"))
        assert urlsplit(page.url).path == f"/sagas/{order}"


async def test_the_keyboard_stays_at_a_figure_that_changes(
    console_system: System, reading: str, browser: Browser
) -> None:
    await place(console_system)
    async with opened(browser, f"{reading}/") as page:
        link = figure(page, "order.placed")
        await link.wait_for()
        await link.focus()
        before = await link.get_attribute("href")

        async def has_changed() -> bool:
            return await link.get_attribute("href") != before

        await until(has_changed)
        focused = await page.evaluate("document.activeElement.getAttribute('aria-label')")
        assert (focused or "").startswith("order.placed: ")


async def test_bodies_are_shown_where_that_is_allowed(console_system: System) -> None:
    order = await place(console_system, customer="grace")
    settings = ConsoleSettings(http_port=0, console_bodies=True)
    async with serving(Watched(console_system.folder, SAGA), settings) as url:

        async def is_there() -> bool:
            said = await get(url.rstrip("/"), "/messages?type=order.placed")
            return order in said and "grace" in said

        await until(is_there)


async def test_the_past_is_asked_for_by_a_form_without_scripts(
    console_system: System, reading: str, browser: Browser
) -> None:
    await place(console_system)
    async with opened(browser, f"{reading}/", scripts=False) as page:
        slider = page.locator("input[type=range]")
        await slider.wait_for()
        last = await slider.get_attribute("max")
        await follow(page, page.get_by_role("button", name="Show it"))
        assert re.search(r"[?&]at=\d+$", page.url)
        await page.get_by_text("As it was at").wait_for()
        text = await page.locator("#moment").inner_text()
        assert "is known of now only" in text
        assert "Not looked at" in await page.locator("#drift").inner_text()
        await page.goto(f"{reading}/?at={last}")
        assert await figure(page, "order.placed").count() == 1
        await follow(page, page.get_by_role("link", name="Minute before"))
        assert "at=" in page.url


async def test_play_goes_from_minute_to_minute_to_the_last(
    console_system: System, reading: str, browser: Browser
) -> None:
    await place(console_system)
    async with opened(browser, f"{reading}/", scripts=False) as page:
        first = int(await page.locator("input[type=range]").get_attribute("min") or "")
    async with opened(browser, f"{reading}/?at={first - 30}") as page:
        play = page.get_by_role("button", name="Play")
        await play.click()

        async def is_over() -> bool:
            return await page.locator("a[rel=next]").count() == 0

        await until(is_over)
        await play.wait_for()  # It says so again once it has stopped.
        assert "at=20" in page.url


async def test_a_service_that_is_down_is_red_and_says_why(
    console_system: System, writing: str, browser: Browser
) -> None:
    console_system.kill("notification")
    try:

        async def is_told() -> bool:
            return "the notification service: no answer" in await get(writing, "/services")

        await until(is_told)
        async with opened(browser, f"{writing}/") as page:
            assert await page.locator("#map rect.down").count() == 1
            said = page.locator('#map a[aria-label^="notification: down: no answer"]')
            assert "down" in (await said.text_content() or "")
    finally:
        await console_system.start("notification")

    async def is_up() -> bool:
        return 'rect class="down"' not in await get(writing, "/")

    await until(is_up)


async def test_the_keyboard_comes_from_an_edge_to_the_messages_that_went_along_it(
    console_system: System, reading: str, browser: Browser
) -> None:
    order = await place(console_system)
    async with opened(browser, f"{reading}/") as page:
        link = page.locator('#map a[aria-label^="order.placed → inventory.reserve: "]')

        async def leads_to_it() -> bool:
            path = await link.get_attribute("href") if await link.count() else None
            return path is not None and order in await get(reading, path)

        await until(leads_to_it)
        found = await Axe().run(page)
        assert not found.response["violations"], found.generate_report()
        await link.focus()
        async with page.expect_navigation():
            await page.keyboard.press("Enter")
        assert "taken_by=inventory" in page.url
        await page.locator("tbody tr", has_text=order).first.wait_for()


async def test_what_waits_at_an_edge_leads_to_the_sagas_that_wait(
    console_system: System, writing: str, browser: Browser
) -> None:
    console_system.kill("payment")
    try:
        order = await place(console_system)  # It is cancelled, which payment has to know.

        async def is_told() -> bool:
            return "payment has not taken" in await get(writing, "/")

        await until(is_told)
        async with opened(browser, f"{writing}/", scripts=False) as page:
            of_type = page.locator('#map a[aria-label^="payment has not taken "]').first
            path = await of_type.get_attribute("href") or ""
            assert "participant=payment" in path
            assert "type=order.cancelled" in path
            of_all = page.locator('#map a[aria-label^="payment: "]', has_text="waiting")
            await follow(page, of_all)
            assert urlsplit(page.url).path == "/waiting"
            row = page.locator("#waiting tbody tr", has_text=order)
            assert "order.cancelled" in await row.inner_text()
            await follow(page, row.locator("a.row"))
            assert urlsplit(page.url).path == f"/sagas/{order}"
    finally:
        await console_system.start("payment")

    async def is_taken() -> bool:
        said = await get(writing, "/waiting?participant=payment")
        return order not in said and "None that is known of" in said

    await until(is_taken)


async def test_a_participant_that_there_is_not_is_named(reading: str) -> None:
    async with client(reading, SECONDS) as asking:
        answer = await asking.get("/waiting?participant=nobody")
    assert answer.status_code == 404
    assert "there is no participant" in answer.text
    assert "inventory" in answer.text


async def test_the_services_are_as_the_status_says(console_system: System, reading: str) -> None:
    async def agrees() -> bool:
        found = await status(console_system.deployment, SAGA.choreography)
        said = await get(reading, "/services")
        queues = re.findall(r'<th scope="row">([\w.]+)</th><td class="number">(\d+)</td>', said)
        return dict(queues) == {
            name: str(queue.messages) for name, queue in found.queues.items()
        } and all(problem in said for problem in found.problems)

    await until(agrees)
    said = await get(reading, "/services")
    for (url,) in console_system.deployment.http_urls.values():
        assert url in said
    assert said.count(f"<td>{engine_version()}</td>") == len(console_system.deployment.http_urls)


async def test_how_far_the_history_is_behind_is_told_once_it_is_known(reading: str) -> None:
    async def is_told() -> bool:
        return "The history had all that was published by" in await get(reading, "/services")

    await until(is_told)


async def test_what_the_broker_holds_is_compared_when_it_is_asked_for(
    console_system: System, reading: str
) -> None:
    assert "Not compared" in await get(reading, "/")

    async def is_compared() -> bool:
        return "It holds what the signatures ask for." in await get(reading, "/?compare=true")

    await until(is_compared)

    connection = await connect(console_system.deployment.amqp_url, name="test")
    async with connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(EVENTS_EXCHANGE)
        queue = await channel.get_queue("payment.normal")
        await queue.bind(exchange, "order.placed.normal")
        try:
            said = await get(reading, "/?compare=true")
        finally:
            await queue.unbind(exchange, "order.placed.normal")
        assert isinstance(queue, aio_pika.abc.AbstractQueue)

    assert "saga.events order.placed.normal payment.normal" in said
    assert 'class="wrong"' in said


@pytest.mark.parametrize(
    "path",
    [
        "/?at=yesterday",
        "/?at=99999999999",
        f"/?at={HOSTILE}",
        "/messages?at=1e9",
        "/messages?before=0",
        "/messages?before=x",
        "/messages?attempt=0",
        "/messages?seconds=-1",
        "/messages?seconds=nan",
        f"/messages?{HOSTILE}=1",
        f"/messages?type={'x' * 10_000}",
    ],
)
async def test_what_no_page_can_make_sense_of_is_refused(reading: str, path: str) -> None:
    assert "<script>alert" not in await refused(reading, path)


async def test_what_is_not_there_is_no_error(reading: str) -> None:
    for path in (
        f"/messages?type={HOSTILE}&participant={HOSTILE}",
        "/messages?type=&participant=&cause=&attempt=1&at=&seconds=",
        "/messages?before=9223372036854775807",
        "/?at=0",
        f"/waiting?type={HOSTILE}",
        f"/messages?taken_by={HOSTILE}",
        "/?at=2030-01-01T00:00:00%2B02:00",
    ):
        said = await get(reading, path)
        assert "<script>alert" not in said
        assert "\N{RIGHT-TO-LEFT OVERRIDE}" not in said


async def test_ten_tabs_are_answered_once_a_tick(reading: str) -> None:
    async def ask() -> str:
        async with client(reading, SECONDS) as asking:
            answer = await asking.get("/", headers={"X-Live": "1"})
        return answer.text

    answers = await asyncio.gather(*(ask() for _ in range(10)))

    assert len(set(answers)) <= 2  # A tick may have come between.


async def test_the_open_sagas_lead_to_a_search_that_shows_what_it_is_for(reading: str) -> None:
    said = await get(reading, "/")
    (link,) = re.findall(r'<a href="(/sagas[^"]*)">\d+ sagas open</a>', said)
    assert '<option value="open" selected>' in await get(reading, link)
