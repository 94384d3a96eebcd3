"""Every page, in a real browser, light and dark, with and without scripts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from playwright.async_api import Browser

import saga.console
from saga.console.site import NAVIGATION
from tests.console.visits import PAGES, assert_axe_finds_nothing

pytestmark = pytest.mark.asyncio(loop_scope="session")


@pytest.mark.parametrize("path", PAGES)
async def test_axe_finds_nothing_and_in_the_dark_nothing_in_the_colours(
    browser: Browser, reading: str, path: str
) -> None:
    page = await browser.new_page(color_scheme="light")
    try:
        errors: list[str] = []
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        answer = await page.goto(reading + path)
        assert answer is not None
        assert answer.status == 200
        assert len(await answer.body()) <= 100_000
        await assert_axe_finds_nothing(page)
        assert not errors
    finally:
        await page.close()


async def test_nothing_but_colours_is_different_in_the_dark() -> None:
    style = (Path(saga.console.__file__).parent / "static" / "console.css").read_text()
    scheme = re.compile(r"@media \(prefers-color-scheme: dark\) (\{.*?\} \})", re.DOTALL)
    _, dark, after = scheme.split(style)

    assert re.fullmatch(r"\{ :root \{\s*(--[\w-]+: #[0-9a-f]{6};\s*)+\} \}", dark)
    assert "color-scheme" not in after


@pytest.mark.parametrize("path", PAGES)
async def test_every_page_reads_and_every_form_can_be_sent_without_scripts(
    browser: Browser, writing: str, path: str
) -> None:
    page = await browser.new_page(java_script_enabled=False)
    try:
        await page.goto(writing + path)
        assert await page.locator("h1").inner_text()
        assert await page.locator("main").inner_text()
        for form in await page.locator("main form").all():
            assert await form.locator("button:visible").count() > 0
        assert await page.locator("a:not([href])").count() == 0
    finally:
        await page.close()


async def test_every_page_of_the_navigation_is_looked_at() -> None:
    assert {link.path for link in NAVIGATION} <= {*PAGES}
