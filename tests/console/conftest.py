"""A system, the console that shows it, and a real browser."""

from __future__ import annotations

import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import pytest_asyncio
from playwright.async_api import Browser, async_playwright

from order_saga import SAGA
from saga.console.serve import serving
from saga.console.settings import ConsoleSettings
from saga.console.watched import Watched
from saga.deployment import FILE_NAME, Deployment
from saga.history.archive import Archive
from saga.local.system import System
from tests.console.typing_in import begun, typed
from tests.forked import spawn
from tests.moving import SAGA as MOVING
from tests.polling import until

MOVING_SPEC = "tests.moving:SAGA"


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def console_system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    """The order system, running. Left as it was found: all services up, the books right."""
    folder = tmp_path_factory.mktemp("system")
    async with System(folder, disposable=True, spawn=spawn) as system:
        yield system


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def browser() -> AsyncIterator[Browser]:
    """Debian's Chromium."""
    program = shutil.which("chromium")
    if program is None:
        pytest.fail("there is no chromium on PATH; `make test` installs it")
    async with AsyncExitStack() as stack:
        playwright = await stack.enter_async_context(async_playwright())
        browser = await playwright.chromium.launch(
            executable_path=program, args=["--no-sandbox", "--disable-gpu"]
        )
        stack.push_async_callback(browser.close)
        yield browser


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def reading(console_system: System) -> AsyncIterator[str]:
    """The address of a console that changes nothing, without a slash at its end."""
    async with serving(_watched(console_system.folder), ConsoleSettings(http_port=0)) as url:
        yield url.rstrip("/")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def writing(console_system: System) -> AsyncIterator[str]:
    """The address of one that may."""
    settings = ConsoleSettings(http_port=0, console_write=True)
    async with serving(_watched(console_system.folder), settings) as url:
        yield url.rstrip("/")


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def orders_ended(console_system: System) -> None:
    """Some orders, all of which have ended as they had to, and are in the archive."""
    folder = console_system.folder
    await typed(folder, "demo", "--orders", "12", "--malformed", "0", "--seed", "5")
    archive = Archive(Deployment.load(folder))
    await until(lambda: archive.caught_up(0))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def moving(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The address of a console of another saga, some of which have ended."""
    folder = tmp_path_factory.mktemp("moving")
    running = await begun(folder, "up", "--no-console", SAGA=MOVING_SPEC)
    try:
        await until(lambda: (folder / FILE_NAME).exists())
        await typed(folder, "demo", "--sagas", "6", "--seed", "3", SAGA=MOVING_SPEC)
        watched = Watched(folder, MOVING, spec=MOVING_SPEC)
        async with serving(watched, ConsoleSettings(http_port=0)) as url:
            yield url.rstrip("/")
    finally:
        running.send_signal(signal.SIGINT)
        await running.communicate()


def _watched(folder: Path) -> Watched:
    return Watched(folder, SAGA)
