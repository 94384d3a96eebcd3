"""The console as a process of its own, beside the system that it shows."""

from __future__ import annotations

import asyncio
import os
import re
import signal

import httpx
import pytest
from playwright.async_api import Browser

from order_saga import SAGA
from saga.console.serve import serving
from saga.console.settings import ConsoleSettings
from saga.console.watched import Watched
from saga.http import client
from saga.local.console import ConsoleProcess
from saga.local.system import System
from saga.runtime.tasks import cancel_all
from tests.polling import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def test_one_that_is_killed_comes_back_at_its_address_and_none_is_left(
    console_system: System,
) -> None:
    said: list[str] = []
    async with ConsoleProcess(console_system.folder, report=said.append) as console:
        watching = asyncio.create_task(console.watch())
        first = console.pid
        assert first is not None
        async with client(console.url, 30.0) as asking:
            assert (await asking.get("/services")).status_code == 200
        os.kill(first, signal.SIGKILL)
        await until(lambda: console.pid != first)

        async def answers() -> bool:
            try:
                async with client(console.url, 30.0) as asking:
                    return (await asking.get("/services")).status_code == 200
            except httpx.TransportError:
                return False

        await until(answers)
        await cancel_all(watching)
        last = console.pid
    assert last is not None
    with pytest.raises(ProcessLookupError):
        os.kill(last, 0)
    assert any("started again" in line for line in said)


async def test_a_page_that_is_open_finds_a_console_that_was_started_again(
    console_system: System, browser: Browser
) -> None:
    page = await browser.new_page()
    async with ConsoleProcess(console_system.folder) as console:
        watching = asyncio.create_task(console.watch())
        await page.goto(f"{console.url}/services")
        state = page.locator("#live")
        await state.filter(has_text="live").wait_for()
        assert console.pid is not None
        os.kill(console.pid, signal.SIGKILL)
        await state.filter(has_text="waiting").wait_for()
        await state.filter(has_text="live").wait_for()
        await page.close()
        await cancel_all(watching)


async def test_the_page_of_a_services_routes_fetches_nothing_from_elsewhere(
    console_system: System, browser: Browser
) -> None:
    page = await browser.new_page()
    (url, *_) = console_system.deployment.http_urls["order"]
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    await page.goto(f"{url}/docs")
    await page.get_by_text("/orders", exact=True).first.wait_for()
    await page.close()

    assert len(asked) >= 4
    assert [each for each in asked if not each.startswith((url, "data:"))] == []


@pytest.mark.parametrize("path", ["/saga/sagas", "/sagas", "/saga/", "/"])
async def test_behind_a_proxy_every_link_is_below_its_path(
    console_system: System, path: str
) -> None:
    """Some proxies leave the prefix on, and others take it off."""
    settings = ConsoleSettings(http_port=0, console_prefix="/saga")
    async with serving(Watched(console_system.folder, SAGA), settings) as url:
        assert url.endswith("/saga/")
        async with client(url.removesuffix("/saga/"), 30.0) as asking:
            answer = await asking.get(path)
            assert answer.status_code == 200
            links = re.findall(r'(?:href|src|action|data-live)="(/[^"]*)"', answer.text)
            assert len(links) > 10
            assert [link for link in links if not re.match("/saga(/|$)", link)] == []
            assert 'aria-current="page"' in answer.text
            style = next(link for link in links if ".css" in link)
            assert (await asking.get(style)).status_code == 200


async def test_what_is_turned_away_before_any_page_is_told_on_one(reading: str) -> None:
    async with client(reading, 30.0) as asking:
        answer = await asking.get("/", headers={"Host": "evil.example.com"})
    assert answer.status_code == 421
    assert answer.headers["content-type"].startswith("text/html")
    assert "HTTP_ALLOWED_HOSTS" in answer.text
    assert "default-src 'none'" in answer.headers["content-security-policy"]


@pytest.mark.parametrize("prefix", ["saga", "/a b", "/..//x?", "//evil.example"])
async def test_a_prefix_that_is_none_is_refused(prefix: str) -> None:
    with pytest.raises(ValueError, match="no path"):
        ConsoleSettings(console_prefix=prefix)
