"""Whether a process can do its work, known before it is asked.

What it rests on, a broker and a database, is looked at in the background, each by itself. So
`/readyz` answers at once, also where the broker takes its time, and a busy process is not taken for
a broken one: an answer that is late says nothing, until there was none for long.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final

from saga.runtime.tasks import side_by_side

LOOK_EVERY_SECONDS: Final = 2.0
"""From one look's end to the next one's start, while nothing is missing."""
LOOK_AGAIN_SECONDS: Final = 0.1
"""After the first look at which something is missing; doubled each time, up to the other."""
LOOK_SECONDS: Final = 10.0
"""How long one look may take."""
STALE_SECONDS: Final = 30.0
"""How old what is known may become before it does not count any more."""

Missing = Mapping[str, str]
"""Keyed by thing that is missing: the reason."""


@dataclass(frozen=True)
class Look:
    """A look at something that a process cannot work without."""

    look: Callable[[], Awaitable[Missing]]
    """Says what is missing; an error, and what it is missing then, go through `explain`."""
    explain: Callable[[str], Missing]
    """What is missing where a look ends with an error, or where there was none yet."""


class _Watch:
    """One look, again and again."""

    def __init__(self, look: Look, monotonic: Callable[[], float]) -> None:
        self._look = look
        self._monotonic = monotonic
        self._missing = look.explain("nothing is known yet")
        self._since = monotonic()
        """The time of the last answer, or of the start."""
        self._at_once = asyncio.Event()

    @property
    def age_seconds(self) -> float:
        return self._monotonic() - self._since

    def missing(self) -> Missing:
        if not self._missing and self.age_seconds > STALE_SECONDS:
            return self._look.explain(f"no answer for {self.age_seconds:.0f} s")
        return self._missing

    def at_once(self) -> None:
        self._at_once.set()

    async def run(self) -> None:
        pause_seconds = LOOK_AGAIN_SECONDS
        while True:
            self._at_once.clear()
            before = self._missing
            await self._once()
            if not self._missing:
                pause_seconds = LOOK_EVERY_SECONDS
            elif not before:
                pause_seconds = LOOK_AGAIN_SECONDS
            try:
                async with asyncio.timeout(pause_seconds):
                    await self._at_once.wait()
            except TimeoutError:
                pause_seconds = min(2 * pause_seconds, LOOK_EVERY_SECONDS)
            else:
                pause_seconds = LOOK_AGAIN_SECONDS

    async def _once(self) -> None:
        patience = asyncio.timeout(LOOK_SECONDS)
        try:
            async with patience:
                missing = await self._look.look()
        except Exception as error:
            if patience.expired():
                return  # Late is not missing; `missing` looks at the clock.
            missing = self._look.explain(str(error).partition("\n")[0] or type(error).__name__)
        self._missing = missing
        self._since = self._monotonic()


class Readiness:
    """What is known of all that a process needs. Belongs to one event loop."""

    def __init__(
        self,
        *looks: Look,
        known: Callable[[], Missing] = dict,
        troubles: Callable[[], Missing] = dict,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`known` says what is missing without any waiting; it is asked each time. `troubles`
        too: by thing, what an operator should look into, although the process does its work."""
        self.troubles = troubles
        self._watches = [_Watch(look, monotonic) for look in looks]
        self._known = known

    @property
    def age_seconds(self) -> float:
        """The age of the oldest of what is known."""
        return max((watch.age_seconds for watch in self._watches), default=0.0)

    def missing(self) -> dict[str, str]:
        """What is missing, and why; nothing, if the process can do its work."""
        found: dict[str, str] = {}
        for watch in self._watches:
            found |= watch.missing()
        found |= self._known()
        return found

    def look_again(self) -> None:
        """Something has changed: do not wait for the next look's time."""
        for watch in self._watches:
            watch.at_once()

    async def run(self) -> None:
        """Look again and again, until cancelled."""
        await side_by_side(*(watch.run() for watch in self._watches))
