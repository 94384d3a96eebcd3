"""Work stops step by step while there is little room, and goes on without flapping."""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from saga.local import node
from saga.runtime import disk
from saga.runtime.disk import INODES_MIN, Disks, Halt, explained, lack_of_room, servers_min_bytes
from saga.runtime.settings import Settings

LIMIT = 100_000_000
FOLDER = Path("/data")


@dataclass
class Disk:
    """What is told of a disk; no inodes are told where `f_files` is 0."""

    f_bavail: int = 10 * LIMIT
    f_frsize: int = 1
    f_files: int = 0
    f_favail: int = 0
    f_flag: int = 0

    def __call__(self, _: Path) -> Disk:
        return self


def watching(found: Disk, limit: int = LIMIT) -> tuple[Disks, list[Halt]]:
    halts: list[Halt] = []
    return Disks({"database": FOLDER}, limit, on_halt=halts.append, examine=found), halts


async def test_below_the_limit_nothing_new_is_begun_and_below_half_of_it_all_waits() -> None:
    found = Disk()
    disks, halts = watching(found)

    for free, halt in (
        (LIMIT, Halt.NONE),
        (LIMIT - 1, Halt.NEW_WORK),
        (LIMIT // 2, Halt.NEW_WORK),
        (LIMIT // 2 - 1, Halt.ALL_WORK),
        (0, Halt.ALL_WORK),
    ):
        found.f_bavail = free
        await disks.look()
        assert disks.halt is halt

    assert halts == [Halt.NEW_WORK, Halt.ALL_WORK]
    assert disks.lack == (
        "what has begun waits: the disk of /data has 0 kB free, less than 60 MB; free space there, "
        "or lower DISK_FREE_MIN_BYTES"
    )


async def test_a_fifth_more_than_the_limit_has_to_be_free_for_work_to_go_on() -> None:
    found = Disk(f_bavail=0)
    disks, halts = watching(found)

    for percent, halt in (
        (10, Halt.ALL_WORK),
        (59, Halt.ALL_WORK),
        (60, Halt.NEW_WORK),
        (119, Halt.NEW_WORK),
        (120, Halt.NONE),
        (100, Halt.NONE),
    ):
        found.f_bavail = LIMIT * percent // 100
        await disks.look()
        assert disks.halt is halt

    assert halts == [Halt.ALL_WORK, Halt.NEW_WORK, Halt.NONE]
    assert disks.lack == ""


async def test_a_disk_without_inodes_is_as_full_as_one_without_bytes() -> None:
    found = Disk(f_files=10 * INODES_MIN, f_favail=INODES_MIN - 1)
    disks, _ = watching(found)

    await disks.look()

    assert disks.halt is Halt.NEW_WORK
    assert disks.lack == (
        f"nothing new is begun: the disk of /data has {INODES_MIN - 1} inodes free, less than "
        f"{INODES_MIN}; remove files there"
    )


async def test_nothing_goes_on_while_a_disk_is_read_only() -> None:
    found = Disk(f_flag=os.ST_RDONLY)
    disks, _ = watching(found)

    await disks.look()

    assert disks.halt is Halt.ALL_WORK
    assert "the disk of /data is read-only; mount it so that it can be written to" in disks.lack


async def test_the_fullest_of_several_disks_counts() -> None:
    full, empty = Disk(f_bavail=LIMIT // 2), Disk()
    told: list[tuple[str, int, Halt]] = []
    disks = Disks(
        {"database": Path("/full"), "mails": Path("/empty")},
        LIMIT,
        on_look=lambda *found: told.append(found),
        examine=lambda path: full if path == Path("/full") else empty,
    )

    await disks.look()

    assert disks.halt is Halt.NEW_WORK
    assert "/full" in disks.lack
    assert told == [
        ("database", LIMIT // 2, Halt.NEW_WORK),
        ("mails", 10 * LIMIT, Halt.NONE),
    ]


@pytest.mark.parametrize(
    "disks",
    [Disks(), Disks({}, LIMIT), Disks({"database": FOLDER}, 0, examine=Disk(f_bavail=0))],
)
async def test_without_a_folder_or_a_limit_there_is_always_room(disks: Disks) -> None:
    await disks.look()

    assert disks.halt is Halt.NONE
    assert disks.lack == ""


async def test_a_disk_that_cannot_be_examined_is_as_it_was() -> None:
    found = Disk(f_bavail=0)
    answers = True

    def examine(path: Path) -> Disk:
        if not answers:
            raise OSError(errno.EIO, "Input/output error")
        return found(path)

    disks = Disks({"database": FOLDER}, LIMIT, examine=examine)
    await disks.look()
    answers = False
    await disks.look()

    assert disks.halt is Halt.ALL_WORK
    assert lack_of_room(FOLDER, LIMIT, 1, examine=examine) == ""


def test_a_folder_that_does_not_exist_yet_has_the_room_of_the_one_it_will_be_in(
    tmp_path: Path,
) -> None:
    assert disk.examine(tmp_path / "a" / "b") == os.statvfs(tmp_path)


def test_a_private_broker_s_limit_is_the_last_one() -> None:
    default = Settings.model_fields["disk_free_min_bytes"].default
    assert servers_min_bytes(default) == node.DISK_FREE_MIN_BYTES
    assert servers_min_bytes(LIMIT) < LIMIT // disk.WAITING_SHARE
    assert servers_min_bytes(0) == 0


@pytest.mark.parametrize(
    ("number", "way_out"),
    [
        (errno.ENOSPC, "; free space or inodes there"),
        (errno.EDQUOT, "; free space there, or raise the quota"),
        (errno.EROFS, "; mount it so that it can be written to"),
        (errno.EACCES, ""),
    ],
)
def test_a_disk_that_takes_no_more_is_named_with_the_way_out(number: int, way_out: str) -> None:
    error = OSError(number, os.strerror(number), "/data/a")

    assert explained(error) == f"{error}{way_out}"
