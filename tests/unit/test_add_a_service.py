"""What docs/add-a-service.md says to do, done in a copy of the project."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAKEFILE = ROOT / "Makefile"
DOCUMENT = ROOT / "docs" / "add-a-service.md"
NOT_COPIED = ("build", "data", "dist", "mutants")
"""What no clone has. So is what begins with a dot, but for what git keeps."""
KEPT = (".ci", ".dockerignore", ".gitignore", ".pre-commit-config.yaml")

_BLOCK = re.compile(
    r"(?:(?P<how>Add to|Write|Change) `(?P<path>[^`]+)`:\n\n)?"
    r"^```(?P<language>\w+)\n(?P<text>.*?)^```",
    re.MULTILINE | re.DOTALL,
)


@dataclass(frozen=True)
class Block:
    """A code block: of a file that is to be written or added to, or commands to be typed."""

    how: str | None
    path: str | None
    language: str
    text: str

    @property
    def commands(self) -> list[str]:
        return re.findall(r"^\$ (.*)$", self.text, re.MULTILINE)


BLOCKS = [Block(**found.groupdict()) for found in _BLOCK.finditer(DOCUMENT.read_text())]


class Project:
    """A copy of the project, with its own packages and this environment's programs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for source in ROOT.iterdir():
            hidden = source.name.startswith(".") and source.name not in KEPT
            if hidden or source.name in NOT_COPIED:
                continue
            if source.is_dir():
                skipped = shutil.ignore_patterns("__pycache__", "*.egg-info")
                shutil.copytree(source, folder / source.name, ignore=skipped)
            else:
                shutil.copy(source, folder)
        (folder / ".venv").symlink_to(sys.prefix)

    def follow(self, block: Block, *, but: str = "\0") -> None:
        """Do what a block says, but for commands with this in them."""
        if block.path is None:
            for command in block.commands:
                if but not in command:
                    for line in as_typed(command):
                        self.type(line)
            return
        path = self.folder / block.path
        if block.how == "Change":
            path.write_text(changed(path.read_text(), block.text))
            return
        if block.how == "Write":
            assert not path.exists(), f"{block.path} is there already"
            path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:
            file.write(("\n\n" if block.how == "Add to" else "") + block.text)

    def type(self, command: str) -> str:
        done = subprocess.run(
            ["bash", "-c", command],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr


def changed(text: str, diff: str) -> str:
    """A text after a diff, whose hunks say no line numbers."""
    for hunk in diff.split("@@\n")[1:]:
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if not line.startswith("+"))
        after = "".join(line[1:] for line in lines if not line.startswith("-"))
        assert text.count(before) == 1, f"{text.count(before)} times in the file:\n{before}"
        text = text.replace(before, after)
    return text


def as_typed(command: str) -> list[str]:
    """The commands that a `make` target runs, without those that would change the environment,
    which is not the copy's own; other commands as they are."""
    if not command.startswith("make "):
        return [command]
    recipe = re.search(
        rf"^{command.removeprefix('make ')}:.*\n((?:\t.*\n)+)", MAKEFILE.read_text(), re.MULTILINE
    )
    assert recipe is not None, command
    lines = [line.strip().removeprefix("@") for line in recipe[1].splitlines()]
    return [line.replace("$(VENV)", ".venv") for line in lines if "scripts/setup" not in line]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    project = Project(tmp_path_factory.mktemp("add-a-service"))
    for block in BLOCKS:
        project.follow(block, but="saga demo")
    return project


def test_every_block_is_a_file_or_commands() -> None:
    for block in BLOCKS:
        assert (block.path is None) == (block.language == "console"), block
        assert block.path is not None or block.commands, block


def test_the_service_has_its_queues_its_permissions_and_its_place_on_the_map(
    project: Project,
) -> None:
    definitions = json.loads((project.folder / "rabbitmq" / "definitions.json").read_text())
    bound = {b["routing_key"] for b in definitions["bindings"] if "shipping." in b["destination"]}
    assert {"order.confirmed.high", "order.confirmed.normal"} <= bound
    assert "shipping" in {user["name"] for user in definitions["users"]}
    assert "shipment.requested" in (project.folder / "docs" / "map.svg").read_text()
    assert (project.folder / "docs" / "services" / "shipping.md").exists()
    project.type(".venv/bin/saga generate --check")


def test_nothing_that_was_there_is_different_but_what_the_document_or_a_generator_wrote(
    project: Project,
) -> None:
    different = {
        path.relative_to(ROOT).as_posix()
        for pattern in ("*_service", "common", "order_saga", "saga")
        for source in ROOT.glob(pattern)
        for path in source.rglob("*.py")
        if path.read_text() != (project.folder / path.relative_to(ROOT)).read_text()
    }
    assert different == {"common/events.py", "order_saga/__init__.py"}


KNOW_THE_SERVICES = (
    *(f"tests/unit/test_{name}.py" for name in ("compose", "generated", "map", "permissions")),
    "tests/unit/test_monitoring.py::test_every_service_is_scraped",
    "tests/unit/test_monitoring.py::test_the_dashboard_files_are_what_the_code_makes",
)
"""The tests that a service more has failed. `make verify` runs all of tests/unit here."""


@pytest.mark.parametrize(
    "tests",
    [KNOW_THE_SERVICES, pytest.param(("tests/unit",), marks=pytest.mark.long)],
    ids=["some", "all"],
)
def test_the_projects_own_tests_pass_as_before(tests: Sequence[str], project: Project) -> None:
    project.type(
        f".venv/bin/python -m pytest -q -p no:cacheprovider {' '.join(tests)} "
        f"--deselect tests/unit/test_add_a_service.py"
    )


def test_the_import_contracts_hold(project: Project) -> None:
    project.type(".venv/bin/lint-imports --no-cache")


@pytest.mark.long
def test_the_types_are_right(project: Project) -> None:
    project.type(".venv/bin/mypy --cache-dir /dev/null")


@pytest.mark.long
def test_the_service_takes_part_in_the_demo(project: Project, tmp_path: Path) -> None:
    (command,) = (c for block in BLOCKS for c in block.commands if "saga demo" in c)
    data = tmp_path / "data"

    said = project.type(re.sub(r"--data-dir \S+", f"--data-dir {data}", command))

    assert re.search(r"starting the services .*\bshipping\b", said)
    assert "the books are right" in said
