"""What `saga up` knows of the processes it brings back, told to other commands by a file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ValidationError

from saga.runtime.files import write_whole
from saga.wording import counted

WINDOW_SECONDS: Final = 600.0
"""Only ends of a process within the last so many seconds count."""
LOOP_ENDS: Final = 5
"""A process that has ended so often within the window is in a crash loop."""
DELAY_MAX_SECONDS: Final = 60.0
"""The longest wait before a process that keeps ending is started again."""

_FILE_NAME: Final = "processes.json"
_HURRY: Final = "start-now-"
"""How the names of files begin by which a service is started now."""


class Supervised(BaseModel):
    """A process that is brought back when it ends. Times are seconds since the epoch."""

    service: str | None = None
    """Of which this is a replica; None for a server."""
    pid: int | None = None
    """Of a service's replica, while it runs."""
    url: str | None = None
    """Where it serves HTTP, if it does."""
    ends: list[float] = []
    """When it has ended without being asked to, within the window."""
    last_words: str = ""
    starts_at: float | None = None
    """When it is started again, while that is waited for."""

    def ended(self, now: float, last_words: str) -> float:
        """Count an end; return the seconds to wait before the next start: none the first time, and
        twice as many each time from the second one on."""
        self.ends = [*self._recent(now), now]
        self.last_words = last_words
        again = len(self.ends) - 1
        return min(DELAY_MAX_SECONDS, 2.0 ** (again - 1)) if again else 0.0

    def loops(self, now: float) -> bool:
        """Whether it keeps ending."""
        return len(self._recent(now)) >= LOOP_ENDS

    def problem(self, name: str, now: float) -> str | None:
        """One line about a process that keeps ending; None if it does not."""
        if not self.loops(now):
            return None
        when = "it runs now"
        if self.starts_at is not None:
            when = f"it is started again in {max(0.0, self.starts_at - now):.0f} s"
        return (
            f"{name} has ended {counted(len(self._recent(now)), 'time')} within "
            f"{WINDOW_SECONDS / 60:.0f} minutes ({self.last_words}); {when}"
        )

    def _recent(self, now: float) -> list[float]:
        return [end for end in self.ends if end > now - WINDOW_SECONDS]


class Supervision(BaseModel):
    """The processes of a system, by name: `the trip service`, `the broker`."""

    group: int
    """The process group that all of the services' processes are in."""
    stop_seconds: float
    """How long a service may take to stop before it is killed."""
    services: dict[str, Supervised]
    """Keyed by the name of the replica."""
    servers: dict[str, Supervised] = {}
    """`the broker` and `PostgreSQL`, where they are private."""

    def save(self, folder: Path) -> None:
        """Write it down for other commands. Raises `OSError`."""
        write_whole(folder / _FILE_NAME, self.model_dump_json(indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path) -> Supervision | None:
        """What `saga up` tells of its processes in `folder`; None if none runs there."""
        try:
            found = cls.model_validate_json((folder / _FILE_NAME).read_bytes())
        except (OSError, ValidationError):
            return None
        try:
            os.killpg(found.group, 0)  # It ends with its owner, however that ends.
        except OSError:
            return None
        return found

    @staticmethod
    def forget(folder: Path) -> None:
        """Nothing is supervised in `folder` any more."""
        with contextlib.suppress(OSError):
            (folder / _FILE_NAME).unlink()

    @staticmethod
    def hurry(folder: Path, service: str) -> None:
        """Ask for a service that waits for its next start to be started now. Raises `OSError`."""
        (folder / f"{_HURRY}{service}").touch()

    @staticmethod
    def hurried(folder: Path, service: str) -> bool:
        """Whether that was asked for; it counts once."""
        try:
            (folder / f"{_HURRY}{service}").unlink()
        except OSError:
            return False
        return True

    @property
    def all(self) -> Mapping[str, Supervised]:
        """Every process, by the name to be shown."""
        services = {f"the {name} service": process for name, process in self.services.items()}
        return self.servers | services

    def problems(self, now: float) -> Sequence[str]:
        """A line for each process that keeps ending."""
        lines = (process.problem(name, now) for name, process in self.all.items())
        return [line for line in lines if line is not None]
