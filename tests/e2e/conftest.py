"""A whole system that tests have in common: its start costs as much as a hundred small tests."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from saga.local.system import System
from tests.forked import spawn


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def shared_system(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[System]:
    async with System(tmp_path_factory.mktemp("system"), disposable=True, spawn=spawn) as system:
        yield system


@pytest_asyncio.fixture(loop_scope="session")
async def system(shared_system: System) -> System:
    """A system whose services all run, and which has had orders before. It has to be left with its
    books right; what is needed only by the next tests, services that run, it is given here.

    Tests that start or stop parts of it run in the loop of the session.
    """
    await shared_system.start()
    return shared_system
