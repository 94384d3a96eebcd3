"""What a process may do with files: whom they are for, and how many it may have open."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

_ANYBODY: Final = 0o666
"""The rights of a new file, before the umask takes some away."""
_OTHERS: Final = 0o077
"""The rights of all users but the owner, as a umask takes them away."""

_NO_NEW_FILE: Final = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EBUSY)
"""The errors of a folder that takes no new file, or lets none take the place of one that is there:
another user's where only owners may remove files, or one that is mounted by itself."""

_as_found: int | None = None
"""The umask that the process was started with, once it has another."""


def keep_private() -> None:
    """Make files and folders for the owner alone from now on, child processes included: databases,
    databases and logs hold people's names, and a broker's files passwords.

    What is there already stays as it is, since an operator may have opened it to a group.
    """
    global _as_found
    found = os.umask(_OTHERS)
    os.umask(found | _OTHERS)
    if _as_found is None:
        _as_found = found


def write_whole(file: Path, text: str, mode: int | None = None) -> None:
    """Write a file in one go: a reader finds all of it, and what was there before stays if
    the disk takes no more. Rights are `mode`, or those of the file that was there. Raises
    `OSError`, which names the file.

    A device or a pipe is simply written to, and so is a file in a folder that takes no new one.
    """
    try:
        # As it is given: the link to a pipe leads to it, and reads as a path that does not exist.
        found = file.stat()
    except OSError:
        found = None
    try:
        if found is not None and not stat.S_ISREG(found.st_mode):
            file.write_text(text, encoding="utf-8")
            return
        # What a link leads to is written, and the link stays.
        target = Path(os.path.realpath(file))
        try:
            _replace(target, text, mode, found)
        except OSError as error:
            if found is None or error.errno not in _NO_NEW_FILE:
                raise
            _write(target, text, mode, os.O_TRUNC)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(file)) from error


def _replace(file: Path, text: str, mode: int | None, found: os.stat_result | None) -> None:
    """Write a file beside it, which then takes its place."""
    if mode is None and found is not None:
        mode = stat.S_IMODE(found.st_mode)
    part = file.with_name(f".{file.name}.{os.getpid()}.part")
    try:
        _write(part, text, mode, os.O_CREAT | os.O_TRUNC)
        part.replace(file)
    finally:
        with contextlib.suppress(OSError):
            part.unlink()


def _write(file: Path, text: str, mode: int | None, options: int) -> None:
    descriptor = os.open(
        file, os.O_WRONLY | os.O_CLOEXEC | options, _ANYBODY if mode is None else mode
    )
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        if mode is not None:
            os.fchmod(descriptor, mode)  # The umask may have taken some away.
        stream.write(text)


def write_public(file: Path, text: str) -> None:
    """Write a file of a project, and make its folder: it holds no data, so the user's own umask
    says whom it is for. Raises `OSError`, and leaves what was there then."""
    with _as_the_user_wants():
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, text)


def make_public_folder(folder: Path) -> None:
    """Make a folder of a project, for files of that kind. Raises `OSError`."""
    with _as_the_user_wants():
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _as_the_user_wants() -> Iterator[None]:
    private = os.umask(0)
    os.umask(private if _as_found is None else _as_found)
    try:
        yield
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
