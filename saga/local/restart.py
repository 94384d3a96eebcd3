"""Starting services again, one after the other, under a `saga up` that runs: `saga restart`."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

from saga.errors import Explained
from saga.local.supervision import Supervised, Supervision
from saga.status import READY, readiness

START_SECONDS: Final = 60.0
"""How long a service may take until it is ready again."""

_POLL_SECONDS: Final = 0.05


class RestartError(Explained):
    """A service cannot be started again. One line that names it and the way out."""


async def restart(
    folder: Path, names: Sequence[str], report: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Let services drain and end, and wait until `saga up` has brought each back; return the names
    of the replicas.

    A service's name stands for all of its replicas, of which one at a time is away. Raises
    `RestartError`.
    """
    there = _supervision(folder).services
    replicas = list(dict.fromkeys(replica for name in names for replica in _replicas(there, name)))
    for replica in replicas:
        report(f"restarting the {replica} service")
        await _restart(folder, replica)
    return replicas


def _supervision(folder: Path) -> Supervision:
    found = Supervision.load(folder)
    if found is None:
        raise RestartError(
            f"no `saga up` runs in {folder}: start one, or name its data folder with --data-dir "
            f"or DATA_DIR"
        )
    return found


def _replicas(there: Mapping[str, Supervised], name: str) -> list[str]:
    found = [replica for replica, process in there.items() if name in (replica, process.service)]
    if not found:
        raise RestartError(f"there is no service {name!r} here; there are {', '.join(there)}")
    return found


async def _restart(folder: Path, replica: str) -> None:
    before = _supervision(folder)
    pid = before.services[replica].pid
    if pid is not None:
        await _end(folder, replica, pid)
    else:
        Supervision.hurry(folder, replica)
    deadline = time.monotonic() + START_SECONDS
    said = "it has not been started"
    while time.monotonic() < deadline:
        process = _supervision(folder).services[replica]
        if process.pid not in (None, pid):
            if process.url is None:  # In another language: it cannot be asked.
                return
            said = await readiness([process.url])
            if said.startswith(READY):
                return
        await asyncio.sleep(_POLL_SECONDS)
    raise RestartError(
        f"the {replica} service was not ready within {START_SECONDS:g} s: {said} "
        f"(log: {folder / 'logs' / f'{replica}.log'})"
    )


async def _end(folder: Path, replica: str, pid: int) -> None:
    """Ask a process to stop; return once it has ended, or was killed."""
    found = _supervision(folder)
    deadline = time.monotonic() + found.stop_seconds
    number: signal.Signals | None = signal.SIGTERM
    while True:
        with contextlib.suppress(ProcessLookupError):
            if number is not None and os.getpgid(pid) == found.group:
                os.kill(pid, number)
        number = None
        if _supervision(folder).services[replica].pid != pid:
            return
        if time.monotonic() > deadline:
            number, deadline = signal.SIGKILL, math.inf
        await asyncio.sleep(_POLL_SECONDS)
