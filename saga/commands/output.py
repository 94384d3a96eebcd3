"""What the subcommands share: where they write, and how they run coroutines."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import typer

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")

PROBLEM_FOUND: Final = 1
_SIGNALLED: Final = 128

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
DataDir = Annotated[
    Path,
    typer.Option(
        "--data-dir",
        envvar="DATA_DIR",
        help="The system's folder: databases, logs, a private broker's data.",
    ),
]
DATA_DIR: Final = Path("data")
OwnDatabase = Annotated[
    Literal["sqlite", "postgresql"],
    typer.Option("--database", help="Keep states in SQLite files, or in a private PostgreSQL."),
]
Replicas = Annotated[
    int,
    typer.Option(min=1, max=8, help="Processes per service; more than one need PostgreSQL."),
]


def one_replica_per_file(database: str, replicas: int) -> None:
    """Refuse several replicas of what only one process may open."""
    if replicas > 1 and database == "sqlite":
        raise typer.BadParameter(
            f"{replicas} replicas cannot share a SQLite file; add --database postgresql"
        )


def out() -> Console:
    """Where results go: standard output."""
    from rich.console import Console

    return Console(soft_wrap=True, highlight=False)


def err() -> Console:
    """Where progress and remarks go: standard error."""
    from rich.console import Console

    return Console(stderr=True, soft_wrap=True, highlight=False)


def harmless(text: str, *, lines: bool = False) -> str:
    """Text of others, with what a terminal may obey or hide spelt out: control characters, escape
    sequences, changes of direction. `lines` leaves line ends as they are."""
    if text.isprintable():
        return text
    return "".join(
        char
        if char.isprintable() or (lines and char == "\n")
        else char.encode("unicode_escape").decode()
        for char in text
    )


def problem(line: str) -> None:
    """Print one error line on standard error."""
    sys.stderr.write(f"error: {harmless(line)}\n")


def remark(line: str) -> None:
    """Print one line that is neither result nor error on standard error."""
    sys.stderr.write(f"saga: {harmless(line)}\n")


def print_json(document: dict[str, Any]) -> None:
    """Print the one JSON document of a command on standard output."""
    sys.stdout.write(json.dumps(document, indent=2) + "\n")
    sys.stdout.flush()


class Stopped(Exception):
    """A signal asked for the end. `status` is the shell's exit status for that."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.status = _SIGNALLED + number


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end.

    SIGINT, SIGTERM and SIGHUP cancel it, so that it can tidy up, and `Stopped` is raised then; a
    second SIGINT does not wait for that.
    """
    import uvloop

    from common import tracing

    # They report lost connections with tracebacks; what follows from it is said by us.
    for noisy in ("aio_pika", "aiormq"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)
    stopped: list[int] = []

    async def main() -> T:
        loop = asyncio.get_running_loop()
        task = asyncio.ensure_future(work)

        def stop(number: int) -> None:
            stopped.append(number)
            loop.remove_signal_handler(signal.SIGINT)
            task.cancel()

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop, number)
        return await task

    tracing.start("saga")
    try:
        return uvloop.run(main())
    except asyncio.CancelledError:
        if stopped:
            raise Stopped(stopped[0]) from None
        raise
    finally:
        tracing.stop()


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """End the command with the signal's exit status when `run` was stopped."""
    try:
        yield
    except Stopped as stopped:
        remark(f"stopped by {stopped}")
        raise typer.Exit(stopped.status) from None


@contextlib.contextmanager
def progress_bars(**totals: int | None) -> Iterator[dict[str, Callable[[int], None]]]:
    """A bar on standard error for each total, which may be unknown; what advances it is by the same
    name."""
    from functools import partial

    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = err()
    with Progress(
        TextColumn("{task.description:>8}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as progress:
        yield {
            name: partial(progress.advance, progress.add_task(name, total=total))
            for name, total in totals.items()
        }
