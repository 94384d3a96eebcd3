"""What happened in a run, line by line; two runs of one seed leave the same."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Sequence


class SimulationTrace:
    """Lines of simulated seconds, who, and what."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.lines: list[str] = []

    def note(self, who: str, what: str) -> None:
        self.lines.append(f"{self._loop.time():12.6f}  {who:<12} {what}")


def digest_of(lines: Sequence[str]) -> str:
    """The same for the same lines only."""
    return hashlib.blake2b("\n".join(lines).encode(), digest_size=16).hexdigest()
