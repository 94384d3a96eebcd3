"""Commands of a project, typed in its folder: forked from a Python that has imported the engine and
the project's saga there, which takes a second each time otherwise."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import Lock
from typing import IO, Final

_PROGRAM: Final = """
import importlib, json, os, sys
import saga.dlq.desk, saga.generate.files, saga.history.trace, saga.reconcile
import saga.runtime.kernel.migrations, saga.simulation, saga.status
from saga.cli import main
from saga.discovery import saga as declared

for module in sys.argv[1:]:
    importlib.import_module(module)
if not sys.argv[1:]:
    declared()
for line in sys.stdin:
    arguments, out, err = json.loads(line)
    pid = os.fork()
    if pid == 0:
        for descriptor, path in ((0, os.devnull), (1, out), (2, err)):
            os.dup2(os.open(path, os.O_RDONLY if descriptor == 0 else os.O_WRONLY), descriptor)
        sys.argv = ["saga", *arguments]
        if arguments[0] == "-c":
            exec(arguments[1])
            sys.exit()
        main()
    _, status = os.waitpid(pid, 0)
    sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\\n")
    sys.stdout.flush()
"""


class Typist:
    """Types `saga` commands in a folder, one after the other. Started by the first one."""

    def __init__(
        self, folder: Path, environment: Mapping[str, str], imported: Sequence[str] = ()
    ) -> None:
        """Commands are forked from what has imported the project's saga, or where a test changes
        that, the modules `imported` and no others of the project."""
        self._imported = imported
        self._folder = folder
        self._environment = dict(environment)
        self._process: subprocess.Popen[str] | None = None
        self._one_at_a_time = Lock()

    def saga(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; of `-c` and a program, what Python would do with them."""
        with self._one_at_a_time, TemporaryDirectory() as folder:
            out, err = Path(folder, "out"), Path(folder, "err")
            out.touch()
            err.touch()
            line = json.dumps([arguments, str(out), str(err)])
            status = int(self._answer(f"{line}\n"))
            return subprocess.CompletedProcess(arguments, status, out.read_text(), err.read_text())

    def close(self) -> None:
        """End the process, which has none left."""
        if self._process is not None:
            self._process.communicate()
            self._process = None

    def _answer(self, line: str) -> str:
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _PROGRAM, *self._imported],
                cwd=self._folder,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
        said, told = _pipes(self._process)
        said.write(line)
        said.flush()
        return told.readline()


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout
