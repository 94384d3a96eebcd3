"""The machine a figure comes from, and its pace: how long a fixed piece of Python takes there.

Machines differ, and a shared one differs from minute to minute. The same work, timed beside each
measurement, tells a slower product from a slower machine. Paces compare machines that run the same
version of Python, since the interpreter's own speed is part of them.
"""

from __future__ import annotations

import os
import platform
import sysconfig
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

LOOPS: Final = 800_000
KEYS: Final = 997


@dataclass(frozen=True, slots=True)
class Pace:
    """How long the fixed work took."""

    wall_ms: float
    """Elapsed time: grows also when other processes take the core."""
    cpu_ms: float
    """CPU time: grows only when the core itself is slower."""

    @classmethod
    def now(cls) -> Self:
        """Do the work once; blocks for 0.1 to 0.2 s."""
        cpu, wall = time.process_time(), time.perf_counter()
        work()
        return cls((time.perf_counter() - wall) * 1_000, (time.process_time() - cpu) * 1_000)


def work() -> int:
    """A fixed amount of interpreter work: a loop, strings, dictionary look-ups."""
    counts: dict[str, int] = {}
    for number in range(LOOPS):
        key = f"key-{number % KEYS}"
        counts[key] = counts.get(key, 0) + 1
    return len(counts)


@dataclass(frozen=True, slots=True)
class BenchHost:
    """Where and with what it was measured."""

    python: str
    optimised: bool
    """Whether Python was built with profile-guided optimisation, as distributions build it."""
    cpu: str
    cores: int
    """That the benchmark may use."""
    kernel: str

    @classmethod
    def here(cls) -> Self:
        return cls(
            python=f"{platform.python_implementation()} {platform.python_version()}",
            optimised="--enable-optimizations" in (sysconfig.get_config_var("CONFIG_ARGS") or ""),
            cpu=cpu_model(Path("/proc/cpuinfo").read_text().splitlines()),
            cores=len(os.sched_getaffinity(0)),
            kernel=platform.release(),
        )


def cpu_model(cpuinfo: Iterable[str]) -> str:
    """The first processor's model, of the lines of `/proc/cpuinfo`; else the architecture."""
    for line in cpuinfo:
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()
