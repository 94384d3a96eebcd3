"""Standard output and standard error: all of what is written arrives, however it is read."""

from __future__ import annotations

import contextlib
import errno
import io
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest

from saga.runtime import streams
from saga.runtime.streams import ReaderGone


class Pipe:
    """A pipe, with what has come out of it."""

    def __init__(self) -> None:
        self.read_end, self.write_end = os.pipe()
        self.came = b""

    def read(self) -> None:
        """A little at a time, as a slow program does."""
        while found := os.read(self.read_end, 1_000):
            self.came += found

    def close(self) -> None:
        for end in (self.read_end, self.write_end):
            with contextlib.suppress(OSError):
                os.close(end)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    made = Pipe()
    yield made
    made.close()


def unbuffered(pipe: Pipe, encoding: str = "utf-8", errors: str = "strict") -> TextIO:
    """A stream as Python makes it with `PYTHONUNBUFFERED=1`."""
    raw = io.FileIO(pipe.write_end, "w", closefd=False)
    return io.TextIOWrapper(raw, encoding=encoding, errors=errors, write_through=True)


@pytest.fixture
def as_standard_output(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard error is left alone."""
    monkeypatch.setattr(sys, "stderr", io.StringIO())


@pytest.mark.usefixtures("as_standard_output")
def test_a_long_output_arrives_whole_in_a_pipe_that_does_not_block(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.set_blocking(pipe.write_end, False)
    monkeypatch.setattr(sys, "stdout", unbuffered(pipe))
    streams.set_up()
    text = "".join(f"line {number}\n" for number in range(50_000))
    reading = threading.Thread(target=pipe.read)
    reading.start()

    sys.stdout.write(text)
    streams.flush()
    os.close(pipe.write_end)
    reading.join()

    assert pipe.came.decode() == text


@pytest.mark.usefixtures("as_standard_output")
def test_what_the_encoding_lacks_is_drawn_with_what_it_has(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", unbuffered(pipe, "ascii"))
    streams.set_up()

    sys.stdout.write("→ order.placed ■ Zoë\n")
    streams.flush()
    os.close(pipe.write_end)
    pipe.read()

    assert pipe.came == b"> order.placed # Zo\\xeb\n"


@pytest.mark.usefixtures("as_standard_output")
def test_a_reader_that_has_left_ends_the_program_as_a_shell_s_own_would(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", unbuffered(pipe))
    streams.set_up()
    os.close(pipe.read_end)

    sys.stdout.write("nobody reads this")
    with pytest.raises(ReaderGone) as gone:
        streams.flush()

    assert gone.value.code == 128 + 13
    streams.flush()  # As Python does at its exit; says nothing more.


def test_nobody_misses_what_is_said_on_a_standard_error_that_nobody_reads(
    pipe: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdout", io.StringIO())
    monkeypatch.setattr(sys, "stderr", unbuffered(pipe))
    streams.set_up()
    os.close(pipe.read_end)

    sys.stderr.write("nobody reads this\n")
    sys.stderr.flush()


def test_a_full_disk_is_an_error_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        monkeypatch.setattr(sys, "stderr", io.StringIO())
        streams.set_up()

        sys.stdout.write("much\n")
        with pytest.raises(OSError, match="No space left"):
            streams.flush()
        streams.flush()


def test_a_program_without_standard_output_writes_to_nowhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)

    streams.set_up()

    with sys.stdout, sys.stderr:
        sys.stdout.write("x")
        sys.stderr.write("x")


def test_what_is_said_while_the_disk_is_full_is_dropped_and_no_line_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = 10
    write = os.write

    def limited(descriptor: int, data: bytes | memoryview) -> int:
        nonlocal room
        if not room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        written = write(descriptor, memoryview(data)[:room])
        room -= written
        return written

    with (tmp_path / "log").open("wb") as file:
        raw = io.FileIO(file.fileno(), "w", closefd=False)
        monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, "utf-8", write_through=True))
        streams.set_up()
        monkeypatch.setattr(os, "write", limited)
        sys.stderr.write("the first line\n")
        sys.stderr.write("the second line\n")
        room = 1_000
        sys.stderr.write("the third line\n")
        monkeypatch.undo()

    assert (tmp_path / "log").read_text("utf-8").splitlines() == ["the first ", "the third line"]
