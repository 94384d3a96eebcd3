"""What `tests/kernel_mutants.py` takes for a find, with pytest as it is."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.kernel_mutants import MutantOutcome, outcome_of

HANG_SECONDS = 1.0
TESTS = """
import time
import pytest

@pytest.fixture
def room():
    raise OSError("No space left on device")

def test_fails():
    assert False

def test_hangs():
    time.sleep(600)

def test_cannot_begin(room):
    pass
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers =\n    long: takes time\n")
    (tmp_path / "test_toy.py").write_text(TESTS)
    return tmp_path


@pytest.mark.parametrize(
    ("test", "outcome"), [("fails", MutantOutcome.FAILED), ("hangs", MutantOutcome.HUNG)]
)
def test_a_mistake_is_found_by_a_test_that_fails_or_hangs(
    test: str, outcome: MutantOutcome, folder: Path
) -> None:
    assert outcome_of([f"test_toy.py::test_{test}"], folder, HANG_SECONDS) is outcome


def test_a_test_that_cannot_begin_finds_nothing(folder: Path) -> None:
    with pytest.raises(RuntimeError, match="the tests did not run"):
        outcome_of(["test_toy.py::test_cannot_begin"], folder, HANG_SECONDS)
