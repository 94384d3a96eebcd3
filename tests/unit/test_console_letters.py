"""What a console says of dead letters that it could not collect, and of what was done with them."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from saga.console import letters
from saga.console.inquiry import apart
from saga.console.letters import WatchedLetters
from saga.console.pages.audit import _said
from saga.console.watched import Watched
from saga.deployment import Deployment, dead_letters_url_in
from saga.dlq import DlqError
from saga.dlq.replay import ReplaySettings, alone
from saga.dlq.replays import Replay
from tests.moving import SAGA
from tests.polling import until


async def test_an_error_nobody_foresaw_is_not_taken_for_a_look_at_the_queues(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Deployment(
        amqp_url="amqp://127.0.0.1:1/",
        http_urls={},
        database_urls={},
        dead_letters_url=dead_letters_url_in(tmp_path),
    ).save(tmp_path)

    def fail(*_: Any) -> None:
        raise KeyError("unforeseen")

    monkeypatch.setattr(letters, "open_desk", fail)
    watched = WatchedLetters(Watched(tmp_path, SAGA))
    await watched.collected()

    assert watched.trouble == "KeyError: 'unforeseen'"
    assert watched.collected_at is None
    await watched.close()


async def test_who_looks_at_the_lock_is_waited_for_without_stopping_the_loop(
    tmp_path: Path,
) -> None:
    store = tmp_path / "letters.db"
    looking = os.open(tmp_path / "letters.db.lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(looking, fcntl.LOCK_SH)
    asyncio.get_running_loop().call_soon(os.close, looking)

    async with alone(store):
        with pytest.raises(DlqError, match="another replay or edit is at work"):
            async with alone(store):
                pass
    async with alone(store):
        pass


async def test_a_replay_works_beside_the_pages_from_its_beginning_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Deployment(amqp_url="amqp://127.0.0.1:1/", http_urls={}, database_urls={}).save(tmp_path)
    threads: list[int] = []
    stopped = threading.Event()

    @asynccontextmanager
    async def opened(*_: Any) -> AsyncIterator[None]:
        threads.append(threading.get_ident())
        yield

    async def replayed(*_: Any, begun: Callable[[Replay, int], None], stop: Any, **__: Any) -> None:
        threads.append(threading.get_ident())
        begun(Replay(7, {}, {}, datetime(2030, 1, 1, tzinfo=UTC), None, ""), 1)
        await until(lambda: bool(stop.asked))
        stopped.set()

    monkeypatch.setattr(letters, "open_desk", opened)
    monkeypatch.setattr(letters, "replay", replayed)
    watched = WatchedLetters(Watched(tmp_path, SAGA))

    assert await watched.begin(None, ReplaySettings(), "why", None) == 7
    assert watched.replaying == 7
    await watched.close()

    assert stopped.is_set()
    assert len(threads) == 2
    assert threading.get_ident() not in threads


async def test_what_works_apart_is_told_when_nobody_waits_for_it_any_more() -> None:
    told = threading.Event()
    began = threading.Event()

    async def work() -> None:
        began.set()
        try:
            await asyncio.sleep(3_600)
        except asyncio.CancelledError:
            told.set()
            raise

    task = asyncio.create_task(apart(work))
    await asyncio.to_thread(began.wait, 60)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(told.wait, 60)


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"ok": False, "run": 3}, "ok: no; run: 3"),
        ({"ok": True}, "ok: yes"),
        ({"done": 0, "stopped": None, "letters": [], "note": ""}, ""),
        ({"handled": 1_000, "not examined": 7}, "handled: 1000; not examined: 7"),
    ],
)
def test_what_came_of_it_is_said_no_included(result: dict[str, Any], said: str) -> None:
    assert _said(result) == said
