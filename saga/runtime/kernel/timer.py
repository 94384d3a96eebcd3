"""What is due is done when its time has come, each on its own: one that fails stops no other."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any, Final

from sqlalchemy.engine import Connection

from saga.choreography import State
from saga.due import Due
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.kernel import Kernel
from saga.runtime.kernel.rows import UnreadableRow
from saga.runtime.kernel.step import Firing, StateId
from saga.runtime.kernel.tables import Clock, StateTable, Tables, VersionConflict, utc_now
from saga.runtime.retry_loop import RetryLoop

log = logging.getLogger(__name__)

POLL_SECONDS: Final = 0.5
BATCH_MAX: Final = 500
"""States about which something is due, taken together."""
PUT_OFF_SECONDS: Final = 20.0
"""Until what failed is tried again."""
AFTER_HOLD_SECONDS: Final = 10.0
"""After the kernel has held back what came from the broker, until what is due is looked for again:
among what waited there may be what ends a subject in time."""
LACKING_SECONDS: Final = 300.0
"""Between two looks for rows that lack a time: replicas of an older version may write such rows
while a new one is rolled out."""
PUT_OFF_MAX: Final = 10_000
"""States that are put off; those beyond are tried at each look."""


@dataclass(frozen=True, slots=True)
class DueState:
    """A state whose row says that something is due about it: as it can be read, or why not."""

    id: StateId
    due_at: datetime
    state: State | UnreadableRow


class Timekeeper:
    """Does what is due about one participant's states. Several replicas may do so at once.

    A look reads which rows say that their time has come, and every `LACKING_SECONDS` which ones say
    nothing though they should, and then the states; so a row that cannot be read hides no other.
    What a state says is given to the kernel, which decides in its transaction whether it is still
    due. Belongs to one event loop.
    """

    def __init__(
        self,
        kernel: Kernel,
        database: Database,
        tables: Tables,
        *,
        clock: Clock = utc_now,
        poll_seconds: float = POLL_SECONDS,
    ) -> None:
        self._kernel = kernel
        self._database = database
        self._tables = tables.with_dues
        self._clock = clock
        self._poll_seconds = poll_seconds
        self._looking = RetryLoop("due", "look for what is due")
        # One state that fails is no reason to turn away all others.
        self._firing = RetryLoop("due_subjects", "do what is due", vital=False)
        self._put_off: dict[StateId, float] = {}
        """Keyed by state: when it is looked at again, by the event loop's time."""
        self._waits_until = 0.0
        """Nothing is looked for before, by the event loop's time."""
        self._lacking_at = 0.0
        """When rows that lack a time are looked for, by the event loop's time."""

    @property
    def retry_loops(self) -> tuple[RetryLoop, ...]:
        """What tries again and again here."""
        return self._looking, self._firing

    async def run(self) -> None:
        """Do what is due, until cancelled.

        Nothing while the kernel holds back what came from the broker, and for `AFTER_HOLD_SECONDS`
        more: what would have been in time waits there, and the disk has no room for more.
        """
        while True:
            if self._has_to_wait():
                await asyncio.sleep(self._poll_seconds)
                continue
            found = await self._look()
            await asyncio.gather(*map(self._fire, found))
            if len(found) < BATCH_MAX or len(self._put_off) >= PUT_OFF_MAX:
                await asyncio.sleep(self._poll_seconds)

    def _has_to_wait(self) -> bool:
        now = asyncio.get_running_loop().time()
        if self._kernel.held_back:
            self._waits_until = now + AFTER_HOLD_SECONDS
        return now < self._waits_until

    async def _look(self) -> Sequence[DueState]:
        """The states whose rows say that something is due by now, but for those put off."""
        now = asyncio.get_running_loop().time()
        self._put_off = {id: at for id, at in self._put_off.items() if at > now}
        # Where one process owns the database, none of an older version is beside it.
        lacking = self._database.shared and now >= self._lacking_at
        try:
            found, ids = await self._database.read(partial(self._read, lacking=lacking))
        except Exception as error:  # Whatever it is: the next look may succeed, and it is told.
            self._looking.failed(error)
            return []
        self._looking.succeeded()
        if lacking and len(found) < BATCH_MAX:
            self._lacking_at = now + LACKING_SECONDS
        if len(ids) < self._most:
            self._firing.forget(*(self._firing.failing - ids))
        return found

    @property
    def _most(self) -> int:
        """Rows that one look reads: those put off hide no others."""
        return BATCH_MAX + len(self._put_off)

    def _read(
        self, connection: Connection, *, lacking: bool
    ) -> tuple[list[DueState], set[StateId]]:
        """What is found, those due first in front, and the ids of what is put off as well; with
        `lacking`, states whose rows lack a time, too."""
        now, most = self._clock(), self._most
        rows = due_by(connection, self._tables, now, most)
        if lacking:
            for table in self._tables:
                rows += [(table, key, now) for key in table.without_due(connection, limit=most)]
        waiting = [
            (table, key, at) for table, key, at in rows if (table.kind, key) not in self._put_off
        ]
        return read_states(connection, waiting[:BATCH_MAX]), {(t.kind, key) for t, key, _ in rows}

    async def _fire(self, found: DueState) -> None:
        try:
            if isinstance(found.state, UnreadableRow):
                raise found.state
            firing = Firing.of(found.state)
            if firing is not None and firing.due.at <= self._clock():
                await self._kernel.fire(firing)
            else:
                await self._mend(found)
        except VersionConflict:  # Another replica or another message was faster.
            return
        except Exception as error:
            self._firing.failed(error, found.id, {"subject": found.id[1]})
            if len(self._put_off) < PUT_OFF_MAX:
                self._put_off[found.id] = asyncio.get_running_loop().time() + PUT_OFF_SECONDS
        else:
            self._firing.succeeded(found.id)

    async def _mend(self, found: DueState) -> None:
        """Correct a row that says another time than its state: one of another version wrote it."""
        kind, key = found.id
        (table,) = (table for table in self._tables if table.kind is kind)
        if await self._database.transaction(partial(table.mend_due, key=key)):
            log.info("%s %s: corrected when something is due about it", kind.__name__, key)


Row = tuple[StateTable[Any], str, datetime]
"""A row that says when something is due: its table, its key, and the time."""


def due_by(
    connection: Connection,
    tables: Iterable[StateTable[Any]],
    until: datetime | None,
    limit: int | None,
    key: str | None = None,
) -> list[Row]:
    """The rows that say that something is due until then, or ever, those due first in front. With
    `key`, only those under that one."""
    rows = [
        (table, found, at)
        for table in tables
        for found, at in table.due(connection, until=until, key=key, limit=limit)
    ]
    return sorted(rows, key=lambda row: row[2])[:limit]


def dues_after(
    connection: Connection,
    table: StateTable[Any],
    limit: int,
    *,
    key: str | None = None,
    after: tuple[datetime, str | None] | None = None,
) -> list[tuple[datetime, str, Listed | None]]:
    """So many rows of one table that say that something is due, now or later, those due first in
    front, with their time and key; see `StateTable.due`. With each, what is due about its state:
    None if that says nothing is."""
    rows = table.due(connection, key=key, limit=limit, after=after)
    states = read_states(connection, [(table, found, at) for found, at in rows])
    listed = {state.id[1]: Listed.of(state) for state in states}
    return [(at, found, listed.get(found)) for found, at in rows]


def read_states(connection: Connection, rows: Sequence[Row]) -> list[DueState]:
    """The states of these rows, in their order; without those that are gone."""
    keys: defaultdict[StateTable[Any], list[str]] = defaultdict(list)
    for table, key, _ in rows:
        keys[table].append(key)
    states: dict[StateId, State | UnreadableRow] = {}
    for table, wanted in keys.items():
        found, unreadable = table.load_readable(connection, wanted)
        states |= {(table.kind, key): state for key, state in found.items()}
        states |= {(table.kind, row.key): row for row in unreadable}
    return [
        DueState(id, at, states[id])
        for table, key, at in rows
        if (id := (table.kind, key)) in states
    ]


@dataclass(frozen=True, slots=True)
class Listed:
    """What is due about one state, to be shown; `due` is None if it cannot be read."""

    kind: str
    key: str
    at: datetime
    due: Due[Any] | None
    why: str = ""
    """Why it cannot be read."""

    @classmethod
    def of(cls, found: DueState) -> Listed | None:
        """None if the state says that nothing is due: its service will correct the row."""
        kind, key = found.id
        if isinstance(found.state, UnreadableRow):
            return cls(kind.__name__, key, found.due_at, None, str(found.state))
        if (due := found.state.due()) is None:
            return None
        return cls(kind.__name__, key, due.at, due)

    def late_seconds(self, now: datetime) -> float:
        """How long its time has passed; negative before."""
        return round((now - self.at).total_seconds(), 3)


def dues_in(
    connection: Connection,
    tables: Iterable[StateTable[Any]],
    limit: int,
    key: str | None = None,
) -> list[Listed]:
    """What is due about states, now or later, those due first in front. With `key`, only about
    those under that one."""
    found = read_states(connection, due_by(connection, tables, None, limit, key=key))
    return [listed for one in found if (listed := Listed.of(one)) is not None]
