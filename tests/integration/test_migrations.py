"""Tables are made by migration scripts, which lead to what the services' stores describe."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

import inventory_service.store
import notification_service.domain
import notification_service.store
import order_service.store
import saga.archive.store
from common.events import NotificationSent
from inventory_service.domain import AddStock
from notification_service.domain import PARTICIPANT, Notification, NotificationStatus
from notification_service.store import NOTIFICATIONS
from saga import State
from saga.archive.subjects import subjects
from saga.discovery import schema_in, services, tables_in
from saga.envelope import MessageKey
from saga.history.rebuild import rebuild_views
from saga.runtime.kernel import timer
from saga.runtime.kernel.database import DatabaseError, MigrationError
from saga.runtime.kernel.migrations import differences, write_script
from saga.runtime.kernel.opening import open_database, read_database
from saga.runtime.kernel.rows import writing
from saga.runtime.kernel.tables import Schema, Tables, VersionConflict, utc_now
from saga.runtime.kernel.timer import Timekeeper
from saga.runtime.messaging.trust import EDITOR_SOURCE
from saga.runtime.tasks import cancel_all
from saga.testing import NOW, given
from tests.integration.kernels import replica
from tests.order_play import Play, confirmed, declined, out_of_stock
from tests.polling import until
from tests.stores import GRAPH, HISTORY, PROJECTION

FIRST = """
import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table("inbox", sa.Column("message_id", sa.String(255), primary_key=True),
                    sa.Column("at", sa.BigInteger, nullable=False),
                    sa.Column("digest", sa.LargeBinary))
    op.create_index("inbox_by_age", "inbox", ["at"])
    op.create_table("outbox", sa.Column("event_id", sa.String(64), primary_key=True),
                    sa.Column("owner", sa.String(32), nullable=False),
                    sa.Column("position", sa.BigInteger, nullable=False),
                    sa.Column("routing_key", sa.String(255), nullable=False),
                    sa.Column("body", sa.LargeBinary, nullable=False))
    op.create_index("outbox_by_owner", "outbox", ["owner", "position"])
    op.create_table("outbox_leases", sa.Column("owner", sa.String(32), primary_key=True),
                    sa.Column("until", sa.BigInteger, nullable=False))
    op.create_table("outbox_kept", sa.Column("key", sa.String(64), primary_key=True),
                    sa.Column("bodies", sa.LargeBinary, nullable=False))
    op.execute("INSERT INTO inbox VALUES ('m', 1, NULL)")
"""
SECOND = """
import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("inbox", sa.Column("note", sa.String(9), nullable=False, server_default="old"))
"""
BROKEN = SECOND + '    op.execute("SELECT nonsense")'


def described(connection: Connection) -> dict[str, Any]:
    """All that a database says of its tables, but for the migrations' own."""
    inspector = sa.inspect(connection)
    return {
        name: (
            [
                (column["name"], str(column["type"]), column["nullable"])
                for column in inspector.get_columns(name)
            ],
            inspector.get_pk_constraint(name)["constrained_columns"],
            sorted(str(check["sqltext"]) for check in inspector.get_check_constraints(name)),
            sorted(
                (
                    str(index["name"]),
                    tuple(index["column_names"]),
                    bool(index["unique"]),
                    sorted(f"{k}={v}" for k, v in index.get("dialect_options", {}).items()),
                )
                for index in inspector.get_indexes(name)
            ),
        )
        for name in inspector.get_table_names()
        if name != "alembic_version"
    }


@pytest.mark.parametrize("package", services())
async def test_the_scripts_lead_to_what_the_store_describes(
    package: str, database_url: str
) -> None:
    tables = schema_in(package)

    def rebuilt(connection: Connection) -> dict[str, Any]:
        tables.metadata.drop_all(connection)
        tables.metadata.create_all(connection)
        return described(connection)

    database = await open_database(database_url, tables)
    try:
        assert await database.read(lambda c: differences(c, tables)) == []
        # Alembic overlooks some things, check constraints for instance.
        by_scripts = await database.read(described)
        assert by_scripts == await database.transaction(rebuilt)
    finally:
        await database.close()
    assert write_script(tables, "nothing") is None


def older(tables: Schema, head: str, folder: Path) -> Schema:
    """The same tables as they were after that script."""
    assert tables.migrations is not None
    there = folder / "migrations"
    there.mkdir()
    for script in tables.migrations.glob("v*.py"):
        if script.name[1:5] <= head:
            shutil.copy(script, there)
    return Schema(sa.MetaData(), migrations=there)


OLD_HEADS = {"order": "0002", "inventory": "0002", "payment": "0002", "notification": "0001"}
"""The last script by participant of before the inbox had digests."""


@pytest.mark.parametrize("name", OLD_HEADS)
async def test_what_an_older_version_has_done_counts_after_the_upgrade(
    name: str, database_url: str, tmp_path: Path
) -> None:
    """And what a replica of the older version writes meanwhile, by its own statement."""
    new = schema_in(f"{name}_service")
    assert isinstance(new, Tables)
    assert new.migrations is not None
    old = older(new, OLD_HEADS[name], tmp_path)
    event = MessageKey("/services/order", "4d8911d5-c885-5189-ad07-9e2e87fea8ee")
    command = MessageKey("https://shop.example", "a customer's key")
    meanwhile = MessageKey("/services/inventory", "0f6a1e0c-6a57-5c0a-9d0e-3f3a5a9d8b11")
    unknown = MessageKey("/services/order", "new")

    async def as_older(schema: Schema, *messages: MessageKey) -> None:
        insert = (
            "INSERT INTO inbox (message_id, at) VALUES ('{}', 1) "
            "ON CONFLICT (message_id) DO NOTHING"
        )

        def write(connection: Connection) -> None:
            for message in messages:
                text = insert.format(message.id.replace("'", "''"))
                connection.exec_driver_sql(text)

        database = await open_database(database_url, schema)
        await database.transaction(write)
        await database.close()

    await as_older(old, event, command)
    await as_older(new, meanwhile)
    database = await open_database(database_url, new)
    try:
        everything = {event, command, meanwhile, unknown}
        done = await database.transaction(lambda c: new.already_done(c, everything))
        assert done == {event: None, command: None, meanwhile: None}
        for message in (event, command, meanwhile):
            with pytest.raises(VersionConflict):
                await database.transaction(partial(mark_done, new, message))
        await database.transaction(partial(mark_done, new, unknown))
        done = await database.transaction(lambda c: new.already_done(c, everything))
        assert done[unknown] == b"digest"
    finally:
        await database.close()


ROWS = {
    "order": (
        "0004",
        "INSERT INTO orders (order_id, version, sequence, status, customer, currency, lines, "
        "total_cents, priority, deadline) VALUES ('{key}', 1, 1, '{status}', 'c', 'EUR', '[]', 1, "
        "'normal', 1000000)",
        ("pending", "confirmed"),
        timedelta(seconds=1),
    ),
    "notification": (
        "0005",
        "INSERT INTO notifications (order_id, version, sequence, status, letter, detail, resent_at)"
        " VALUES ('{key}', 1, 1, '{status}', 'null', '', 1000000)",
        ("resending", "sent"),
        timedelta(minutes=15, seconds=1),
    ),
}
"""Keyed by participant: the last script of before the due column, a row that a replica of then
writes, its statuses in which something is due and in which nothing is, and when."""


@pytest.mark.parametrize("name", ROWS)
async def test_what_was_due_before_the_upgrade_is_due_after_it(
    name: str, database_url: str, tmp_path: Path
) -> None:
    head, insert, statuses, since_1970 = ROWS[name]
    new = schema_in(f"{name}_service")
    assert isinstance(new, Tables)

    async def write(schema: Schema, *keys: UUID) -> None:
        database = await open_database(database_url, schema)
        rows = [insert.format(key=k, status=s) for k, s in zip(keys, statuses, strict=False)]
        await database.transaction(lambda c: [c.exec_driver_sql(row) for row in rows])
        await database.close()

    await write(older(new, head, tmp_path), UUID(int=1), UUID(int=2))
    await write(new, UUID(int=3))
    database = await open_database(database_url, new)
    (table,) = new.with_dues
    try:
        at = datetime(1970, 1, 1, tzinfo=UTC) + since_1970
        dues = dict(await database.read(table.due))
        assert dues.pop(str(UUID(int=1))) == at
        if database.shared:  # Otherwise no replica of the older version is beside a new one.
            assert await database.transaction(partial(table.mend_due, key=str(UUID(int=3))))
            assert dict(await database.read(table.due)).pop(str(UUID(int=3))) == at
        assert str(UUID(int=2)) not in dues
    finally:
        await database.close()


async def test_what_an_older_replica_makes_due_while_a_new_one_runs_is_done(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timer, "LACKING_SECONDS", 0.05)
    _, insert, (resending, sent), _ = ROWS["notification"]
    new = notification_service.store.TABLES
    key = UUID(int=1)
    async with replica(postgres_url, notification_service.domain.PARTICIPANT, new) as service:

        async def as_older(statement: str) -> None:
            await service.database.transaction(lambda c: c.exec_driver_sql(statement))

        async def is_corrected() -> bool:
            return not await service.database.read(NOTIFICATIONS.due)

        async def is_given_up() -> bool:
            found = await service.find(Notification, key)
            return found is not None and found.status is NotificationStatus.UNKNOWN

        keeper = Timekeeper(service.kernel, service.database, new, poll_seconds=0.01)
        keeping = asyncio.create_task(keeper.run())
        await as_older(insert.format(key=key, status=sent))
        await until(is_corrected)
        await as_older(f"UPDATE notifications SET status = '{resending}'")  # noqa: S608 - ours

        await until(is_given_up)
        await cancel_all(keeping)


async def test_rows_that_lack_a_time_are_just_those_about_which_something_is_due(
    database_url: str,
) -> None:
    states = [
        Notification(str(UUID(int=number)), status=status, resent_at=resent_at)
        for number, (status, resent_at) in enumerate(product(NotificationStatus, (None, NOW)))
    ]

    def older(connection: Connection) -> None:
        with writing(connection) as writes:
            NOTIFICATIONS.save(writes, [(state, 0) for state in states])
        connection.execute(sa.update(NOTIFICATIONS.table).values(due_at=None))

    database = await open_database(database_url, notification_service.store.TABLES)
    try:
        await database.transaction(older)
        found = await database.read(NOTIFICATIONS.without_due)
    finally:
        await database.close()

    assert found == [state.key for state in states if state.due() is not None] != []


def mark_done(tables: Tables, message: MessageKey, connection: Connection) -> None:
    with writing(connection) as writes:
        tables.mark_done(writes, {message: b"digest"}, utc_now())


@pytest.fixture
def tables(tmp_path: Path) -> Tables:
    """Tables that are made by the scripts `tell` writes."""
    folder = tmp_path / "migrations"
    folder.mkdir()
    tables = Tables(sa.MetaData(), migrations=folder)
    tell(tables, v0001_first=FIRST)
    return tables


def tell(tables: Tables, **scripts: str) -> None:
    assert tables.migrations is not None
    for name, text in scripts.items():
        (tables.migrations / f"{name}.py").write_text(text)


async def inbox(url: str, tables: Tables) -> list[tuple[Any, ...]]:
    """The inbox of a database that is opened, and so migrated, for it."""
    database = await open_database(url, tables)
    try:
        return await database.read(
            lambda c: [tuple(row) for row in c.exec_driver_sql("SELECT * FROM inbox")]
        )
    finally:
        await database.close()


async def test_a_newer_version_changes_the_tables_and_keeps_what_is_in_them(
    database_url: str, tables: Tables
) -> None:
    assert await inbox(database_url, tables) == [("m", 1, None)]
    tell(tables, v0002_second=SECOND)
    assert await inbox(database_url, tables) == [("m", 1, None, "old")]
    assert await inbox(database_url, tables) == [("m", 1, None, "old")]


async def test_replicas_that_start_together_migrate_once(postgres_url: str, tables: Tables) -> None:
    tell(tables, v0002_second=SECOND)

    found = await asyncio.gather(*(inbox(postgres_url, tables) for _ in range(5)))

    assert found == [[("m", 1, None, "old")]] * 5


async def test_a_migration_that_fails_leaves_everything_as_it_was(
    database_url: str, tables: Tables
) -> None:
    await inbox(database_url, tables)
    tell(tables, v0002_second=BROKEN)
    with pytest.raises(DatabaseError, match="nonsense"):
        await inbox(database_url, tables)
    tell(tables, v0002_second=SECOND)

    assert await inbox(database_url, tables) == [("m", 1, None, "old")]


async def test_tables_of_a_newer_version_are_refused(database_url: str, tables: Tables) -> None:
    tell(tables, v0002_second=SECOND)
    await inbox(database_url, tables)
    assert tables.migrations is not None
    (tables.migrations / "v0002_second.py").unlink()

    with pytest.raises(DatabaseError, match=r"tables are of a newer version \(0002\)"):
        await inbox(database_url, tables)


@pytest.mark.parametrize(
    "query", ["SELECT * FROM in_question", "SELECT priority FROM inbox"], ids=["table", "column"]
)
async def test_what_reads_tables_of_an_older_version_is_told_that_they_are(
    query: str, database_url: str, tables: Tables
) -> None:
    await (await open_database(database_url, tables)).close()

    with pytest.raises(
        DatabaseError,
        match=r"(in_question|priority).*: its tables are missing or of an older version: restart",
    ):
        await asyncio.to_thread(
            read_database, database_url, lambda connection: connection.execute(sa.text(query)).all()
        )


async def test_another_services_database_is_refused_before_it_is_changed(database_url: str) -> None:
    await (await open_database(database_url, order_service.store.TABLES)).close()

    with pytest.raises(DatabaseError, match=r"another service's database, with the tables orders"):
        await open_database(database_url, inventory_service.store.TABLES)

    database = await open_database(database_url, order_service.store.TABLES)
    there = await database.read(lambda connection: sa.inspect(connection).get_table_names())
    await database.close()
    assert not {*there} & {"stock", "reservations", "deliveries"}


async def test_tables_without_a_history_are_refused(database_url: str, tables: Tables) -> None:
    unmanaged = Tables(sa.MetaData())
    await (await open_database(database_url, unmanaged)).close()

    with pytest.raises(DatabaseError, match="before the first release"):
        await inbox(database_url, tables)


def test_the_next_script_is_written_from_the_difference(tables: Tables) -> None:
    sa.Table("more", tables.metadata, sa.Column("id", sa.Integer, primary_key=True))

    path = write_script(tables, "There is more")

    assert path is not None
    assert path.name == "v0002_there_is_more.py"
    assert "down_revision = '0001'" in path.read_text()
    assert write_script(tables, "nothing") is None


class Size(StrEnum):
    SMALL = "small"
    LARGE = "it's large"


@dataclass(frozen=True, slots=True)
class Parcel(State):
    note: str = ""


@dataclass(frozen=True, slots=True)
class MeasuredParcel(State):
    note: str = ""
    size: Size = Size.LARGE
    tries: int = 3
    sealed: bool = True
    stops: tuple[str, ...] = ("a", "b")
    seen_at: datetime = NOW
    left_at: datetime | None = None


def parcels(kind: type[State], folder: Path) -> Tables:
    """The tables of a participant whose `store.py` lies in this folder."""
    (folder / "migrations").mkdir(exist_ok=True)
    return Tables.of(str(folder / "store.py"), parcels=kind)


async def test_rows_of_before_have_what_a_new_field_begins_with(
    database_url: str, tmp_path: Path
) -> None:
    before = parcels(Parcel, tmp_path)
    assert write_script(before, "First tables")

    def insert(key: str, connection: Connection) -> None:
        with writing(connection) as writes:
            before.states[Parcel].save(writes, [(Parcel(key, note="n"), 0)])

    database = await open_database(database_url, before)
    await database.transaction(partial(insert, "one"))
    await database.close()
    after = parcels(MeasuredParcel, tmp_path)
    assert write_script(after, "Parcels are measured")

    database = await open_database(database_url, after)
    try:
        # As a replica of the version before does, as long as there is one.
        await database.transaction(partial(insert, "two"))
        states = after.states[MeasuredParcel]
        found = await database.read(lambda c: [states.find(c, key) for key in ("one", "two")])
    finally:
        await database.close()

    assert found == [MeasuredParcel("one", note="n"), MeasuredParcel("two", note="n")]


async def test_a_service_whose_scripts_lack_a_column_or_a_table_does_not_start(
    database_url: str, tmp_path: Path
) -> None:
    assert write_script(parcels(Parcel, tmp_path), "First tables")
    more = parcels(MeasuredParcel, tmp_path)
    columns = "left_at, sealed, seen_at, size, stops, tries"
    with pytest.raises(DatabaseError, match=f"parcels has no column {columns}.*`saga migration`"):
        await open_database(database_url, more)

    another = parcels(Parcel, tmp_path)
    sa.Table("more", another.metadata, sa.Column("id", sa.Integer, primary_key=True))
    with pytest.raises(DatabaseError, match=r"there is no table more.*`saga migration`"):
        await open_database(database_url, another)


def test_a_column_that_nothing_says_the_value_of_is_refused(tables: Tables) -> None:
    tables.inbox.append_column(sa.Column("weight", sa.Integer, nullable=False))

    with pytest.raises(MigrationError, match=r"inbox\.weight takes no NULL.*server_default"):
        write_script(tables, "Messages are weighed")


def test_tables_without_a_folder_have_no_scripts() -> None:
    with pytest.raises(MigrationError, match="no folder for migrations"):
        write_script(Tables(sa.MetaData()), "x")


def test_a_folder_of_scripts_that_is_not_there_is_named(tmp_path: Path) -> None:
    nowhere = tmp_path / "migrations"

    with pytest.raises(MigrationError, match=f"{nowhere}.* is not there: make it"):
        write_script(Tables(sa.MetaData(), migrations=nowhere), "x")


@pytest.mark.parametrize(
    "recorded", ["before the upgrade", "after it, by an older version", "before it and after it"]
)
async def test_a_history_of_before_knows_its_subjects_after_the_upgrade(
    recorded: str, database_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if every event were folded again."""
    monkeypatch.setattr(saga.archive.store, "CATCH_UP_AT_ONCE", 7)
    folder = tmp_path / "migrations"
    folder.mkdir()
    assert saga.archive.store.TABLES.migrations is not None
    for script in saga.archive.store.TABLES.migrations.glob("v*.py"):
        if script.name[1:5] <= "0003":
            shutil.copy(script, folder)
    old = Schema(sa.MetaData(), migrations=folder)
    play = Play(at=NOW, tick=timedelta(milliseconds=3))
    stock = AddStock(
        delivery_id=UUID(int=1), sku="tea", quantity=9, unit_price_cents=250, currency="EUR"
    )
    play.give("inventory", stock)
    for life in (confirmed, declined, out_of_stock):
        life(play)
    play.provider_down = True
    confirmed(play)
    copy = play.events[-1].model_copy(update={"id": "corrected", "source": EDITOR_SOURCE})
    facts = [saga.archive.store.Fact(e, e.to_bytes()) for e in (*play.events, copy)]

    def insert(first: int, last: int, connection: Connection) -> None:
        for position, fact in enumerate(facts[first:last], start=first + 1):
            event = fact.attributes
            connection.execute(
                saga.archive.store.events.insert().values(
                    event_id=event.id,
                    position=position,
                    recorded_at=NOW,
                    type=event.type,
                    source=event.source,
                    subject=event.subject,
                    sequence=event.sequence,
                    time=event.time,
                    body=fact.body,
                )
            )

    def rows(connection: Connection) -> set[tuple[Any, ...]]:
        columns = [column for column in subjects.columns if column.name != "version"]
        return {tuple(row) for row in connection.execute(sa.select(*columns))}

    before = {"before the upgrade": len(facts), "before it and after it": 10}.get(recorded, 0)
    fold = partial(saga.archive.store.catch_up, projection=PROJECTION)
    database = await open_database(database_url, old)
    await database.transaction(partial(insert, 0, before))
    await database.close()
    database = await open_database(database_url, HISTORY)
    await database.transaction(fold)
    await database.transaction(partial(insert, before, len(facts)))
    pages = 0
    while await database.transaction(fold):
        pages += 1
    assert pages > 1, "nobody waits for all of it"
    upgraded = await database.read(rows)
    await database.close()
    assert await rebuild_views(database_url, GRAPH) == len(upgraded) == 5
    database = await open_database(database_url, HISTORY)
    assert await database.read(rows) == upgraded
    await database.close()


async def test_a_mail_that_ended_before_attempts_were_numbered_is_as_its_events_tell(
    database_url: str, tmp_path: Path
) -> None:
    head, insert, _, _ = ROWS["notification"]
    new = tables_in("notification_service")
    database = await open_database(database_url, older(new, head, tmp_path))
    row = insert.format(key=UUID(int=1), status="sent").replace("'', 1000000", "'', NULL")
    await database.transaction(lambda connection: connection.exec_driver_sql(row))
    await database.close()

    database = await open_database(database_url, new)
    try:
        kept = await database.read(lambda c: NOTIFICATIONS.find(c, str(UUID(int=1))))
    finally:
        await database.close()

    told = given(PARTICIPANT, NotificationSent(order_id=UUID(int=1)))
    assert kept is not None
    assert kept.tries == told.state(Notification, UUID(int=1)).tries
