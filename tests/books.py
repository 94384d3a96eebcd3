"""What the services would have in their databases after what was played in memory."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from payment_service.gateway import Account, SandboxGateway
from saga.archive import store
from saga.deployment import Deployment
from saga.history.sources import Sources
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.opening import open_database, read_database
from saga.runtime.kernel.rows import writing
from tests.order_play import BROKE, Play
from tests.stores import HISTORY, PROJECTION, TABLES

Rows = dict[str, set[tuple[Any, ...]]]
"""Keyed by table: its rows."""


@dataclass
class Books:
    """Databases in a folder: the participants', the provider's, and the history's."""

    folder: Path
    play: Play

    def url(self, name: str) -> str:
        return f"sqlite:///{self.folder / name}.db"

    @property
    def sources(self) -> Sources:
        """As a system leaves them that does not run."""
        urls = {name: self.url(name) for name in (*TABLES, "history")}
        return Sources(urls["history"], urls, {"provider": self.url("provider")}, None)

    def deployment(self, amqp_url: str) -> Deployment:
        """As of a system that runs, without services."""
        return Deployment(
            amqp_url=amqp_url,
            http_urls={},
            database_urls=self.sources.database_urls,
            outside_urls={"provider": self.url("provider")},
            dead_letters_url=self.url("dead_letters"),
            callers_known=False,
        )

    async def write(self) -> None:
        """Put what was played where the services would have put it."""
        for name in TABLES:
            await self.write_live(name, self.url(name))
        await self.write_provider()
        await self.record()

    async def write_live(self, name: str, url: str) -> None:
        tables = TABLES[name]

        def fill(connection: Connection) -> None:
            with writing(connection) as writes:
                for kind, table in tables.states.items():
                    states = [s for id, s in self.play.states[name].items() if id[0] is kind]
                    table.save(writes, [(state, 0) for state in states])
                tables.mark_done(writes, dict.fromkeys(self.play.inboxes[name]), self.play.at)

        database = await open_database(url, tables)
        await database.transaction(fill)
        await database.close()

    async def write_provider(self) -> None:
        """Ask the provider what was asked in the play."""
        gateway = SandboxGateway(self.url("provider"))
        gateway.set_accounts([Account(BROKE, card_blocked=True)])
        for charge in self.play.charges:
            await gateway.charge(
                str(charge.order_id),
                customer=charge.customer,
                currency=charge.currency,
                amount_cents=charge.amount_cents,
            )
        for refund in self.play.refunds:
            await gateway.refund(
                str(refund.order_id), currency=refund.currency, amount_cents=refund.amount_cents
            )
        await gateway.close()

    async def record(self, *, without: tuple[str, ...] = ()) -> None:
        """Keep the events that were played in the history, but for these."""
        facts = [
            store.Fact(event, event.to_bytes())
            for event in self.play.events
            if event.id not in without
        ]
        database = await open_database(self.url("history"), HISTORY)
        await database.transaction(lambda c: store.append(c, facts, self.play.at, PROJECTION))
        await database.close()


async def rows_of(name: str, url: str) -> Rows:
    """Every row of a participant's tables of states, without the versions that tell replicas of
    each other's writing; and the ids in its inbox."""

    def read(connection: Connection) -> Rows:
        found: Rows = {}
        for state in TABLES[name].states.values():
            columns = [c for c in state.table.columns if c.name != "version"]
            found[state.table.name] = {
                tuple(row) for row in connection.execute(sa.select(*columns))
            }
        inbox = TABLES[name].inbox.c.message_id
        # A rebuilt one does not know the sources of commands.
        found["inbox"] = {(key.partition("\t")[0],) for key in connection.scalars(sa.select(inbox))}
        return found

    return await asyncio.to_thread(read_database, url, read)


_DEMAND: Final = (
    """
    CREATE FUNCTION demand_turn() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NOT EXISTS (
            SELECT 1 FROM pg_locks
            WHERE locktype = 'advisory' AND granted AND pid = pg_backend_pid()
        ) THEN
            RAISE EXCEPTION '% is written by a process whose turn it is not', TG_TABLE_NAME;
        END IF;
        RETURN NULL;
    END $$
    """,
    *(
        f"CREATE TRIGGER turns_demanded BEFORE INSERT OR UPDATE OR DELETE ON {table.name} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION demand_turn()"
        for table in HISTORY.metadata.sorted_tables
    ),
)


async def demand_turns(history: Database) -> None:
    """On PostgreSQL, refuse whatever is written into the history without `store.take_turn`.

    Triggers run in the order of their names; this one after those that refuse any change.
    """

    def make(connection: Connection) -> None:
        for statement in _DEMAND:
            connection.exec_driver_sql(statement)

    if history.shared:
        await history.transaction(make)
