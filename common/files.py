"""What a process may do with files: whom they are for, and how many it may have open."""

from __future__ import annotations

import os
import resource
from pathlib import Path
from typing import Final

_OTHERS: Final = 0o077
"""The rights of everybody but the owner, as a umask takes them away."""

_as_found: int | None = None
"""The umask that the process was started with, once it has another."""


def keep_private() -> None:
    """Make files and folders for the owner alone from now on, child processes included: databases,
    mails and logs hold customers' names, and a broker's files passwords.

    What is there already stays as it is, since an operator may have opened it to a group.
    """
    global _as_found
    found = os.umask(_OTHERS)
    os.umask(found | _OTHERS)
    if _as_found is None:
        _as_found = found


def write_public(file: Path, text: str) -> None:
    """Write a file of a project, and make its folder: it holds no data, so the user's own umask
    says whom it is for. Raises `OSError`."""
    private = os.umask(0)
    os.umask(private if _as_found is None else _as_found)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
    finally:
        os.umask(private)


def allow_open_files(least: int) -> None:
    """Raise the limit of open files to `least`, child processes included, if it is lower. Raises
    `OSError` where that is not allowed: everything would seem to start, and wait for ever for a
    connection."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= least:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (least, hard))
    except (OSError, ValueError):  # Beyond the hard limit.
        raise OSError(
            f"only {soft} files may be open at once, and {least} are needed; raise the limit "
            f"(ulimit -n {least})"
        ) from None
