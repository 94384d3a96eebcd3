"""Commands given when their time has come, each on its own: one that fails stops no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final

from sqlalchemy.engine import Connection

from common.kernel.database import Database
from common.kernel.groups import Kernel
from common.kernel.tables import Clock, utc_now
from common.message import Command, Priority
from common.retry_loop import RetryLoop

POLL_SECONDS: Final = 0.5
BATCH_MAX: Final = 500
"""Subjects that are due, taken together."""
PUT_OFF_SECONDS: Final = 20.0
"""Until a command that failed is given again."""
AFTER_HOLD_SECONDS: Final = 10.0
"""After the kernel has held back what came from the broker, until what is due is looked for again:
among what waited there may be what ends a subject in time."""
PUT_OFF_MAX: Final = 10_000
"""Subjects that are put off; those beyond are tried at each look."""


@dataclass(frozen=True, slots=True)
class Timer:
    """What a service does about subjects whose time has come.

    `due` reads up to so many subjects, those due first in front, each with its priority: as they
    are stored, because one that cannot be read must not hide the others. `command` is what is given
    about one of them; it must do nothing if the time has not come.
    """

    name: str
    """A label of metrics and a key of `/readyz`."""
    doing: str
    """What it does, as it stands after "cannot"."""
    due: Callable[[Connection, datetime, int], Sequence[tuple[str, str]]]
    command: Callable[[str], Command]


class Timekeeper:
    """Runs one timer. Several replicas may do so at once. Belongs to one event loop."""

    def __init__(
        self,
        timer: Timer,
        kernel: Kernel,
        database: Database,
        *,
        clock: Clock = utc_now,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._timer = timer
        self._kernel = kernel
        self._database = database
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._looking = RetryLoop(timer.name, f"look whether to {timer.doing}")
        # One subject that fails is no reason to turn away all others.
        self._giving = RetryLoop(f"{timer.name}_subjects", timer.doing, vital=False)
        self._put_off: dict[str, float] = {}
        """Keyed by subject: when its command is given again, by the event loop's time."""
        self._waits_until = 0.0
        """Nothing is looked for before, by the event loop's time."""

    @property
    def retry_loops(self) -> tuple[RetryLoop, ...]:
        """What tries again and again here."""
        return self._looking, self._giving

    async def run(self) -> None:
        """Give the commands that are due, until cancelled.

        None while the kernel holds back what came from the broker, and for `AFTER_HOLD_SECONDS`
        more: what would have been in time waits there, and the disk has no room for more.
        """
        while True:
            if self._has_to_wait():
                await asyncio.sleep(self._poll_seconds)
                continue
            due = await self._due()
            await asyncio.gather(*(self._give(subject, priority) for subject, priority in due))
            if len(due) < BATCH_MAX or len(self._put_off) >= PUT_OFF_MAX:
                await asyncio.sleep(self._poll_seconds)

    def _has_to_wait(self) -> bool:
        now = asyncio.get_running_loop().time()
        if self._kernel.held_back:
            self._waits_until = now + AFTER_HOLD_SECONDS
        return now < self._waits_until

    async def _due(self) -> list[tuple[str, str]]:
        now = asyncio.get_running_loop().time()
        self._put_off = {subject: at for subject, at in self._put_off.items() if at > now}
        most = BATCH_MAX + len(self._put_off)
        try:
            found = await self._database.read(lambda c: self._timer.due(c, self._clock(), most))
        except Exception as error:  # Whatever it is: the next look may succeed, and it is told.
            self._looking.failed(error)
            return []
        self._looking.succeeded()
        if len(found) < most:
            self._giving.forget(*(self._giving.failing - {subject for subject, _ in found}))
        return [(subject, priority) for subject, priority in found if subject not in self._put_off]

    async def _give(self, subject: str, priority: str) -> None:
        try:
            await self._kernel.give(self._timer.command(subject), priority=Priority(priority))
        except Exception as error:
            self._giving.failed(error, subject, {"order": subject})
            if len(self._put_off) < PUT_OFF_MAX:
                self._put_off[subject] = asyncio.get_running_loop().time() + PUT_OFF_SECONDS
        else:
            self._giving.succeeded(subject)
