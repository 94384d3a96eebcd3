"""Which RabbitMQ a fault test runs on."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Final

import pytest

from saga.node import find_rabbitmq

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


def _version(home: Path) -> str:
    said = subprocess.run(
        [home / "sbin" / "rabbitmqctl", "--quiet", "version"],
        capture_output=True,
        text=True,
        check=True,
    )
    return said.stdout.strip()
