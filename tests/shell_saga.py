"""The program `saga` for shells, at a tenth of what a start of Python costs: each command is forked
from a Python that has imported the engine, and nothing of a project.

This file runs as the server, too, by the Python whose engine is tried.
"""

from __future__ import annotations

import gc
import importlib
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final, NoReturn

ENGINE: Final = (
    "saga.dlq.desk",
    "saga.generate.files",
    "saga.history.trace",
    "saga.reconcile",
    "saga.runtime.kernel.migrations",
    "saga.simulation",
    "saga.status",
    "saga.cli",
)
"""What commands import that do more than to explain themselves."""

_CLIENT: Final = """#!/bin/bash
folder=${0%/*}
answer="$folder/answer-$$"
mkfifo "$answer"
printf '%s\\0' "$@" > "$answer.arguments"
echo "$$" > "$folder/asked"
read -r status < "$answer"
rm "$answer" "$answer.arguments"
exit "$status"
"""


@contextmanager
def saga_for_shells(folder: Path, python: str, environment: Mapping[str, str]) -> Iterator[Path]:
    """A program `saga` in this folder, which has none yet, of the engine that this Python imports.

    It runs in the folder and environment of the shell that starts it, reads and prints what that
    has it read and print, and ends as the command does: 128 and more if a signal has ended that.
    A signal to the program does not reach the command; what still runs at the end is killed.
    """
    program = folder / "saga"
    program.write_text(_CLIENT)
    program.chmod(0o755)
    os.mkfifo(folder / "asked")
    # Without this folder on its path, or the one in which it is started: as the program installed.
    command = [python, "-P", __file__, str(folder)]
    with subprocess.Popen(
        command,
        cwd=folder,
        env=environment,
        stdin=subprocess.PIPE,  # The server ends with it, and so with its owner.
        process_group=0,
    ) as server:
        try:
            yield program
        finally:
            os.killpg(server.pid, signal.SIGKILL)


def _serve(folder: Path) -> None:
    for module in ENGINE:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    asked = os.open(folder / "asked", os.O_RDWR)
    while 0 not in (ready := select.select([0, asked], [], [])[0]):
        assert ready == [asked]
        for client in os.read(asked, 4_096).decode().split():
            if os.fork() == 0:
                os.close(asked)
                _see_through(client, folder / f"answer-{client}")


def _see_through(client: str, answer: Path) -> NoReturn:
    """Run a command, and say how it has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if pid == 0:
        _run(Path("/proc", client), Path(f"{answer}.arguments").read_bytes())
    _, ended = os.waitpid(pid, 0)
    status = os.waitstatus_to_exitcode(ended)
    answer.write_text(f"{status if status >= 0 else 128 - status}\n")
    os._exit(0)


def _run(client: Path, arguments: bytes) -> NoReturn:
    """What the program `saga` would do in the place of this process."""
    variables = (each.partition(b"=") for each in (client / "environ").read_bytes().split(b"\0"))
    os.environb.clear()
    os.environb.update({name: value for name, _, value in variables if name})
    os.chdir(client / "cwd")
    for descriptor, flags in ((0, os.O_RDONLY), (1, _ADDING), (2, _ADDING)):
        os.dup2(os.open(client / "fd" / str(descriptor), flags), descriptor)
    sys.stdin = os.fdopen(0, closefd=False)
    sys.argv = ["saga", *map(os.fsdecode, arguments.split(b"\0")[:-1])]
    importlib.import_module("saga.cli").main()
    sys.exit()


_ADDING: Final = os.O_WRONLY | os.O_APPEND

if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
