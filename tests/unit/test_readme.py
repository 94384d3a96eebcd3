"""The documents name what there is: settings, commands, files, tests; and each can be found."""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from unittest.mock import Mock

import pytest
import typer
from fastapi.routing import APIRoute
from typer.core import TyperGroup

from saga.archive.routes import routes
from saga.archive.views import projection_of
from saga.cli import app, command_line
from saga.console.settings import ConsoleSettings
from saga.discovery import choreography, services
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.tables import utc_now
from saga.runtime.settings import HttpSettings, Settings
from tests.faults.crash import POINTS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *DOCS.glob("**/*.md"), ROOT / "bench" / "README.md"])
FOLDERS = (
    r"common|saga|order_saga|\w+_service|rabbitmq|tests|docs|bench|monitoring|contracts|scripts"
)
README_LINES_MAX = 170
README_COLUMNS_MAX = 120


def section(page: str, title: str) -> str:
    return (DOCS / page).read_text().split(f"\n## {title}\n")[1].split("\n## ")[0]


def links(document: Path) -> Iterator[tuple[Path, str]]:
    """The files that a document links to, and the headings in them."""
    text = re.sub(r"^```.*?^```", "", document.read_text(), flags=re.MULTILINE | re.DOTALL)
    for target in re.findall(r"\]\(([^):]+)\)", text):
        name, _, heading = target.partition("#")
        yield (document.parent / name).resolve() if name else document, heading


def headings(document: Path) -> set[str]:
    """Keyed by the anchor that links use, made as GitHub makes it."""
    titles = re.findall(r"^#+ (.*)$", document.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def of_all_documents(test: Callable[[Path], None]) -> Callable[[Path], None]:
    names = [document.relative_to(ROOT).as_posix() for document in DOCUMENTS]
    return pytest.mark.parametrize("document", DOCUMENTS, ids=names)(test)


def test_the_readme_is_read_in_one_sitting() -> None:
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= README_LINES_MAX, "move what not every newcomer needs to docs/"
    too_long = [number for number, line in enumerate(lines, 1) if len(line) > README_COLUMNS_MAX]
    assert not too_long, "break these lines"


def test_every_page_is_found_from_the_index() -> None:
    found, new = set[Path](), {DOCS / "README.md"}
    while new:
        found |= new
        linked = {target for page in new for target, _ in links(page)}
        within = {page for folder in linked if folder.is_dir() for page in folder.glob("*.md")}
        new = {page for page in linked | within if page.suffix == ".md"} - found
    assert set(DOCS.glob("**/*.md")) <= found, "name these pages in docs/README.md"


def blocks(language: str, text: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def settings() -> dict[str, object]:
    """The default of every setting of every service, and of the console, by its variable."""
    defaults: dict[str, object] = {}
    for package in services():
        for kind in vars(importlib.import_module(f"{package}.app")).values():
            if isinstance(kind, type) and issubclass(kind, Settings):
                for name, field in kind.model_fields.items():
                    defaults[name.upper()] = field.default
    for name in ConsoleSettings.model_fields.keys() - HttpSettings.model_fields.keys():
        defaults[name.upper()] = ConsoleSettings.model_fields[name].default
    return defaults


def documented_settings() -> dict[str, str]:
    table = section("configuration.md", "Settings")
    return dict(re.findall(r"^\| `([A-Z_]+)` \| (.*?) \| .+ \|$", table, re.MULTILINE))


def test_the_configuration_table_names_every_setting_and_no_other() -> None:
    assert documented_settings().keys() == settings().keys()


@pytest.mark.parametrize("variable", sorted(settings()))
def test_a_setting_is_documented_with_its_default(variable: str) -> None:
    default = settings()[variable]
    written = documented_settings()[variable]
    if default in (None, ""):
        assert not written.startswith("`"), "say in words what holds without it"
    elif isinstance(default, float):
        assert float(written.strip("`")) == default
    else:
        said = str(default).lower() if isinstance(default, bool) else default
        assert written == f"`{said}`"


def commands(text: str) -> Iterator[list[str]]:
    """What is to be typed, in console blocks, and the `make` and `saga` commands within a line."""
    for block in blocks("console", text):
        for line in re.findall(r"^\$ (.*)$", block, re.MULTILINE):
            yield words(line.split(" #")[0])
    for code in re.findall(r"`([^`\n]+)`", re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)):
        yield words(code)


def words(command: str) -> list[str]:
    """A command's words, as a shell tells them apart; one of several lines has no end here."""
    try:
        return shlex.split(command)
    except ValueError:
        return command.split()


def words_after(program: str, command: list[str]) -> list[str] | None:
    """The arguments of `program` in a command that may begin with variables."""
    while command and re.fullmatch(r"[A-Z_]+=.*", command[0]):
        command = command[1:]
    if command and command[0].removeprefix(".venv/bin/") == program:
        return command[1:]
    return None


@of_all_documents
def test_every_make_target_that_is_named_exists(document: Path) -> None:
    targets = set(re.findall(r"^([a-z0-9]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for command in commands(document.read_text()):
        for word in words_after("make", command) or []:
            if "=" not in word:
                assert word in targets, command


YOUR_OWN = "your-own-saga.md"


@of_all_documents
def test_every_saga_command_that_is_named_exists_with_its_options(document: Path) -> None:
    # Who has a saga of their own has the engine's commands, not those of the orders.
    saga = typer.main.get_command(app) if document.name == YOUR_OWN else command_line()
    for command in commands(document.read_text()):
        left = words_after("saga", command)
        found = saga
        while left and isinstance(found, TyperGroup) and not left[0].startswith("-"):
            assert left[0] in found.commands, command
            found, left = found.commands[left[0]], left[1:]
        options = {option for parameter in found.params for option in parameter.opts}
        for word in left or []:
            if word.startswith("--"):
                assert word in options, command


def test_the_names_that_a_new_project_has_of_its_domain_are_all_listed() -> None:
    modules = (ROOT / "saga" / "template" / "project_name").rglob("*.py")
    texts = "\n".join(module.read_text() for module in modules)
    names = set(re.findall(r"^class (\w+)", texts, re.MULTILINE)) - {"_About"}
    names |= set(re.findall(r"Participant\(\s*\"(\w+)\"", texts))
    names |= {f"{prefix}.*" for prefix in re.findall(r'\btype: .* = "(\w+)\.', texts)}
    section = (ROOT / "docs" / YOUR_OWN).read_text().partition("Replace the domain with yours\n")[2]
    listed = set(re.findall(r"`([\w.*]+)`", section))

    assert {"StayConfirmed", "booking", "room.*"} <= names
    assert names <= listed


@of_all_documents
def test_every_file_that_is_named_exists(document: Path) -> None:
    for target, heading in links(document):
        assert target.exists(), target
        assert not heading or heading in headings(target), f"{target} has no heading #{heading}"
    for target in re.findall(rf"`((?:{FOLDERS})/[\w./-]+)`", document.read_text()):
        if document.name != YOUR_OWN:  # Its files are another project's.
            assert (ROOT / target).exists(), target


def test_every_saga_command_is_listed() -> None:
    saga = command_line()
    assert isinstance(saga, TyperGroup)
    listed = re.findall(r"^\| `saga ([a-z]+)", (DOCS / "commands.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(saga.commands)


def test_every_route_of_the_history_is_listed() -> None:
    projection = projection_of(choreography())
    assert projection.view is not None
    database = Mock(spec=Database)  # Asked by no route before a request.
    routers = (
        routes(database, projection),
        projection.view.routes(database, choreography(), utc_now),
    )
    served = {
        f"{method} {route.path}"
        for router in routers
        for route in router.routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    listed = re.findall(r"^\| `([^`]+)` \|", section("http.md", "The history"), re.MULTILINE)
    assert {request.replace("{subject}", "{subject:path}") for request in listed} == served


def test_every_package_of_the_engine_is_listed() -> None:
    tree = section("development.md", "The engine")
    packages = {path.name for path in (ROOT / "saga").glob("[a-z]*") if path.is_dir()}
    assert set(re.findall(r"^saga/(\w+)/ ", tree, re.MULTILINE)) == packages


def test_every_file_of_the_trees_exists() -> None:
    for block in blocks("text", (DOCS / "development.md").read_text()):
        folder = ROOT
        for indent, name in re.findall(r"^( *)(\S+)", block, re.MULTILINE):
            assert list((folder if indent else ROOT).glob(name)), name
            if not indent and name.endswith("/"):
                folder = next(ROOT.glob(name))


def test_decisions_are_numbered_without_gaps() -> None:
    decisions = sorted((ROOT / "docs" / "decisions").glob("*.md"))
    titles = [decision.read_text().partition(".")[0] for decision in decisions]
    assert titles == [f"# {number}" for number in range(1, len(decisions) + 1)]
    assert [decision.name[:4] for decision in decisions] == [
        f"{number:04}" for number in range(1, len(decisions) + 1)
    ]


def test_every_seam_of_the_guarantees_is_one_the_fault_tests_know() -> None:
    table = section("guarantees.md", "When a service is killed")
    assert set(re.findall(r"`([a-z]+(?:-[a-z]+)+)`", table)) == set(POINTS)
