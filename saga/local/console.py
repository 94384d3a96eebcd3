"""`saga console` beside a system on this machine: `saga up`."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

from saga.console import PORT
from saga.errors import Explained
from saga.local.beside import BesideProgram
from saga.local.folder import LOGS_FOLDER
from saga.local.server import LOOPBACK, free_ports
from saga.runtime.settings import HttpSettings, load

NAME: Final = "console"
AGAIN_SECONDS, AGAIN_MAX_SECONDS = 1.0, 300.0
"""After how long one that has ended is started again: twice as long each time that it ends again
before it has run as long."""
_WATCH_SECONDS: Final = 1.0


class ConsoleError(Explained):
    """The console cannot be started. One line that names the way out."""


class ConsoleProcess:
    """The console of the system in `folder`, a process of its own, gone when this one is.

    async with ConsoleProcess(folder) as console:
        console.url
    """

    def __init__(
        self, folder: Path, *, write: bool = False, report: Callable[[str], None] = lambda _: None
    ) -> None:
        """Describe it; `report` is told, a line at a time, what happens."""
        self._folder = folder.resolve()
        self._write = write
        self._report = report
        self._port = 0
        self._program = BesideProgram(
            "the console", self._folder / LOGS_FOLDER / f"{NAME}.log", ConsoleError
        )

    @property
    def url(self) -> str:
        """Where it serves, once it was started; the same when it was started again."""
        return f"{load(HttpSettings).http_scheme}://{LOOPBACK}:{self._port}"

    @property
    def pid(self) -> int | None:
        return self._program.pid

    async def __aenter__(self) -> Self:
        """Return when it answers. Raises `ConsoleError`, `OSError` and `SystemFault`."""
        self._port = PORT if _is_free(PORT) else free_ports([NAME])[NAME]
        try:
            await self._start()
        except BaseException:
            await asyncio.to_thread(self._program.stop)
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await asyncio.to_thread(self._program.stop)

    async def watch(self) -> None:
        """Start it again whenever it has ended, until cancelled: without it the system runs on."""
        pause, started = AGAIN_SECONDS, time.monotonic()
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if self._program.running:
                continue
            ran = time.monotonic() - started
            pause = AGAIN_SECONDS if ran > AGAIN_MAX_SECONDS else min(2 * pause, AGAIN_MAX_SECONDS)
            self._report(
                f"the console has ended and is started again in {pause:g} s; "
                f"log: {self._program.log_path}"
            )
            await asyncio.sleep(pause)
            started = time.monotonic()
            try:
                await self._start()
            except (ConsoleError, OSError) as error:
                self._report(str(error))

    async def _start(self) -> None:
        options = ["--host", LOOPBACK, "--port", str(self._port)]
        options += ["--write"] if self._write else []
        await self._program.start(
            [sys.executable, "-m", "saga.cli", "console", *options],
            environment=os.environ | {"DATA_DIR": str(self._folder)},
            url=self.url,
            path="/livez",
        )


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
