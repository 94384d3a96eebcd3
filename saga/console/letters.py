"""The dead letters of the system that a console shows: collected now and then, and replayed by one
replay at a time, which goes on when no page is open."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from saga.console.inquiry import apart
from saga.console.watched import Watched
from saga.dlq import DlqError
from saga.dlq.audit import acting_as
from saga.dlq.desk import ReadingDesk, open_desk
from saga.dlq.edit import Edited, edit
from saga.dlq.replay import ReplayResult, ReplaySettings, Stop, replay
from saga.dlq.selection import FrozenSelection, Selection
from saga.dlq.store import Store
from saga.errors import Explained, InputError, NotFound
from saga.runtime.tasks import cancel_all

log = logging.getLogger(__name__)

COLLECT_SECONDS: Final = 4.0
"""The queues are looked at no more often than that."""
FIRST_WAIT_SECONDS, WAIT_SECONDS = 2.0, 0.1
"""How long a page waits for that: the first one, and later ones, which show what is known by
then."""
CLOSE_SECONDS: Final = 5.0
"""How long a replay may take to stop when the console does."""


@dataclass(slots=True)
class _UnderWay:
    """A replay that this console runs."""

    stop: Stop = field(default_factory=Stop)
    run: int | None = None
    task: asyncio.Task[ReplayResult] | None = None


class WatchedLetters:
    """Dead letters, as a console shows them and deals with them. Belongs to one event loop."""

    def __init__(self, watched: Watched) -> None:
        self._watched = watched
        self._store: Store | None = None
        self._opened: tuple[str, tuple[int, int]] | None = None
        """The store's URL, and which file that was."""
        self._opening = asyncio.Lock()
        self._collecting: asyncio.Task[None] | None = None
        self._looked_at: float | None = None
        self._under_way: _UnderWay | None = None
        self.collected_at: datetime | None = None
        """When the queues were last emptied into the store."""
        self.trouble = ""
        """Why they could not be, the last time."""
        self.broke_off: dict[int, str] = {}
        """Keyed by replay: why this console could not go on with it."""

    @property
    def replaying(self) -> int | None:
        """The replay that this console runs."""
        return None if self._under_way is None else self._under_way.run

    async def desk(self) -> ReadingDesk:
        """What looking at letters needs. Raises `DlqError` and `DeploymentError`."""
        deployment = self._watched.deployment
        if (url := deployment.dead_letters_url) is None:
            raise NotFound("the deployment names no store of dead letters: dead_letters_url")
        async with self._opening:
            if self._store is None or self._opened != (url, _identity(self._store.path)):
                before, self._store = self._store, await asyncio.to_thread(Store, url)
                self._opened = url, _identity(self._store.path)
                if before is not None:
                    before.close()
            return ReadingDesk(deployment, self._watched.graph, self._store)

    async def collected(self) -> ReadingDesk:
        """The desk, with what is dead by now on it: as far as that is known soon, or was found out
        a moment ago. `collected_at` and `trouble` tell."""
        now = time.monotonic()
        if self._collecting is None and (
            self._looked_at is None or now - self._looked_at >= COLLECT_SECONDS
        ):
            with acting_as(None):  # The console collects, even if no page is open.
                self._collecting = asyncio.create_task(self._collect())
        if self._collecting is not None:
            seconds = FIRST_WAIT_SECONDS if self._looked_at is None else WAIT_SECONDS
            await asyncio.wait({self._collecting}, timeout=seconds)
        return await self.desk()

    async def _collect(self) -> None:
        deployment, graph = self._watched.deployment, self._watched.graph

        async def collect() -> datetime:
            async with open_desk(deployment, graph):
                return datetime.now(UTC)

        try:
            self.collected_at, self.trouble = await apart(collect), ""
        except (Explained, InputError) as error:
            self.trouble = str(error)
        except sa.exc.DBAPIError as error:
            self.trouble = f"a database cannot be used: {error.orig}"
        except Exception as error:
            log.exception("dead letters could not be collected")
            self.trouble = f"{type(error).__name__}: {error}"
        finally:
            self._looked_at, self._collecting = time.monotonic(), None

    # --- changing ----------------------------------------------------------------------------

    async def edit(self, number: int, text: str, why: str) -> Edited | None:
        """Send a corrected copy in place of a letter; see `saga.dlq.edit`."""
        deployment, graph = self._watched.deployment, self._watched.graph

        async def change() -> Edited | None:
            async with open_desk(deployment, graph) as desk:
                return await edit(desk, number, lambda _: text, why=why)

        return await apart(change)

    async def begin(
        self,
        selection: Selection | None,
        settings: ReplaySettings,
        why: str,
        confirmed: FrozenSelection | None,
        *,
        resuming: int | None = None,
    ) -> int:
        """Begin a replay of the letters selected, which are those that were `confirmed`; or, with
        None, go on with the one that never ended, which is `resuming`. Returns its number, once it
        has begun; it goes on then. Raises what `saga.dlq.replay.replay` does."""
        if self._under_way is not None:
            raise DlqError("this console is at work on a replay; wait for it, or stop it first")
        under_way = self._under_way = _UnderWay()
        loop = asyncio.get_running_loop()
        begun: asyncio.Future[int] = loop.create_future()
        deployment, graph = self._watched.deployment, self._watched.graph

        def note(number: int) -> None:
            under_way.run = number
            self.broke_off.pop(number, None)
            if not begun.done():
                begun.set_result(number)

        async def work() -> ReplayResult:
            async with open_desk(deployment, graph) as desk:
                return await replay(
                    desk,
                    selection,
                    settings,
                    why=why,
                    confirmed=confirmed,
                    resuming=resuming,
                    stop=under_way.stop,
                    begun=lambda run, _: _on(loop, note, run.number),
                )

        # Beside the pages: it has much to do with the broker, from its beginning on.
        task = under_way.task = asyncio.create_task(apart(work))
        task.add_done_callback(self._ended)
        either: set[asyncio.Future[Any]] = {task, begun}
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if begun.done():
            return begun.result()
        begun.cancel()
        return task.result().run

    def _ended(self, task: asyncio.Task[ReplayResult]) -> None:
        under_way, self._under_way = self._under_way, None
        if under_way is None or under_way.run is None or task.cancelled():
            return
        if (error := task.exception()) is not None:
            log.warning("replay %d broke off: %s", under_way.run, error)
            self.broke_off[under_way.run] = str(error) or type(error).__name__

    def stop(self, run: int, why: str) -> None:
        """Stop the replay that this console runs from sending more. Raises `DlqError`."""
        if self._under_way is None or self._under_way.run != run:
            raise DlqError(
                f"replay {run} is not at work in this console; one that `saga dlq replay` runs is "
                f"stopped by Ctrl-C there"
            )
        self._under_way.stop.ask(why)

    async def close(self) -> None:
        """Stop what is under way; a replay waits to be resumed then."""
        if (under_way := self._under_way) is not None and under_way.task is not None:
            under_way.stop.ask("the console stops")
            await asyncio.wait({under_way.task}, timeout=CLOSE_SECONDS)
            await cancel_all(under_way.task)
        if self._collecting is not None:
            await cancel_all(self._collecting)
        if self._store is not None:
            self._store.close()


def _on(loop: asyncio.AbstractEventLoop, call: Callable[[int], None], number: int) -> None:
    """Call it on the console's own loop, from another thread."""
    with contextlib.suppress(RuntimeError):  # The console has ended.
        loop.call_soon_threadsafe(call, number)


def _identity(path: Path) -> tuple[int, int]:
    """Which file it is; of one that is gone, none."""
    with contextlib.suppress(OSError):
        found = path.stat()
        return found.st_dev, found.st_ino
    return 0, 0
