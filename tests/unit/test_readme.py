"""The documents name what there is: settings, commands, files, tests; and their code runs."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.core import TyperGroup

from saga.cli import command_line
from saga.discovery import services
from saga.runtime.settings import Settings
from tests.faults.crash import POINTS

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def section(title: str) -> str:
    return README.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def settings() -> dict[str, object]:
    """The default of every setting of every service, by its variable."""
    defaults: dict[str, object] = {}
    for package in services():
        for kind in vars(importlib.import_module(f"{package}.app")).values():
            if isinstance(kind, type) and issubclass(kind, Settings):
                for name, field in kind.model_fields.items():
                    defaults[name.upper()] = field.default
    return defaults


def documented_settings() -> dict[str, str]:
    rows = re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| .+ \|$", section("Configuration"), re.MULTILINE)
    return dict(rows)


def test_the_configuration_table_names_every_setting_and_no_other() -> None:
    assert documented_settings().keys() == settings().keys()


@pytest.mark.parametrize("variable", sorted(settings()))
def test_a_setting_is_documented_with_its_default(variable: str) -> None:
    default = settings()[variable]
    written = documented_settings()[variable]
    if default is None:
        assert not written.startswith("`"), "say in words what holds without it"
    elif isinstance(default, float):
        assert float(written.strip("`")) == default
    else:
        assert written == f"`{default}`"


def commands(text: str) -> Iterator[list[str]]:
    """What is to be typed, in console blocks, and the `make` and `saga` commands within a line."""
    for block in blocks("console", text):
        for line in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
            yield line.split(" #")[0].split()
    for code in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
        yield shlex.split(code) if code.count("'") % 2 == 0 else code.split()


def words_after(program: str, command: list[str]) -> list[str] | None:
    """The arguments of `program` in a command that may begin with variables."""
    while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
        command = command[1:]
    if command and command[0].removeprefix(".venv/bin/") == program:
        return command[1:]
    return None


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_make_target_that_is_named_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(document.read_text()):
        for word in words_after("make", command) or []:
            if "=" not in word:
                assert word in targets, command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_saga_command_that_is_named_exists_with_its_options(document: Path) -> None:
    saga = command_line()
    for command in commands(document.read_text()):
        words = words_after("saga", command)
        found = saga
        while words and isinstance(found, TyperGroup) and not words[0].startswith("-"):
            assert words[0] in found.commands, command
            found, words = found.commands[words[0]], words[1:]
        options = {option for parameter in found.params for option in parameter.opts}
        for word in words or []:
            if word.startswith("--"):
                assert word in options, command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_every_file_that_is_named_exists(document: Path) -> None:
    text = document.read_text()
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (document.parent / target).exists(), target
    for target in re.findall(r"`((?:common|saga|\w+_service|rabbitmq|tests|docs)/[\w./-]+)`", text):
        if "shipping" not in target:
            assert (ROOT / target).exists(), target


def test_decisions_are_numbered_without_gaps() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    titles = [decision.read_text().partition(".")[0] for decision in decisions]
    assert titles == [f"# {number}" for number in range(1, len(decisions) + 1)]
    assert [decision.name[:4] for decision in decisions] == [
        f"{number:04}" for number in range(1, len(decisions) + 1)
    ]


def test_every_seam_of_the_guarantees_is_one_the_fault_tests_know() -> None:
    table = section("What is guaranteed").split("\n\n")[1]
    assert set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", table)) == set(POINTS)
