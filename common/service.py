"""Putting one participant's service together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import sqlalchemy as sa
from fastapi import APIRouter

from common import metrics, process
from common.choreography import Participant
from common.kernel.database import Database
from common.kernel.groups import Ask, Kernel
from common.kernel.inbox import keep_forgetting
from common.kernel.outbox import Outbox
from common.kernel.step import Decision
from common.kernel.tables import Clock, Tables, utc_now
from common.kernel.timer import Timekeeper, Timer
from common.message import Intent
from common.messaging.consumer import PREFETCH, Consumer
from common.messaging.publisher import BrokerPublisher
from common.retry_loop import RetryLoop, troubles
from common.settings import Settings
from common.web import create_app

log = logging.getLogger(__name__)

POLL_SECONDS = 0.02
PROBE_SECONDS = 2.0

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
    retry_loops: list[RetryLoop] = field(default_factory=list)
    """All there are; `/readyz` and the metrics tell which of them are stuck."""

    def retry_loop(self, name: str, doing: str) -> RetryLoop:
        """One more."""
        loop = RetryLoop(name, doing)
        self.retry_loops.append(loop)
        return loop


@dataclass(frozen=True)
class Service:
    """What distinguishes one service from another."""

    participant: Participant
    tables: Tables
    ask: Mapping[type[Intent], Ask] = field(default_factory=dict)
    """How each intent is put to the outside."""
    routes: Callable[[Running], APIRouter] | None = None
    timers: tuple[Timer, ...] = ()
    on_commit: Callable[[Decision], None] | None = None
    figures: metrics.Figures | None = None
    """Gauges of its own that are read from its database."""
    close: Callable[[], Awaitable[None]] | None = None
    prefetch: int = PREFETCH
    """Messages of one queue that may be in the works at once."""


def main(build: Callable[[S], Service], kind: type[S]) -> None:
    """Run the service `build` makes; exit 0 after a stop signal, 1 with one line on an error."""
    process.main(lambda settings: process_of(build(settings), settings), kind)


def process_of(service: Service, settings: Settings) -> process.Process:
    name = service.participant.name

    async def assemble(database: Database, stack: contextlib.AsyncExitStack) -> process.Parts:
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
            group_max=settings.group_max,
        )
        consumer = Consumer(
            service.participant,
            kernel,
            publisher,
            settings.broker_url,
            drain_seconds=settings.drain_seconds,
            prefetch=service.prefetch,
        )
        figures = metrics.DatabaseMetrics(name, service.tables, service.figures)
        timekeepers = [Timekeeper(timer, kernel, database) for timer in service.timers]
        running = Running(settings, database, service.tables, kernel, outbox)
        for part in (outbox, kernel, consumer, publisher):
            running.retry_loops.extend(part.retry_loops)
        for timekeeper in timekeepers:
            running.retry_loops.extend(timekeeper.retry_loops)
        forgetting = running.retry_loop("inbox", "look through the inbox")
        app = create_app(
            f"{name} service",
            body_max_bytes=settings.body_max_bytes,
            not_ready=lambda: _not_ready(running, consumer),
            before_scrape=lambda: _read_figures(name, running, figures),
        )
        if service.routes is not None:
            app.include_router(service.routes(running))

        async def start() -> None:
            await publisher.open(settings.broker_patience_seconds)
            await consumer.start()

        return process.Parts(
            app,
            tasks=(
                kernel.run(),
                outbox.run(),
                keep_forgetting(database, service.tables, settings.inbox_days, forgetting),
                *(timekeeper.run() for timekeeper in timekeepers),
            ),
            start=start,
            stop=consumer.stop,
            finish=lambda deadline: _finish(kernel, outbox, deadline),
        )

    return process.Process(name, service.tables, assemble, service.close)


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
    return missing | troubles(loop for loop in running.retry_loops if loop.vital)


async def _read_figures(name: str, running: Running, figures: metrics.DatabaseMetrics) -> None:
    metrics.tell_retry_loops(name, running.retry_loops)
    try:
        async with asyncio.timeout(PROBE_SECONDS):
            await running.database.read(figures.read)
    except Exception as error:
        log.debug("the database's figures cannot be read: %s", error)
        figures.away()


async def _finish(kernel: Kernel, outbox: Outbox, deadline: float) -> None:
    """Finish what was begun, and publish it; what is left at the end of the time is delivered
    again, or swept, when the service is back."""
    while not (kernel.idle and outbox.idle):
        if time.monotonic() > deadline:
            log.warning("not everything was finished in time; it will be, after the start")
            return
        await asyncio.sleep(POLL_SECONDS)
