"""What the subcommands share: options, remarks, JSON, and how they run coroutines. Tables and texts
are printed by `saga.commands.console`, which takes longer to import."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import signal
import sys
from collections.abc import Coroutine, Iterator
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Final, Literal, TypeVar

import typer

from saga.commands.hiding import hidden
from saga.errors import InputError, NotFound
from saga.text import harmless, plain

T = TypeVar("T")

PROBLEM_FOUND: Final = 1
LINE_MAX_CHARACTERS: Final = 1_000
LISTED_MAX: Final = 20
"""Of what a command may find many of, so many are shown one by one."""
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


def plain_text(text: str | None) -> str | None:
    """The callback of an option that takes words of an operator, which are kept."""
    if text is not None:
        try:
            return plain(text)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from None
    return text


def reason_option(help: str) -> Any:
    """The option `--reason`: words of an operator, for a record."""
    return typer.Option("--reason", help=help, callback=plain_text, show_default=False)


def moment_of(text: str | None, option: str) -> datetime | None:
    """The time that is given with an option; None if none is."""
    if text is None:
        return None
    from saga import limits
    from saga.limits import TIME_END, TIME_MIN

    try:
        given = datetime.fromisoformat(text)
    except ValueError:
        given = None
    if given is None or given.tzinfo is None or (moment := limits.moment_of(text)) is None:
        raise typer.BadParameter(
            f"{text!r} is no time with an offset from {TIME_MIN.year} to {TIME_END.year - 1}; "
            f"write it like 2030-01-31T12:00:00Z",
            param_hint=option,
        )
    return moment


def problem(line: str) -> None:
    """Print one error line on standard error; of a very long one, its beginning and its end."""
    if len(line) > LINE_MAX_CHARACTERS:
        half = LINE_MAX_CHARACTERS // 2
        line = f"{line[:half]} … {line[-half:]}"
    _tell("error", line)


def remark(line: str) -> None:
    """Print one line that is neither result nor error on standard error."""
    _tell("saga", line)


def _tell(who: str, line: str) -> None:
    from saga.runtime.urls import without_passwords

    sys.stderr.write(f"{who}: {harmless(without_passwords(hidden().text(line)))}\n")
    sys.stderr.flush()


class Remarks(logging.Handler):
    """What libraries log while a command runs, as remarks."""

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        remark(record.getMessage() + (f": {error}" if error is not None else ""))


def print_json(document: dict[str, Any]) -> None:
    """Print the one JSON document of a command on standard output."""
    sys.stdout.write(json.dumps(hidden().document(document), indent=2) + "\n")
    sys.stdout.flush()


def print_json_line(document: dict[str, Any]) -> None:
    """Print a JSON document on standard output, in a line of its own, as one of several."""
    sys.stdout.write(json.dumps(hidden().document(document)) + "\n")
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

    from saga.runtime import tracing

    logging.basicConfig(level=logging.WARNING, handlers=[Remarks()])
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

    try:
        tracing.start("saga")
    except BaseException:
        work.close()
        raise
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
def wrong_usage() -> Iterator[None]:
    """What makes no sense to ask for is wrong usage. What is only not there is a failure."""
    try:
        yield
    except NotFound:
        raise
    except InputError as error:
        raise typer.BadParameter(str(error)) from error


def answer_to(question: Coroutine[Any, Any, T]) -> T:
    """Run a question to its answer; one that makes no sense is wrong usage."""
    with stoppable(), wrong_usage():
        return run(question)
    raise AssertionError  # `stoppable` lets nothing pass


def explanation(error: Exception) -> str | None:
    """The one line that explains a known error; None if it is none."""
    import httpx
    import sqlalchemy as sa

    from saga.errors import Explained
    from saga.runtime.disk import explained

    if isinstance(error, Explained):
        return " ".join(str(error).split())
    if isinstance(error, httpx.HTTPError):
        return f"a service cannot be asked: {str(error) or type(error).__name__}; does it run?"
    if isinstance(error, sa.exc.DBAPIError):
        return f"a database cannot be used: {error.orig}; {_way_out_of(str(error.orig))}"
    if isinstance(error, OSError):
        return explained(error)
    return None


def _way_out_of(said: str) -> str:
    """What to do where a database says this of itself."""
    if "disk is full" in said or "No space left" in said:
        return "free space on its disk"
    if "readonly" in said:
        return "make its file and its folder writable"
    return "does its system run?"
