"""Every option and argument of every command takes what makes sense, and names what does not.

They are taken from the commands themselves, so a new one is covered as it is.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from enum import Enum
from pathlib import Path
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin
from uuid import UUID, uuid4

import pytest
import typer.main
from typer.core import TyperGroup

from saga.cli import command_line
from saga.deployment import Deployment
from saga.discovery import packages, services
from saga.runtime.kernel.migrations import prepare
from saga.runtime.kernel.sqlite import sqlite_engine
from tests.command import saga
from tests.integration.served import built

PARSED_ONLY: Final = {
    *("up", "demo", "publish", "exporter", "console", "verify"),
    *("new", "generate", "migration", "schemas release"),
}
"""What starts processes, writes into the project or computes for long is not run, but its command
line is read."""

NUMBERS: Final = ("-1", "0", "9223372036854775808", "9" * 5_000, "1e999", "nan", "x")
TEXTS: Final = ("", "\udc80", "0001-01-01T00:00:00+14:00", "9" * 400 + "d", "x" * 10_000)
PATHS: Final = ("", "/dev/null/x", "x" * 5_000, "\udcff", "/")


def commands(group: Any, *before: str) -> Iterator[tuple[str, Any]]:
    """The commands below that one, by how they are called."""
    for name, command in group.commands.items():
        if isinstance(command, TyperGroup):
            yield from commands(command, *before, name)
        else:
            yield " ".join((*before, name)), command


WrongUsage: Final[type[Exception]] = typer.BadParameter.__bases__[0]
SAGA: Final = command_line()
PACKAGES: Final = packages()
COMMANDS: Final = dict(commands(SAGA))


def kind_of(parameter: Any) -> Any:
    """The type of a parameter's values."""
    kind = parameter.type_descriptor.annotation
    while (inner := [arg for arg in get_args(kind) if arg is not NoneType]) and (
        get_origin(kind) is not Literal
    ):
        kind = inner[0]
    return kind


def edges_of(parameter: Any) -> Sequence[str]:
    """What is at the edge of a parameter's type, or beyond it."""
    if getattr(parameter, "is_flag", False):
        return ()
    kind = kind_of(parameter)
    if kind in (int, float):
        return NUMBERS
    return PATHS if kind is Path else TEXTS


def sensible(parameter: Any) -> str:
    """A value that can be read."""
    kind = kind_of(parameter)
    if kind is UUID:
        return str(uuid4())
    if get_origin(kind) is Literal:
        return str(get_args(kind)[0])
    if issubclass(kind, Enum):
        return str(next(iter(kind)).value)
    return "1" if kind in (int, float) else "x"


def lines(name: str) -> Iterator[list[str]]:
    """Command lines with one odd value each."""
    command = COMMANDS[name]
    arguments = [p for p in command.params if p.param_type_name == "argument" and p.required]
    needed = [p for p in command.params if p.param_type_name == "option" and p.required]
    for parameter in command.params:
        if parameter.name == "data_dir":
            continue
        for value in edges_of(parameter):
            given = [f"{p.opts[0]}={sensible(p)}" for p in needed if p is not parameter]
            if parameter.param_type_name == "option":
                given.append(f"{parameter.opts[0]}={value}")
            values = [value if p is parameter else sensible(p) for p in arguments]
            if parameter.param_type_name == "argument" and parameter not in arguments:
                values.append(value)
            yield [*name.split(), *given, "--", *values]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data folder of a system whose databases are empty and whose broker is gone."""
    folder = tmp_path_factory.mktemp("data")
    urls = {}
    for package, service in services().items():
        process, _ = built(package, folder)
        urls[service.name] = f"sqlite:///{folder / service.name}.db"
        with sqlite_engine(urls[service.name]).begin() as connection:
            prepare(connection, process.schema)
    Deployment(
        amqp_url="amqp://127.0.0.1:1/",
        http_urls={},
        database_urls=urls,
        outside_urls={"provider": f"sqlite:///{folder / 'provider.db'}"},
    ).save(folder)
    return folder


@pytest.fixture(autouse=True)
def _prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    """What each run would find out again is found out once."""
    monkeypatch.setattr("typer.main.get_command", lambda _: SAGA)
    monkeypatch.setattr("saga.discovery.packages", PACKAGES.copy)


@pytest.mark.parametrize("name", COMMANDS)
def test_what_makes_no_sense_is_named_in_one_line(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for line in lines(name):
        if name in PARSED_ONLY:
            with contextlib.suppress(WrongUsage):
                COMMANDS[name].make_context(name, line[len(name.split()) :])
            continue
        done = saga(*line, DATA_DIR=str(folder))

        assert done.returncode in (0, 1, 2), line
        assert "Traceback" not in done.stderr, line
        errors = [said for said in done.stderr.splitlines() if said.startswith("error: ")]
        assert len(errors) == (
            done.returncode == 2 or (done.returncode == 1 and not done.stdout)
        ), (
            line,
            done.stderr,
        )
        assert all(len(error) < 2_000 for error in errors), line
