"""Where servers are found on each system, and what is done where Linux' own ways are not there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from saga.local import node, postgres
from saga.local.places import (
    POSTGRESQL,
    POSTGRESQL_OF_HOMEBREW,
    RABBITMQ,
    RABBITMQ_OF_HOMEBREW,
    homes,
    program_folders,
)
from saga.local.server import free_ports


def program(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o755)
    return path


@pytest.mark.parametrize(
    "home",
    [
        "usr/lib/rabbitmq/lib/rabbitmq_server-4.1.2",
        "usr/lib/rabbitmq",
        "opt/homebrew/opt/rabbitmq",
        "usr/local/opt/rabbitmq",
        "home/linuxbrew/.linuxbrew/opt/rabbitmq",
    ],
    ids=["Debian, Fedora, Alpine", "Arch", "Apple", "Intel", "Linux"],
)
def test_rabbitmq_is_found_where_each_system_has_it(home: str, tmp_path: Path) -> None:
    program(tmp_path / home / "sbin" / "rabbitmq-server")
    found = homes(RABBITMQ, RABBITMQ_OF_HOMEBREW, "sbin/rabbitmq-server", root=tmp_path)
    assert found == [tmp_path / home]


@pytest.mark.parametrize(
    "home",
    [
        "usr/lib/postgresql/17",
        "usr/pgsql-17",
        "usr",
        "opt/homebrew/opt/postgresql@17",
        "usr/local/opt/postgresql",
    ],
    ids=["Debian", "PostgreSQL's RPM", "Fedora, Arch, Alpine", "Apple", "Intel"],
)
def test_postgresql_is_found_where_each_system_has_it(home: str, tmp_path: Path) -> None:
    program(tmp_path / home / "bin" / "initdb")
    found = homes(POSTGRESQL, POSTGRESQL_OF_HOMEBREW, "bin/initdb", root=tmp_path)
    assert found == [tmp_path / home]


def test_the_newest_version_counts_and_what_is_no_program_does_not(tmp_path: Path) -> None:
    for version in ("9", "15", "17"):
        program(tmp_path / "usr" / "lib" / "postgresql" / version / "bin" / "initdb")
    (tmp_path / "usr/lib/postgresql/17/bin/initdb").chmod(0o644)
    program(tmp_path / "usr" / "bin" / "initdb")
    found = homes(POSTGRESQL, POSTGRESQL_OF_HOMEBREW, "bin/initdb", root=tmp_path)
    assert found[-1].name == "15"
    assert len(found) == 3


def test_programs_are_looked_for_where_homebrew_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOMEBREW_PREFIX", str(tmp_path))
    (tmp_path / "bin").mkdir()
    program(tmp_path / "usr/lib64/erlang/erts-15.2/bin/epmd")
    found = program_folders(root=tmp_path)
    assert str(tmp_path / "bin") in found
    assert str(tmp_path / "sbin") not in found
    assert found[-1] == str(tmp_path / "usr/lib64/erlang/erts-15.2/bin")


# --- without what only Linux has ----------------------------------------------------------------


@pytest.fixture
def without_proc(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS: nothing below /proc can be read."""
    read, listed = Path.read_text, os.listdir

    def refuse(path: object) -> None:
        if str(path).startswith("/proc"):
            raise FileNotFoundError(path)

    def read_text(path: Path, *arguments: str | None, **options: str | None) -> str:
        refuse(path)
        return read(path, *arguments, **options)

    def listdir(path: Path) -> list[str]:
        refuse(path)
        return listed(path)

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(os, "listdir", listdir)


@pytest.mark.usefixtures("without_proc")
def test_ports_are_found_without_proc() -> None:
    assert 10_000 <= free_ports(["one"])["one"] < 32_768


@pytest.mark.usefixtures("without_proc")
def test_a_process_s_open_files_are_none_without_proc() -> None:
    assert list(node._open_files(os.getpid())) == []


@pytest.mark.usefixtures("without_proc")
def test_a_server_s_processes_are_found_without_proc() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        try:
            assert child.pid in postgres._children(os.getpid())
        finally:
            child.kill()


def test_a_command_becomes_another_user_s_without_setpriv() -> None:
    if os.geteuid() != 0:
        pytest.skip("only root may become another user")
    ids = ("/bin/sh", "-c", "echo $(id -u) $(id -g) $(id -G)")
    said = subprocess.run(
        [sys.executable, "-c", postgres._BECOME, "65534", "65533", *ids],
        capture_output=True,
        text=True,
        check=True,
    )
    assert said.stdout == "65534 65533 65533\n"


@pytest.mark.parametrize(("help_", "has"), [("--reuid <uid>", True), ("--nnp", False)])
def test_only_the_setpriv_that_changes_users_is_taken(
    help_: str, has: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = program(tmp_path / "setpriv")
    file.write_text(f"#!/bin/sh\necho '{help_}'\n")
    monkeypatch.setattr(postgres, "program_folders", lambda: (str(tmp_path), "/bin"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin")
    postgres._has_setpriv.cache_clear()
    try:
        assert postgres._has_setpriv() is has
    finally:
        postgres._has_setpriv.cache_clear()
