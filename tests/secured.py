"""A system whose callers have to be known, and in which names are sealed."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from saga.auth.keys import changing, new_key
from saga.auth.settings import KEYS_FILE_NAME
from saga.runtime.kernel.tables import utc_now

WANTED: Final = "SECURED"
"""Names the environment variable with which the rounds of faults have it so."""


@contextmanager
def secured(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of the services of a system in `folder`. Meanwhile what this process asks
    them comes with a key that may do everything."""
    key, kept = new_key("tests", ["*"], now=utc_now())
    with changing(folder / KEYS_FILE_NAME) as keys:
        keys.append(kept)
    before = os.environ.get("SAGA_API_KEY")
    os.environ["SAGA_API_KEY"] = key
    try:
        yield {"AUTH": "on", "PERSONAL": "sealed"}
    finally:
        if before is None:
            del os.environ["SAGA_API_KEY"]
        else:
            os.environ["SAGA_API_KEY"] = before


@contextmanager
def secured_if_wanted(folder: Path) -> Iterator[dict[str, str]]:
    """The same where `SECURED=1` says so; otherwise nothing changes."""
    if os.environ.get(WANTED) != "1":
        yield {}
        return
    with secured(folder) as environment:
        yield environment
