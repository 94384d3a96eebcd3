"""Photograph the console, light and dark, as it shows a load that a seed makes.

    .venv/bin/python -m monitoring.screens

Runs a system of its own, sends orders through it, takes the payment provider down and sends some
more, so that every page has something to show. `docs/console/state.txt` says what the pages were
made of then; a test asks for new pictures once that has changed.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, Literal

from playwright.async_api import Browser, Page, ViewportSize, async_playwright

import saga.console
from order_saga.orders import OrderLoad, Shares, plan
from order_saga.publish import publish
from payment_service.gateway import Fault, FaultMode, SandboxGateway
from saga.archive import queries
from saga.console.serve import serving
from saga.console.settings import ConsoleSettings
from saga.console.watched import Watched
from saga.discovery import choreography
from saga.discovery import saga as declared
from saga.dlq.desk import open_desk
from saga.dlq.selection import Selection
from saga.dlq.states import HERE
from saga.local.system import System

FOLDER: Final = Path(__file__).parents[1] / "docs" / "console"
STATE: Final = FOLDER / "state.txt"
PAGES: Final[Mapping[str, str]] = {"map": "/", "sagas": "/sagas", "letters": "/letters"}
"""Keyed by picture: the page."""
PICTURES: Final = (*PAGES, "saga")
"""With one saga, which is found by their search."""
SCHEMES: Final[tuple[Literal["light", "dark"], ...]] = ("light", "dark")
SEED: Final = 7
ORDERS, ORDERS_WHILE_DOWN = 120, 24
SIZE: Final[ViewportSize] = {"width": 1200, "height": 800}
WHOLE_MAP: Final[ViewportSize] = {"width": 1900, "height": 1400}
PATIENCE_SECONDS: Final = 120.0
_POLL_SECONDS: Final = 0.2


def state() -> str:
    """What the pages are made of, in a word."""
    folder = Path(saga.console.__path__[0])
    made_of = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.suffix in (".html", ".css"):
            made_of.update(file.read_bytes())
    return made_of.hexdigest()


async def photograph(folder: Path) -> None:
    """Write all pictures."""
    program = shutil.which("chromium")
    if program is None:
        sys.exit("error: there is no chromium on PATH; scripts/setup installs it on Debian")
    with tempfile.TemporaryDirectory() as data:
        async with System(Path(data), disposable=True) as system:
            await _load(system)
            watched = Watched(system.folder, declared())
            settings = ConsoleSettings(http_port=0, console_write=True)
            async with serving(watched, settings) as url, _browser(program) as browser:
                for scheme in SCHEMES:
                    page = await browser.new_page(color_scheme=scheme)
                    await _photograph(page, url.rstrip("/"), folder, scheme)
                    await page.close()
    STATE.write_text(state() + "\n", encoding="utf-8")


@asynccontextmanager
async def _browser(program: str) -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        yield browser
        await browser.close()


async def _photograph(page: Page, url: str, folder: Path, scheme: str) -> None:
    for name, path in PAGES.items():
        await page.set_viewport_size(WHOLE_MAP if name == "map" else SIZE)
        await page.goto(url + path)
        await page.screenshot(path=folder / f"{name}-{scheme}.png")
    await page.goto(f"{url}/sagas?ended=true")
    await page.locator("a.row").first.click()
    await page.screenshot(path=folder / f"saga-{scheme}.png")


async def _load(system: System) -> None:
    """Orders that end, and then some that the provider's outage leaves as dead letters."""
    await _send(system, plan(ORDERS, SEED, Shares(malformed=0.0)))
    await _until_settled(system)
    gateway = SandboxGateway(system.deployment.outside_urls["provider"])
    try:
        await asyncio.to_thread(gateway.set_fault, Fault(FaultMode.UNAVAILABLE))
        await _send(system, plan(ORDERS_WHILE_DOWN, SEED, Shares(malformed=0.1)))
        await _until_dead(system, ORDERS_WHILE_DOWN // 2)
    finally:
        await gateway.close()


async def _send(system: System, load: OrderLoad) -> None:
    await publish(system.deployment, load)


async def _until_settled(system: System) -> None:
    watched = Watched(system.folder, declared())
    deadline = time.monotonic() + PATIENCE_SECONDS
    while await watched.read(queries.open_subjects):
        if time.monotonic() > deadline:
            sys.exit("error: the orders did not end; the machine may be too busy")
        await asyncio.sleep(_POLL_SECONDS)


async def _until_dead(system: System, count: int) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    async with open_desk(system.deployment, choreography()) as desk:
        while len(desk.store.find(Selection(), HERE, contents=False)) < count:
            if time.monotonic() > deadline:
                sys.exit("error: no letters were dead in time; the machine may be too busy")
            await asyncio.sleep(_POLL_SECONDS)
            await desk.collect()


if __name__ == "__main__":
    FOLDER.mkdir(parents=True, exist_ok=True)
    asyncio.run(photograph(FOLDER))
