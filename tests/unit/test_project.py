"""What cannot begin a project, or a script, is refused in one line before anything is written."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.command import saga


@pytest.mark.parametrize(
    "name", ["", "Trips", "trips-x", "class", "saga", "json", "fastapi", "yaml"]
)
def test_a_name_that_no_package_of_ones_own_can_have_is_refused(name: str, tmp_path: Path) -> None:
    folder = tmp_path / "made"

    done = saga("new", name, "--folder", str(folder))

    (line,) = done.stderr.splitlines()
    assert repr(name) in line
    assert done.returncode == 2
    assert not folder.exists()


@pytest.mark.parametrize("message", ["", "?", 'a """ b', "a\nb", "a\\"])
def test_a_message_that_no_script_can_begin_with_is_refused(message: str) -> None:
    done = saga("migration", "order", message)

    (line,) = done.stderr.splitlines()
    assert "cannot head a script" in line
    assert done.returncode == 2
