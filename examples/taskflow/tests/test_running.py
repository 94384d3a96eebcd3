"""A running system, and a subscriber that comes later, goes, and comes back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import sqlalchemy as sa
from saga.local.supervision import Supervision

from taskflow.search.app import found

ROOT = Path(__file__).parents[1]
PATIENCE_SECONDS = 240.0
"""A system starts within some seconds; on a busy machine, within some minutes."""


def saga(*arguments: str, folder: Path, declared: str = "taskflow:SAGA") -> str:
    """What a command of the engine says; it has to succeed."""
    done = subprocess.run(
        [sys.executable, "-m", "saga.cli", *arguments, "--data-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "SAGA": declared},
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)


@contextmanager
def running(folder: Path, declared: str = "taskflow:SAGA") -> Iterator[None]:
    """A `saga up` on the folder."""
    with subprocess.Popen(
        [sys.executable, "-m", "saga.cli", "up", "--data-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "SAGA": declared},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            wait_until(lambda: (folder / "saga.json").exists() or process.poll() is not None)
            yield
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(PATIENCE_SECONDS)


def search(url: str, words: str) -> list[str]:
    """What is found in an index."""
    engine = sa.create_engine(url)
    try:
        with engine.connect() as connection:
            return found(connection, words)
    finally:
        engine.dispose()


def counted(folder: Path) -> Counter[str]:
    """What analytics has counted of each type of event, on all days."""
    figures = folder / "analytics.json"
    days = json.loads(figures.read_text()).values() if figures.exists() else ()
    counts = sum(map(Counter, days), Counter[str]())
    del counts["task.completed"]  # Tasks that were done and then withdrawn are counted nowhere.
    return counts


def happened(folder: Path) -> Counter[str]:
    """What analytics has to have counted, as the participants' databases tell."""
    created, withdrawn = scalars(folder / "tasks.db", "count(*), sum(stage = 'withdrawn')", "tasks")
    (users,) = scalars(folder / "users.db", "count(*)", "users")
    return Counter({"task.created": created, "task.withdrawn": withdrawn, "user.registered": users})


def pid_of_analytics(folder: Path) -> int | None:
    """Its process, once it is supervised."""
    supervised = Supervision.load(folder)
    return supervised.services["analytics"].pid if supervised else None


def scalars(file: Path, columns: str, table: str) -> tuple[int, ...]:
    with closing(sqlite3.connect(file)) as connection:
        row: tuple[int, ...] = connection.execute(f"SELECT {columns} FROM {table}").fetchone()
    return row


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Of a system that began without analytics, and has it now."""
    folder = tmp_path_factory.mktemp("system")
    with running(folder, "tests.earlier:SAGA"):
        saga("demo", "--sagas", "20", folder=folder, declared="tests.earlier:SAGA")
    assert counted(folder) == Counter()
    with running(folder):
        yield folder


@pytest.mark.skipif(shutil.which("node") is None, reason="nothing here runs a program for Node")
def test_a_subscriber_is_added_later_without_a_change_elsewhere_and_may_be_down(
    folder: Path,
) -> None:
    wait_until(lambda: counted(folder) == happened(folder))
    assert counted(folder)["task.created"] == 20

    wait_until(lambda: pid_of_analytics(folder) is not None)
    pid = pid_of_analytics(folder)
    assert pid is not None
    os.kill(pid, signal.SIGKILL)
    saga("publish", "--sagas", "20", folder=folder)

    wait_until(lambda: counted(folder)["task.created"] == 40)
    wait_until(lambda: counted(folder) == happened(folder))


def test_an_index_that_is_lost_is_made_again_and_finds_the_same(
    folder: Path, tmp_path: Path
) -> None:
    before, again = (f"sqlite:///{each / 'search.db'}" for each in (folder, tmp_path))
    wait_until(lambda: "nothing is overdue" in saga("stuck", folder=folder))

    saga("history", "rebuild", "search", "--into", again, folder=folder)

    assert search(before, "thing usual")
    assert search(before, "broke") == search(before, "no such thing") == []
    for words in ("thing usual", "thing", "1", "broke"):
        assert search(again, words) == search(before, words)
