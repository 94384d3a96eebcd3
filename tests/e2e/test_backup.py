"""A backup of a system at work, and the loss of everything but what is the outside's."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Final, Self

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from notification_service.domain import NotificationStatus
from notification_service.store import notifications
from order_saga.demo import demo
from order_saga.orders import Shares
from order_saga.publish import next_plan
from order_service.domain import OrderStatus
from order_service.store import orders
from payment_service.gateway import SandboxGateway
from saga.archive.store import events
from saga.backup import BackupError
from saga.backup.check import check
from saga.backup.restore import Target, restore
from saga.backup.take import Whole, take
from saga.discovery import choreography
from saga.envelope import MessageKey, source_of
from saga.local.folder import CLUSTER_FOLDER
from saga.local.postgres import PostgresCluster
from saga.local.system import Database, System
from saga.notes import owed
from saga.reconcile import reconcile
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.tables import Tables, inbox_key
from saga.runtime.urls import sqlite_url
from tests.e2e.test_saga import as_predicted
from tests.forked import spawn
from tests.polling import until
from tests.stores import TABLES

SEED: Final = 61126
ORDERS: Final = 160
BACKUPS: Final = 3
SHARES: Final = Shares(cancelled=0, malformed=0)
"""What others send to the broker themselves, no participant has published; and a customer who has
cancelled between a backup and the loss may come too late afterwards."""
RATE: Final = 20.0
"""Orders a second; they take long enough for the backups."""


@dataclass(frozen=True)
class Said:
    """An event that some service has published: whose, about what, and which number it is."""

    publisher: str
    subject: str
    sequence: int


def said(connection: Connection) -> dict[str, Said]:
    """Keyed as inboxes are: every event that a history has."""
    publishers = {source_of(name): name for name in TABLES}
    query = sa.select(events.c.event_id, events.c.source, events.c.subject, events.c.sequence)
    return {
        inbox_key(MessageKey(row.source, row.event_id)): Said(
            publishers[row.source], row.subject, row.sequence
        )
        for row in connection.execute(query)
    }


@dataclass
class Copy:
    """What one backup says."""

    inboxes: dict[str, set[str]]
    counts: dict[str, dict[str, int]]
    """Keyed by service and subject: how many events it has committed."""
    history: set[str]

    def without_cause(self, everything: Mapping[str, Said]) -> list[Any]:
        """What was taken in, and never committed by its publisher."""
        taken = [(name, key) for name, keys in self.inboxes.items() for key in keys]
        taken += [("history", key) for key in self.history]
        return [
            (name, event)
            for name, key in taken
            if (event := everything.get(key)) is not None
            and event.sequence > self.counts[event.publisher].get(event.subject, 0)
        ]


def inbox_of(tables: Tables, connection: Connection) -> set[str]:
    return {*connection.scalars(sa.select(tables.inbox.c.message_id))}


def counts_of(tables: Tables, connection: Connection) -> dict[str, int]:
    found: dict[str, int] = {}
    for state in tables.states.values():
        (key,) = state.table.primary_key.columns
        for subject, sequence in connection.execute(sa.select(key, state.table.c.sequence)):
            found[subject] = max(sequence, found.get(subject, 0))
    return found


async def read_copy(backup: Path, database: Database, folder: Path) -> Copy:
    """Read a backup, by restoring it."""
    await restore(backup, Target(folder))
    async with _urls(folder, database) as urls:
        return await asyncio.to_thread(_read, urls)


def _read(urls: Mapping[str, str]) -> Copy:
    return Copy(
        {name: read_database(urls[name], partial(inbox_of, TABLES[name])) for name in TABLES},
        {name: read_database(urls[name], partial(counts_of, TABLES[name])) for name in TABLES},
        {*read_database(urls["history"], said)},
    )


@asynccontextmanager
async def _urls(folder: Path, database: Database) -> AsyncIterator[Mapping[str, str]]:
    names = (*TABLES, "history")
    if database == "sqlite":
        yield {name: f"sqlite:///{folder / name}.db" for name in names}
        return
    cluster = PostgresCluster(folder / CLUSTER_FOLDER)
    await asyncio.to_thread(cluster.start)
    try:
        yield {name: cluster.url(name) for name in names}
    finally:
        await asyncio.to_thread(cluster.kill)
        await asyncio.to_thread(cluster.stop)


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
async def test_every_backup_of_a_system_under_load_is_a_consistent_cut(
    database: Database, tmp_path: Path
) -> None:
    backups = [tmp_path / f"backup{n}" for n in range(BACKUPS)]
    ended = 0

    def count(orders: int) -> None:
        nonlocal ended
        ended += orders

    async with System(tmp_path / "data", database=database, disposable=True, spawn=spawn) as system:
        load = await next_plan(system.deployment, ORDERS, SEED, SHARES)
        running = asyncio.create_task(
            demo(system.deployment, choreography(), load, seed=SEED, rate=RATE, ended=count)
        )
        for number, backup in enumerate(backups):
            least = ORDERS * (number + 1) // (2 * BACKUPS)
            await until(partial(lambda least: ended >= least or running.done(), least))
            await take(Whole.of(system.folder), backup)
        as_predicted(await running)
        url = system.deployment.database_urls["history"]
        everything = await asyncio.to_thread(read_database, url, said)

    copies = []
    for number, backup in enumerate(backups):
        await check(backup)
        copy = await read_copy(backup, database, tmp_path / f"copy{number}")
        assert copy.without_cause(everything) == []
        assert set().union(*copy.inboxes.values()) & everything.keys(), "nothing was taken in"
        copies.append(copy)
    assert len(copies[0].history) < len(everything), "the load was over before the first backup"


@pytest.mark.asyncio(loop_scope="session")
async def test_nothing_is_restored_where_a_system_runs(system: System, tmp_path: Path) -> None:
    await take(Whole.of(system.folder), tmp_path / "backup")
    with pytest.raises(BackupError, match=r"a system runs in .*: stop it first"):
        await restore(tmp_path / "backup", Target(system.folder))


# --- a machine is gone ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Outside:
    """What the provider and the customers have: it cannot be taken back."""

    charges: dict[str, str]
    """Keyed by order: the provider's reference of a charge; empty where it was declined."""
    mails: dict[str, int]
    """Keyed by mail: when it was written."""

    @classmethod
    def of(cls, folder: Path) -> Self:
        gateway = SandboxGateway(sqlite_url(folder / "provider.db"))
        try:
            charges = {charge.key: charge.reference for charge in gateway.ledger()}
        finally:
            asyncio.run(gateway.close())
        mails = {mail.name: mail.stat().st_mtime_ns for mail in (folder / "mail").glob("*.eml")}
        return cls(charges, mails)


def lose(folder: Path) -> None:
    """Lose all that is ours: databases and the broker."""
    for path in [*folder.iterdir()]:
        if path.name in ("mail", "logs") or path.name.startswith("provider.db"):
            continue
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()


@pytest.mark.parametrize("database", ["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
async def test_a_machine_that_is_gone_is_restored_and_nothing_is_charged_or_mailed_twice(
    database: Database, tmp_path: Path
) -> None:
    folder, backup = tmp_path / "data", tmp_path / "backup"
    ended = 0

    def count(orders: int) -> None:
        nonlocal ended
        ended += orders

    async with System(folder, database=database, spawn=spawn) as system:
        load = await next_plan(system.deployment, ORDERS, SEED, SHARES)
        running = asyncio.create_task(
            demo(system.deployment, choreography(), load, seed=SEED, rate=RATE, ended=count)
        )
        await until(lambda: ended >= ORDERS // 4 or running.done())
        await take(Whole.of(folder), backup)
        as_predicted(await running)
    before = await asyncio.to_thread(Outside.of, folder)
    lose(folder)

    restored = await restore(backup, Target(folder))

    assert restored.ledger_known
    assert restored.in_doubt["mail server"]
    async with System(folder, database=database, disposable=True, spawn=spawn) as system:
        assert not owed(folder), "what is owed was put back"
        urls = system.deployment.database_urls
        await until(lambda: asyncio.to_thread(read_database, urls["order"], all_have_ended))
        known = await asyncio.to_thread(read_database, urls["order"], known_orders)
        report = await reconcile(system.deployment, grace_seconds=0.0)
        found = {(violation.rule, violation.subject) for violation in report.violations}
        forgotten = before.charges.keys() - known
        taken = {order for order in forgotten if before.charges[order]}
        assert found == {("charge_unexplained", order) for order in taken} | {
            ("order_missing", order) for order in forgotten
        }
        assert taken, "the load was over before the backup"
        # Their clients send all orders again, under the same ids.
        again = await demo(system.deployment, choreography(), load, seed=SEED)

        async def all_are_told() -> bool:
            """Each order has a mail, or one that an operator has to decide on."""
            unsure = await asyncio.to_thread(read_database, urls["notification"], undecided)
            mails = [mail.stem for mail in (folder / "mail").glob("*.eml")]
            return {*unsure, *(mail.rpartition(".")[2] for mail in mails)} == {
                str(order.order_id) for order in load.orders
            }

        await until(all_are_told)
        after = await asyncio.to_thread(Outside.of, folder)
    assert again.report.violations == ()
    assert len(again.ends) == ORDERS
    assert after.charges.items() >= before.charges.items()
    assert after.mails.items() >= before.mails.items(), "a mail was sent again"


def all_have_ended(connection: Connection) -> bool:
    query = sa.select(orders.c.order_id).where(orders.c.status == OrderStatus.PENDING).limit(1)
    return connection.execute(query).first() is None


def known_orders(connection: Connection) -> set[str]:
    return {*connection.scalars(sa.select(orders.c.order_id))}


def undecided(connection: Connection) -> set[str]:
    """The orders about which an operator has to decide on a mail."""
    column = notifications.c
    query = sa.select(column.order_id).where(column.status == NotificationStatus.UNKNOWN)
    return {*connection.scalars(query)}
