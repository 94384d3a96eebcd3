"""What was published is kept for a stated time, and no more than a stated size of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, timedelta

import pytest
from sqlalchemy.engine import Connection

from saga.envelope import Attributes
from saga.runtime.kernel import kept
from saga.runtime.kernel.kept import PRUNED_MAX, kept_events, key_of
from saga.runtime.kernel.tables import utc_now
from saga.runtime.tasks import cancel_all
from tests.integration.kernels import Replica, replica
from tests.integration.toy import PARTICIPANT, cancelled, make_tables
from tests.polling import until


@asynccontextmanager
async def pruning(toy: Replica) -> AsyncIterator[None]:
    task = asyncio.create_task(toy.kept.run())
    try:
        yield
    finally:
        await cancel_all(task)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "PAUSE_SECONDS", 0.0)
    monkeypatch.setattr(kept, "LOOK_SECONDS", 0.01)


async def kept_by(toy: Replica) -> list[bytes]:
    def read(connection: Connection) -> list[bytes]:
        return [body for page in kept_events(connection, toy.tables) for body in page]

    return await toy.database.read(read)


async def keep(toy: Replica, count: int, at: datetime, length: int = 10) -> None:
    """Write what so many transactions of that time leave behind."""
    first = int(at.timestamp() * 1_000_000)
    rows = [
        {"key": key_of(first + number, "gone"), "bodies": b"x" * length} for number in range(count)
    ]
    await toy.database.transaction(lambda c: c.execute(toy.tables.kept.insert(), rows).close())


async def test_an_event_is_kept_after_the_broker_has_confirmed_it(database_url: str) -> None:
    async with replica(database_url, PARTICIPANT, make_tables()) as toy:
        await asyncio.gather(*(toy.kernel.handle(cancelled(number)) for number in range(1, 6)))
        await until(lambda: toy.outbox.idle)

        found = await kept_by(toy)
        assert sorted(Attributes.of(body).id for body in found) == sorted(toy.publisher.published)
        assert len(found) == 5


async def test_nothing_is_kept_for_no_time(database_url: str) -> None:
    async with replica(database_url, PARTICIPANT, make_tables(), keep_minutes=0) as toy:
        await keep(toy, 3, utc_now() - timedelta(minutes=1))
        await toy.kernel.handle(cancelled(1))
        await until(lambda: toy.outbox.idle)
        async with pruning(toy):
            await until(lambda: is_empty(toy))


async def is_empty(toy: Replica) -> bool:
    return not await kept_by(toy)


async def test_what_is_old_is_removed_and_nothing_else(database_url: str) -> None:
    async with replica(database_url, PARTICIPANT, make_tables(), keep_minutes=60) as toy:
        await keep(toy, 2 * PRUNED_MAX + 1, utc_now() - timedelta(minutes=61))
        await keep(toy, 3, utc_now() - timedelta(minutes=50))

        async def three_are_left() -> bool:
            return len(await kept_by(toy)) == 3

        async with pruning(toy):
            await until(three_are_left)


async def test_beyond_the_size_the_oldest_goes_first(database_url: str) -> None:
    async with replica(database_url, PARTICIPANT, make_tables(), keep_bytes=4_100) as toy:
        await keep(toy, 10, utc_now() - timedelta(minutes=50), length=1_000)
        await keep(toy, 4, utc_now() - timedelta(minutes=1), length=1_001)

        async def the_youngest_are_left() -> bool:
            return [len(body) for body in await kept_by(toy)] == [1_001] * 4

        async def one_has_made_room_for_the_event() -> bool:
            lengths = [len(body) for body in await kept_by(toy)]
            return lengths[:-1] == [1_001] * 3 and len(lengths) == 4

        async with pruning(toy):
            await until(the_youngest_are_left)
            await toy.kernel.handle(cancelled(1))
            await until(one_has_made_room_for_the_event)
