"""Keeping a system's processes running: what ends by itself is started again."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Final, NoReturn

from saga.broker.claim import Claim, ClaimedError
from saga.local import SystemFault
from saga.local.node import LogWatch, NodeError, RabbitNode
from saga.local.postgres import PostgresCluster, PostgresError
from saga.local.processes import ServiceProcess
from saga.local.server import SPEECHLESS_BYTES
from saga.local.supervision import Supervised, Supervision
from saga.runtime.disk import lack_of_room
from saga.runtime.messaging.connection import RETRY_SECONDS, BrokerError
from saga.wording import counted

CLAIM_SECONDS: Final = 60.0
"""How long a broker may take to notice that a connection of ours is lost: several heartbeats."""
POLL_SECONDS: Final = 0.05
ROOM_LOOK_SECONDS: Final = 1.0


class Keeper:
    """Starts again what ends, less and less often where it keeps ending, and tells other commands.

    `lack_of_room` says what the disk lacks for anything to be started. With `ends_max`, more ends
    than that of one process within `saga.local.supervision.WINDOW_SECONDS` are a `SystemFault`.
    """

    def __init__(
        self,
        folder: Path,
        supervised: Supervision,
        *,
        lack_of_room: Callable[[], str],
        report: Callable[[str], None],
        ends_max: int | None = None,
    ) -> None:
        self._folder = folder
        self._supervised = supervised
        self._lack_of_room = lack_of_room
        self._report = report
        self._ends_max = ends_max
        self._unsaved = False
        """Whether other commands do not know yet what is supervised."""

    async def keep_service(
        self, name: str, process: ServiceProcess, spawn: Callable[[], None]
    ) -> NoReturn:
        """Spawn a service's process again whenever it has ended."""
        supervised = self._supervised.services[name]
        while True:
            if process.running:
                await asyncio.sleep(POLL_SECONDS)
                continue
            supervised.pid = None
            if process.stopped:
                self._report(f"the {name} service was stopped; starting it again")
            else:
                await self._pause(name, supervised, process.last_words())
            try:
                spawn()
            except OSError as error:
                await self._pause(name, supervised, str(error))
            else:
                supervised.pid = process.pid
                self.save()

    async def keep_server(
        self,
        name: str,
        server: RabbitNode | PostgresCluster,
        start: Callable[[], Awaitable[None]],
    ) -> NoReturn:
        """Start a server again whenever it has ended."""
        supervised = self._supervised.servers[name]
        last_words = f"log: {server.log_path}"
        while True:
            if server.running:
                await asyncio.sleep(POLL_SECONDS)
                continue
            await self._pause(name, supervised, last_words)
            last_words = f"log: {server.log_path}"
            try:
                await start()
            except (NodeError, PostgresError, OSError) as error:
                last_words = str(error)
            else:
                self.save()

    async def _pause(self, name: str, supervised: Supervised, last_words: str) -> None:
        """Count and report that a process has ended, and wait until it may be started again: there
        has to be room for it on the disk."""
        shown = name if supervised.service is None else f"the {name} service"
        lack = self._lack_of_room()
        if lack:
            last_words = f"no room left: {lack}; {last_words}"
        now = time.time()
        seconds = supervised.ended(now, last_words)
        if self._ends_max is not None and len(supervised.ends) > self._ends_max:
            raise SystemFault(
                f"{shown} has ended {counted(len(supervised.ends), 'time')}: {last_words}"
            )
        when = f"in {seconds:g} s" if seconds else "now"
        if lack:
            when = "once there is room"
        self._report(f"{shown} has ended ({last_words}); starting it again {when}")
        supervised.starts_at = now + seconds
        self.save()
        deadline = time.monotonic() + seconds
        while True:
            if Supervision.hurried(self._folder, name) or time.monotonic() >= deadline:
                break
            await asyncio.sleep(min(seconds, POLL_SECONDS))
        # What starts on a full disk only ends again, and a broker may lose more by it.
        while True:
            if not self._lack_of_room():
                break
            await asyncio.sleep(ROOM_LOOK_SECONDS)
        supervised.starts_at = None

    def save(self) -> None:
        """Tell other commands of the processes. Where the disk takes no more, they read what was
        true before, until it does."""
        try:
            self._supervised.save(self._folder)
        except OSError as error:
            if not self._unsaved:
                self._report(f"other commands see an older state of the processes: {error}")
            self._unsaved = True
        else:
            self._unsaved = False

    async def keep_saved(self) -> NoReturn:
        """Tell other commands what they could not be told before."""
        while True:
            await asyncio.sleep(ROOM_LOOK_SECONDS)
            if self._unsaved:
                self.save()


async def renew_broker(
    node: RabbitNode,
    shut_down: Callable[[], Awaitable[None]],
    *,
    is_starting: Callable[[], bool],
    lack: Callable[[], str],
    report: Callable[[str], None],
) -> NoReturn:
    """End a broker that has met a full disk, once there is room, so that it is started again.

    What writes its queues has ended then, and it does not start that by itself: RabbitMQ 4.0
    runs on, and takes and delivers nothing. A disk that was full for a moment, or for its user
    alone (a quota), is not seen as such, but what it has ended is.
    """
    met_by: int | None = None
    """The process that has met one."""
    log = LogWatch(node)
    while True:
        if node.running and not is_starting():
            gone = log.writer_is_gone()
            if lack_of_room(node.folder, SPEECHLESS_BYTES, 1):
                met_by = node.pid
            elif (gone or node.pid == met_by) and not lack():
                why = "writes to its queues no more" if gone else "has met a full disk"
                report(f"the broker {why}; starting it again")
                await shut_down()
        await asyncio.sleep(ROOM_LOOK_SECONDS)


async def keep_claim(claim: Claim) -> NoReturn:
    """Take the broker again whenever the connection that holds it is lost.

    Raises `ClaimedError` once another system has it. For a while that may be our own connection
    still, which the broker does not know to be lost.
    """
    lost_at: float | None = None
    while True:
        await asyncio.sleep(POLL_SECONDS)
        if claim.held:
            lost_at = None
            continue
        lost_at = lost_at or time.monotonic()
        try:
            await claim.take()
        except BrokerError as error:
            overdue = time.monotonic() > lost_at + CLAIM_SECONDS
            if isinstance(error, ClaimedError) and overdue:
                raise
            await asyncio.sleep(RETRY_SECONDS)
