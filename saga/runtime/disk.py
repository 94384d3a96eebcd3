"""Room on the disks that a process writes to, and what waits while there is little of it.

A full disk ends whatever writes to it, a broker among that, and not everything comes back whole. So
work stops while there is room, in two steps. Below a limit nothing new is begun, and what has begun
can end. Below half of it, what has begun waits as well.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from pathlib import Path
from typing import Final, Protocol

log = logging.getLogger(__name__)

FREE_MIN_BYTES: Final = 100_000_000
"""Free bytes below which nothing new is begun, unless `DISK_FREE_MIN_BYTES` says otherwise."""
INODES_MIN: Final = 1_000
"""Free inodes below which nothing new is begun: each file takes one, and so does each segment of
the broker's. Not asked for where a file system has no table of them."""
WAITING_SHARE: Final = 2
"""Below one part in so many of the limits, what has begun waits too."""
SERVERS_SHARE: Final = 4
"""Below one part in so many, a private broker takes no messages and no server is started."""
REGAINED_PERCENT: Final = 120
"""Of a limit, what has to be free for work to go on: around the limit itself it would flap."""
LOOK_SECONDS: Final = 1.0

_KILOBYTE: Final = 1_000
_MEGABYTE: Final = 1_000_000
_WAYS_OUT: Final[Mapping[int, str]] = {
    errno.ENOSPC: "free space or inodes there",
    errno.EDQUOT: "free space there, or raise the quota",
    errno.EROFS: "mount it so that it can be written to",
}


class FileSystem(Protocol):
    """What `os.statvfs` tells of a file system."""

    @property
    def f_frsize(self) -> int: ...
    @property
    def f_bavail(self) -> int: ...
    @property
    def f_files(self) -> int: ...
    @property
    def f_favail(self) -> int: ...
    @property
    def f_flag(self) -> int: ...


Examine = Callable[[Path], FileSystem]
"""As `os.statvfs`. Raises `OSError`."""


class Halt(IntEnum):
    """How far work has stopped for want of room."""

    NONE = 0
    NEW_WORK = 1
    ALL_WORK = 2
    """What has begun waits too."""


_SHARES: Final = {Halt.NEW_WORK: 1, Halt.ALL_WORK: WAITING_SHARE}
_MEANS: Final = {
    Halt.NEW_WORK: "nothing new is begun",
    Halt.ALL_WORK: "what has begun waits",
}


def examine(path: Path) -> FileSystem:
    """The file system of a path; where that does not exist yet, of the folder it will be in."""
    while True:
        try:
            return os.statvfs(path)
        except FileNotFoundError:
            if path.parent == path:
                raise
            path = path.parent


def lack_of_room(
    path: Path,
    bytes_min: int,
    inodes_min: int,
    *,
    examine: Examine = examine,
) -> str:
    """What the disk of a path lacks, on one line; empty if it has room, or cannot be examined:
    a writer meets the error itself."""
    try:
        found = examine(path)
    except OSError as error:
        log.debug("cannot examine the disk of %s: %s", path, error)
        return ""
    return _lack(path, found, bytes_min, inodes_min)


def _lack(path: Path, found: FileSystem, bytes_min: int, inodes_min: int) -> str:
    if found.f_flag & os.ST_RDONLY:
        return f"the disk of {path} is read-only; {_WAYS_OUT[errno.EROFS]}"
    free_bytes = found.f_bavail * found.f_frsize
    if free_bytes < bytes_min:
        return (
            f"the disk of {path} has {_amount(free_bytes)} free, less than "
            f"{_amount(bytes_min)}; free space there, or lower DISK_FREE_MIN_BYTES"
        )
    if found.f_files and found.f_favail < inodes_min:
        return (
            f"the disk of {path} has {found.f_favail} inodes free, less than {inodes_min}; remove "
            f"files there"
        )
    return ""


def _amount(count: int) -> str:
    """Bytes, rounded down to what people count in."""
    if count < _MEGABYTE:
        return f"{count // _KILOBYTE} kB"
    return f"{count // _MEGABYTE} MB"


def servers_min_bytes(free_min_bytes: int) -> int:
    """Free bytes that a private broker asks for: less than the services do, so that these stop
    first, and what they have committed is still published."""
    return free_min_bytes // SERVERS_SHARE


def explained(error: OSError) -> str:
    """An error with the way out, where it is the disk that takes no more."""
    way_out = _WAYS_OUT.get(error.errno or 0)
    return f"{error}; {way_out}" if way_out else str(error)


OnLook = Callable[[str, int, Halt], None]
"""Called with what is in a folder, its disk's free bytes, and how far work stops because of it."""


@dataclass(slots=True)
class _Watched:
    """A folder, and how far work has stopped because of its disk."""

    path: Path
    halt: Halt = Halt.NONE
    lack: str = ""


class Disks:
    """The disks that a process writes to, looked at again and again. Belongs to one event loop.

    Without folders, or with a limit of 0, there is always room.
    """

    def __init__(
        self,
        folders: Mapping[str, Path] | None = None,
        free_min_bytes: int = 0,
        *,
        on_halt: Callable[[Halt], None] = lambda _: None,
        on_look: OnLook = lambda _, __, ___: None,
        examine: Examine = examine,
    ) -> None:
        """`folders` are keyed by what is in them. `on_halt` is called with each change of
        `halt`."""
        watched = folders if folders is not None and free_min_bytes else {}
        self._folders = {what: _Watched(path) for what, path in watched.items()}
        self._free_min_bytes = free_min_bytes
        self._examine = examine
        self._on_halt = on_halt
        self._on_look = on_look

    @property
    def halt(self) -> Halt:
        """How far work has to stop, of all disks."""
        return max((watched.halt for watched in self._folders.values()), default=Halt.NONE)

    @property
    def lack(self) -> str:
        """What is lacking, and what waits for it; nothing if there is room."""
        worst = max(self._folders.values(), key=lambda watched: watched.halt, default=None)
        if worst is None or worst.halt is Halt.NONE:
            return ""
        return f"{_MEANS[worst.halt]}: {worst.lack}"

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(LOOK_SECONDS)

    async def look(self) -> None:
        """Look at each disk once. In a thread: the disk may be a network's, which does not answer.
        One that cannot be examined is as it was."""
        before = self.halt
        for what, watched in self._folders.items():
            try:
                found = await asyncio.to_thread(self._examine, watched.path)
            except OSError as error:
                log.debug("cannot examine the disk of %s: %s", watched.path, error)
                continue
            watched.halt, watched.lack = self._judge(watched, found)
            self._on_look(what, found.f_bavail * found.f_frsize, watched.halt)
        if self.halt is not before:
            self._tell(before)

    def _judge(self, watched: _Watched, found: FileSystem) -> tuple[Halt, str]:
        for halt in (Halt.ALL_WORK, Halt.NEW_WORK):
            percent = REGAINED_PERCENT if watched.halt >= halt else 100
            asked = [
                limit * percent // (100 * _SHARES[halt])
                for limit in (self._free_min_bytes, INODES_MIN)
            ]
            if lack := _lack(watched.path, found, *asked):
                return halt, lack
        return Halt.NONE, ""

    def _tell(self, before: Halt) -> None:
        if self.halt > before:
            log.warning("%s", self.lack)
        elif self.halt is Halt.NONE:
            log.info("there is room on the disk again, and work goes on")
        self._on_halt(self.halt)
