"""A process group that ends with its owner, however the owner ends, and the folder it works in."""

from __future__ import annotations

import fcntl
import os
import subprocess
from pathlib import Path
from typing import IO, Final

# Kills its process group when the pipe on its standard input closes: when the owner closes it, or
# when the owner dies, by kill -9 too. (PR_SET_PDEATHSIG would do only for owners that start the
# processes from a thread that lives as long as they do.)
_GUARD: Final = "read -r _; kill -9 0"


class Guard:
    """Leads the group that processes join with `process_group=guard.pid`.

    With a `lock`, a file, only one guard at a time may work in that file's folder.
    """

    def __init__(self, lock: Path | None = None) -> None:
        self._lock_path = lock
        self._lock: IO[bytes] | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None

    @property
    def leads(self) -> bool:
        """Whether there is a group, though all but its leader may have ended."""
        return self._process is not None

    @property
    def pid(self) -> int:
        """The group; begins it if need be."""
        if self._process is None:
            read_end, self._pipe = os.pipe()  # neither end is inherited unless handed on
            try:
                self._process = subprocess.Popen(
                    ["/bin/sh", "-c", _GUARD],
                    env={},
                    cwd="/",
                    stdin=read_end,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    # Given the lock as well: a folder is free only when the group in it is dead.
                    pass_fds=[] if self._lock is None else [self._lock.fileno()],
                    process_group=0,
                )
            finally:
                os.close(read_end)
        return self._process.pid

    def claim(self) -> None:
        """Create the lock's folder and take the lock; does nothing when it is taken by us.

        Raises `BlockingIOError` when another has it, and `OSError`.
        """
        if self._lock is not None or self._lock_path is None:
            return
        self._lock_path.parent.mkdir(parents=True, exist_ok=True)
        lock = self._lock_path.open("ab")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            lock.close()
            raise
        self._lock = lock

    def end_group(self) -> None:
        """Kill what is left of the group. May be called again."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        if self._process is not None:
            self._process.wait()
            self._process = None

    def dismiss(self) -> None:
        """Kill what is left of the group, and leave the folder to others. May be called again."""
        self.end_group()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
