"""A process that has to know the saga it belongs to says what to set where it finds none."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ENGINE = Path(__file__).parents[2] / "saga"
RUN_SECONDS = 60.0


def history_service(folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """The history service run in a folder that is in no project, as is the engine."""
    (folder / "installed").mkdir()
    (folder / "installed" / "saga").symlink_to(ENGINE)
    inherited = {name: value for name, value in os.environ.items() if name != "SAGA"}
    return subprocess.run(
        [sys.executable, "-m", "saga.archive.app"],
        cwd=folder,
        env=inherited | {"PYTHONPATH": str(folder / "installed")} | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )


def test_a_history_service_that_finds_no_saga_says_what_to_set(tmp_path: Path) -> None:
    done = history_service(tmp_path)

    (line,) = done.stderr.splitlines()
    assert "no saga is named" in line
    assert "set SAGA" in line
    assert done.returncode == 1


def test_a_history_service_whose_saga_is_not_there_says_what_to_correct(tmp_path: Path) -> None:
    done = history_service(tmp_path, SAGA="trips:SAGA")

    (line,) = done.stderr.splitlines()
    assert "there is no module 'trips'" in line
    assert "correct SAGA or [tool.saga]" in line
    assert done.returncode == 1
