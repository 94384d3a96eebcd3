"""What follows from the saga as a whole: its files, its signatures, and all that can happen."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "--check"),
        ("check",),
        ("schemas", "check"),
        ("verify",),
        ("verify", "--simulate", "--seeds", "20"),
    ],
    ids=" ".join,
)
def test_nothing_is_found(command: tuple[str, ...]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "saga.cli", *command],
        cwd=ROOT,
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
