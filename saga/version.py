"""Which version of the engine this is."""

from __future__ import annotations

from functools import cache
from importlib.metadata import version
from typing import Final

DISTRIBUTION: Final = "saga-engine"


@cache
def engine_version() -> str:
    """The version that is installed."""
    return version(DISTRIBUTION)
