"""The processes of services: how each is started, and why it ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Final, Protocol

from saga.local.server import LOOPBACK

LAST_WORDS_CHARACTERS: Final = 400
_LOG_TAIL_BYTES: Final = 65_536


class Started(Protocol):
    """What a system needs of a process that it has started, as `subprocess.Popen` does it."""

    @property
    def pid(self) -> int: ...

    def poll(self) -> int | None: ...

    def send_signal(self, number: int, /) -> None: ...

    def kill(self) -> None: ...

    def wait(self) -> int: ...


Spawn = Callable[[Sequence[str], Mapping[str, str], IO[bytes], int], Started]
"""Starts Python, with these arguments and this environment, in a process group; what it prints goes
into the file."""


def start_python(
    arguments: Sequence[str], environment: Mapping[str, str], log: IO[bytes], group: int
) -> Started:
    """A `Spawn` of the interpreter that runs us."""
    return start_program([sys.executable, *arguments], environment, log, group)


def start_program(
    command: Sequence[str], environment: Mapping[str, str], log: IO[bytes], group: int
) -> Started:
    """The same of any program. Raises `OSError`."""
    return subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        process_group=group,
    )


@dataclass(slots=True)
class ServiceProcess:
    """A replica of a service: how it is started, and the process while there is one.

    A participant in another language has a `command` in the place of a package; it serves nothing,
    and has no database here.
    """

    package: str
    participant: str
    log_path: Path
    port: int = 0
    popen: Started | None = None
    log_offset: int = 0
    environment: dict[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = ()
    scheme: str = "http"

    @property
    def pid(self) -> int | None:
        return self.popen.pid if self.popen is not None else None

    @property
    def running(self) -> bool:
        return self.popen is not None and self.popen.poll() is None

    @property
    def stopped(self) -> bool:
        """Whether it has ended because it was asked to."""
        return self.popen is not None and self.popen.poll() == 0

    @property
    def url(self) -> str:
        return f"{self.scheme}://{LOOPBACK}:{self.port}"

    def last_words(self) -> str:
        """Why it ended: the signal that killed it, or what its log since its start says last."""
        status = self.popen.poll() if self.popen is not None else None
        if status is not None and status < 0:
            return f"killed by {signal.Signals(-status).name}"
        try:
            with self.log_path.open("rb") as log:
                size = log.seek(0, os.SEEK_END)
                log.seek(max(self.log_offset, size - _LOG_TAIL_BYTES))
                lines = [line.strip() for line in log.read().decode(errors="replace").splitlines()]
        except OSError:
            lines = []
        said = [_message_in(line) for line in lines if line]
        errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
        return (errors or said or ["it said nothing"])[-1][:LAST_WORDS_CHARACTERS]


def _message_in(line: str) -> str:
    """What a line of a service's log says, if it is JSON; else the line."""
    try:
        record = json.loads(line)
    except ValueError:
        return line
    return str(record["message"]) if isinstance(record, dict) and "message" in record else line
