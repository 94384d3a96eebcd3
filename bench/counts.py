"""What an order costs in counted things: system calls, turns of the event loop, sleeps.

Times drift with the machine. Counts depend on how messages come together, and on little else. Each
load runs twice: once as it is, for the sleeps, and once counted, for the system calls.

perf counts inside the kernel and hardly slows the service. strace stops the service at each call
and slows it several times; the half rate is then half of what `bare` reaches while it is counted.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shutil
import signal
import statistics
import subprocess
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from bench.compare import HALF_RATE_SECONDS, LONE_ORDERS, LONE_PER_SECOND, all_started
from bench.rig import BARE, Bench, Measured, Report, Variant
from saga.local.node import RabbitNode

Tool = Literal["perf", "strace"]
Kind = Literal["full", "half", "lone"]
"""All orders at once; at half of the opponent's rate; one order at a time."""
Calls = dict[str, int]
"""Keyed by system call: how often. `ALL` is the sum of all of them."""

KINDS: Final[tuple[Kind, ...]] = ("full", "half", "lone")
TOOLS: Final[tuple[Tool, ...]] = ("perf", "strace")
"""The better one first."""
ALL: Final = "all"
EPOLL: Final = ("epoll_wait", "epoll_pwait", "epoll_pwait2")
NAMED: Final = (
    *EPOLL, "read", "readv", "write", "writev", "sendto", "sendmsg", "recvfrom", "recvmsg",
    "pread64", "pwrite64", "fsync", "fdatasync", "fcntl", "futex", "getpid", "getrandom",
)  # fmt: skip
"""What perf counts by name. All names would take 15 s to switch on."""
PROBES: Final = Path("/sys/kernel/tracing/events/syscalls")
"""Where the kernel lists the calls that it can count; another architecture lacks some."""
ATTACH_SECONDS: Final = 30.0
"""How long a tool may take to find its process."""

_TOTAL: Final = "raw_syscalls:sys_enter"
_PROBE: Final = "sys_enter_"
_READY: Final[Mapping[Tool, str]] = {"perf": "Events enabled", "strace": " attached"}
_STRACE_ROW: Final = re.compile(r"[\d.]+ +[\d.]+ +\d+ +(?P<calls>\d+) +(?:\d+ +)?(?P<name>\w+)")
_STRACE_TOTAL: Final = "total"


class CountsError(Exception):
    """System calls cannot be counted here. One line that names the way out."""


@dataclass(frozen=True, slots=True)
class Counted:
    """What one service did under one load; per order, but for the rates."""

    variant: str
    kind: Kind
    service: str
    orders_per_second: float
    cpu_ms: float
    switches: float
    """How often one of its threads went to sleep."""
    orders_per_second_counted: float
    """While system calls were counted."""
    calls: Mapping[str, float]

    @property
    def epoll_waits(self) -> float:
        """Turns of the event loop."""
        return sum(self.calls.get(name, 0.0) for name in EPOLL)


def choose(wanted: Tool | None = None) -> Tool:
    """The tool to count with: the wanted one, or the best that works. Raises `CountsError`."""
    for tool in TOOLS if wanted is None else (wanted,):
        if _works(tool):
            return tool
    if wanted == "perf":
        raise CountsError(
            "perf is missing or may not count system calls here: install it (apt-get install "
            "linux-perf) and run as root, or count with strace"
        )
    raise CountsError(
        "strace is missing or may not look at processes here: install it (apt-get install strace)"
    )


def _works(tool: Tool) -> bool:
    trial = {
        "perf": ("perf", "stat", "-e", _TOTAL, "true"),
        "strace": ("strace", "-c", "-f", "true"),
    }[tool]
    if shutil.which(tool) is None:
        return False
    return subprocess.run(trial, capture_output=True, check=False).returncode == 0


async def count(
    variants: Sequence[Variant],
    node: RabbitNode,
    folder: Path,
    *,
    rounds: int,
    orders: int,
    tool: Tool,
    report: Report,
) -> list[Counted]:
    """Count what each variant does under each kind of load; medians over the rounds.

    The opponent has to be among the variants: it sets the half rate.
    """
    runs: dict[tuple[str, Kind, str], list[Counted]] = {}
    ordered = sorted(variants, key=lambda variant: variant is not BARE)
    async with all_started(ordered, node, folder, report) as benches:
        for number in range(1, rounds + 1):
            half, half_counted = 0.0, 0.0
            for kind in KINDS:
                report(f"round {number} of {rounds}: {kind}")
                for variant in ordered:
                    bench = benches[variant.name]
                    plain = await bench.load(*_load(kind, orders, half))
                    counted = await _count(bench, tool, *_load(kind, orders, half_counted))
                    if kind == "full" and variant is BARE:
                        half = plain.orders_per_second / 2
                        half_counted = counted.orders_per_second / 2
                    for one in _rows(variant, kind, plain, counted):
                        runs.setdefault((variant.name, kind, one.service), []).append(one)
    return [_median(found) for found in runs.values()]


def _load(kind: Kind, orders: int, half: float) -> tuple[int, float]:
    """How many orders, and how many a second."""
    match kind:
        case "full":
            return orders, 0.0
        case "half":
            return max(int(half * HALF_RATE_SECONDS), 1), half
        case "lone":
            return LONE_ORDERS, LONE_PER_SECOND


@dataclass(frozen=True, slots=True)
class _Run:
    orders: int
    orders_per_second: float
    calls: Mapping[str, Calls]
    """Keyed by service."""


async def _count(bench: Bench, tool: Tool, orders: int, rate: float) -> _Run:
    load = await bench.prepare(orders, rate)
    async with contextlib.AsyncExitStack() as attached:
        calls = {
            name: await attached.enter_async_context(
                counting(tool, bench.system.pid(name), bench.system.folder / f"{name}.calls")
            )
            for name in bench.system.services
        }
        found = await bench.send(load)
    return _Run(orders, orders / found["ends"][-1], calls)


def _rows(variant: Variant, kind: Kind, plain: Measured, counted: _Run) -> list[Counted]:
    return [
        Counted(
            variant=variant.name,
            kind=kind,
            service=service,
            orders_per_second=plain.orders_per_second,
            cpu_ms=plain.cpu_ms[service],
            switches=plain.switches[service],
            orders_per_second_counted=counted.orders_per_second,
            calls={name: number / counted.orders for name, number in calls.items()},
        )
        for service, calls in counted.calls.items()
    ]


def total(services: Sequence[Counted]) -> Counted:
    """What all services of a variant did under a load, as a service named `all`."""
    names = dict.fromkeys(name for one in services for name in one.calls)
    return replace(
        services[0],
        service=ALL,
        cpu_ms=sum(one.cpu_ms for one in services),
        switches=sum(one.switches for one in services),
        calls={name: sum(one.calls.get(name, 0.0) for one in services) for name in names},
    )


def _median(found: Sequence[Counted]) -> Counted:
    names = dict.fromkeys(name for run in found for name in run.calls)
    return replace(
        found[0],
        orders_per_second=statistics.median(run.orders_per_second for run in found),
        cpu_ms=statistics.median(run.cpu_ms for run in found),
        switches=statistics.median(run.switches for run in found),
        orders_per_second_counted=statistics.median(run.orders_per_second_counted for run in found),
        calls={
            name: statistics.median(run.calls.get(name, 0.0) for run in found) for name in names
        },
    )


@contextlib.asynccontextmanager
async def counting(tool: Tool, pid: int, file: Path) -> AsyncIterator[Calls]:
    """Count the process's system calls; they are there when the context has ended.

    All of its threads count. `file` is overwritten. Raises `CountsError` where the tool does not
    attach.
    """
    calls: Calls = {}
    command = {"perf": _perf, "strace": _strace}[tool](pid, file)
    process = await asyncio.create_subprocess_exec(*command, stderr=asyncio.subprocess.PIPE)
    try:
        await _until_attached(process, tool)
        yield calls
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        await process.communicate()
    text = await asyncio.to_thread(file.read_text)
    calls.update(read_perf(text) if tool == "perf" else read_strace(text))


def _perf(pid: int, file: Path) -> list[str]:
    events = [f"{_PROBE}{name}" for name in NAMED]
    known = [f"syscalls:{event}" for event in events if (PROBES / event).exists()]
    wanted = [word for event in (_TOTAL, *known) for word in ("-e", event)]
    # After a delay, even of 1 ms, it says when it counts.
    return ["perf", "stat", "-D", "1", "-x", ",", "-o", str(file), *wanted, "-p", str(pid)]


def _strace(pid: int, file: Path) -> list[str]:
    return ["strace", "-c", "-f", "-o", str(file), "-p", str(pid)]


async def _until_attached(process: asyncio.subprocess.Process, tool: Tool) -> None:
    assert process.stderr is not None
    last = ""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ATTACH_SECONDS):
            async for line in process.stderr:
                last = line.decode(errors="replace").strip()
                if _READY[tool] in last:
                    return
    raise CountsError(f"{tool} does not attach to a service: {last or 'it says nothing'}")


def read_perf(text: str) -> Calls:
    """The calls in what `perf stat -x ,` wrote; those that never happened are left out."""
    calls: Calls = {}
    for line in text.splitlines():
        number, _, event, *_ = [*line.split(","), "", ""]
        if number.isdigit() and int(number):
            calls[ALL if event == _TOTAL else event.rpartition(_PROBE)[2]] = int(number)
    return calls


def read_strace(text: str) -> Calls:
    """The calls in what `strace -c` wrote."""
    rows = (_STRACE_ROW.fullmatch(line.strip()) for line in text.splitlines())
    calls = {row["name"]: int(row["calls"]) for row in rows if row is not None}
    return {ALL: calls.pop(_STRACE_TOTAL, 0), **calls}
