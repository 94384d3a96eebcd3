"""What is tried again and again until it succeeds, and how to notice that it does not.

Whatever waits for a broker or a database tries for ever, because both come back. Some causes do not
go away, though: a binding that is missing, a right that was taken. Then an operator has to hear of
it, and the log must not be full of it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Hashable, Iterable, Mapping, Set
from dataclasses import dataclass
from typing import Final

from saga.wording import counted

log = logging.getLogger(__name__)

FAILURES_MIN: Final = 3
"""In a row; before, a loop is not stuck."""
STUCK_SECONDS: Final = 15.0
"""For so long it has to fail as well: a broker that is restarted is there again by then."""
STEADY_SECONDS: Final = 30.0
"""How long what was lost has to last, once it is there again, to count as a success."""
LOG_SECONDS: Final = 60.0
"""How often one cause is logged."""
CAUSES_MAX: Final = 8
"""Causes that are logged each in its own time; all others share one."""
TRACKED_MAX: Final = 1_000
"""Things of one loop whose failures are counted."""
CAUSE_MAX_CHARACTERS: Final = 300

_KEEPING: Final = "keeping"
_OTHERS: Final = "others"


@dataclass(slots=True)
class _Row:
    """The failures of one thing in a row."""

    began: float
    count: int = 0
    latest: float = 0.0
    cause: str = ""

    @property
    def seconds(self) -> float:
        return self.latest - self.began

    @property
    def stuck(self) -> bool:
        return self.count >= FAILURES_MIN and self.seconds >= STUCK_SECONDS


class RetryLoop:
    """Counts what fails in a loop that tries again, and logs why: each cause when it comes up, then
    once a minute, and once when it is over.

    A loop may try several things, each on its own: one event that is refused again and again is
    stuck, however many others go through. A connection fails in two ways: it cannot be opened
    (`failed`, `succeeded`), and it does not stay open (`lost`). Belongs to one event loop.
    """

    def __init__(
        self,
        name: str,
        doing: str,
        *,
        vital: bool = True,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`name` is a label of metrics and a key of `/readyz`; `doing` is what the loop tries, as
        it stands after "cannot". A service is not ready while a `vital` one is stuck."""
        self.name = name
        self.vital = vital
        self._doing = doing
        self._monotonic = monotonic
        self._rows: dict[Hashable, _Row] = {}
        """Keyed by thing: what fails now."""
        self._began = 0.0
        self._failures = 0
        """Since then, of all things; 0 once it is over."""
        self._logged: dict[str, float] = {}
        """Keyed by cause: when it was logged."""
        self._heard = False
        """Whether anything of this was logged, so that its end is news."""
        self._steady: asyncio.TimerHandle | None = None

    @property
    def failing(self) -> Set[Hashable]:
        """The things that have failed and not succeeded since."""
        return self._rows.keys()

    @property
    def trouble(self) -> str:
        """What has failed so often and so long that an operator should look, and why; or
        nothing."""
        stuck = [row for row in self._rows.values() if row.stuck]
        if not stuck:
            return ""
        worst = max(stuck, key=lambda row: row.seconds)
        return (
            f"cannot {self._doing}, tried {counted(worst.count, 'time')} in {worst.seconds:.0f} s: "
            f"{worst.cause}"
        )

    def failing_for(self, seconds: float) -> str:
        """Why something has failed for at least so long, and fails still; or nothing."""
        since = self._monotonic() - seconds
        return next((row.cause for row in self._rows.values() if row.began <= since), "")

    def failed(
        self,
        error: BaseException | str,
        thing: Hashable = None,
        about: Mapping[str, str | None] | None = None,
    ) -> None:
        """A try has failed, and there will be another one. `about` goes into the log record."""
        now = self._monotonic()
        cause = _cause(error)
        if not self._failures:
            self._began = now
        self._failures += 1
        row = self._rows.get(thing)
        if row is None and len(self._rows) < TRACKED_MAX:
            row = self._rows[thing] = _Row(now)
        if row is not None:
            row.count += 1
            row.latest = now
            row.cause = cause
        self._log(cause, now, about)

    def lost(self, error: BaseException | str) -> None:
        """What was there is lost again. It counts as a success once it was not for a while.

        Must be called where an event loop runs.
        """
        self.failed(error, _KEEPING)
        if self._steady is not None:
            self._steady.cancel()
        self._steady = asyncio.get_running_loop().call_later(
            STEADY_SECONDS, self.succeeded, _KEEPING
        )

    def succeeded(self, thing: Hashable = None) -> None:
        """A try has succeeded. Costs next to nothing as long as nothing fails."""
        if not self._failures:
            return
        self._rows.pop(thing, None)
        if self._rows:
            return
        if self._heard:
            seconds = self._monotonic() - self._began
            log.info(
                "can %s again, after %d failures in %.0f s", self._doing, self._failures, seconds
            )
        self._failures = 0
        self._heard = False

    def forget(self, *things: Hashable) -> None:
        """These are not tried any more, and have not succeeded."""
        for thing in things:
            self._rows.pop(thing, None)
        if not self._rows:
            self._failures = 0
            self._heard = False

    def _log(self, cause: str, now: float, about: Mapping[str, str | None] | None) -> None:
        logged = self._logged
        for old in [old for old, at in logged.items() if now - at >= LOG_SECONDS]:
            del logged[old]
        kind = cause if cause in logged or len(logged) < CAUSES_MAX else _OTHERS
        if kind in logged:
            return
        logged[kind] = now
        self._heard = True
        if self._failures == 1:
            log.warning("cannot %s, trying again: %s", self._doing, cause, extra=about)
        else:
            log.warning(
                "cannot %s, tried %d times in %.0f s: %s",
                self._doing,
                self._failures,
                now - self._began,
                cause,
                extra=about,
            )


def _cause(error: BaseException | str) -> str:
    """The first line of it: SQLAlchemy's errors go on with the statement."""
    text = str(error).partition("\n")[0] or type(error).__name__
    return text[:CAUSE_MAX_CHARACTERS]


def troubles(retry_loops: Iterable[RetryLoop]) -> dict[str, str]:
    """Keyed by name: those that are stuck, and why."""
    return {loop.name: loop.trouble for loop in retry_loops if loop.trouble}
