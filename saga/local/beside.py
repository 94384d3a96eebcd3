"""A program beside a system on this machine, which answers over HTTP: Prometheus, the console."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import httpx

from saga.errors import Explained
from saga.http import client
from saga.local.guard import Guard
from saga.local.patience import StartDeadline

ASK_SECONDS: Final = 5.0
STOP_SECONDS: Final = 10.0
_POLL_SECONDS: Final = 0.05


class BesideProgram:
    """Owned by this process and gone when it is. Not for several tasks at once."""

    def __init__(self, name: str, log_path: Path, fault: type[Explained]) -> None:
        """`fault` is what is raised where it cannot be started."""
        self._name = name
        self.log_path = log_path
        self._fault = fault
        self._guard = Guard()
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        """Of the process that was started last; it may have ended."""
        return self._process.pid if self._process is not None else None

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    async def start(
        self,
        command: Sequence[str],
        *,
        url: str,
        path: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start it; return when it answers `path` with success. Raises its `fault` and `OSError`.
        With an `environment`, it has no other one."""
        self._spawn(command, environment)
        patience = StartDeadline()
        async with client(url, ASK_SECONDS) as api:
            while True:
                if not self.running:
                    raise self._fault(f"{self._name} ended while starting: see {self.log_path}")
                with contextlib.suppress(httpx.TransportError):
                    if (await api.get(path)).status_code == httpx.codes.OK:
                        return
                if patience.is_over:
                    said = patience.lost_with(self._name, f"see {self.log_path}")
                    raise self._fault(said)
                await asyncio.sleep(_POLL_SECONDS)

    def _spawn(self, command: Sequence[str], environment: Mapping[str, str] | None) -> None:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=self._guard.pid,
            )

    def stop(self) -> None:
        """End it; no process is left. Blocks; may be called again."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._guard.dismiss()
