"""Leases on outbox rows: which replica publishes which rows, and when another takes them over.

Each process that shares a database is a *replica*: it publishes the rows it has written itself. It
holds a lease, renewed again and again, and the rows of one whose lease has run out are taken over
by the others. So a crash delays events by the length of a lease, and a replica that lives but is
slow keeps its rows. Where one process owns the database, it takes everything over at its start.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.runtime.kernel.statements import database_clock, on_postgresql
from saga.runtime.kernel.tables import Clock, Tables

LEASE_SECONDS = 10.0
"""How long after its last sign of life a replica's rows are left alone."""
RENEWALS_PER_LEASE = 4
TAKE_OVER_MAX = 1_000
"""Rows of ended replicas taken over by one statement."""


class Lease:
    """One replica's lease. Each method is called within a transaction."""

    def __init__(
        self, tables: Tables, owner: str, *, shared: bool, seconds: float, clock: Clock
    ) -> None:
        """Describe the lease of the replica `owner`; nothing is taken yet.

        `shared` is whether there may be other replicas; `clock` counts where there are none.
        """
        self.owner = owner
        self.seconds = seconds
        self._outbox = tables.outbox
        self._leases = tables.leases
        self._shared = shared
        self._clock = clock

    @property
    def renewal_seconds(self) -> float:
        """How often it is to be renewed."""
        return self.seconds / RENEWALS_PER_LEASE

    def enter(self, connection: Connection) -> int:
        """Take the lease, and the rows whose owner has none; return how many."""
        self.take(connection)
        rows = 0
        while taken := self.take_over(connection, lapsed=False):
            rows += taken
        return rows

    def take(self, connection: Connection) -> None:
        # Where there are no other replicas, the owner of an earlier lease has ended.
        statements, values = self._statements(connection)
        if self._shared:
            connection.execute(statements.forget_mine, values)
        else:
            connection.execute(statements.forget_all)
        connection.execute(statements.take, values)

    def take_again(self, connection: Connection) -> set[str]:
        """Take a lease that had run out; return the ids of the rows that are still the owner's."""
        self.take(connection)
        statements, values = self._statements(connection)
        return set(connection.scalars(statements.rows_of_mine, values))

    def renew(self, connection: Connection) -> bool:
        """Whether the lease was still the owner's to renew."""
        statements, values = self._statements(connection)
        return connection.execute(statements.renew, values).rowcount == 1

    def members(self, connection: Connection) -> list[str]:
        """The owners of all leases that have not run out, in order."""
        statements, values = self._statements(connection)
        return list(connection.scalars(statements.owners, values))

    def release(self, connection: Connection) -> None:
        """Give the lease up, so that others need not wait for its end."""
        statements, values = self._statements(connection)
        connection.execute(statements.forget_mine, values)

    def take_over(self, connection: Connection, *, lapsed: bool) -> int:
        """Make rows whose owner has no lease this one's, up to `TAKE_OVER_MAX`; return how many.

        With `lapsed`, a lease that has run out is none.
        """
        statements, values = self._statements(connection)
        take = statements.take_from_lapsed if lapsed else statements.take_orphans
        taken = connection.execute(take, values).rowcount
        if lapsed and not taken:
            connection.execute(statements.forget_ended, values)
        return taken

    def _statements(self, connection: Connection) -> tuple[_Statements, dict[str, Any]]:
        """The statements, and the values of their parameters."""
        length = int(self.seconds * 1_000_000)
        values: dict[str, Any] = {"replica": self.owner, "length": length}
        if not on_postgresql(connection):
            values["now"] = int(self._clock().timestamp() * 1_000_000)
        return _statements(self._outbox, self._leases, on_postgresql(connection)), values


@lru_cache(maxsize=64)
def _statements(outbox: sa.Table, leases: sa.Table, postgresql: bool) -> _Statements:
    return _Statements(outbox, leases, database_clock(postgresql=postgresql))


_REPLICA: Final = sa.bindparam("replica", type_=sa.String)
_LENGTH: Final = sa.bindparam("length", type_=sa.BigInteger)


@dataclass
class _Statements:
    """The statements about leases of one participant's outbox. They are built once: that takes
    longer than to execute them. `now` is the database's clock, `length` that of a lease, both in
    microseconds."""

    outbox: sa.Table
    leases: sa.Table
    now: sa.ColumnElement[int]

    @cached_property
    def forget_all(self) -> sa.Delete:
        return self.leases.delete()

    @cached_property
    def forget_mine(self) -> sa.Delete:
        return self.leases.delete().where(self.leases.c.owner == _REPLICA)

    @cached_property
    def rows_of_mine(self) -> sa.Select[Any]:
        return sa.select(self.outbox.c.event_id).where(self.outbox.c.owner == _REPLICA)

    @cached_property
    def owners(self) -> sa.Select[Any]:
        owner = self.leases.c.owner
        return sa.select(owner).where(self.leases.c.until > self.now).order_by(owner)

    @cached_property
    def take(self) -> sa.Executable:
        return self.leases.insert().values(owner=_REPLICA, until=self.now + _LENGTH)

    @cached_property
    def renew(self) -> sa.Executable:
        """Only where the lease is still the owner's."""
        mine = self.leases.c.owner == _REPLICA, self.leases.c.until > self.now
        return self.leases.update().where(*mine).values(until=self.now + _LENGTH)

    @cached_property
    def take_orphans(self) -> sa.Executable:
        """Take rows whose owner has no lease."""
        return self._not_of(sa.select(self.leases.c.owner))

    @cached_property
    def take_from_lapsed(self) -> sa.Executable:
        """Take rows whose owner has no lease, or one that has run out."""
        return self._not_of(sa.select(self.leases.c.owner).where(self.leases.c.until > self.now))

    @cached_property
    def forget_ended(self) -> sa.Executable:
        """Leases that have run out, of owners who have left no rows."""
        owners = sa.select(self.outbox.c.owner)
        return self.leases.delete().where(
            self.leases.c.until <= self.now, self.leases.c.owner.not_in(owners)
        )

    def _not_of(self, owners: sa.Select[Any]) -> sa.Executable:
        orphans = (
            sa.select(self.outbox.c.event_id)
            .where(self.outbox.c.owner.not_in(owners))
            .order_by(self.outbox.c.position)
            .limit(TAKE_OVER_MAX)
            .with_for_update(skip_locked=True)  # what another replica is taking over is its own
        )
        return (
            self.outbox.update().where(self.outbox.c.event_id.in_(orphans)).values(owner=_REPLICA)
        )
