"""Putting one service together and running it until it is told to stop."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import sqlalchemy as sa
import uvicorn
import uvloop
from fastapi import APIRouter

from common import metrics, telemetry
from common.choreography import Participant
from common.kernel.database import Database, DatabaseError, open_database
from common.kernel.groups import Ask, Kernel
from common.kernel.outbox import Outbox
from common.kernel.step import Decision
from common.kernel.tables import Clock, Tables, utc_now
from common.message import Intent
from common.messaging.connection import BrokerError
from common.messaging.consumer import Consumer
from common.messaging.publisher import BrokerPublisher
from common.settings import Settings, SettingsError, load
from common.web import create_app

log = logging.getLogger(__name__)

POLL_SECONDS = 0.02
PROBE_SECONDS = 2.0

T = TypeVar("T")
S = TypeVar("S", bound=Settings)


@dataclass(frozen=True)
class Running:
    """What a service's own routes and tasks work with."""

    settings: Settings
    database: Database
    tables: Tables
    kernel: Kernel
    outbox: Outbox
    clock: Clock = utc_now


@dataclass(frozen=True)
class Service:
    """What distinguishes one service from another."""

    participant: Participant
    tables: Tables
    ask: Mapping[type[Intent], Ask] = field(default_factory=dict)
    """How each intent is put to the outside."""
    routes: Callable[[Running], APIRouter] | None = None
    tasks: tuple[Callable[[Running], Awaitable[None]], ...] = ()
    """What runs besides, until cancelled."""
    on_commit: Callable[[Decision], None] | None = None
    figures: metrics.Figures | None = None
    """Gauges of its own that are read from its database."""
    close: Callable[[], Awaitable[None]] | None = None


class _Server(uvicorn.Server):
    """Leaves signals to us: stopping HTTP is only one step of the drain."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def main(build: Callable[[S], Service], kind: type[S]) -> None:
    """Run the service `build` makes; exit 0 after a stop signal, 1 with one line on an error."""
    try:
        settings = load(kind)
        service = build(settings)
        telemetry.configure_logging(service.participant.name, settings.log_level)
        uvloop.run(run(service, settings))
    except (SettingsError, DatabaseError, BrokerError, OSError) as error:
        sys.exit(f"error: {error}")


async def run(service: Service, settings: Settings) -> None:
    """Run a service until SIGTERM or SIGINT, then drain.

    Raises `DatabaseError`, `BrokerError`, or `OSError` for a port that is in use.
    """
    name = service.participant.name
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        if service.close is not None:
            stack.push_async_callback(service.close)
        listener = stack.enter_context(_listen(settings))
        opening = asyncio.ensure_future(
            open_database(
                settings.database_url_of(name),
                service.tables,
                name=name,
                patience_seconds=settings.database_patience_seconds,
            )
        )
        stopped = asyncio.ensure_future(stop.wait())
        await asyncio.wait({opening, stopped}, return_when=asyncio.FIRST_COMPLETED)
        stopped.cancel()
        if not opening.done():
            opening.cancel()
            await asyncio.wait({opening})
            return
        database = opening.result()
        stack.push_async_callback(database.close)
        publisher = BrokerPublisher(settings.broker_url, f"{name} publisher")
        stack.push_async_callback(publisher.close)
        outbox = Outbox(name, database, service.tables, publisher)
        await outbox.open()
        stack.push_async_callback(outbox.close)
        kernel = Kernel(
            service.participant,
            database,
            service.tables,
            outbox,
            service.ask,
            on_commit=service.on_commit,
        )
        consumer = Consumer(
            service.participant,
            kernel,
            publisher,
            settings.broker_url,
            drain_seconds=settings.drain_seconds,
        )
        metrics.tell_build(name)
        figures = metrics.DatabaseMetrics(name, service.tables, service.figures)
        running = Running(settings, database, service.tables, kernel, outbox)
        app = create_app(
            f"{name} service",
            body_max_bytes=settings.body_max_bytes,
            not_ready=lambda: _not_ready(running, consumer),
            before_scrape=lambda: _read_figures(database, figures),
        )
        if service.routes is not None:
            app.include_router(service.routes(running))
        server = _Server(
            uvicorn.Config(app, log_config=None, lifespan="off", timeout_graceful_shutdown=5)
        )
        crashed: asyncio.Future[Any] = loop.create_future()
        tasks = [
            _supervised(coroutine, crashed)
            for coroutine in (
                server.serve([listener]),
                kernel.run(),
                outbox.run(),
                metrics.watch_event_loop(name),
                *(task(running) for task in service.tasks),
            )
        ]
        log.info("serving on http://%s:%d", *listener.getsockname()[:2])
        stopping: asyncio.Future[Any] = asyncio.ensure_future(stop.wait())
        started: asyncio.Future[Any] = asyncio.ensure_future(_start(publisher, consumer, settings))
        try:
            await asyncio.wait({started, stopping, crashed}, return_when=asyncio.FIRST_COMPLETED)
            if started.done():
                started.result()
                log.info("ready")
                await asyncio.wait({stopping, crashed}, return_when=asyncio.FIRST_COMPLETED)
            if crashed.done():
                crashed.result()
            log.info("draining")
            await _drain(server, tasks[0], consumer, kernel, outbox, settings.drain_seconds)
        finally:
            for task in (started, stopping, *tasks):
                task.cancel()
            await asyncio.gather(started, stopping, *tasks, return_exceptions=True)
            await consumer.stop()


def _listen(settings: Settings) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in settings.http_host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.http_host, settings.http_port))
        listener.listen()  # Now, or a second service could still bind the same port.
    except OSError as error:
        listener.close()
        raise OSError(
            f"cannot listen on {settings.http_host}:{settings.http_port}: {error.strerror}; "
            f"stop what uses it, or choose another HTTP_HOST or HTTP_PORT"
        ) from error
    return listener


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


async def _start(publisher: BrokerPublisher, consumer: Consumer, settings: Settings) -> None:
    await publisher.open(settings.broker_patience_seconds)
    await consumer.start()


async def _not_ready(running: Running, consumer: Consumer) -> dict[str, str]:
    """What is missing, and why."""
    missing: dict[str, str] = {}
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            if unread := await consumer.unread():
                missing["consumers"] = f"nobody reads {', '.join(unread)}"
    except Exception as error:
        missing["broker"] = str(error) or "no answer"
        missing["consumers"] = "the broker is away"
    # From a table: a bare SELECT 1 would not touch the file.
    query = sa.select(running.tables.inbox.c.message_id).limit(1)
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await running.database.read(lambda connection: connection.execute(query).first())
    except Exception as error:
        missing["database"] = str(error) or "no answer"
    return missing


async def _read_figures(database: Database, figures: metrics.DatabaseMetrics) -> None:
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await database.read(figures.read)
    except Exception as error:
        log.debug("the database's figures cannot be read: %s", error)
        figures.away()


async def _drain(
    server: uvicorn.Server,
    serving: asyncio.Task[None],
    consumer: Consumer,
    kernel: Kernel,
    outbox: Outbox,
    seconds: float,
) -> None:
    """Take nothing new, finish what was begun, publish it; what is left at the end of the time
    is delivered again, or swept, when the service is back."""
    deadline = time.monotonic() + seconds
    server.should_exit = True
    await consumer.stop()
    await asyncio.wait({serving}, timeout=max(0.0, deadline - time.monotonic()))
    while not (kernel.idle and outbox.idle):
        if time.monotonic() > deadline:
            log.warning(
                "not everything was finished in %.0f s; it will be, after the start", seconds
            )
            return
        await asyncio.sleep(POLL_SECONDS)
