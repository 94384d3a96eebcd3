"""The passwords of the broker's users: made, or read from where an operator keeps them."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from saga.errors import Explained

PASSWORD_BYTES: Final = 24
ENVIRONMENT: Final = "env"
"""In place of a file's name: the passwords are in the environment."""


class PasswordError(Explained):
    """A password that is not there. Names the variable, never a password."""


def new_passwords(users: Iterable[str]) -> dict[str, str]:
    """A new random password for each."""
    return {user: secrets.token_urlsafe(PASSWORD_BYTES) for user in users}


def variable(user: str) -> str:
    """The variable that holds a user's password, e.g. `SAGA_PASSWORD_TRIP`."""
    name = user.removeprefix("saga-").upper().replace("-", "_")
    return f"SAGA_PASSWORD_{name}"


def read_passwords(source: str, users: Iterable[str]) -> dict[str, str]:
    """Each user's password from the environment (`env`), or from a file of `NAME=value` lines, as
    compose files use. Raises `PasswordError` if one is missing or empty, or the file is no such."""
    if source == ENVIRONMENT:
        found: Mapping[str, str] = os.environ
    else:
        found = _read(Path(source))
    wanted = {user: variable(user) for user in users}
    if missing := [name for name in wanted.values() if not found.get(name)]:
        raise PasswordError(
            f"no password in {source} for {', '.join(missing)}: add a line or set it"
        )
    return {user: found[name] for user, name in wanted.items()}


def _read(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise PasswordError(f"cannot read passwords from {file}: {error}") from error
    found: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        name, equals, value = line.partition("=")
        if not equals:
            raise PasswordError(f"{file}, line {number}: write NAME=password")
        found[name.strip()] = value.strip()
    return found
