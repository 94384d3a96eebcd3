"""Standard output and standard error, to which everything is written that is to be.

Python's own lose output in a pipe that was made non-blocking (uvloop does, and any program
that shares the pipe may): unbuffered, as `PYTHONUNBUFFERED=1` has them, they overlook that only a
part was written. And a character that the encoding lacks ends the program.
"""

from __future__ import annotations

import codecs
import errno
import io
import os
import select
import sys
from typing import TYPE_CHECKING, Final, TextIO

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

READER_GONE: Final = 141
"""The exit status if the reader of standard output has left: 128 + SIGPIPE, as a shell has it."""

FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""The errors of a disk that takes no more: it is full, over quota or read-only."""

_ERRORS: Final = "saga-signs"
_SIGNS: Final = str.maketrans("→←✗↩■●▶◀│─┼↻⊘▸…“”‘’–", "><x<#*><|-+@0>~\"\"''-")
"""What is drawn with, and what is drawn instead where the encoding lacks it: as wide."""


class ReaderGone(SystemExit):
    """Standard output has no reader any more, so there is nothing left to do."""

    def __init__(self) -> None:
        super().__init__(READER_GONE)


class _Descriptor(io.RawIOBase):
    """A file descriptor that writes all of what it is given, however long that takes.

    After an error it takes everything and writes nothing, so that what Python flushes at its exit
    does not fail once more. But what is only said, on standard error, ends nothing: where the disk
    takes no more of it, it is dropped, until there is room again.
    """

    def __init__(self, descriptor: int, *, leave: bool) -> None:
        """`leave` asks for `ReaderGone` when there is no reader any more; otherwise that is
        nothing, and neither is a full disk."""
        super().__init__()
        self._descriptor = descriptor
        self._leave = leave
        self._broken = False
        self._cut = False
        """Whether the end of what was written last is missing."""

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)

    def write(self, data: ReadableBuffer, /) -> int:
        size = memoryview(data).nbytes
        left = memoryview(b"\n" + bytes(data) if self._cut else data).cast("B")
        begun, self._cut = self._cut, False
        while left and not self._broken:
            try:
                left = left[os.write(self._descriptor, left) :]
                begun = True
            except BlockingIOError:
                self._wait()
            except BrokenPipeError:
                self._broken = True
                if self._leave:
                    raise ReaderGone from None
            except OSError as error:
                if not self._leave and error.errno in FULL:
                    self._cut = begun
                    break
                self._broken = True
                raise OSError(f"cannot write the output: {error.strerror}") from error
        return size

    def _wait(self) -> None:
        room = select.poll()
        room.register(self._descriptor, select.POLLOUT)
        room.poll()


def set_up() -> None:
    """Write to standard output and standard error like that from now on. May be called again, and
    where a test has put something else in their place."""
    sys.stdout = _whole(sys.stdout, leave=True)
    sys.stderr = _whole(sys.stderr, leave=False)


def flush() -> None:
    """Write what is left. Raises `OSError`, where Python itself would at its exit, too late."""
    sys.stdout.flush()


def _whole(stream: TextIO | None, *, leave: bool) -> TextIO:
    if stream is None:  # The descriptor was closed when Python started.
        return open(os.devnull, "w", encoding="utf-8")  # for the process's life
    if not isinstance(stream, io.TextIOWrapper):
        return stream
    try:
        descriptor = stream.fileno()
    except OSError as error:
        if error.errno not in (None, errno.EBADF):
            raise
        stream.reconfigure(errors=_ERRORS)
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Descriptor(descriptor, leave=leave)),
        encoding=stream.encoding,
        errors=_ERRORS,
        line_buffering=stream.line_buffering or stream.write_through,
    )


def _in_signs_it_has(error: UnicodeError) -> tuple[str | bytes, int]:
    """An error handler of codecs: our own signs as similar ones, anything else spelt out."""
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    found = lacking.translate(_SIGNS)
    return found.encode("ascii", "backslashreplace").decode("ascii"), error.end


codecs.register_error(_ERRORS, _in_signs_it_has)
