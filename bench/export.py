"""The product as of another commit, to be measured beside today's.

Its files are exported into a folder, and an environment made there runs them: the same interpreter
and the same installed packages, but that commit's code. The editable installation of the checkout
is a line in a `.pth` file of its environment, which another environment does not read.
"""

from __future__ import annotations

import json
import os
import subprocess
import sysconfig
import tomllib
import venv
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from saga.local.processes import Started

ROOT: Final = Path(__file__).resolve().parents[1]
_LOCK: Final = "requirements-dev.lock"
_PROGRAM: Final = "bench/payment.py"
"""What of the exported benchmarks is run: its payment service needs its own code."""
_WHERE: Final = """
import importlib, json, pkgutil
names = ["common", "saga", "bench.payment"]
names += [found.name for found in pkgutil.iter_modules() if found.name.endswith("_service")]
print(json.dumps({name: importlib.import_module(name).__file__ for name in names}))
"""


class ExportError(Exception):
    """A commit cannot be exported or run. One line that names it and the reason."""


@dataclass(frozen=True, slots=True)
class Export:
    """A commit's files, and an interpreter that imports them."""

    revision: str
    """The commit as the user named it."""
    commit: str
    """Its hash."""
    folder: Path
    python: Path

    def spawn(
        self, arguments: Sequence[str], environment: Mapping[str, str], log: IO[bytes], group: int
    ) -> Started:
        """Start its Python, as `start_python` of `saga.local.processes` starts ours: a `Spawn`."""
        return subprocess.Popen(
            [self.python, *arguments],
            cwd=self.folder,  # `-m` looks here first
            env=_without_paths(environment),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=group,
        )

    def run(self, *arguments: str, **environment: str) -> str:
        """What its Python prints. Raises `ExportError` when it fails."""
        done = subprocess.run(
            [self.python, *arguments],
            cwd=self.folder,
            env=_without_paths(os.environ | environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr.strip() or f"exit status {done.returncode}").splitlines()[-1]
            raise ExportError(f"{self.revision} does not run with today's packages: {reason}")
        return done.stdout

    def apply_topology(self, amqp_url: str) -> None:
        """Declare that commit's exchanges, queues and bindings. Raises `ExportError`."""
        self.run("-m", "saga.cli", "topology", "apply", AMQP_URL=amqp_url)

    def modules(self) -> dict[str, Path]:
        """The file that each of the product's packages is imported from."""
        found: dict[str, str] = json.loads(self.run("-c", _WHERE))
        return {name: Path(file).resolve() for name, file in found.items()}


def export(revision: str, folder: Path, repository: Path = ROOT) -> Export:
    """Export a commit of the repository into the folder, which is made.

    Raises `ExportError` where there is no such commit, or its code cannot be imported here.
    """
    commit = _git(repository, "rev-parse", "--verify", "--quiet", f"{revision}^{{commit}}")
    if not commit:
        raise ExportError(f"there is no commit {revision!r} in {repository}")
    files = folder.resolve() / "files"
    files.mkdir(parents=True)
    archive = folder / "files.tar"
    _git(repository, "archive", f"--output={archive.resolve()}", commit)
    subprocess.run(["tar", "-xf", archive, "-C", files], check=True)  # noqa: S607 - wherever it is
    archive.unlink()
    if not (files / _PROGRAM).exists():
        raise ExportError(f"{revision} has no {_PROGRAM}: take a commit that has")
    exported = Export(revision, commit, files, _environment(folder.resolve() / "python", files))
    for name, file in exported.modules().items():
        if not file.is_relative_to(files):
            raise ExportError(f"{revision} would run {name} of {file}, not its own")
    return exported


def same_packages(exported: Export) -> bool:
    """Whether that commit was made for the versions that are installed today."""
    theirs = exported.folder / _LOCK
    return theirs.exists() and theirs.read_bytes() == (ROOT / _LOCK).read_bytes()


def commit_here() -> str:
    """The checkout's commit, with `-dirty` where files differ from it; empty outside of Git."""
    return _git(ROOT, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty")


def _environment(folder: Path, files: Path) -> Path:
    """Make a virtual environment with these files and today's packages; its interpreter."""
    venv.EnvBuilder(symlinks=True).create(folder)
    here = {"base": str(folder), "platbase": str(folder)}
    packages = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    # Paths in a `.pth` file are taken as they are: the `.pth` files in them do not count.
    path = Path(sysconfig.get_path("purelib", "venv", here)) / "exported.pth"
    path.write_text("".join(f"{entry}\n" for entry in (files, *sorted(packages))))
    _install_metadata(path.parent, files)
    return folder / "bin" / "python"


def _install_metadata(packages: Path, files: Path) -> None:
    """Let that commit find its own version: it may be a distribution of another name than today."""
    file = files / "pyproject.toml"
    project = tomllib.loads(file.read_text()).get("project") if file.exists() else None
    if project is None:
        return
    name, version = project["name"], project["version"]
    metadata = packages / f"{name.replace('-', '_')}-{version}.dist-info" / "METADATA"
    metadata.parent.mkdir(exist_ok=True)
    metadata.write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def _without_paths(environment: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key != "PYTHONPATH"}


def _git(repository: Path, *arguments: str) -> str:
    """What Git prints; nothing where it fails."""
    try:
        done = subprocess.run(
            ["git", "-C", repository, *arguments],  # noqa: S607 - wherever it is installed
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
