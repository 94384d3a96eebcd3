"""The key store of a run: the real one, over a database in memory that answers as a server does.

Who asks it is in a thread, so it may be killed, or others may ask, between a key that is looked for
and the same key that is made.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import Any, Final, TypeVar, cast

import sqlalchemy as sa
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from sqlalchemy.engine import Connection
from sqlalchemy.util import await_only

from saga.personal.keystore import (
    METADATA,
    Column,
    KeyStoreAway,
    NewPerson,
    PersonKey,
    WouldWait,
    add_to,
    find_in,
    persons_table,
    since_in,
)
from saga.personal.master import MASTER_MIN_BYTES, MasterKeys
from saga.personal.seal import open_under, person_id_in
from saga.simulation.faults import fault
from saga.simulation.loop import SimulatedLoop
from saga.simulation.statements import QuickConnection
from saga.simulation.trace import SimulationTrace
from saga.simulation.weather import FaultSchedule

OUTAGE_SECONDS: Final = 60.0
"""How long it may be away."""
SLOW_SECONDS: Final = 8.0
"""What a slow answer may take."""

_DESTROYED: Final = f"SELECT person_id FROM {persons_table.name} WHERE wrapped IS NULL"  # noqa: S608 - ours
_MASTER: Final = base64.b64encode(bytes(MASTER_MIN_BYTES)).decode()

T = TypeVar("T")


class SimulatedKeys:
    """What the key store has committed; outlives all processes. Made once, and emptied for each
    run. It remembers every key that there ever was, as no store does."""

    def __init__(self) -> None:
        self.master = MasterKeys.of(_MASTER, "a simulated file")
        self._engine = sa.create_engine("sqlite://", isolation_level="AUTOCOMMIT")
        self._connection = self._engine.connect()
        self.raw: Any = self._connection.connection.driver_connection
        self._quick = cast("Connection", QuickConnection(self._connection))
        METADATA.create_all(self._connection)
        self._ciphers: dict[str, AESSIV] = {}
        """Keyed by person id: those that were ever committed."""
        self.away_until = 0.0
        self._destroyed: set[str] = set()
        self.on_destroyed: Callable[[str], None] = lambda _: None
        """Called with the id of each person whose key is destroyed, when that is committed."""

    def empty(self) -> None:
        """Forget everything."""
        self.away_until = 0.0
        self._destroyed.clear()
        self._ciphers.clear()
        for table in METADATA.sorted_tables:
            self.raw.execute(f"DELETE FROM {table.name}")  # noqa: S608 - names of our own tables

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run what only reads, at once."""
        return work(self._quick)

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run a transaction, at once."""
        self.raw.execute("BEGIN")
        try:
            result = work(self._quick)
        except BaseException:
            self.raw.execute("ROLLBACK")
            raise
        self.raw.execute("COMMIT")
        for (person_id,) in self.raw.execute(_DESTROYED).fetchall():
            if person_id not in self._destroyed:
                self._destroyed.add(person_id)
                self.on_destroyed(person_id)
        return result

    def add(self, rows: Sequence[NewPerson]) -> list[PersonKey] | None:
        """See `saga.personal.keystore.KeyDatabase.add`."""
        known = add_to(self.raw, rows)
        added = {row.person_id for row in (rows if known is None else known)}
        for row in rows:
            if row.person_id in added:
                key = self.master.unwrap(row.wrapped, row.wrapped_by, row.person_id)
                self._ciphers[row.person_id] = AESSIV(key)
        return known

    # --- what no process knows --------------------------------------------------------------------

    def knows(self, person_id: str) -> bool:
        """Whether there is, or was, a person of that id."""
        return person_id in self._ciphers

    def meaning(self, text: str) -> str:
        """What a sealed text says, even that of a forgotten one. Raises `Unsealable`."""
        return open_under(self._ciphers[person_id_in(text)], text)

    def found_by_name(self) -> Iterator[str]:
        """The ids of all under whose keys something may be sealed."""
        query = sa.select(persons_table.c.person_id).where(persons_table.c.digest.is_not(None))
        yield from self.read(lambda connection: connection.scalars(query).all())

    def close(self) -> None:
        self._connection.close()
        self._engine.dispose()


class RemoteKeys:
    """A process's way to the key store's database; see `saga.personal.keystore.KeyDatabase`. To be
    asked in a thread of `SimulatedLoop`."""

    def __init__(
        self,
        keys: SimulatedKeys,
        name: str,
        loop: SimulatedLoop,
        weather: FaultSchedule,
        trace: SimulationTrace,
        on_crash: Callable[[], None],
    ) -> None:
        """`on_crash` kills the process that asks."""
        self._keys = keys
        self._name = name
        self._loop = loop
        self._weather = weather
        self._trace = trace
        self._on_crash = on_crash

    def write(self, work: Callable[[Connection], T]) -> T:
        return self._ask(lambda: self._keys.write(work), writes=True)

    def read(self, work: Callable[[Connection], T]) -> T:
        return self._ask(lambda: self._keys.read(work))

    def find(self, column: Column, values: Sequence[Any]) -> list[PersonKey]:
        return self._ask(partial(find_in, self._keys.raw, column, values))

    def since(self, person_id: str) -> list[PersonKey]:
        return self._ask(partial(since_in, self._keys.raw, person_id))

    def add(self, rows: Sequence[NewPerson]) -> list[PersonKey] | None:
        known = self._ask(partial(self._keys.add, rows), writes=True)
        self._trace.note("keys", f"makes {len(rows)} for {self._name}")
        if self._weather.hits("crash_at_key"):
            self._on_crash()
        return known

    def at_once(self) -> AbstractContextManager[None]:
        raise WouldWait

    def wipe(self) -> None:
        """Nothing to do: no byte of it is in a file."""

    def close(self) -> None:
        """Nothing to close: the store goes on."""

    def _ask(self, question: Callable[[], T], *, writes: bool = False) -> T:
        return await_only(self._answer(question, writes=writes))

    async def _answer(self, question: Callable[[], T], *, writes: bool) -> T:
        await self._frame()
        if self._is_away():
            raise _away("does not answer")
        result = question()
        await self._frame()
        if writes and self._weather.hits("key_store_unknown"):
            self._trace.note("keys", f"commits, and {self._name} does not know")
            raise _away("committed or not")
        return result

    async def _frame(self) -> None:
        """What a question or an answer takes on its way."""
        if self._weather.hits("key_store_slow"):
            await _pause(self._loop, self._weather.seconds(SLOW_SECONDS))
        else:
            await _pause(self._loop, self._weather.latency())

    def _is_away(self) -> bool:
        if self._weather.hits("key_store_outage"):
            self._keys.away_until = self._loop.time() + self._weather.seconds(OUTAGE_SECONDS)
            self._trace.note("keys", "are away")
        gone = not self._weather.calm and self._loop.time() < self._keys.away_until
        return gone or self._weather.hits("key_store_away")


async def _pause(loop: SimulatedLoop, seconds: float) -> None:
    """Let others go on, for so long at least."""
    turn = loop.create_future()
    loop.call_later(seconds, turn.set_result, None)
    await turn


def _away(text: str) -> KeyStoreAway:
    return fault(KeyStoreAway(f"simulated: {text}"))
