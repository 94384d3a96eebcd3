"""Kernels without a broker: what they commit goes to a publisher that keeps it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TypeVar

import asyncpg
import httpx
from fastapi import APIRouter
from sqlalchemy.engine import Connection
from sqlalchemy.util import await_only

from saga.choreography import Participant, State
from saga.message import Ask, Intent
from saga.runtime.kernel.begun import Begun
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.kept import Kept
from saga.runtime.kernel.kernel import GROUP_MAX, Kernel
from saga.runtime.kernel.leases import LEASE_SECONDS
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.outbox import Outbox
from saga.runtime.kernel.tables import Clock, Tables, utc_now
from saga.runtime.readiness import Readiness
from saga.runtime.service import Running
from saga.runtime.settings import HttpSettings, Settings
from saga.runtime.tasks import cancel_all
from saga.runtime.web import create_app
from tests.integration.toy import RecordingPublisher, id_in_inbox, rows
from tests.polling import until

S = TypeVar("S", bound=State)
T = TypeVar("T")


async def until_somebody_waits(url: str) -> None:
    """Wait until a session waits for a lock in this database, on a PostgreSQL server."""
    # A connection of its own: within a transaction one sees who waited at its beginning.
    observer = await asyncpg.connect(url)
    waiting = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    async def somebody_waits() -> bool:
        return bool(await observer.fetchval(waiting))

    try:
        await until(somebody_waits)
    finally:
        await observer.close()


class Through:
    """A database as it is: what stands between a kernel and its database begins with this."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.shared = database.shared

    async def transaction(self, work: Callable[[Connection], T], *, brief: bool = False) -> T:
        return await self._database.transaction(work, brief=brief)

    async def read(self, query: Callable[[Connection], T]) -> T:
        return await self._database.read(query)

    def is_away(self, error: BaseException) -> bool:
        return self._database.is_away(error)

    async def close(self) -> None:
        await self._database.close()


class Slow(Through):
    """Commits only once another transaction waits for what it has written."""

    def __init__(self, database: Database, url: str) -> None:
        super().__init__(database)
        self._url = url
        self.holding = asyncio.Event()
        self._armed = False

    async def transaction(self, work: Callable[[Connection], T], *, brief: bool = False) -> T:
        def held(connection: Connection) -> T:
            result = work(connection)
            if self._armed:
                self._armed = False
                await_only(self._meet())
            return result

        return await super().transaction(held)  # All of it, so that something is held.

    async def _meet(self) -> None:
        self.holding.set()
        await until_somebody_waits(self._url)

    def arm(self) -> None:
        """Hold the next commit."""
        self._armed = True


@dataclass(frozen=True)
class Replica:
    """A kernel, running."""

    database: Database
    tables: Tables
    publisher: RecordingPublisher
    outbox: Outbox
    kernel: Kernel
    kept: Kept

    async def inbox(self) -> set[str]:
        found = await self.database.read(lambda c: rows(c, self.tables.inbox))
        return {id_in_inbox(row[0]) for row in found}

    async def outbox_rows(self) -> int:
        return len(await self.database.read(lambda c: rows(c, self.tables.outbox)))

    async def find(self, kind: type[S], key: object) -> S | None:
        table = self.tables.states[kind]
        return await self.database.read(lambda c: table.find(c, str(key)))


@asynccontextmanager
async def replica(
    url: str,
    participant: Participant,
    tables: Tables,
    ask: Mapping[type[Intent], Ask] | None = None,
    *,
    publisher: RecordingPublisher | None = None,
    through: Callable[[Database], Database] = Through,
    group_max: int = GROUP_MAX,
    lease_seconds: float = LEASE_SECONDS,
    clock: Clock = utc_now,
    keep_minutes: float = 60.0,
    keep_bytes: int = 500_000_000,
    begun: Begun | None = None,
) -> AsyncIterator[Replica]:
    """A kernel of the participant's; in the end it is cut short as by a kill."""
    own = None if begun is None else begun.schema
    schema = tables if own is None else tables.with_part(own)
    database = through(await open_database(url, schema))
    publisher = publisher or RecordingPublisher()
    kept = Kept(database, tables, minutes=keep_minutes, bytes_max=keep_bytes, clock=clock)
    outbox = Outbox(
        participant.name, database, tables, publisher, kept=kept, lease_seconds=lease_seconds
    )
    await outbox.open()
    kernel = Kernel(
        participant, database, tables, outbox, ask, clock=clock, group_max=group_max, begun=begun
    )
    tasks = [asyncio.create_task(kernel.run()), asyncio.create_task(outbox.run())]
    try:
        yield Replica(database, tables, publisher, outbox, kernel, kept)
    finally:
        await cancel_all(*tasks)
        await database.close()


def client_of(
    service: Replica,
    routes: Callable[[Running], APIRouter],
    settings: HttpSettings | None = None,
) -> httpx.AsyncClient:
    """Asks a service's own routes, over this kernel."""

    async def nothing() -> None: ...

    settings = settings or HttpSettings()
    app = create_app("test", settings, readiness=Readiness(), before_scrape=nothing)
    running = Running(Settings(), service.database, service.tables, service.kernel, service.outbox)
    app.include_router(routes(running))
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://localhost")
