"""Pages that stay open: many of them in one browser, and what they say of their age."""

from __future__ import annotations

import asyncio

import pytest
from playwright.async_api import Browser, Page

from tests.polling import until

pytestmark = pytest.mark.asyncio(loop_scope="session")

TABS = 10
HIDING = """
    let hidden = false;
    Object.defineProperty(document, "hidden", { get: () => hidden });
    window.turn = (away) => {
      hidden = away;
      document.dispatchEvent(new Event("visibilitychange"));
    };
"""
"""A browser without a screen hides no page."""


async def as_of(page: Page) -> str:
    return await page.locator("#as-of time").get_attribute("datetime") or ""


async def test_ten_tabs_of_one_browser_are_all_usable(browser: Browser, reading: str) -> None:
    async with await browser.new_context() as context:
        await context.add_init_script(HIDING)
        tabs: list[Page] = []
        for _ in range(TABS):
            if tabs:
                await tabs[-1].evaluate("turn(true)")
            tabs.append(await context.new_page())
            await tabs[-1].goto(f"{reading}/sagas")
            await tabs[-1].locator("#live", has_text="live").wait_for()
        before = await asyncio.gather(*map(as_of, tabs))

        for number, page in enumerate(tabs):
            await tabs[number - 1].evaluate("turn(true)")
            await page.evaluate("turn(false)")

            async def is_fresh(page: Page = page, before: str = before[number]) -> bool:
                return await as_of(page) > before

            await until(is_fresh)
            await page.get_by_role("button", name="Search").click()


async def test_what_is_brought_up_to_date_says_as_of_when_it_is(
    browser: Browser, reading: str
) -> None:
    page = await browser.new_page()
    try:
        await page.goto(f"{reading}/audit")
        opened = await as_of(page)

        async def is_newer() -> bool:
            return await as_of(page) > opened

        await until(is_newer)
        assert "UTC" in (await page.locator("#as-of time").get_attribute("title") or "")
        assert "UTC" not in await page.locator("#as-of").inner_text()
    finally:
        await page.close()


async def test_a_page_of_which_nothing_is_fresh_does_not_say_that_it_is(
    browser: Browser, reading: str
) -> None:
    page = await browser.new_page()
    try:
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        await page.goto(f"{reading}/keys", wait_until="networkidle")
        assert not [url for url in asked if url.endswith("/live")]
    finally:
        await page.close()
