"""Services and `saga` as processes that are forked from one that has imported them: a start takes a
tenth of a second of CPU, not a whole one.

Whatever a test wants to know of a process can be seen there, but for how Python gets to its `main`.
The commands `saga demo` and `saga up`, and the long tests, start services with `python -m`.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Final

from saga.discovery import packages

RUN_SECONDS: Final = 100.0
"""How long a process may take that is run to its end."""

SAGA: Final = "saga.cli"
_IMPORTED: Final = (
    SAGA,
    "order_saga.demo",
    "saga.backup.restore",
    "saga.dlq.desk",
    "saga.history.trace",
    "saga.past.again",
    "saga.reconcile",
    "saga.runtime.kernel.migrations",
    # What FastAPI and AnyIO import when they are first used.
    "anyio._backends._asyncio",
    "pydantic.v1",
)

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [*(f"{package}.app" for package in packages()), *_IMPORTED, "tests.frozen"]
)


class Forked:
    """A process, used as `subprocess.Popen` is."""

    def __init__(
        self,
        arguments: Sequence[str],
        environment: Mapping[str, str],
        out: Path,
        err: Path,
        group: int | None = None,
        read: Path = Path(os.devnull),
    ) -> None:
        """Start what `python -m` would with these arguments, with this environment and no other,
        and in this process group; it reads the file `read`, and what it prints is added to the
        others."""
        given = (tuple(arguments), dict(environment), out, err, group, read)
        self._process = _PROCESSES.Process(target=_run, args=given, daemon=True)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout_seconds: float | None = None) -> int:
        """Raises `TimeoutError`."""
        self._process.join(timeout_seconds)
        status = self.poll()
        if status is None:
            raise TimeoutError
        return status


def spawn(
    arguments: Sequence[str], environment: Mapping[str, str], log: IO[bytes], group: int
) -> Forked:
    """Starts the services of a `System`."""
    option, *module = arguments
    assert option == "-m"
    path = Path(log.name)
    return Forked(module, environment, path, path, group)


def run(
    *arguments: str, environment: Mapping[str, str] = os.environ, given: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run what `python -m` would with these arguments, to its end; it reads what is `given`."""
    with TemporaryDirectory() as folder:
        out, err, read = (Path(folder, name) for name in ("out", "err", "in"))
        read.write_text(given)
        process = Forked(arguments, environment, out, err, read=read)
        try:
            status = process.wait(RUN_SECONDS)
        finally:
            process.kill()
        return subprocess.CompletedProcess(arguments, status, out.read_text(), err.read_text())


def _run(
    arguments: Sequence[str],
    environment: dict[str, str],
    out: Path,
    err: Path,
    group: int | None,
    read: Path,
) -> None:
    if group is not None:
        os.setpgid(0, group)
    os.environ.clear()
    os.environ.update(environment)
    for descriptor, path, mode in ((0, read, "rb"), (1, out, "ab"), (2, err, "ab")):
        with path.open(mode) as file:
            os.dup2(file.fileno(), descriptor)
    sys.stdin = os.fdopen(0, closefd=False)  # multiprocessing gives an empty one
    module, *sys.argv[1:] = arguments
    if module.endswith(".app"):
        importlib.import_module(module).serve()  # It is imported already.
    elif module == SAGA:
        importlib.import_module(module).main()
    else:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
