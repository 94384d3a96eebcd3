"""What was done is remembered for a stated time, and then forgotten, a little at once."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.runtime.kernel import inbox
from saga.runtime.kernel.inbox import FORGET_MAX, forget, keep_forgetting
from saga.runtime.kernel.tables import utc_now
from saga.runtime.retry_loop import RetryLoop
from saga.runtime.tasks import cancel_all
from tests.integration.kernels import Replica, Through, replica
from tests.integration.toy import PARTICIPANT, make_tables
from tests.polling import until

T = TypeVar("T")

DAYS = 90.0
OLD = timedelta(days=DAYS + 1)


class Counting(Through):
    """Counts what is executed."""

    statements: int = 0

    async def transaction(self, work: Callable[[Connection], T], *, brief: bool = False) -> T:
        return await super().transaction(lambda connection: work(self._watched(connection)))

    async def read(self, query: Callable[[Connection], T]) -> T:
        return await super().read(lambda connection: query(self._watched(connection)))

    def _watched(self, connection: Connection) -> Connection:
        @sa.event.listens_for(connection, "before_execute")
        def count(*_: object) -> None:
            self.statements += 1

        return connection


async def remember(toy: Replica, count: int, at: datetime) -> None:
    """Record so many messages as done at that time."""
    rows = [{"message_id": f"{at} {number}", "at": at} for number in range(count)]
    await toy.database.transaction(lambda c: c.execute(toy.tables.inbox.insert(), rows).close())


async def test_old_rows_are_forgotten_in_batches_and_younger_ones_kept(database_url: str) -> None:
    now = utc_now()
    async with replica(database_url, PARTICIPANT, make_tables(), through=Counting) as toy:
        await remember(toy, FORGET_MAX + 100, now - OLD)
        await remember(toy, 50, now - OLD + timedelta(days=2))
        assert isinstance(toy.database, Counting)
        toy.database.statements = 0
        before = now - timedelta(days=DAYS)

        assert await forget(toy.database, toy.tables, before) == FORGET_MAX
        assert toy.database.statements == 2
        assert await forget(toy.database, toy.tables, before) == 100
        assert await forget(toy.database, toy.tables, before) == 0
        assert len(await toy.inbox()) == 50


async def test_it_goes_on_until_all_is_forgotten_and_looks_again_later(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inbox, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(inbox, "LOOK_SECONDS", 0.01)
    async with replica(database_url, PARTICIPANT, make_tables()) as toy:
        await remember(toy, 2 * FORGET_MAX + 1, utc_now() - OLD)
        loop = RetryLoop("inbox", "look through the inbox")
        task = asyncio.create_task(keep_forgetting(toy.database, toy.tables, DAYS, loop))
        await until(lambda: is_empty(toy))
        await remember(toy, 1, utc_now() - OLD - timedelta(days=1))
        await until(lambda: is_empty(toy))
        await cancel_all(task)


async def is_empty(toy: Replica) -> bool:
    return not await toy.inbox()
