"""The life of a service's process: settings, database, HTTP, tasks, and a drain at the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import uvloop
from fastapi import FastAPI

from saga.auth.access import begin, check_said
from saga.choreography import ChoreographyError
from saga.message import AmbiguousMessage
from saga.runtime import metrics, streams, telemetry, tracing
from saga.runtime.files import keep_private
from saga.runtime.garbage import collected_seldom
from saga.runtime.kernel.database import Database, DatabaseError
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.tables import Schema
from saga.runtime.messaging.connection import BrokerError
from saga.runtime.server import Server, listen, url_of
from saga.runtime.settings import Settings, SettingsError, load
from saga.runtime.tasks import cancel_all
from saga.runtime.tls import context_of
from saga.runtime.web import Entrance, starting_app

log = logging.getLogger(__name__)

S = TypeVar("S", bound=Settings)

INTERRUPTED: Final = 128 + signal.SIGINT
"""The exit status of a process that was interrupted while it started, as a shell has it."""


@dataclass(frozen=True)
class Parts:
    """What a process runs once its database is open."""

    app: FastAPI
    tasks: Sequence[Awaitable[None]]
    """What must not end before it is cancelled."""
    start: Callable[[], Awaitable[None]]
    """Connects to the broker and takes up the work. Raises `BrokerError`."""
    stop: Callable[[], Awaitable[None]]
    """Takes no more work; may be called again, and without a start."""
    finish: Callable[[float], Awaitable[None]]
    """Finishes what was begun, until the time of `time.monotonic` that it is given."""


@dataclass(frozen=True)
class Process:
    """What distinguishes one process from another."""

    name: str
    schema: Schema
    assemble: Callable[[Database, contextlib.AsyncExitStack], Awaitable[Parts]]
    """Makes the parts; what is to be closed in the end goes on the stack."""
    close: Callable[[], Awaitable[None]] | None = None
    """Closes what was opened before; called last, however the process ends."""


def main(build: Callable[[S], Process], kind: type[S]) -> None:
    """Run the process `build` makes; exit 0 after a stop signal, 1 with one line on an error, and
    `INTERRUPTED` after Ctrl-C before it listens for signals: nothing was begun."""
    streams.set_up()
    keep_private()
    name = "saga"
    try:
        settings = load(kind)
        process = build(settings)
        name = process.name
        telemetry.configure_logging(name, settings.log_level, settings.log_format)
        tracing.start(name)
        uvloop.run(run(process, settings))
    except (
        SettingsError,
        DatabaseError,
        BrokerError,
        ChoreographyError,
        AmbiguousMessage,
        OSError,
    ) as error:
        telemetry.give_up(name, error)
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    finally:
        tracing.stop()


async def run(process: Process, settings: Settings) -> None:
    """Run a process until SIGTERM or SIGINT, then drain.

    Raises `DatabaseError`, `BrokerError`, or `OSError` for a port that is in use.
    """
    name = process.name
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_on_unseen)
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        if process.close is not None:
            stack.push_async_callback(process.close)
        begin(settings, name)
        listener = stack.enter_context(
            listen(settings.http_host, settings.http_port, way_out="HTTP_HOST or HTTP_PORT")
        )
        entrance = Entrance(starting_app(name, settings))
        server = Server(
            entrance,
            connections_max=settings.http_connections_max,
            headers_max_bytes=settings.http_headers_max_bytes,
            tls=context_of(settings),
        )
        crashed: asyncio.Future[Any] = loop.create_future()
        serving = _supervised(server.serve([listener]), crashed)
        tasks = [serving, _supervised(metrics.watch_event_loop(name), crashed)]
        log.info("serving on %s", url_of(listener, settings.http_scheme))
        stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        opening = asyncio.ensure_future(_opened(process, settings))
        stack.push_async_callback(lambda: cancel_all(opening, stopping, *tasks))
        await asyncio.wait({opening, stopping, crashed}, return_when=asyncio.FIRST_COMPLETED)
        if crashed.done():
            crashed.result()
        if not opening.done():
            return
        database = opening.result()
        stack.push_async_callback(database.close)
        parts = await _assembled(process, database, stack)
        metrics.tell_build(name)
        stack.enter_context(collected_seldom(name))
        tasks += [_supervised(task, crashed) for task in parts.tasks]
        entrance.app = parts.app
        started: asyncio.Future[Any] = asyncio.ensure_future(parts.start())
        try:
            await asyncio.wait({started, stopping, crashed}, return_when=asyncio.FIRST_COMPLETED)
            if started.done():
                started.result()
                log.info("ready")
                await asyncio.wait({stopping, crashed}, return_when=asyncio.FIRST_COMPLETED)
            if crashed.done():
                crashed.result()
            log.info("draining")
            deadline = time.monotonic() + settings.drain_seconds
            server.should_exit = True
            await parts.stop()
            await asyncio.wait({serving}, timeout=max(0.0, deadline - time.monotonic()))
            await parts.finish(deadline)
        finally:
            await cancel_all(started, *tasks)
            await parts.stop()


@contextlib.asynccontextmanager
async def embedded(
    process: Process, settings: Settings, on_crash: Callable[[], None]
) -> AsyncIterator[Parts]:
    """What a process does, within another application, until the end of the block.

    Raises `DatabaseError`, `BrokerError`, and `SettingsError` where `AUTH` does not say who may
    ask.
    """
    check_said(settings)
    telemetry.name_nobody()
    async with contextlib.AsyncExitStack() as stack:
        if process.close is not None:
            stack.push_async_callback(process.close)
        begin(settings, process.name)
        database = await _opened(process, settings)
        stack.push_async_callback(database.close)
        parts = await _assembled(process, database, stack)
        metrics.tell_build(process.name)
        crashed: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        crashed.add_done_callback(lambda _: on_crash() if not crashed.cancelled() else None)
        works = (*parts.tasks, metrics.watch_event_loop(process.name))
        tasks = [_supervised(task, crashed) for task in works]
        stack.push_async_callback(lambda: cancel_all(crashed, *tasks))
        stack.push_async_callback(parts.stop)
        await parts.start()
        log.info("ready")
        try:
            yield parts
        finally:
            log.info("draining")
            deadline = time.monotonic() + settings.drain_seconds
            await parts.stop()
            await parts.finish(deadline)


async def _opened(process: Process, settings: Settings) -> Database:
    return await open_database(
        settings.database_url_of(process.name),
        process.schema,
        name=process.name,
        patience_seconds=settings.database_patience_seconds,
    )


async def _assembled(
    process: Process, database: Database, stack: contextlib.AsyncExitStack
) -> Parts:
    """Raises `DatabaseError` where the database, which was there just now, is away."""
    try:
        return await process.assemble(database, stack)
    except Exception as error:
        if (isinstance(error, OSError) and str(error)) or not database.is_away(error):
            raise  # What has a text of its own may be about anything else.
        raise DatabaseError(
            f"the database of {process.name} was opened, and does not answer any more: "
            f"{type(error).__name__}; see that it runs and is not overloaded, and start this again"
        ) from error


def end() -> None:
    """Tell this process to end, as a supervisor would."""
    os.kill(os.getpid(), signal.SIGTERM)


def _on_unseen(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Log an error that no task waited for; but one of a connection that was given up while it was
    being opened is no news, and would be a traceback beside the line that says why."""
    error = context.get("exception")
    if isinstance(error, OSError):
        log.debug("what was given up has failed: %s", error)
    else:
        loop.default_exception_handler(context)


def _supervised(coroutine: Awaitable[None], crashed: asyncio.Future[Any]) -> asyncio.Task[None]:
    """Run a task that must not end; if it does with an error, the service ends with that."""

    async def supervise() -> None:
        try:
            await coroutine
        except Exception as error:
            log.critical("the service cannot go on", exc_info=error)
            if not crashed.done():
                crashed.set_exception(error)

    return asyncio.create_task(supervise())
