"""`saga console` beside a system on this machine: `saga up`."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import httpx

from saga.console import PORT
from saga.errors import Explained
from saga.http import client
from saga.local.folder import LOGS_FOLDER
from saga.local.guard import Guard
from saga.local.patience import Patience
from saga.local.server import LOOPBACK, free_ports

NAME: Final = "console"
ASK_SECONDS: Final = 5.0
STOP_SECONDS: Final = 10.0
AGAIN_SECONDS: Final = 5.0
"""After how long one that has ended is started again."""

_POLL_SECONDS: Final = 0.05
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
        self._guard = Guard()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where it serves, once it was started; the same when it was started again."""
        return f"http://{LOOPBACK}:{self._port}"

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def log_path(self) -> Path:
        return self._folder / LOGS_FOLDER / f"{NAME}.log"

    async def __aenter__(self) -> Self:
        """Return when it answers. Raises `ConsoleError`, `OSError` and `SystemFault`."""
        self._port = PORT if _is_free(PORT) else free_ports([NAME])[NAME]
        try:
            await self._start()
        except BaseException:
            await self._stop()
            raise
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._stop()

    async def watch(self) -> None:
        """Start it again whenever it has ended, until cancelled: without it the system runs on."""
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            if not self._running:
                self._report(f"the console has ended and is started again; log: {self.log_path}")
                try:
                    await self._start()
                except (ConsoleError, OSError) as error:
                    self._report(str(error))
                await asyncio.sleep(AGAIN_SECONDS)

    @property
    def _running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def _spawn(self) -> None:
        options = ["--host", LOOPBACK, "--port", str(self._port)]
        options += ["--write"] if self._write else []
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "saga.cli", "console", *options],
                env=os.environ | {"DATA_DIR": str(self._folder)},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=self._guard.pid,
            )

    async def _start(self) -> None:
        self._spawn()
        patience = Patience()
        async with client(self.url, ASK_SECONDS) as api:
            while True:
                if not self._running:
                    raise ConsoleError(f"the console ended while starting: see {self.log_path}")
                with contextlib.suppress(httpx.TransportError):
                    if (await api.get("/livez")).status_code == httpx.codes.OK:
                        return
                if patience.is_over:
                    raise ConsoleError(patience.lost_with("the console", f"see {self.log_path}"))
                await asyncio.sleep(_POLL_SECONDS)

    async def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                await asyncio.to_thread(self._process.wait, STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                await asyncio.to_thread(self._process.wait)
        self._guard.dismiss()


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True
