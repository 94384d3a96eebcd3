"""What a fault test runs on: which RabbitMQ, and for the short ones a system in common."""

from __future__ import annotations

import os
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest
import pytest_asyncio

from saga.local.node import find_rabbitmq
from saga.status import READY, readiness
from tests.faults.load import Stage, on_stage
from tests.forked import spawn
from tests.polling import until

UNPACKED: Final = Path(".rabbitmq4")
"""Where `make rabbitmq4` puts a newer RabbitMQ than the system's."""


@pytest.fixture(scope="session")
def rabbitmqs() -> list[tuple[str, Path]]:
    """Each RabbitMQ at hand, its version and home: the one that `RABBITMQ_HOME` names, or else the
    system's and the unpacked one."""
    homes = [find_rabbitmq()]
    if not os.environ.get("RABBITMQ_HOME") and (UNPACKED / "sbin").is_dir():
        homes.append(UNPACKED.absolute())
    return [(_version(home), home) for home in homes]


@pytest.fixture
def rabbitmq(turn: int, rabbitmqs: list[tuple[str, Path]], monkeypatch: pytest.MonkeyPatch) -> str:
    """The version the test's nodes will have: by turns."""
    version, home = rabbitmqs[turn % len(rabbitmqs)]
    monkeypatch.setenv("RABBITMQ_HOME", str(home))
    return version


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def _stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    async with on_stage(tmp_path_factory.mktemp("stage"), "sqlite", spawn) as stage:
        yield stage


@pytest_asyncio.fixture(loop_scope="session")
async def stage(_stage: Stage) -> Stage:
    """A system on SQLite that the faults in `make test` have in common. They run in the loop of the
    session, and leave nothing broken; the long ones have a system each."""
    urls = [url for urls in _stage.system.deployment.http_urls.values() for url in urls]

    async def ready() -> bool:
        return await readiness(urls) == READY

    # Nothing was passed on while no test ran in this loop.
    await until(ready)
    return _stage


def _version(home: Path) -> str:
    said = subprocess.run(
        [home / "sbin" / "rabbitmqctl", "--quiet", "version"],
        capture_output=True,
        text=True,
        check=True,
    )
    return said.stdout.strip()
