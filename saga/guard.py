"""A process group that ends with its owner, however the owner ends."""

from __future__ import annotations

import os
import subprocess
from typing import Final

# Kills its process group when the pipe on its standard input closes. (See `saga.node` for why this
# is no job for PR_SET_PDEATHSIG.)
_GUARD: Final = "read -r _; kill -9 0"


class Guard:
    """Leads the group that processes join with `process_group=guard.pid`."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: int | None = None

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
                    process_group=0,
                )
            finally:
                os.close(read_end)
        return self._process.pid

    def dismiss(self) -> None:
        """Kill what is left of the group. May be called again."""
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None
        if self._process is not None:
            self._process.wait()
            self._process = None
