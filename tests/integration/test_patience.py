"""What is started on this machine has the time that `START_SECONDS` says, and says so."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import pytest

from saga.discovery import VARIABLE
from saga.local import SystemFault
from saga.local.node import NodeError, RabbitNode
from saga.local.observe import ObserveError, Prometheus
from saga.local.patience import StartDeadline, start_seconds
from saga.local.postgres import PostgresCluster, PostgresError
from saga.local.system import System
from saga.runtime.settings import SettingsError

SILENT = """\
#!/bin/sh
exec sleep 60
"""


@pytest.fixture
def silent(tmp_path: Path) -> Path:
    """A program that starts, and never answers."""
    program = tmp_path / "silent"
    program.write_text(SILENT)
    program.chmod(0o755)
    return program


def start_rabbitmq(folder: Path, _: Path) -> None:
    RabbitNode(folder).start()


def start_postgresql(folder: Path, _: Path) -> None:
    PostgresCluster(folder).start()


def start_prometheus(folder: Path, silent: Path) -> None:
    async def start() -> None:
        prometheus = Prometheus(folder, str(silent))
        try:
            await prometheus.start({})
        finally:
            prometheus.stop()

    asyncio.run(start())


@pytest.mark.parametrize(
    ("start", "error"),
    [
        (start_rabbitmq, NodeError),
        (start_postgresql, PostgresError),
        (start_prometheus, ObserveError),
    ],
)
def test_what_takes_longer_to_start_than_allowed_names_the_setting(
    start: Callable[[Path, Path], None],
    error: type[Exception],
    silent: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("START_SECONDS", "0.05")

    with pytest.raises(
        error, match=r"within 0\.05 s.*; a busy machine takes longer: set START_SEC"
    ):
        start(tmp_path / "folder", silent)


async def test_a_service_that_takes_longer_names_the_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, amqp_url: str
) -> None:
    monkeypatch.setenv(VARIABLE, "tests.errands:SAGA")
    monkeypatch.setenv("START_SECONDS", "0.5")
    system = System(tmp_path, amqp_url=amqp_url, only=["desk"])
    system.programs["desk"] = ("-c", "import time; time.sleep(60)")
    try:
        with pytest.raises(SystemFault, match=r"the desk service was not ready .*START_SECONDS"):
            await system.start()
    finally:
        await system.stop()


@pytest.mark.parametrize("value", ["0", "-1", "soon", "nan", "3601"])
def test_a_time_that_is_none_is_refused_with_its_name(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("START_SECONDS", value)

    with pytest.raises(SettingsError, match="START_SECONDS"):
        start_seconds()


def test_a_time_that_is_given_counts_more() -> None:
    assert StartDeadline(7.0).seconds == 7.0
    assert not StartDeadline(7.0).is_over
    assert StartDeadline(-1.0).is_over
