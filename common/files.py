"""What a process may do with files: whom they are for, and how many it may have open."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from pathlib import Path
from typing import Final

_ANYBODY: Final = 0o666
"""The rights of a new file, before the umask takes some away."""
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


def write_whole(file: Path, text: str, mode: int | None = None) -> None:
    """Write a file in one go: whoever finds it finds all of it, and what was there before stays if
    the disk takes no more. Rights are `mode`, or those of the file that was there. Raises
    `OSError`, which names the file.

    A device or a pipe is simply written to.
    """
    file = Path(os.path.realpath(file))  # What a link leads to is written, and the link stays.
    try:
        found = file.stat()
    except OSError:
        found = None
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        if found is not None and not stat.S_ISREG(found.st_mode):
            file.write_text(text, encoding="utf-8")
            return
        if mode is None and found is not None:
            mode = stat.S_IMODE(found.st_mode)
        options = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(part, options, _ANYBODY if mode is None else mode)
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            if mode is not None:
                os.fchmod(descriptor, mode)  # The umask may have taken some away.
            stream.write(text)
        part.replace(file)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def write_public(file: Path, text: str) -> None:
    """Write a file of a project, and make its folder: it holds no data, so the user's own umask
    says whom it is for. Raises `OSError`, and leaves what was there then."""
    private = os.umask(0)
    os.umask(private if _as_found is None else _as_found)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)
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
