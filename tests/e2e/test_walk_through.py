"""What README and the walk-through tell a newcomer to type does what they print."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from saga.local.system import System
from saga.runtime.tasks import cancel_all
from tests.forked import spawn
from tests.polling import until
from tests.shell_saga import saga_for_shells

ROOT = Path(__file__).parents[2]
RUN_SECONDS = 240.0
PAGES = {"README.md": "## Place an order\n", "docs/walk-through.md": "# The walk-through\n"}
"""Each page, and the heading whose section is typed."""
STARTS = "make "
"""What `newcomer` has done already begins with this."""
_DEFINITION = re.compile(r"\w+(\(\)|=)")
_CHANGES = (" -d ", " publish ", " replay ", "kill ")
"""What must not be typed twice, even if its output is late."""


@dataclass(frozen=True)
class Typed:
    """A command of a page, and the lines that it is said to print."""

    command: str
    printed: tuple[str, ...]

    @property
    def is_definition(self) -> bool:
        return _DEFINITION.match(self.command) is not None


def typed(page: str) -> Iterator[Typed]:
    heading = PAGES[page]
    text = (ROOT / page).read_text().split(heading)[1]
    section = text.split("\n" + heading.partition(" ")[0] + " ")[0]
    blocks = re.findall(r"^```console\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    for block in blocks:
        for each in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
            command, *rest = each.splitlines()
            while command.endswith("\\") or command.count("'") % 2:
                command += "\n" + rest.pop(0)
            if not command.startswith(STARTS):
                yield Typed(command, tuple(line for line in rest if line.strip()))


def as_compared(text: str) -> str:
    """A line without what differs from run to run: times, and the width of a drawing."""
    text = re.sub(r"\d[\d.,]* (ms|s)\b", "TIME", text)
    return re.sub(r"[\s─]+", " ", text).strip()


def agrees(printed: Sequence[str], output: str) -> bool:
    """Whether the lines are there, in order; each may go on, and `...` stands for anything."""
    lines = iter(output.splitlines())
    return all(
        any(re.match(_pattern(line), as_compared(each)) for each in lines)
        for line in printed
        if line != "..."
    )


def _pattern(line: str) -> str:
    return ".*".join(re.escape(part) for part in as_compared(line).split("..."))


@contextmanager
def environment(folder: Path) -> Iterator[None]:
    """An environment in this folder as `make setup` makes it, with a quicker `saga`."""
    here = folder / ".venv"
    programs = here / "bin"
    programs.mkdir(parents=True)
    for each in Path(sys.prefix).iterdir():
        if each.name != programs.name:
            (here / each.name).symlink_to(each)
    for each in Path(sys.prefix, programs.name).iterdir():
        if each.name != "saga":
            (programs / each.name).symlink_to(each)
    with saga_for_shells(programs, sys.executable, os.environ):
        yield


@asynccontextmanager
async def newcomer(folder: Path, amqp_url: str) -> AsyncIterator[System]:
    """A system as `make up` starts it in this folder, but for the broker."""
    with environment(folder):
        here = folder / "data"
        async with System(here, amqp_url=amqp_url, disposable=True, spawn=spawn) as system:
            watching = asyncio.ensure_future(system.watch())
            try:
                yield system
            finally:
                await cancel_all(watching)


@pytest.mark.parametrize("page", PAGES)
async def test_what_is_typed_prints_what_the_page_says(
    page: str, tmp_path: Path, amqp_url: str
) -> None:
    before = ['curl() { command curl --silent --show-error "$@"; }']  # As it is at a terminal.
    async with newcomer(tmp_path, amqp_url) as system:
        for each in typed(page):
            # Who cancels has to be in time, on a slow machine too: no stock is held meanwhile.
            if "/cancel" in each.command:
                os.kill(system.pid("inventory"), signal.SIGSTOP)
            elif "address inventory" in each.command:
                os.kill(system.pid("inventory"), signal.SIGCONT)
            if each.is_definition:
                before.append(each.command)
            else:
                await follow(each, before, tmp_path)


async def follow(each: Typed, before: Sequence[str], folder: Path) -> None:
    script = "\n".join([*before, each.command])
    said = ""

    async def as_printed() -> bool:
        nonlocal said
        done = await asyncio.to_thread(run, script, folder)
        said = f"{each.command}\n{done.stdout}"
        # 1 is how `saga` says that it found what an operator has to look into.
        assert done.returncode in {0, 1}, said
        return agrees(each.printed, done.stdout)

    if any(word in each.command for word in _CHANGES):
        assert await as_printed(), said
        return
    try:
        await until(as_printed)
    except AssertionError as error:
        raise AssertionError(said) from error


def run(script: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["/bin/bash", "-c", script],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=RUN_SECONDS,
        check=False,
    )
