"""Where systems' packages put servers: Debian, Fedora, Arch, Alpine and Homebrew.

`scripts/setup` looks in the same places; a test compares the two.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

SYSTEM_FOLDERS: Final = (
    *("/usr/local/bin", "/usr/bin", "/bin"),
    *("/usr/local/sbin", "/usr/sbin", "/sbin"),
)
HOMEBREW_PREFIXES: Final = ("/opt/homebrew", "/usr/local", "/home/linuxbrew/.linuxbrew")
"""On Apple's processors, on Intel's, and on Linux; `HOMEBREW_PREFIX` names another."""
RABBITMQ: Final = ("usr/lib/rabbitmq/lib/rabbitmq_server-*", "usr/lib/rabbitmq")
"""Debian, Fedora, Alpine and RabbitMQ's own packages; Arch."""
RABBITMQ_OF_HOMEBREW: Final = ("opt/rabbitmq",)
POSTGRESQL: Final = ("usr/lib/postgresql/*", "usr/pgsql-*", "usr")
"""Debian; PostgreSQL's own RPMs; Fedora, Arch and Alpine."""
POSTGRESQL_OF_HOMEBREW: Final = ("opt/postgresql@*", "opt/postgresql")
ERLANG: Final = ("usr/lib/erlang/erts-*/bin", "usr/lib64/erlang/erts-*/bin")
"""Where Erlang keeps its programs if a package links not all of them from `/usr/bin`."""


def homebrew_prefixes() -> tuple[str, ...]:
    """Where Homebrew may be, the one that the environment names first."""
    named = os.environ.get("HOMEBREW_PREFIX")
    return tuple(dict.fromkeys((*([named] if named else ()), *HOMEBREW_PREFIXES)))


def homes(
    of_system: Sequence[str],
    of_homebrew: Sequence[str],
    program: str,
    *,
    root: Path = Path("/"),
) -> list[Path]:
    """The folders that hold this program, below `root`, the newest version last."""
    brews = [str(Path(prefix).relative_to("/")) for prefix in homebrew_prefixes()]
    patterns = [*of_system, *(f"{brew}/{pattern}" for brew in brews for pattern in of_homebrew)]
    found = [
        folder
        for pattern in patterns
        for folder in root.glob(pattern)
        if os.access(folder / program, os.X_OK)
    ]
    return sorted(found, key=_version)


def program_folders(*, root: Path = Path("/")) -> tuple[str, ...]:
    """Where programs are looked for that servers need, whatever the caller's PATH is."""
    brews = (f"{prefix}/{bin}" for prefix in homebrew_prefixes() for bin in ("bin", "sbin"))
    erlang = (str(folder) for pattern in ERLANG for folder in sorted(root.glob(pattern)))
    return tuple(dict.fromkeys((*SYSTEM_FOLDERS, *_there(brews), *erlang)))


def _there(folders: Iterable[str]) -> Iterable[str]:
    return (folder for folder in folders if Path(folder).is_dir())


def _version(folder: Path) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", folder.name)]
