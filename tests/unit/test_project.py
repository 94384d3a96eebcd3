"""What cannot begin a project, or a script, is refused in one line before anything is written."""

from __future__ import annotations

import tomllib
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


@pytest.mark.parametrize(
    "project", ["saga/template", "examples/trips", "examples/taskflow", "examples/orchestrated"]
)
def test_a_project_asks_for_the_engine_that_it_was_made_with(project: str) -> None:
    root = Path(__file__).parents[2]
    version = tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"]
    major, minor = map(int, version.split(".")[:2])

    asked = tomllib.loads((root / project / "pyproject.toml").read_text())["project"]

    wanted = [f">={major}.{minor},<{major}.{minor + 1}"]
    assert [need.removeprefix("saga-engine") for need in asked["dependencies"]] == wanted
    (tests,) = asked["optional-dependencies"].values()
    assert tests[0].removeprefix("saga-engine[test]") == wanted[0]
