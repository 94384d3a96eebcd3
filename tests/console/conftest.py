"""A system, the console that shows it, and a real browser."""

from __future__ import annotations

import shutil
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
from saga.local.system import System
from tests.forked import spawn


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


def _watched(folder: Path) -> Watched:
    return Watched(folder, SAGA)
