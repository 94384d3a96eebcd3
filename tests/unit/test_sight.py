"""How often the console looks through the broker's queues, and how long what it knows is shown."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from saga.console import one
from saga.console.lookout import LAG_AGE_MAX_SECONDS, SystemWatcher
from saga.console.one import LOOK_AGAIN_SECONDS, LOOK_AGE_SECONDS, BrokerSight
from saga.console.watched import Watched
from saga.discovery import saga
from saga.errors import Explained
from saga.history.debts import Debt
from saga.history.whereabouts import MessageLocations
from saga.runtime.kernel.tables import utc_now
from saga.testing import NOW


class Looks:
    """A broker whose clock is set by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = NOW
        self.count = 0
        self.fails = False
        self.held: asyncio.Event | None = None
        monkeypatch.setattr("saga.console.inquiry.utc_now", self.clock)
        self.sight = BrokerSight(self.look)

    def clock(self) -> datetime:
        return self.now

    def later(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    async def look(self) -> MessageLocations:
        self.count += 1
        if self.held is not None:
            await self.held.wait()
        if self.fails:
            raise Explained("the broker is away")
        return MessageLocations(ready={"payment": self.count})

    async def seen(self, *, live: bool = False, since: datetime = NOW) -> int | None:
        """The number of the look that is shown."""
        debt = Debt("payment", None, (), since, since)
        found = await self.sight.seen([debt], live=live)
        return None if found is None else found.ready["payment"]


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


async def test_a_page_that_is_opened_waits_for_a_fresh_look(looks: Looks) -> None:
    assert await looks.seen() == 1
    looks.later(LOOK_AGE_SECONDS)
    assert await looks.seen() == 1
    looks.later(1)
    assert await looks.seen() == 2


async def test_a_look_that_fails_or_takes_long_leaves_no_older_one_behind(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert await looks.seen() == 1
    looks.later(LOOK_AGE_SECONDS + 1)
    looks.fails = True
    assert await looks.seen() is None
    assert looks.sight.failed == "the broker is away"

    looks.fails = False
    looks.later(LOOK_AGE_SECONDS + 1)
    looks.held = asyncio.Event()
    monkeypatch.setattr(one, "LOOK_PATIENCE_SECONDS", 0.01)
    assert await looks.seen() is None
    looks.held.set()
    monkeypatch.undo()


async def test_a_page_that_stays_open_looks_once_a_minute_even_where_that_fails(
    looks: Looks,
) -> None:
    assert await looks.seen() == 1
    for _ in range(10):
        looks.later(LOOK_AGAIN_SECONDS / 10)
        assert await looks.seen(live=True) == 1
    looks.fails = True
    looks.later(1)
    for _ in range(10):
        assert await looks.seen(live=True) is None
        looks.later(LOOK_AGAIN_SECONDS / 10)
    assert looks.count == 2


async def test_what_was_seen_before_a_debt_says_nothing_of_it(looks: Looks) -> None:
    assert await looks.seen() == 1
    looks.later(2)
    assert await looks.seen(live=True, since=looks.now) is None
    assert looks.count == 1
    assert await looks.seen(since=looks.now) == 2


async def test_what_was_known_of_the_historys_lag_is_not_said_for_ever(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    class CaughtUp:
        async def behind(self) -> int:
            return 0

    monkeypatch.setattr(Watched, "archive", CaughtUp())
    lookout = SystemWatcher(Watched(tmp_path, saga()))
    assert (await lookout.lag()).behind == 0

    later = utc_now() + timedelta(seconds=LAG_AGE_MAX_SECONDS + 1)
    monkeypatch.setattr("saga.console.lookout.utc_now", lambda: later)
    assert (await lookout.lag()).behind is None
