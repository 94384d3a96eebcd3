"""A commit that is measured beside the checkout runs its own code, not the checkout's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from bench.export import ROOT, Export, ExportError, export, same_packages

MARK = "OF_ANOTHER_COMMIT = True"


def git(repository: Path, *arguments: str) -> str:
    who = ("-c", "user.name=test", "-c", "user.email=test@example.org")
    return subprocess.run(
        ["git", "-C", repository, *who, *arguments], check=True, capture_output=True, text=True
    ).stdout


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The product's files, with one commit that differs from the checkout and one without them."""
    folder = tmp_path_factory.mktemp("repository")
    packages = ["bench", "common", "saga", *(path.name for path in ROOT.glob("*_service"))]
    for name in packages:
        copy_sources(ROOT / name, folder / name)
    with (folder / "common/__init__.py").open("a") as file:
        file.write(f"\n{MARK}\n")
    git(folder, "init", "--quiet")
    git(folder, "add", "--all")
    git(folder, "commit", "--quiet", "--message", "Another commit")
    git(folder, "tag", "other")
    git(folder, "rm", "--quiet", "-r", "common")
    git(folder, "commit", "--quiet", "--message", "A commit that does not run")
    git(folder, "tag", "broken")
    return folder


def copy_sources(source: Path, target: Path) -> None:
    for file in source.rglob("*"):
        if file.is_file() and "__pycache__" not in file.parts:
            copied = target / file.relative_to(source)
            copied.parent.mkdir(parents=True, exist_ok=True)
            copied.write_bytes(file.read_bytes())


@pytest.fixture(scope="module")
def exported(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Export:
    return export("other", tmp_path_factory.mktemp("export") / "before", repository)


def test_every_package_is_imported_from_the_export(exported: Export) -> None:
    modules = exported.modules()

    assert {"common", "saga", "order_service", "payment_service"} <= modules.keys()
    assert all(file.is_relative_to(exported.folder) for file in modules.values()), modules


def test_its_services_are_started_with_its_code_and_the_same_interpreter(
    exported: Export, tmp_path: Path
) -> None:
    program = "import common, sys; print(common.OF_ANOTHER_COMMIT, sys.version)"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}  # as a shell may have it

    with (tmp_path / "log").open("wb") as log:
        process = exported.spawn(["-c", program], environment, log, 0)
        assert process.wait() == 0, (tmp_path / "log").read_text()

    assert (tmp_path / "log").read_text().split() == ["True", *sys.version.split()]


def test_other_locked_packages_are_noticed(exported: Export) -> None:
    assert not same_packages(exported)  # it has no lock file


def test_a_commit_that_does_not_exist_is_refused(repository: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="there is no commit 'nonsense'"):
        export("nonsense", tmp_path / "before", repository)


def test_a_commit_that_does_not_run_is_refused_with_its_reason(
    repository: Path, tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=r"broken does not run .* No module named 'common'"):
        export("broken", tmp_path / "before", repository)
