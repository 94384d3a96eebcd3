"""What runs on this machine."""

from __future__ import annotations

import os
from pathlib import Path


def processes_of(folder: Path) -> list[str]:
    """The command lines of processes that have to do with `folder`, this one's children or not."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if int(process.name) != os.getpid():
            try:
                command = (process / "cmdline").read_bytes()
                environment = (process / "environ").read_bytes()
            except OSError:  # ended meanwhile, or another's
                continue
            if os.fsencode(folder) in command + environment:
                found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found
