"""What the system says of itself now: asked once for all pages that show it, and at most so often
for those that bring themselves up to date. No page waits long for it: where a service or the broker
hangs, it shows what was known last, and says so."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from typing import Final, Generic, TypeVar

from starlette.requests import Request

from saga.broker.setup import Drift, drift, private_node
from saga.console.live import is_live
from saga.console.watched import Watched
from saga.deployment import DeploymentError
from saga.dlq import DlqError
from saga.history import HistoryError
from saga.history.waiting import WaitingMessages, read_waiting
from saga.local.node import NodeError
from saga.local.supervision import Supervision
from saga.notes import known_partitions
from saga.personal.requests import problems_in
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import BrokerError
from saga.status import (
    READY,
    READY_BUT,
    Replica,
    SystemStatus,
    at_broker,
    in_databases,
    readiness_of_all,
    replicas,
)

STATUS_SECONDS: Final = 5.0
"""How old it may be what a page shows of the status that brings itself up to date: to ask the
broker and every service is work for them."""
WAIT_SECONDS: Final = 1.0
"""How long a page waits for a newer answer, before it shows the last one."""
PART_MAX_SECONDS: Final = 10.0
"""How long the broker, or the databases, may take to tell their part of the status."""
REPLICAS_SECONDS: Final = 15.0
"""The same of the processes: to tell its version, each makes all of its figures."""
DRIFT_SECONDS: Final = 60.0
"""The same of what the broker holds."""
COMPARED_WAIT_SECONDS: Final = 5.0
"""How long a page waits for that where it was asked for."""
UNTAKEN_SECONDS: Final = 5.0
"""The same of what was published and not taken: to know it, every inbox is read."""
UNTAKEN_WAIT_SECONDS: Final = 0.2
"""How long the map waits for that."""
LAG_SECONDS: Final = 10.0
"""How old it may be how far the history is behind."""
LAG_AGE_MAX_SECONDS: Final = 30.0
"""After this, what was known of it is not said any more."""
LAG_MAX_SECONDS: Final = 5.0
"""How long the history's stream may take to tell where it ends."""
LAG_WAIT_SECONDS: Final = 0.05
"""How long a page waits for that."""

T = TypeVar("T")


class _LastAnswer(Generic[T]):
    """An answer, for as long as it may be shown again. Belongs to one event loop."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._asking: asyncio.Future[T] | None = None
        self._asked_at = 0.0
        self._known: T | None = None

    @property
    def asking(self) -> bool:
        """Whether another one is on its way."""
        return self._asking is not None and not self._asking.done()

    async def soon(
        self, ask: Callable[[], Awaitable[T]], seconds: float, *, again: bool = False
    ) -> T | None:
        """The last answer, or None if there is none yet. If it is too old, or another one is wanted
        `again`, that one, if it comes within so many seconds: who asks while it is being asked,
        waits for the same."""
        asking = self._asked(ask, again=again)
        await asyncio.wait({asking}, timeout=seconds)
        return asking.result() if asking.done() else self._known

    def _asked(self, ask: Callable[[], Awaitable[T]], *, again: bool) -> asyncio.Future[T]:
        asking = self._asking
        old = time.monotonic() - self._asked_at > self._seconds
        if asking is None or (asking.done() and (again or old or asking.exception() is not None)):
            asking = self._asking = asyncio.ensure_future(ask())
            asking.add_done_callback(self._keep)
            self._asked_at = time.monotonic()
        return asking

    def _keep(self, asked: asyncio.Future[T]) -> None:
        if not asked.cancelled() and asked.exception() is None:
            self._known = asked.result()


@dataclass(frozen=True)
class SystemSnapshot:
    """A system as it is now, as far as it can be asked."""

    status: SystemStatus
    """Without what cannot be asked."""
    no_broker: str = ""
    """Why it is without what the broker tells; empty if it is not."""
    no_databases: str = ""
    """The same of the databases."""
    at: datetime | None = field(default_factory=utc_now)
    """When it was asked; None if there is no answer yet."""
    being_asked: bool = False
    """Whether a newer answer is on its way."""

    @property
    def whole(self) -> bool:
        return self.at is not None and not self.no_broker and not self.no_databases

    @property
    def down(self) -> Mapping[str, str]:
        """Keyed by service that does not do its work: what it lacks."""
        return {
            name: said
            for name, said in self.status.services.items()
            if said != READY and not said.startswith(READY_BUT)
        }


@dataclass(frozen=True)
class Processes:
    """The replicas of each service that has an address, as far as they have answered."""

    replicas: Mapping[str, Sequence[Replica]] = field(default_factory=dict)
    at: datetime | None = None
    """When they were asked; None if there is no answer yet."""
    being_asked: bool = False
    """Whether a newer answer is on its way."""


@dataclass(frozen=True)
class Compared:
    """What the broker holds, against what the signatures ask for; or why it was not compared."""

    drift: Drift | None = None
    why_not: str = ""


@dataclass(frozen=True)
class Lag:
    """How many messages the history was behind its stream; None if that is not known, for the
    reason in `why_not`."""

    behind: int | None = None
    why_not: str = ""
    at: datetime = field(default_factory=utc_now)
    being_asked: bool = False
    """Whether that is why it is not known."""


@dataclass(frozen=True)
class Untaken:
    """What was published and not taken; or why that is not known."""

    messages: WaitingMessages = field(default_factory=WaitingMessages)
    why_not: str = ""
    at: datetime = field(default_factory=utc_now)


_AWAY: Final = (BrokerError, DatabaseError, DlqError)


class SystemWatcher:
    """What is known of one system now. Belongs to one event loop."""

    def __init__(self, watched: Watched, management_url: str | None = None) -> None:
        """`management_url` is where to ask the broker what it holds."""
        self._watched = watched
        self._management_url = management_url
        self._glance = _LastAnswer[SystemSnapshot](STATUS_SECONDS)
        self._processes = _LastAnswer[Processes](REPLICAS_SECONDS)
        self._lag = _LastAnswer[Lag](LAG_SECONDS)
        self._untaken = _LastAnswer[Untaken](UNTAKEN_SECONDS)
        self._compared = _LastAnswer[Compared](DRIFT_SECONDS)

    async def glance(self, request: Request) -> SystemSnapshot:
        """How it is; a page that comes for the first time has it asked again, and waits for that up
        to `WAIT_SECONDS`. Raises `DeploymentError`."""
        _ = self._watched.deployment  # An error of each who asks, not of the first.
        found = await self._glance.soon(self._look, WAIT_SECONDS, again=not is_live(request))
        found = found or SystemSnapshot(SystemStatus(), at=None)
        return replace(found, being_asked=self._glance.asking)

    async def processes(self, request: Request) -> Processes:
        """The replicas of each service, in the same way. Raises `DeploymentError`."""
        _ = self._watched.deployment
        again = not is_live(request)
        found = await self._processes.soon(self._look_at_processes, WAIT_SECONDS, again=again)
        return replace(found or Processes(), being_asked=self._processes.asking)

    async def lag(self) -> Lag:
        """How far the history was behind, as it was known last. To find the end of a stream takes a
        second, as it does not say where it is: so a page waits no longer than `LAG_WAIT_SECONDS`,
        and the next one has it."""
        found = await self._lag.soon(self._look_at_lag, LAG_WAIT_SECONDS)
        if found is None or (utc_now() - found.at).total_seconds() > LAG_AGE_MAX_SECONDS:
            why = "the stream is being asked; look again in a second"
            return Lag(why_not=why, being_asked=True)
        return found

    async def untaken(self, seconds: float, *, again: bool = False) -> Untaken:
        """What participants have not taken yet, waiting so long for it."""
        return await self._untaken.soon(self._look_at_untaken, seconds, again=again) or Untaken(
            why_not="the inboxes are being read; look again in a second"
        )

    async def untaken_if_any(self, glance: SystemSnapshot) -> Untaken:
        """The same for the map, which has nothing read while nothing waits on the broker."""
        if glance.no_broker or glance.at is None:
            return Untaken(why_not=glance.no_broker or "the broker is being asked")
        status = glance.status
        if not any(queue.messages for queue in status.queues.values()) and not status.waits:
            return Untaken(at=glance.at)
        return await self.untaken(UNTAKEN_WAIT_SECONDS)

    async def compared(self, *, wanted: bool) -> Compared:
        """How the broker differs. It is compared by itself where its management API is known; where
        it is a private node, only if that is `wanted`: it takes the node a while."""
        deployment = self._watched.deployment
        private = private_node(self._watched.folder, deployment) is not None
        if self._management_url is None and not (private and wanted):
            way = (
                "that takes its node a second or so, so it is done when it is asked for"
                if private
                else "start the console with MANAGEMENT_URL, the address of the broker's "
                "management API"
            )
            return Compared(why_not=f"Not compared: {way}.")
        seconds = COMPARED_WAIT_SECONDS if wanted else WAIT_SECONDS
        return await self._compared.soon(self._compare, seconds, again=wanted) or Compared(
            why_not="Not compared yet: the broker is being asked; look again in a second."
        )

    async def _look(self) -> SystemSnapshot:
        at = utc_now()
        deployment, graph = self._watched.deployment, self._watched.graph
        supervision = await asyncio.to_thread(Supervision.load, self._watched.folder)
        services, (waiting, no_broker), (kept, no_databases) = await asyncio.gather(
            readiness_of_all(deployment, graph),
            _or_why_not("the broker", at_broker(deployment, graph)),
            _or_why_not("a database", in_databases(deployment, graph)),
        )
        loops = supervision.problems(time.time()) if supervision else ()
        forgetting = await asyncio.to_thread(problems_in, self._watched.folder)
        said = SystemStatus(services=services, crash_loops=loops, forgetting=forgetting)
        return SystemSnapshot(said.beside(waiting).beside(kept), no_broker, no_databases, at)

    async def _look_at_processes(self) -> Processes:
        at = utc_now()
        return Processes(await replicas(self._watched.deployment, self._watched.graph), at)

    async def _look_at_lag(self) -> Lag:
        try:
            async with asyncio.timeout(LAG_MAX_SECONDS):
                return Lag(await self._watched.archive.behind())
        except (*_AWAY, HistoryError, DeploymentError) as error:
            return Lag(why_not=str(error))
        except TimeoutError:
            return Lag(why_not=f"the stream gave no answer for {LAG_MAX_SECONDS:g} s")

    async def _look_at_untaken(self) -> Untaken:
        at = utc_now()
        watched = self._watched
        try:
            async with asyncio.timeout(PART_MAX_SECONDS):
                read = partial(read_waiting, watched.deployment, watched.graph)
                return Untaken(await asyncio.to_thread(read), at=at)
        except (*_AWAY, HistoryError, DeploymentError) as error:
            return Untaken(why_not=str(error), at=at)
        except TimeoutError:
            why = f"the inboxes gave no answer for {PART_MAX_SECONDS:g} s"
            return Untaken(why_not=why, at=at)

    async def _compare(self) -> Compared:
        watched = self._watched
        url = watched.deployment.amqp_url if self._management_url else None
        try:
            known = known_partitions(watched.folder) or 1
            found = await drift(
                watched.graph, url, self._management_url, watched.folder, partitions_min=known
            )
            return Compared(found)
        except (BrokerError, NodeError) as error:
            return Compared(why_not=f"Not compared: {error}")


async def _or_why_not(name: str, part: Awaitable[SystemStatus]) -> tuple[SystemStatus, str]:
    """What can be asked of a status, and why there is no more."""
    try:
        async with asyncio.timeout(PART_MAX_SECONDS):
            return await part, ""
    except _AWAY as error:
        return SystemStatus(), str(error)
    except TimeoutError:
        return SystemStatus(), f"{name} gave no answer for {PART_MAX_SECONDS:g} s"
