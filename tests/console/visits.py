"""The addresses that tests of the whole console go through."""

from __future__ import annotations

from playwright.async_api import Locator, Page

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
    "/due",
    "/books",
    "/proof",
    "/services",
    "/audit",
    "/decide",
    "/keys",
)


async def follow(page: Page, link: Locator) -> None:
    """Click what leads to another page, and wait until that is whole."""
    async with page.expect_navigation():
        await link.click()
