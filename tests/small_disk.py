"""Disks so small that a test can fill them: file systems in memory, mounted for the test."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

_PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class SmallDisk:
    """A disk of its own, at `path`."""

    path: Path

    @property
    def free_bytes(self) -> int:
        found = os.statvfs(self.path)
        return found.f_bavail * found.f_frsize

    def fill(self, leave_bytes: int = 0) -> None:
        """Take the room, but for so much."""
        with (self.path / "filler").open("ab", buffering=0) as filler:
            while (free := self.free_bytes - leave_bytes) > 0:
                filler.write(b"x" * min(free, _PIECE_BYTES))

    def take_inodes(self) -> None:
        """Take all inodes, and no room to speak of."""
        folder = self.path / "fillers"
        folder.mkdir()
        for number in range(os.statvfs(self.path).f_favail):
            (folder / f"{number}").touch()

    def make_room(self) -> None:
        """Give it all back."""
        (self.path / "filler").unlink(missing_ok=True)
        for filler in self.path.glob("fillers/*"):
            filler.unlink()

    def remount(self, *options: str) -> None:
        subprocess.run(["mount", "-o", ",".join(("remount", *options)), self.path], check=True)


@contextmanager
def small_disk(path: Path, megabytes: int, *options: str) -> Iterator[SmallDisk]:
    """Mount one at `path`; skips the test where that is not allowed."""
    path.mkdir(parents=True, exist_ok=True)
    given = ",".join((f"size={megabytes}m", *options))
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", given, "tmpfs", path],
        capture_output=True,
        encoding="utf-8",
        check=False,
    )
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    try:
        yield SmallDisk(path)
    finally:
        # Lazily: what still writes there when a test has failed keeps no test waiting.
        subprocess.run(["umount", "--lazy", path], check=True)
