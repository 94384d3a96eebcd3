"""What docs/your-own-saga.md says to do, done in an empty folder with nothing but the wheel."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import sysconfig
import time
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from saga.deployment import FILE_NAME
from tests.polling import DEADLINE_SECONDS, wait_until
from tests.shell_saga import saga_for_shells

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "your-own-saga.md"
STARTED_SECONDS = 240.0
"""A system runs by then, on a machine that is busy too."""
RUN = "saga up"
"""Runs until Ctrl-C; what follows in the document is typed beside it."""
SETTLING = ("saga status", "saga reconcile", "saga stuck", "saga history verify")
"""They find something while sagas are under way."""
OF_THE_NEW_PROJECT = ("make demo SAGAS=50", "make test")
"""What is typed before a line is written: a long test's. What was written is run and tested too."""

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


def changed(text: str, diff: str) -> str:
    """A text after a diff, whose hunks say no line numbers."""
    for hunk in diff.split("@@\n")[1:]:
        lines = hunk.splitlines(keepends=True)
        before = "".join(line[1:] for line in lines if not line.startswith("+"))
        after = "".join(line[1:] for line in lines if not line.startswith("-"))
        assert text.count(before) == 1, f"{text.count(before)} times in the file:\n{before}"
        text = text.replace(before, after)
    return text


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of an environment with the engine's wheel, the packages that are installed
    here, and nothing of this checkout: a path in a `.pth` file of its own is taken as it is."""
    folder = tmp_path_factory.mktemp("installed")
    source = folder / "source"
    files = ["saga", "pyproject.toml", "README.md", "LICENSE"]
    source.mkdir()
    for name in files:
        subprocess.run(["cp", "-r", ROOT / name, source], check=True)
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(source)]
    subprocess.run([*pip, *build], check=True)
    (wheel,) = folder.glob("*.whl")
    venv.EnvBuilder(symlinks=True).create(folder / "env")
    python = folder / "env" / "bin" / "python"
    install = ["--python", str(python), "install", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *install], check=True)
    here = {"base": str(folder / "env"), "platbase": str(folder / "env")}
    ours = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    path = Path(sysconfig.get_path("purelib", "venv", here)) / "packages.pth"
    path.write_text("".join(f"{entry}\n" for entry in sorted(ours)))
    return python.parent


class Shell:
    """A terminal in which one command is typed after the other."""

    def __init__(self, folder: Path, programs: Path) -> None:
        self.folder = folder
        self._programs = programs
        known = {k: v for k, v in os.environ.items() if k not in ("AMQP_URL", "PYTHONPATH", "SAGA")}
        self.environment = known | {
            # With the tools of development behind its own programs.
            "PATH": f"{programs}:{sys.prefix}/bin:{os.environ['PATH']}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYTEST_ADDOPTS": "-p no:cacheprovider",
        }
        self._functions: list[str] = []

    def prefer(self, programs: Path) -> None:
        """From now on, type what is here instead of what is installed."""
        self.environment["PATH"] = f"{programs}:{self.environment['PATH']}"

    def type(self, command: str, *, patience_seconds: float = 0.0) -> str:
        """What a command says; it has to succeed, once patience is over."""
        if re.match(r"\w+\(\) \{", command):
            self._functions.append(command)
            return ""
        if command.startswith("cd "):
            self.folder /= command.removeprefix("cd ")
            return ""
        until = time.monotonic() + patience_seconds
        while True:
            done = subprocess.run(
                ["bash", "-c", "\n".join([*self._functions, command])],
                cwd=self.folder,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode == 0 or time.monotonic() > until:
                break
            time.sleep(0.5)
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    @contextmanager
    def running(self, command: str, log: IO[str]) -> Iterator[None]:
        """A command that runs until Ctrl-C."""
        with subprocess.Popen(
            command.split(),
            cwd=self.folder,
            env=self.environment,
            executable=self._programs / command.split()[0],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
        ) as process:
            try:
                yield
            finally:
                process.send_signal(signal.SIGINT)
                process.wait(DEADLINE_SECONDS)


@pytest.fixture(scope="module")
def followed(
    environment: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Shell, dict[str, str]]]:
    """The project, and what each command said, while its system still runs."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shell = Shell(tmp_path_factory.mktemp("empty"), environment)
    said: dict[str, str] = {}

    def follow(blocks: list[Block]) -> None:
        for block in blocks:
            if block.path is not None:
                do(shell.folder / block.path, block)
            for command in block.commands if block.path is None else ():
                if block is BLOCKS[0] and command in OF_THE_NEW_PROJECT:
                    continue
                patience = DEADLINE_SECONDS if command.startswith(SETTLING) else 0.0
                typed = command.replace("/tmp/", f"{elsewhere}/")  # noqa: S108 - the document's
                said[command] = shell.type(typed, patience_seconds=patience)

    (up,) = (number for number, block in enumerate(BLOCKS) if block.commands == [RUN])
    quick, python = tmp_path_factory.mktemp("quick"), str(environment / "python")
    with saga_for_shells(quick, python, shell.environment) as program:
        shell.prefer(program.parent)
        follow(BLOCKS[:up])
        with (elsewhere / "log").open("w") as log, shell.running(RUN, log):
            # What costs no process first: it would be taken from those that start.
            wait_until((shell.folder / "data" / FILE_NAME).exists, seconds=STARTED_SECONDS)
            shell.type("saga status", patience_seconds=STARTED_SECONDS)
            follow(BLOCKS[up + 1 :])
            yield shell, said


def do(file: Path, block: Block) -> None:
    """Write, change or add to a file, as a block says."""
    match block.how:
        case "Change":
            file.write_text(changed(file.read_text(), block.text))
        case "Write":
            assert not file.exists(), f"{block.path} is there already"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(block.text)
        case _:
            file.write_text(f"{file.read_text()}\n\n{block.text}")


def test_every_block_is_a_file_or_commands() -> None:
    for block in BLOCKS:
        assert (block.path is None) == (block.language == "console"), block
        assert block.path is not None or block.commands, block


@pytest.mark.long
def test_a_new_project_runs_and_passes_its_tests(environment: Path, tmp_path: Path) -> None:
    shell = Shell(tmp_path, environment)
    typed = BLOCKS[0].commands
    assert {*OF_THE_NEW_PROJECT} < {*typed}

    said = {command: shell.type(command) for command in typed}

    assert "the books are right" in said["make demo SAGAS=50"]


def test_the_engine_is_the_wheels_and_no_other_package_of_ours_is_there(environment: Path) -> None:
    program = (
        "import importlib.util as util, saga; print(saga.__file__);"
        "print([n for n in ('common', 'order_saga', 'order_service') if util.find_spec(n)])"
    )
    done = subprocess.run(
        [environment / "python", "-c", program],
        cwd=environment,
        env={},
        capture_output=True,
        text=True,
        check=True,
    )
    where, ours = done.stdout.splitlines()
    assert Path(where).is_relative_to(environment.parent)
    assert ours == "[]"
    assert (Path(where).parent / "py.typed").is_file()


@pytest.mark.timeout(900)
def test_the_saga_is_written_checked_verified_simulated_run_and_rebuilt(
    followed: tuple[Shell, dict[str, str]],
) -> None:
    _, said = followed

    assert "nothing found" in said["saga check"]
    assert "nothing is broken" in said["saga verify"]
    assert "nothing is broken" in said["saga verify --simulate --seeds 50"]
    assert "the books are right" in said["saga reconcile --grace 0"]
    trace = said["saga trace smith/2030-04"]
    for message in ("stay.requested", "room.reserved", "car.arranged", "stay.confirmed"):
        assert message in trace
    assert "stay.has_" in trace, "the first leg of the join is in the trace"
    assert "the books are right" in said["saga demo --sagas 100 --seed 7"]


def test_everything_that_follows_is_there(followed: tuple[Shell, dict[str, str]]) -> None:
    shell, _ = followed
    definitions = json.loads((shell.folder / "rabbitmq" / "definitions.json").read_text())
    assert {"booking", "room", "transfer"} <= {user["name"] for user in definitions["users"]}
    for name in ("compose.yaml", "docs/map.svg", "docs/services/transfer.md", "Dockerfile"):
        assert "transfer" in (shell.folder / name).read_text() or name == "Dockerfile"
    assert (shell.folder / "contracts" / "examples" / "car.dropped" / "v1.json").is_file()
    shell.type("saga generate --check")


@pytest.mark.parametrize(
    "tool",
    ["ruff check .", "ruff format --check .", pytest.param("mypy", marks=pytest.mark.long)],
)
def test_the_project_is_clean(tool: str, followed: tuple[Shell, dict[str, str]]) -> None:
    shell, _ = followed
    program, _, arguments = tool.partition(" ")
    shell.type(f"{sys.prefix}/bin/{program} {arguments}")
