"""The engine without the order system: its tests pass, and `saga new` makes what works."""

from __future__ import annotations

import os
import subprocess
import sysconfig
import venv
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import pytest

from saga.discovery import VARIABLE
from tests.alone import MEASURED, ORDERS, copy_without_orders, engines_tests

TEST_FILES_MIN: Final = 70
"""There are a few more. Fewer, and tests of the engine have been moved to the orders' words."""
QUICK: Final = (
    *("tests/unit/test_check.py", "tests/unit/test_choreography.py", "tests/unit/test_drift.py"),
    *("tests/unit/test_errands.py", "tests/unit/test_permissions.py", "tests/unit/test_step.py"),
    *("tests/unit/test_recovery.py", "tests/unit/test_rules.py", "tests/unit/test_trust.py"),
    "tests/integration/test_inbox.py",
)
RUN_SECONDS: Final = 280.0
LONG_SECONDS: Final = 3_600.0


@dataclass(frozen=True)
class Alone:
    """A copy of the tree without the order system, and an interpreter that knows no other."""

    tree: Path
    python: Path

    def run(
        self, *arguments: str, folder: Path | None = None, timeout: float = RUN_SECONDS
    ) -> None:
        """Run Python with these arguments, or `make`; it has to succeed."""
        program = arguments if arguments[0] == "make" else (str(self.python), *arguments)
        done = subprocess.run(
            program,
            cwd=folder or self.tree,
            env=self._environment(),
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-5_000:] + done.stderr[-5_000:]

    def test(self, *arguments: str, timeout: float = RUN_SECONDS) -> None:
        """Run tests there, whose tools ask for a saga of the tests' own."""
        self.run("-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, timeout=timeout)

    def _environment(self) -> dict[str, str]:
        foreign = ("AMQP_URL", "PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER")
        known = {name: value for name, value in os.environ.items() if name not in foreign}
        return known | {"PYTHONPATH": str(self.tree), "PYTHONDONTWRITEBYTECODE": "1"}


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Alone:
    folder = tmp_path_factory.mktemp("alone")
    copy_without_orders(folder / "tree")
    # The packages that are installed here, but not this checkout: a path in a `.pth` file of
    # another environment is taken as it is.
    venv.EnvBuilder(symlinks=True).create(folder / "env")
    here = {"base": str(folder / "env"), "platbase": str(folder / "env")}
    installed = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    path = Path(sysconfig.get_path("purelib", "venv", here)) / "packages.pth"
    path.write_text("".join(f"{entry}\n" for entry in sorted(installed)))
    return Alone(folder / "tree", folder / "env" / "bin" / "python")


def test_most_tests_of_the_engine_know_no_orders() -> None:
    assert len(engines_tests()) >= TEST_FILES_MIN


def test_nothing_of_the_orders_can_be_imported_there(alone: Alone) -> None:
    for package in (*ORDERS, MEASURED):
        look = f"import importlib.util as u; assert u.find_spec({package!r}) is None"
        alone.run("-c", look)


def test_the_engines_tests_pass_without_the_orders(
    alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "tests.errands:SAGA")
    alone.test(*QUICK, "-k", "not postgresql")


def test_a_new_project_is_sound_without_the_orders(alone: Alone) -> None:
    new_project(alone, "trips")


@pytest.mark.long
@pytest.mark.timeout(LONG_SECONDS)
def test_a_new_projects_demo_runs_without_the_orders(alone: Alone) -> None:
    project = new_project(alone, "tours")
    alone.run(
        *("make", "demo", "SAGAS=20", f"PYTHON={alone.python}"),
        folder=project,
        timeout=LONG_SECONDS,
    )


@pytest.mark.long
@pytest.mark.timeout(LONG_SECONDS)
def test_all_of_the_engines_tests_pass_without_the_orders(
    alone: Alone, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "tests.errands:SAGA")
    alone.test("-n", "auto", "tests/unit", "tests/integration", timeout=LONG_SECONDS)


def new_project(alone: Alone, name: str) -> Path:
    """What `saga new` makes beside the tree; its signatures are sound."""
    folder = alone.tree.parent / name
    alone.run("-m", "saga.cli", "new", name, folder=alone.tree.parent)
    alone.run("-m", "saga.cli", "check", folder=folder)
    return folder
