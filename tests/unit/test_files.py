"""Whom files are for, and how many may be open."""

from __future__ import annotations

import ast
import errno
import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from saga.runtime import files
from saga.runtime.files import allow_open_files, keep_private, write_public, write_whole


@pytest.fixture(autouse=True)
def umask(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(files, "_as_found", None)
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_a_process_makes_is_for_its_owner_alone_but_for_a_project_s_files(
    tmp_path: Path,
) -> None:
    keep_private()
    keep_private()

    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "order.db").touch()
    write_public(tmp_path / "contracts" / "order.json", "{}")

    assert mode(tmp_path / "data") == 0o700
    assert mode(tmp_path / "data" / "order.db") == 0o600
    assert mode(tmp_path / "contracts") == 0o755
    assert mode(tmp_path / "contracts" / "order.json") == 0o644


def test_a_stricter_umask_stays(tmp_path: Path) -> None:
    os.umask(0o277)
    keep_private()

    (tmp_path / "a").touch()

    assert mode(tmp_path / "a") == 0o400


def test_the_limit_of_open_files_is_raised_to_what_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 4_096))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))

    allow_open_files(1_024)

    assert asked == [(1_024, 4_096)]


def test_a_limit_that_cannot_be_raised_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (64, 64))

    with pytest.raises(OSError, match=r"only 64 files .*ulimit -n 1024"):
        allow_open_files(1_024)


def test_a_file_that_cannot_be_written_stays_as_it_was_and_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "file"
    write_whole(file, "before")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match=rf"No space left on device: '{file}'"):
        write_whole(file, "after")

    assert file.read_text("utf-8") == "before"
    assert [*tmp_path.iterdir()] == [file]


def test_a_file_keeps_its_rights_and_the_links_to_it(tmp_path: Path) -> None:
    file, link = tmp_path / "file", tmp_path / "link"
    write_whole(file, "before", 0o640)
    link.symlink_to(file)

    write_whole(link, "after")

    assert link.is_symlink()
    assert file.read_text("utf-8") == "after"
    assert mode(file) == 0o640


def test_a_device_is_written_to_and_stays_one() -> None:
    write_whole(Path("/dev/null"), "nothing")
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"):
        write_whole(Path("/dev/full"), "too much")

    assert Path("/dev/null").is_char_device()
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("named", ["/dev/fd/{}", "/proc/self/fd/{}"])
def test_a_pipe_is_written_to_by_the_link_that_names_it(named: str) -> None:
    """A shell names `>(...)` like that, and `/dev/stdout` is such a link."""
    reading, writing = os.pipe()
    with os.fdopen(reading, encoding="utf-8") as reader:
        with os.fdopen(writing):
            write_whole(Path(named.format(writing)), "drawn")
            write_public(Path(named.format(writing)), " twice")

        assert reader.read() == "drawn twice"


def no_new_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a folder that is another user's; root may write there all the same."""
    open_any = os.open

    def open_old(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_CREAT:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return open_any(path, flags, mode)

    monkeypatch.setattr(os, "open", open_old)


def no_other_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """As where the file is mounted by itself, in a container for instance."""

    def busy(*_: object) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    monkeypatch.setattr(Path, "replace", busy)


@pytest.mark.parametrize("refuse", [no_new_file, no_other_file])
def test_a_file_is_written_into_where_its_folder_takes_no_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuse: Callable[[pytest.MonkeyPatch], None]
) -> None:
    file = tmp_path / "file"
    write_whole(file, "before, and longer", 0o640)
    refuse(monkeypatch)

    write_whole(file, "after")

    assert file.read_text("utf-8") == "after"
    assert mode(file) == 0o640
    assert [*tmp_path.iterdir()] == [file]


def test_a_new_file_in_a_folder_that_takes_none_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_new_file(monkeypatch)

    with pytest.raises(PermissionError, match=rf"Permission denied: '{tmp_path / 'file'}'"):
        write_whole(tmp_path / "file", "text")


# --- their encoding -----------------------------------------------------------------------------

ROOT = Path(__file__).parents[2]
PACKAGES = ("common", "saga", "order_saga", "monitoring", "*_service")


def test_no_file_and_no_program_is_read_in_the_encoding_of_the_locale() -> None:
    """Ruff finds `open`, and these where it can tell that it is a path's."""
    found = []
    for file in (file for package in PACKAGES for file in ROOT.glob(f"{package}/**/*.py")):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                given = {keyword.arg for keyword in node.keywords}
                method = node.func.attr if isinstance(node.func, ast.Attribute) else ""
                reads = method in ("read_text", "write_text") or {"text"} & given
                if reads and "encoding" not in given:
                    found.append(f"{file.relative_to(ROOT)}:{node.lineno}")
    assert found == []
