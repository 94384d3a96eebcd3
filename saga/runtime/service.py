"""Putting one participant's service together."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

import sqlalchemy as sa
from fastapi import APIRouter, FastAPI

from saga import discovery
from saga.auth.access import serve_routes
from saga.choreography import Participant
from saga.course import Course, course_of
from saga.declaration import SagaError
from saga.message import Ask, Command, Intent, Priority
from saga.personal.persons import Persons
from saga.runtime import dues, metrics, process
from saga.runtime.disk import Disks, Halt
from saga.runtime.kernel.begun import Begun
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.inbox import keep_forgetting
from saga.runtime.kernel.kept import Kept
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.opening import database_file
from saga.runtime.kernel.outbox import Outbox
from saga.runtime.kernel.step import Firing
from saga.runtime.kernel.tables import Clock, Tables, utc_now
from saga.runtime.kernel.timer import Timekeeper
from saga.runtime.kernel.work import Done, Duplicate
from saga.runtime.messaging.consumer import PREFETCH, Consumer
from saga.runtime.messaging.publisher import BrokerPublisher
from saga.runtime.personal import guarded, seal_given
from saga.runtime.problem import unavailable
from saga.runtime.readiness import Look, Missing, Readiness
from saga.runtime.retry_loop import RetryLoop, troubles
from saga.runtime.settings import Settings
from saga.runtime.web import create_app
from saga.wording import counted

log = logging.getLogger(__name__)

POLL_SECONDS = 0.02
PROBE_SECONDS = 2.0
REFUSE_SECONDS = 1.0
"""For so long commits have to have failed before what is asked over HTTP is refused at once. What
is shorter, a server's failover for instance, is waited for."""

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
    disks: Disks = field(default_factory=Disks)
    retry_loops: list[RetryLoop] = field(default_factory=list)
    """All there are; `/readyz` and the metrics tell which of them are stuck."""
    saga: str = ""
    """The name of the saga it takes part in, where that is known."""
    persons: Persons | None = None
    """Seals what enters, where personal data is sealed."""

    def retry_loop(self, name: str, doing: str) -> RetryLoop:
        """One more."""
        loop = RetryLoop(name, doing)
        self.retry_loops.append(loop)
        return loop

    @property
    def backlogged(self) -> bool:
        """Whether so many events wait for the broker that no saga is to be begun."""
        return self.outbox.backlog > self.settings.outbox_backlog_max

    def turn_away(self) -> None:
        """Turn away a request to begin a saga, with `Problem`, while it is `backlogged`."""
        if self.backlogged:
            metrics.turned_away(self.saga).inc()
            wait = counted(self.outbox.backlog, "event waits", "events wait")
            raise unavailable(f"{wait} for the broker; try again later")

    @property
    def refusing(self) -> str:
        """Why nothing is to be accepted; or nothing."""
        if self.disks.halt is not Halt.NONE:
            return "there is little room left on the disk"
        return self.failing

    @property
    def failing(self) -> str:
        """Why nothing can be committed; or nothing."""
        for loop in self.kernel.retry_loops:
            if cause := loop.failing_for(REFUSE_SECONDS):
                return f"nothing can be committed: {cause}"
        return ""

    async def give(
        self, command: Command, *, id: str | None = None, priority: Priority = Priority.NORMAL
    ) -> Done | Duplicate:
        """Carry out a command that a client waits for; see `Kernel.give`.

        Raises `Problem` where nothing can be committed: it would only wait among others. And where
        the disk is nearly full: the room that is left is for what has begun. And while personal
        data of the command cannot be sealed, with nothing of it kept.
        """
        self._check()
        if self.persons is not None:
            command = await seal_given(self.persons, command)
        return await self.kernel.give(command, id=id, priority=priority)

    async def fire(self, firing: Firing) -> Done | Duplicate:
        """Do what is due while a client waits for it; see `Kernel.fire`. Raises `Problem` as
        `give` does."""
        self._check()
        return await self.kernel.fire(firing)

    def _check(self) -> None:
        if why := self.refusing:
            raise unavailable(f"{why}; try again later")


@dataclass(frozen=True)
class Service:
    """What distinguishes one service from another."""

    participant: Participant
    tables: Tables
    ask: Mapping[type[Intent], Ask] = field(default_factory=dict)
    """How each intent is put to the outside."""
    routes: Callable[[Running], APIRouter] | None = None
    figures: Sequence[metrics.Figure] = ()
    """Gauges that only it has."""
    recall: Callable[[Database], Awaitable[None]] | None = None
    """Reads from its database what it has to know before it asks the outside."""
    close: Callable[[], Awaitable[None]] | None = None
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Keyed by what is in them, a label of metrics: where it writes besides its database."""
    prefetch: int = PREFETCH
    """Messages of one queue that may be in the works at once."""
    persons: Persons | None = None
    """What opens personal data for the outside; without it, the service opens none."""


def main(build: Callable[[S], Service], kind: type[S]) -> None:
    """Run the service `build` makes; exit 0 after a stop signal, 1 with one line on an error."""
    process.main(lambda settings: process_of(build(settings), settings), kind)


@dataclass(frozen=True)
class TakingPart:
    """A participant in another's application."""

    running: Running
    """Gives it commands: `await running.give(RequestStay(...))`."""
    app: FastAPI
    """What it serves: its routes, `/livez`, `/readyz` and `/metrics`; to be mounted."""


@contextlib.asynccontextmanager
async def taking_part(
    service: Service, settings: Settings, *, on_crash: Callable[[], None] = process.end
) -> AsyncIterator[TakingPart]:
    """Run a participant within an application that has a life of its own: it works
    from here on, and is drained at the end. For the lifespan of FastAPI or FastStream.

        @asynccontextmanager
        async def lifespan(app: FastAPI) -> AsyncIterator[None]:
            async with taking_part(build(settings), settings) as part:
                app.mount("/saga", part.app)
                app.state.booking = part.running
                yield

    What a process of its own does besides (logs, traces, signals, HTTP) is the application's. When
    the participant cannot go on, `on_crash` is called; by default this process is told to end by
    SIGTERM, as one that stays would only seem to work. Several participants may take part in one
    process. Raises what `serve` ends with: `DatabaseError`, `BrokerError`, `ChoreographyError`, and
    `SettingsError` unless `AUTH=on`, or `AUTH=off` with `AUTH_OFF_REASON`: who reaches `part.app`
    is not for `HTTP_HOST` to say.
    """
    found: list[Running] = []
    made = process_of(service, settings, found.append)
    async with process.embedded(made, settings, on_crash) as parts:
        yield TakingPart(found[0], parts.app)


def process_of(
    service: Service, settings: Settings, on_running: Callable[[Running], None] = lambda _: None
) -> process.Process:
    """The service's process. Raises `ChoreographyError` where what it asks the outside is not what
    its signatures say."""
    name = service.participant.name
    service.participant.check_asks(service.ask)
    course = course_here(service.participant)
    begun = None if course is None else Begun(course, service.tables)
    own = None if begun is None else begun.schema
    schema = service.tables if own is None else service.tables.with_part(own)

    async def assemble(database: Database, stack: contextlib.AsyncExitStack) -> process.Parts:
        persons = service.persons or Persons(settings)
        stack.push_async_callback(persons.close)
        await persons.check()
        publisher = BrokerPublisher(settings.broker_url, f"{name} publisher")
        stack.push_async_callback(publisher.close)
        kept = Kept(
            database,
            service.tables,
            minutes=settings.outbox_keep_minutes,
            bytes_max=settings.outbox_keep_bytes,
        )
        outbox = Outbox(name, database, service.tables, publisher, kept=kept)
        await outbox.open()
        stack.push_async_callback(outbox.close)
        if service.recall is not None:
            await service.recall(database)
        kernel = Kernel(
            service.participant,
            database,
            service.tables,
            outbox,
            service.ask,
            group_max=settings.group_max,
            begun=begun,
        )
        consumer = Consumer(
            service.participant,
            kernel,
            publisher,
            settings.broker_url,
            drain_seconds=settings.drain_seconds,
            prefetch=service.prefetch,
            persons=persons,
            replica=outbox.owner,
            members=outbox.members if database.shared else None,
        )
        figures = metrics.DatabaseMetrics(name, service.tables, service.figures, begun=begun)
        timekeepers = timekeepers_of(kernel, database, service.tables)
        disks = disks_of(
            name,
            settings,
            service.folders,
            on_halt=lambda halt: kernel.hold_back(halt is Halt.ALL_WORK),
        )
        await disks.look()
        saga = "" if course is None else course.saga
        if course is not None and course.subject is not None and service.routes is not None:
            metrics.turned_away(saga)  # It is there before the first one is.
        running = Running(
            settings,
            database,
            service.tables,
            kernel,
            outbox,
            disks=disks,
            saga=saga,
            persons=persons,
        )
        on_running(running)
        for part in (outbox, kept, kernel, consumer, publisher):
            running.retry_loops.extend(part.retry_loops)
        for timekeeper in timekeepers:
            running.retry_loops.extend(timekeeper.retry_loops)
        running.retry_loops.append(persons.loop)
        forgetting = running.retry_loop("inbox", "look through the inbox")
        readiness = Readiness(
            Look(lambda: _unread(consumer), explain=_no_broker),
            Look(lambda: _read(running), explain=lambda why: {"database": why}),
            known=lambda: _known(running),
            troubles=lambda: troubles(loop for loop in running.retry_loops if not loop.vital),
        )
        app = create_app(
            f"{name} service",
            settings,
            readiness=readiness,
            before_scrape=lambda: _read_figures(name, running, figures),
            process=name,
        )
        for routes in routes_of(service):
            serve_routes(app, guarded(routes(running), persons))

        async def start() -> None:
            await publisher.open(settings.broker_patience_seconds)
            await consumer.start()
            readiness.look_again()

        return process.Parts(
            app,
            tasks=(
                kernel.run(),
                outbox.run(),
                consumer.partitions.run(),
                kept.run(),
                readiness.run(),
                disks.run(),
                keep_forgetting(database, service.tables, settings.inbox_days, forgetting),
                *(timekeeper.run() for timekeeper in timekeepers),
            ),
            start=start,
            stop=consumer.stop,
            finish=lambda deadline: _finish(kernel, outbox, deadline),
        )

    return process.Process(name, schema, assemble, service.close)


def course_here(participant: Participant) -> Course | None:
    """What the participant sees of the course of the project's saga; None where it takes part in
    none that is known, as in a test of its own."""
    try:
        return course_of(discovery.saga(), participant)
    except SagaError as error:  # What only measures keeps no service from running.
        level = logging.DEBUG if error.__cause__ is None else logging.WARNING
        log.log(level, "the course of sagas is not measured: %s", error)
    return None


def routes_of(service: Service) -> Iterator[Callable[[Running], APIRouter]]:
    """What a service serves besides what all do."""
    if service.routes is not None:
        yield service.routes
    if service.tables.with_dues:
        yield partial(dues.routes, kinds=[table.kind for table in service.tables.with_dues])


def timekeepers_of(kernel: Kernel, database: Database, tables: Tables) -> list[Timekeeper]:
    """Who does what is due about a participant's states: none where nothing may be."""
    return [Timekeeper(kernel, database, tables)] if tables.with_dues else []


def disks_of(
    name: str,
    settings: Settings,
    folders: Mapping[str, Path],
    *,
    on_halt: Callable[[Halt], None],
) -> Disks:
    """The disks that a process writes to: those of its database where that is a file, of these
    folders, and of `DISK_FOLDERS`."""
    found = dict(folders)
    if (file := database_file(settings.database_url_of(name))) is not None:
        found["database"] = file.absolute().parent
    others = [folder.absolute() for folder in settings.folders_of_others]
    watched = {*found.values()}
    for number, folder in enumerate((f for f in others if f not in watched), start=1):
        found[f"others-{number}"] = folder
    limit = settings.disk_free_min_bytes
    return Disks(found, limit, on_halt=on_halt, on_look=metrics.DiskMetrics(name, limit))


async def _unread(consumer: Consumer) -> Missing:
    """The queues without consumers, as the broker says. Raises what asking it raises."""
    unread = await consumer.unread()
    return {"consumers": f"no consumer reads {', '.join(unread)}"} if unread else {}


def _no_broker(why: str) -> Missing:
    return {"broker": why, "consumers": "the broker is away"}


async def _read(running: Running) -> Missing:
    """Read from the database. Raises what that raises."""
    # From a table: a bare SELECT 1 would not touch the file.
    query = sa.select(running.tables.inbox.c.message_id).limit(1)
    await running.database.read(lambda connection: connection.execute(query).first())
    return {}


def _known(running: Running) -> Missing:
    """What is missing as far as the service knows without a query."""
    missing = troubles(loop for loop in running.retry_loops if loop.vital)
    if why := running.failing:
        missing["database"] = why
    if why := running.disks.lack:
        missing["disk"] = why
    return missing


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
