"""The addresses that tests of the whole console go through."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from axe_playwright_python.async_playwright import Axe
from playwright.async_api import Browser, Locator, Page

PAGES = (
    "/",
    "/?at=2030-01-01T00:00:00Z",
    "/messages",
    "/sagas",
    "/letters",
    "/letters?by=letter",
    "/letters/replay",
    "/replays",
    "/stuck",
    "/waiting",
    "/due",
    "/books",
    "/proof",
    "/proof/map",
    "/services",
    "/audit",
    "/audit/trail",
    "/decide",
    "/keys",
)


_COLOURS: Final = {"runOnly": ["color-contrast", "link-in-text-block"]}
"""The rules of axe about what is different in the dark."""


@asynccontextmanager
async def opened(
    browser: Browser, url: str, *, scripts: bool = True, zone: str | None = None
) -> AsyncIterator[Page]:
    """A page that was answered well, in a context of its own, for a user in that time zone."""
    context = await browser.new_context(java_script_enabled=scripts, timezone_id=zone)
    try:
        page = await context.new_page()
        answer = await page.goto(url)
        assert answer is not None
        assert answer.status == 200, await answer.text()
        yield page
    finally:
        await context.close()


async def text(page: Page, selector: str) -> str:
    """What is read there, on one line."""
    return " ".join((await page.locator(selector).inner_text()).split())


async def follow(page: Page, link: Locator) -> None:
    """Click what leads to another page, and wait until that is whole."""
    async with page.expect_navigation():
        await link.click()


async def assert_axe_finds_nothing(page: Page) -> None:
    """In the light, and in the dark nothing about its colours; it is left in the light."""
    found = await Axe().run(page)
    assert not found.response["violations"], found.generate_report()
    await page.emulate_media(color_scheme="dark")
    found = await Axe().run(page, options=_COLOURS)
    assert not found.response["violations"], found.generate_report()
    assert found.response["passes"], "no rule was tried"
    await page.emulate_media(color_scheme="light")
