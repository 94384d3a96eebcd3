"""How one subject of a running system stands, for those who ask once: what its history tells, and
how much of that may be missing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from saga.choreography import Choreography
from saga.deployment import Deployment
from saga.errors import NotFound
from saga.future.moment import Moment, moment_after
from saga.history.archive import Archive
from saga.history.debts import Debt
from saga.history.trace import CATCH_UP_SECONDS, Trace, UnknownSubject, trace
from saga.history.whereabouts import MessageLocations
from saga.runtime.messaging.connection import BrokerError
from saga.verify import VerifyError
from saga.wording import counted

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class SubjectAtMoment:
    """A subject at one of its moments. `behind` is how many messages the history lacks; None where
    the broker did not tell, for which `why_not` has the reason."""

    found: Trace
    moment: Moment
    behind: int | None
    why_not: str = ""

    @property
    def may_lack(self) -> str:
        """What the history may lack; empty if it has everything that was published by now."""
        if self.behind is None:
            return f"how far the history is behind is not known: {self.why_not}"
        if self.behind:
            return (
                f"the history is {counted(self.behind, 'message')} behind the stream, and what "
                f"they say about "
                f"this was not looked at; start its service, and wait"
            )
        return ""


async def standing(
    deployment: Deployment,
    graph: Choreography,
    subject: str,
    event: int | None = None,
    *,
    patience_seconds: float | None = None,
) -> SubjectAtMoment:
    """How a subject stands, right after its event of that number, or now. A history that is behind
    is waited for, by default for `CATCH_UP_SECONDS`. Works without a broker as well.

    Raises `UnknownSubject`, `InputError` for an event that there is not, `HistoryError`,
    `DatabaseError` and `DlqError`.
    """
    archive = Archive(deployment)
    patience_seconds = CATCH_UP_SECONDS if patience_seconds is None else patience_seconds
    behind, why_not = None, ""
    try:
        behind = 0 if await archive.caught_up(patience_seconds) else await archive.behind()
        found = await trace(deployment, graph, subject)
    except BrokerError as error:
        behind, why_not = None, str(error)
        found = await trace(deployment, graph, subject, seen=_nobody)
    except UnknownSubject as error:
        if not behind:
            raise
        raise UnknownSubject(
            f"{error}; but the history is {counted(behind, 'message')} behind the stream: start "
            f"its service, "
            f"and wait"
        ) from error
    moment = moment_after(graph, found, event)
    if event is not None and event > moment.last:
        raise NotFound(
            f"--event: it has {counted(moment.last, 'event')}, so there is no event {event}"
        )
    return SubjectAtMoment(found, moment, behind, why_not)


async def _nobody(_: Sequence[Debt]) -> MessageLocations | None:
    """Where the broker is away: what is there is unknown."""
    return None


def computed(compute: Callable[[], T]) -> T:
    """What is computed by a model. Raises `VerifyError` where that cannot be."""
    try:
        return compute()
    except TypeError as error:  # A state that is not hashable, say.
        raise VerifyError(f"a state cannot be put into the model: {error}") from error
