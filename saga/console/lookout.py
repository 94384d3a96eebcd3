"""What the system says of itself now: asked once for all pages that show it, and at most so often
for those that bring themselves up to date."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Final, Generic, TypeVar

from starlette.requests import Request

from saga.broker.setup import Drift, drift, private_node
from saga.console.live import HEADER
from saga.console.watched import Watched
from saga.deployment import DeploymentError
from saga.dlq import DlqError
from saga.history import HistoryError
from saga.local.node import NodeError
from saga.local.supervision import Supervision
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.connection import BrokerError
from saga.status import READY, READY_BUT, Replica, SystemStatus, readiness_of_all, replicas, status

STATUS_SECONDS: Final = 5.0
"""How old it may be what a page shows of the status that brings itself up to date: to ask the
broker and every service is work for them."""
REPLICAS_SECONDS: Final = 15.0
"""The same of the processes: to tell its version, each makes all of its figures."""
DRIFT_SECONDS: Final = 60.0
"""The same of what the broker holds."""
LAG_SECONDS: Final = 10.0
"""The same of how far the history is behind."""
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
    def known(self) -> T | None:
        """The last answer, if there is one, while another may be asked for."""
        return self._known

    async def get(self, ask: Callable[[], Awaitable[T]], *, again: bool) -> T:
        """The last answer, unless it is too old, or another one is wanted: who asks while it is
        being asked, waits for the same."""
        asking = self._asking
        old = time.monotonic() - self._asked_at > self._seconds
        if asking is None or (asking.done() and (again or old or asking.exception() is not None)):
            asking = self._asking = asyncio.ensure_future(ask())
            self._asked_at = time.monotonic()
        self._known = await asyncio.shield(asking)
        return self._known


@dataclass(frozen=True)
class Glance:
    """A system as it is now, as far as it can be asked."""

    status: SystemStatus
    """Where something cannot be asked, without what comes after it."""
    lacking: str = ""
    """Why it is not whole; empty if it is."""

    @property
    def down(self) -> Mapping[str, str]:
        """By service that does not do its work, what it lacks."""
        return {
            name: said
            for name, said in self.status.services.items()
            if said != READY and not said.startswith(READY_BUT)
        }


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


_AWAY: Final = (BrokerError, DatabaseError, DlqError)


class Lookout:
    """What is known of one system now. Belongs to one event loop."""

    def __init__(self, watched: Watched, management_url: str | None = None) -> None:
        """`management_url` is where to ask the broker what it holds."""
        self._watched = watched
        self._management_url = management_url
        self._glance = _LastAnswer[Glance](STATUS_SECONDS)
        self._processes = _LastAnswer[Mapping[str, Sequence[Replica]]](REPLICAS_SECONDS)
        self._lag = _LastAnswer[Lag](LAG_SECONDS)
        self._asking_lag: asyncio.Task[Lag] | None = None
        self._compared = _LastAnswer[Compared](DRIFT_SECONDS)

    async def glance(self, request: Request) -> Glance:
        """How it is; a page that comes for the first time has it asked anew. Raises
        `DeploymentError`."""
        _ = self._watched.deployment  # An error of each who asks, not of the first.
        return await self._glance.get(self._look, again=not is_live(request))

    async def processes(self, request: Request) -> Mapping[str, Sequence[Replica]]:
        """The replicas of each service. Raises `DeploymentError`."""
        deployment, graph = self._watched.deployment, self._watched.graph
        return await self._processes.get(
            lambda: replicas(deployment, graph), again=not is_live(request)
        )

    async def lag(self) -> Lag:
        """How far the history was behind, as it was known last. To find the end of a stream takes a
        second, as it does not say where it is: so a page waits no longer than `LAG_WAIT_SECONDS`,
        and the next one has it."""
        if self._asking_lag is None or self._asking_lag.done():
            self._asking_lag = asyncio.ensure_future(self._lag.get(self._look_at_lag, again=False))
        if self._known_lag is None:
            await asyncio.wait({self._asking_lag}, timeout=LAG_WAIT_SECONDS)
        return self._known_lag or Lag(why_not="the stream is being asked; look again in a second")

    @property
    def _known_lag(self) -> Lag | None:
        known = self._lag.known
        if known is None or (utc_now() - known.at).total_seconds() > LAG_AGE_MAX_SECONDS:
            return None
        return known

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
        return await self._compared.get(self._compare, again=wanted)

    async def _look(self) -> Glance:
        watched = self._watched
        supervision = await asyncio.to_thread(Supervision.load, watched.folder)
        try:
            return Glance(await status(watched.deployment, watched.graph, supervision))
        except _AWAY as error:
            services = await readiness_of_all(watched.deployment, watched.graph)
            loops = supervision.problems(time.time()) if supervision else ()
            return Glance(SystemStatus(services=services, crash_loops=loops), str(error))

    async def _look_at_lag(self) -> Lag:
        try:
            async with asyncio.timeout(LAG_MAX_SECONDS):
                return Lag(await self._watched.archive.behind())
        except (*_AWAY, HistoryError, DeploymentError) as error:
            return Lag(why_not=str(error))
        except TimeoutError:
            return Lag(why_not=f"the stream gave no answer for {LAG_MAX_SECONDS:g} s")

    async def _compare(self) -> Compared:
        watched = self._watched
        url = watched.deployment.amqp_url if self._management_url else None
        try:
            return Compared(await drift(watched.graph, url, self._management_url, watched.folder))
        except (BrokerError, NodeError) as error:
            return Compared(why_not=f"Not compared: {error}")


def is_live(request: Request) -> bool:
    """Whether a page asks for itself again."""
    return HEADER.decode() in request.headers
