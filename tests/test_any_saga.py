"""The same list of commands on every saga there is, without a line of code for any of them.

The projects below `examples/` are used as their users use them: from a copy of their folder, with
the engine that is installed.
"""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.console.visits import PAGES
from tests.polling import wait_until
from tests.typist import Typist

ROOT = Path(__file__).parents[1]
SETTLED_SECONDS = 240.0
"""Nothing is under way any more then, whatever was waited for on the way."""
pytestmark = pytest.mark.timeout(4 * SETTLED_SECONDS)
NOT_COPIED = (".venv*", "data", "__pycache__", ".*_cache", "node_modules")


@dataclass(frozen=True)
class Project:
    """A saga, and where its commands are typed."""

    name: str
    folder: Path
    count: str = "--sagas"
    """The option that says how many of them a load begins."""
    mix: tuple[str, ...] = ()
    """Options without which its load would do something that no other saga's does."""
    packages: tuple[str, ...] = ()
    """Of this repository, what a project of it has to consist of; `folder` by itself if nothing."""
    copied: bool = True
    """Whether it works from a copy, too."""


ORDERS = Project("orders", ROOT, "--orders", ("--malformed", "0"), copied=False)
MOVING = Project("moving", ROOT, packages=("tests/moving",))
EXAMPLES = [
    Project(file.parent.name, file.parent)
    for file in sorted((ROOT / "examples").glob("*/pyproject.toml"))
]
PROJECTS = [ORDERS, MOVING, *EXAMPLES]
AT_ONCE = "trips"
"""What the short runs take the whole list to; of the others there are tests of their own."""


class Place:
    """A project's folder, in which commands are typed, and its system's data folder."""

    def __init__(self, project: Project, folder: Path, data: Path) -> None:
        self.project = project
        self.folder = folder
        self.data = data
        self.typist = Typist(folder, self.environment)

    @property
    def environment(self) -> dict[str, str]:
        return {k: v for k, v in os.environ.items() if k not in ("AMQP_URL", "SAGA", "DATA_DIR")}

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "saga.cli", *arguments]

    def saga(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.typist.saga(*arguments)

    def on_system(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.saga(*arguments, "--data-dir", str(self.data))

    def say(self, *arguments: str, of_system: bool = True) -> str:
        """What a command prints that has to succeed."""
        done = (self.on_system if of_system else self.saga)(*arguments)
        assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def load(self, command: str, many: int, seed: int) -> dict[str, Any]:
        """Publish sagas, or see them through."""
        arguments = [self.project.count, str(many), "--seed", str(seed), "--json"]
        found: dict[str, Any] = json.loads(self.say(command, *self.project.mix, *arguments))
        return found

    def described(self, expression: str) -> Any:
        """What an expression says of the project's saga, which is loaded where it is at home."""
        program = f"import json; from saga.discovery import saga; print(json.dumps({expression}))"
        return json.loads(self.say("-c", program, of_system=False))

    def settled(self) -> bool:
        """Whether no participant owes anything, and the books are right."""
        return (
            self.on_system("stuck").returncode == 0
            and self.on_system("reconcile", "--grace", "0").returncode == 0
        )

    def dead(self) -> int:
        """How many letters are dead; they are collected for it."""
        return int(json.loads(self.on_system("dlq", "list", "--json").stdout)["letters"])


@contextmanager
def typed_in(project: Project, tmp: Path) -> Iterator[Place]:
    place = Place(project, _folder_of(project, tmp), tmp / "data")
    try:
        yield place
    finally:
        place.typist.close()


def _folder_of(project: Project, tmp: Path) -> Path:
    if not project.copied:
        return project.folder
    ignored = shutil.ignore_patterns(*NOT_COPIED)
    copy = tmp / project.name
    for part in project.packages or (".",):
        shutil.copytree(project.folder / part, copy / part, ignore=ignored)
    for package in project.packages:
        module = package.replace("/", ".")
        (copy / "pyproject.toml").write_text(f'[tool.saga]\nsaga = "{module}:SAGA"\n')
    return copy


@pytest.fixture(scope="module", params=PROJECTS, ids=lambda project: project.name)
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    with typed_in(request.param, tmp_path_factory.mktemp(request.param.name)) as place:
        yield place


@contextmanager
def up(place: Place) -> Iterator[None]:
    with subprocess.Popen(
        place.command("up", "--no-console", "--data-dir", str(place.data)),
        cwd=place.folder,
        env=place.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            wait_until(
                lambda: running.poll() is not None or place.on_system("status").returncode == 0,
                seconds=SETTLED_SECONDS,
            )
            assert running.poll() is None, running.communicate()[1]
            yield
        finally:
            running.send_signal(signal.SIGINT)
            running.communicate(timeout=SETTLED_SECONDS)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(project, marks=() if project.name == AT_ONCE else pytest.mark.long)
        for project in PROJECTS
    ],
    ids=lambda project: project.name,
)
def system(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Place]:
    """A system that runs, in which a load has ended as predicted."""
    tmp = tmp_path_factory.mktemp(f"{request.param.name}-system")
    with typed_in(request.param, tmp) as place:
        if request.param in EXAMPLES:  # They hold their signatures, and not what follows from them.
            place.say("generate", of_system=False)
        with up(place):
            place.load("demo", 20, 1)
            yield place


def pids(place: Place, package: str) -> list[int]:
    """Of the system's processes that run a service of this package."""
    found: list[int] = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
            environment = (folder / "environ").read_bytes()
        except OSError:
            continue  # It has ended, or is another user's.
        if f"{package}.app".encode() in command and bytes(place.data) in environment:
            found.append(int(folder.name))
    return found


@contextmanager
def away(files: Sequence[Path]) -> Iterator[None]:
    """Sandboxes that cannot be reached: where their files were there are folders."""
    for file in files:
        file.rename(file.with_suffix(".away"))
        file.mkdir()
    try:
        yield
    finally:
        for file in files:
            file.rmdir()
            file.with_suffix(".away").rename(file)


def test_every_example_is_known() -> None:
    assert {project.name for project in EXAMPLES} == {"orchestrated", "taskflow", "trips"}


def test_everything_that_follows_is_generated_and_nothing_is_stale(place: Place) -> None:
    if place.project.copied:
        before = {file: file.read_bytes() for file in place.folder.rglob("*") if file.is_file()}
        place.say("generate", of_system=False)
        changed = [str(file) for file, text in before.items() if file.read_bytes() != text]
        assert not changed, "stale; run `saga generate` in the example's folder"
    place.say("generate", "--check", of_system=False)


def test_nothing_is_wrong_with_its_signatures(place: Place) -> None:
    place.say("check", of_system=False)


@pytest.mark.long
def test_nothing_that_can_happen_ends_wrong(place: Place) -> None:
    place.say("verify", of_system=False)


@pytest.mark.parametrize("seeds", [5, pytest.param(200, marks=pytest.mark.long)])
def test_nothing_goes_wrong_in_a_simulation(place: Place, seeds: int) -> None:
    place.say("verify", "--simulate", "--seeds", str(seeds), of_system=False)


def test_every_page_of_its_console_reads(system: Place) -> None:
    with console_of(system) as pages:
        found = re.search(r'href="(/sagas/[^"?]+)"', pages("/sagas"))
        assert found, "no saga is listed"
        for path in PAGES:
            assert "<h1>" in pages(path), path
        for show in ("story", "states", "messages", "future", "what-if"):
            assert "<h1>" in pages(f"{found[1]}?show={show}"), show
        drawn = re.findall(r'<a href="(/messages[^"]+)"', pages("/"))
        assert drawn, "nothing flows on the map"
        assert "<h1>" in pages(html.unescape(drawn[0]))


@contextmanager
def console_of(place: Place) -> Iterator[Callable[[str], str]]:
    """What a console of the system answers, by path."""
    with subprocess.Popen(
        place.command("console", "--port", "0", "--data-dir", str(place.data)),
        cwd=place.folder,
        env=place.environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as running:
        try:
            assert running.stderr is not None
            said = running.stderr.readline()
            address = re.search(r"http://\S+(?=/$)", said.strip())
            assert address, said

            def page(path: str) -> str:
                answer = httpx.get(address[0] + path, timeout=SETTLED_SECONDS, trust_env=False)
                assert answer.status_code == 200, f"{path}: {answer.text}"
                return answer.text

            yield page
        finally:
            running.send_signal(signal.SIGINT)
            running.communicate(timeout=SETTLED_SECONDS)


def test_a_providers_outage_is_healed_by_a_replay(system: Place) -> None:
    if system.project is ORDERS:
        pytest.skip("its load writes customers into the provider's books, and has its own outage")
    outsides = system.described("[each.file for each in saga().outside if each.file]")
    files = [system.data / file for file in outsides]
    assert files, "no outside of it keeps its books in a file"
    with away(files):
        system.load("publish", 10, 2)
        wait_until(lambda: system.dead() > 0, seconds=SETTLED_SECONDS)
    with closing(sqlite3.connect(system.data / "dead_letters.db")) as connection:
        ((subject,), *_) = connection.execute("SELECT subject FROM letters").fetchall()
    now = datetime.now(UTC).isoformat()

    assert "is dead letter" in system.on_system("trace", subject).stdout
    shown = json.loads(system.say("show", subject, "--at", now, "--json"))
    assert shown, "the saga as it is now"
    future = json.loads(system.on_system("future", subject, "--json").stdout)
    assert future["ends"], "what can still become of it"
    replayed = [step["if"] for step in future["steps"] if "is replayed" in step["what"]]
    for step in replayed[0]:
        asked = json.loads(system.on_system("future", subject, "--if", step, "--json").stdout)
        assert asked["what_if"]["way"], "what a replay would lead to"

    def healed() -> bool:
        if system.dead():
            system.on_system("dlq", "replay", "--reason", "the provider is there again")
        return not system.dead() and system.settled()

    wait_until(healed, seconds=SETTLED_SECONDS)
    system.say("history", "verify")


def test_what_it_has_done_would_be_done_again(system: Place) -> None:
    told = json.loads(system.on_system("verify", "--from-history", "--json").stdout)

    # What was tried again, or is sent again by an operator, comes late.
    assert {one["kind"] for one in told["differences"]} <= {"early"}
    assert told["not_looked_at"] == []
    assert told["can_go_wrong"] == []
    assert sum(one["published"] for one in told["compared"].values()) > 0


@pytest.mark.long  # Of the orders' services one is killed each time, in `test_saga.py`.
def test_a_service_killed_under_load_loses_and_doubles_nothing(system: Place) -> None:
    packages = system.described(
        "[p.package for p in saga().choreography.in_python if p.name in "
        "{each.asked_by for each in saga().outside}]"
    )
    ended = threading.Event()

    def kill() -> None:
        killed: set[int] = set()
        for _ in range(3):
            for package in packages:
                for pid in set(pids(system, package)) - killed:
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
            if ended.wait(2.0):
                break
        assert len(killed) >= len(packages)

    killing = threading.Thread(target=kill)
    killing.start()
    try:
        system.load("demo", 40, 3)
    finally:
        ended.set()
        killing.join()


def test_whoever_asks_is_rebuilt_from_what_was_kept(system: Place, tmp_path: Path) -> None:
    wait_until(system.settled, seconds=SETTLED_SECONDS)
    (asker, *_) = system.described("[each.asked_by for each in saga().outside]")
    before = _counts(system.data / f"{asker}.db")

    copy = tmp_path / "rebuilt.db"
    system.say("history", "rebuild", asker, "--into", f"sqlite:///{copy}")

    states = system.described(
        f"[str(t.table.name) for t in __import__('saga.discovery').discovery"
        f".tables_of('{asker}').states.values()]"
    )
    after = _counts(copy)
    assert states
    assert {name: after[name] for name in states} == {name: before[name] for name in states}


def _counts(file: Path) -> dict[str, int]:
    with closing(sqlite3.connect(file)) as connection:
        names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall()
        return {
            name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]  # noqa: S608
            for (name,) in names
        }
