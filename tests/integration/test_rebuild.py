"""A service's database rebuilt from its events, and compared with them."""

from __future__ import annotations

import asyncio
import random
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from common.events import CancellationReason
from inventory_service.domain import AddStock, Delivery
from notification_service.domain import ResendNotification
from order_saga.archive.table import order_views
from order_service.domain import CancelOrder, Order
from payment_service.domain import Payment, PaymentStatus, SettleCharge, compensate
from payment_service.gateway import SandboxGateway
from saga.archive import store
from saga.archive.subjects import subjects
from saga.discovery import choreography
from saga.errors import InputError
from saga.history import HistoryError
from saga.history.rebuild import (
    on_their_way,
    rebuild,
    rebuild_views,
    redeliver,
)
from saga.history.sources import Sources
from saga.history.verify import Verified, verify
from saga.runtime.kernel import tables as kernel_tables
from saga.runtime.kernel.opening import open_database, read_database
from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.kernel.sqlite import sqlite_engine
from saga.runtime.kernel.tables import inbox_key
from saga.runtime.kernel.timer import Timekeeper
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.stream import last_offset
from saga.runtime.messaging.topology import apply, topology_of, wait_queue
from saga.runtime.tasks import cancel_all
from tests.books import Books, demand_turns, rows_of
from tests.integration.kernels import replica
from tests.integration.test_history_queries import kept_by_another
from tests.messages import message_of
from tests.order_play import BROKE, Play
from tests.polling import until
from tests.stores import HISTORY, PROJECTION, TABLES
from tests.unit.test_forgotten_inbox import LOST, Recorded
from tests.unit.test_limits import BEYOND

GRAPH = choreography()
SEED = 40_107


def mixed(seed: int = SEED, orders: int = 24) -> Play:
    """Orders of all kinds, some cancelled, early or late, while messages overtake each other."""
    dice = random.Random(seed)
    play = Play(tick=timedelta(milliseconds=3))
    for sku, quantity in (("tea", 30), ("mug", 2)):
        play.give(
            "inventory",
            AddStock(
                delivery_id=uuid4(),
                sku=sku,
                quantity=quantity,
                unit_price_cents=250,
                currency="EUR",
            ),
        )
    for _ in range(orders):
        order = play.place(
            customer=dice.choice(["ada", "ada", BROKE]), sku=dice.choice(["tea", "mug", "nothing"])
        )
        play.down = set(dice.sample(sorted(TABLES), dice.randrange(3)))
        play.deliver()
        if dice.random() < 0.4:
            play.give("order", CancelOrder(order_id=UUID(order)))
        dice.shuffle(play.waiting)
    play.down = set()
    play.deliver()
    # The customer's commands that came too late led to nothing, and are in no event.
    causes = {event.causationid for event in play.events} | {event.id for event in play.events}
    play.inboxes["order"] = {key for key in play.inboxes["order"] if key.id in causes}
    return play


@pytest.fixture
def books(tmp_path: Path) -> Books:
    return Books(tmp_path, mixed())


def rebuilt_url(database_url: str) -> str:
    return database_url.replace("toy.db", "rebuilt.db")


# --- rebuild ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLES)
async def test_on_a_quiet_system_the_result_is_the_live_database_table_by_table(
    name: str, books: Books, database_url: str
) -> None:
    await books.write()
    told = 0

    def progress(events: int) -> None:
        nonlocal told
        told += events

    made = await rebuild(books.sources, GRAPH, name, database_url, waiting=(), progress=progress)

    assert await rows_of(name, database_url) == await rows_of(name, books.url(name))
    assert (made.unanswered, made.holes, made.contradictions) == ([], [], [])
    assert made.events == sum(event.source.endswith(name) for event in books.play.events)
    assert told == len(books.play.events)


async def test_what_is_due_is_due_at_the_same_time_in_a_rebuilt_database_and_is_done(
    books: Books, database_url: str
) -> None:
    books.play.down = {"inventory"}
    pending = books.play.place()
    await books.write()
    await rebuild(books.sources, GRAPH, "order", database_url, waiting=())
    assert await rows_of("order", database_url) == await rows_of("order", books.url("order"))
    sources = books.sources
    sources.database_urls["order"] = database_url
    assert (await verify(sources, GRAPH, settle_seconds=0)).ok

    tables = TABLES["order"]
    later = books.play.at + timedelta(days=1)
    participant = next(p for p in GRAPH.participants if p.name == "order")
    async with replica(database_url, participant, tables, clock=lambda: later) as service:
        keeper = Timekeeper(service.kernel, service.database, tables, clock=lambda: later)
        keeping = asyncio.create_task(keeper.run())

        async def is_cancelled() -> bool:
            order = await service.find(Order, pending)
            return order is not None and order.reason is CancellationReason.DEADLINE_EXCEEDED

        await until(is_cancelled)
        await cancel_all(keeping)
        assert len(service.publisher.published) == 1


async def test_a_rebuilt_database_that_has_lost_what_is_due_is_found(
    books: Books, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    books.play.down = {"inventory"}
    pending = books.play.place()
    await books.write()
    with monkeypatch.context() as broken:
        broken.setattr(kernel_tables, "due_at_of", lambda state: None)
        await rebuild(books.sources, GRAPH, "order", database_url, waiting=())
    sources = books.sources
    sources.database_urls["order"] = database_url
    found = await verify(sources, GRAPH, settle_seconds=0)

    assert said(found) == [("order", "orders", pending, "due_at")]


@pytest.mark.parametrize("name", TABLES)
async def test_what_waits_or_is_dead_is_not_done_and_what_was_overtaken_is(
    name: str, books: Books, tmp_path: Path
) -> None:
    """Some charges wait for their next try, or are dead; some of them are cancelled meanwhile."""
    play = books.play
    play.provider_down = True
    orders = [play.place() for _ in range(6)]
    play.deliver()
    for order in orders[:3]:
        play.give("order", CancelOrder(order_id=UUID(order)))
    play.deliver()
    await books.write()
    waiting = [(delivery.participant, delivery.event.id) for delivery in play.failed]
    assert len(waiting) == 9  # six charges, and the cancellations of three of them
    made = await rebuild(
        books.sources, GRAPH, name, f"sqlite:///{tmp_path / 'new.db'}", waiting=waiting
    )
    live, new = (
        await rows_of(name, books.url(name)),
        await rows_of(name, f"sqlite:///{tmp_path / 'new.db'}"),
    )

    assert new["inbox"] == live["inbox"]
    assert made.lost == []
    if name != "payment":
        assert new == live
        return
    # The provider never heard of these charges: no event tells that they were going to be asked
    # for, and what waits will see to it again.
    asking = live["payments"] - new["payments"]
    assert new["payments"] < live["payments"]
    assert {row[0] for row in asking} == set(orders)
    assert {event.event_id for event in made.unanswered} == {id for _, id in waiting}


async def test_charges_that_the_provider_knows_are_settled_before_the_service_starts(
    books: Books, database_url: str
) -> None:
    """Killed between the call and its commit, and then the database is gone."""
    play = books.play
    play.provider_down = True
    order, paid_back = play.place(), play.place()
    play.deliver()
    play.provider_down, play.down = False, {"order"}
    play.retry_only(paid_back)
    play.provider_down, play.down = True, set()
    play.waiting.clear()  # the order's confirmation, for one
    play.give("order", CancelOrder(order_id=UUID(paid_back)))
    play.deliver()
    await books.write()
    gateway = SandboxGateway(books.url("provider"))
    await gateway.charge(order, customer="ada", currency="EUR", amount_cents=500)
    await gateway.refund(paid_back, currency="EUR", amount_cents=500)
    before = gateway.ledger()
    waiting = [(delivery.participant, delivery.event.id) for delivery in play.failed]
    made = await rebuild(books.sources, GRAPH, "payment", database_url, waiting=waiting)

    assert made.asked == 2
    assert await rows_of("payment", database_url) == await rows_of("payment", books.url("payment"))
    assert gateway.ledger() == before  # no outside was asked
    await gateway.close()
    database = await open_database(database_url, TABLES["payment"])
    payment = await database.read(lambda c: TABLES["payment"].states[Payment].find(c, order))
    await database.close()
    assert isinstance(payment, Payment)
    assert payment.status is PaymentStatus.CHARGING
    # A cancellation that comes first now asks again, and pays back what it hears of.
    play.give("order", CancelOrder(order_id=UUID(order)))
    cancelled = play.events[-1].data
    assert isinstance(compensate(cancelled, payment), SettleCharge)


async def test_an_event_that_was_answered_in_part_is_not_done(books: Books, tmp_path: Path) -> None:
    """Settled by its cancellation, charged, and to be paid back when the database was lost."""
    play = books.play
    play.provider_down = True
    order = play.place()
    play.deliver()
    play.provider_down, play.refunds_down = False, True
    play.give("order", CancelOrder(order_id=UUID(order)))
    play.deliver()
    cancelled, charged = (
        next(e for e in play.about(order) if e.type == type_)
        for type_ in ("order.cancelled", "payment.charged")
    )
    assert charged.causationid == cancelled.id
    await books.write()
    into = f"sqlite:///{tmp_path / 'new.db'}"
    made = await rebuild(books.sources, GRAPH, "payment", into, waiting=())

    assert [event.event_id for event in made.lost] == [cancelled.id]
    live, new = await rows_of("payment", books.url("payment")), await rows_of("payment", into)
    assert (cancelled.id,) not in live["inbox"] | new["inbox"]


async def test_a_mail_that_was_begun_is_not_sent_again_and_its_event_not_done(
    books: Books, tmp_path: Path
) -> None:
    books.play.events = [e for e in books.play.events if e.type != "notification.sent"]
    await books.record()
    into = f"sqlite:///{tmp_path / 'new.db'}"
    made = await rebuild(books.sources, GRAPH, "notification", into, waiting=())

    begun = {e.causationid for e in books.play.events if e.type == "notification.begun"}
    assert {event.event_id for event in made.lost} == begun
    rows = await rows_of("notification", into)
    assert rows["inbox"] == set()
    assert len(rows["notifications"]) == len(begun)


async def test_an_event_answered_in_the_lost_database_only_is_named(
    books: Books, tmp_path: Path
) -> None:
    """Its answer was committed, and lost with the outbox."""
    order = books.play.place()
    books.play.deliver()
    reserved = books.play.about(order)[1]
    books.play.events = [
        e for e in books.play.events if e.subject != order or e.type == "order.placed"
    ]
    await books.record()
    await books.write_provider()
    into = f"sqlite:///{tmp_path / 'new.db'}"
    made = await rebuild(books.sources, GRAPH, "inventory", into, waiting=())

    placed = books.play.about(order)[0]
    assert [(e.event_id, e.type, e.subject) for e in made.lost] == [
        (placed.id, "order.placed", order)
    ]
    assert (reserved.id,) not in (await rows_of("inventory", into))["inbox"]


async def test_a_hole_in_its_events_stops_a_rebuild_unless_told_otherwise(
    books: Books, tmp_path: Path
) -> None:
    order = books.play.place()
    books.play.deliver()
    placed, reserved = books.play.about(order)[:2]
    await books.write_provider()
    await books.record(without=(placed.id, reserved.id))
    into = f"sqlite:///{tmp_path / 'new.db'}"
    with pytest.raises(InputError, match=r"event 1 of order about .* --despite-holes"):
        await rebuild(books.sources, GRAPH, "order", into)
    with pytest.raises(InputError, match="that is another service's database"):
        await rebuild(books.sources, GRAPH, "inventory", into)
    with pytest.raises(InputError, match=rf"stock\.reserved .*{reserved.id}"):
        await rebuild(books.sources, GRAPH, "inventory", f"{into}2")
    made = await rebuild(books.sources, GRAPH, "order", into, despite_holes=True)
    assert any("event 1 of order" in str(hole) for hole in made.holes)


async def test_a_trimmed_head_stops_a_rebuild_unless_told_otherwise(
    books: Books, tmp_path: Path
) -> None:
    await books.write()
    engine = sqlite_engine(books.url("history"))
    with engine.begin() as connection:
        gap = store.gaps.insert().values(first=0, last=99, noticed_at=books.play.at)
        connection.execute(gap)
    engine.dispose()
    into = f"sqlite:///{tmp_path / 'new.db'}"
    with pytest.raises(InputError, match="lacks the stream's offsets 0 to 99"):
        await rebuild(books.sources, GRAPH, "order", into)
    await rebuild(books.sources, GRAPH, "order", into, despite_holes=True)


async def test_a_database_that_is_not_empty_or_in_use_is_refused(
    books: Books, database_url: str
) -> None:
    await books.write()
    await rebuild(books.sources, GRAPH, "order", database_url)
    with pytest.raises(InputError, match="the database has rows in orders; name an empty one"):
        await rebuild(books.sources, GRAPH, "order", database_url)
    if database_url.startswith("sqlite"):
        owner = await open_database(database_url, TABLES["order"])
        with pytest.raises(InputError, match="in use by another process"):
            await rebuild(books.sources, GRAPH, "order", database_url)
        await owner.close()
    with pytest.raises(InputError, match="there is no participant 'shop'; there are inventory"):
        await rebuild(books.sources, GRAPH, "shop", database_url)
    with pytest.raises(InputError, match="--into: DATABASE_URL is no database URL"):
        await rebuild(books.sources, GRAPH, "order", "nonsense")


async def test_without_the_provider_s_ledger_payments_are_not_made_up(
    books: Books, tmp_path: Path
) -> None:
    await books.record()
    with pytest.raises(HistoryError, match=r"ledger is not at .*provider\.db: put it there"):
        await rebuild(books.sources, GRAPH, "payment", f"sqlite:///{tmp_path / 'new.db'}")


async def test_a_charge_of_another_program_in_the_ledger_is_named_and_stops_no_rebuild(
    books: Books, tmp_path: Path
) -> None:
    await books.write()
    gateway = SandboxGateway(books.url("provider"))
    for key, currency in (("rent", "EUR"), (str(uuid4()), "XYZ")):
        await gateway.charge(key, customer="ada", currency=currency, amount_cents=1)
    await gateway.close()
    into = f"sqlite:///{tmp_path / 'new.db'}"
    made = await rebuild(books.sources, GRAPH, "payment", into)

    assert len(made.contradictions) == 2
    assert all("the provider took money under this key" in line for line in made.contradictions)
    assert await rows_of("payment", into) == await rows_of("payment", books.url("payment"))


async def test_a_rebuild_publishes_nothing_and_what_was_lost_can_be_redelivered(
    books: Books, amqp_url: str, tmp_path: Path
) -> None:
    play = books.play
    play.provider_down = True
    dead, lost = play.place(), play.place()
    play.deliver()
    await books.write()
    deployment = books.deployment(amqp_url)
    sources = Sources.of_deployment(deployment)
    events = {delivery.event.subject: delivery.event for delivery in play.failed}
    async with await aio_pika.connect(amqp_url) as connection:
        channel = await connection.channel()
        await apply(topology_of(GRAPH), channel)
        exchange = await channel.get_exchange(wait_queue(3_600_000), ensure=False)
        await exchange.publish(message_of(events[dead].to_bytes()), "payment.normal")
        waiting = await on_their_way(sources, GRAPH)
        assert waiting == frozenset({("payment", events[dead].id)})
        into = f"sqlite:///{tmp_path / 'new.db'}"
        made = await rebuild(sources, GRAPH, "payment", into, waiting=waiting)
        assert await depth(channel, "payment.normal") == 0
        async with await connect(amqp_url, name="test") as reader:
            assert await last_offset(reader) is None

        assert [event.event_id for event in made.lost] == [events[lost].id]
        assert await redeliver(deployment, GRAPH, made, sources.history_url) == 1
        queue = await channel.get_queue("payment.normal", ensure=False)
        message = await queue.get(timeout=10)
        assert message is not None
        assert message.body == events[lost].to_bytes()


async def depth(channel: aio_pika.abc.AbstractChannel, queue: str) -> int:
    declared = await channel.declare_queue(queue, passive=True)
    return declared.declaration_result.message_count or 0


async def test_the_views_are_folded_anew_as_they_were(books: Books) -> None:
    await books.record()
    engine = sqlite_engine(books.url("history"))

    def all_rows(connection: Connection) -> list[set[Any]]:
        return [
            {
                tuple(row)
                for row in connection.execute(
                    sa.select(*(c for c in table.columns if c.name != "version"))
                )
            }
            for table in (subjects, order_views)
        ]

    with engine.begin() as connection:
        before = all_rows(connection)
        connection.execute(order_views.update().values(customer="nobody", sequence=0))
        connection.execute(subjects.update().values(kind="nothing", types=(), open=True))
    assert await rebuild_views(books.url("history"), GRAPH) == len(before[0])
    with engine.begin() as connection:
        assert all_rows(connection) == before
    engine.dispose()


async def test_views_are_folded_anew_beside_the_service_at_work(
    books: Books, postgres_url: str
) -> None:
    history = await open_database(postgres_url, HISTORY)
    await demand_turns(history)
    facts = [store.Fact(event, event.to_bytes()) for event in books.play.events]
    await history.transaction(lambda c: store.append(c, facts, books.play.at, PROJECTION))
    count = sa.select(sa.func.count()).select_from(subjects)

    assert await rebuild_views(postgres_url, GRAPH) == await history.read(lambda c: c.scalar(count))
    await history.close()


async def test_what_another_program_kept_as_an_event_stops_no_rebuild(
    books: Books, tmp_path: Path
) -> None:
    await books.write()
    await rebuild_views(books.url("history"), GRAPH)
    views = await all_of(books, order_views)
    (subject, *_) = [event.subject for event in books.play.events if event.type == "order.placed"]
    database = await open_database(books.url("history"), HISTORY)
    await database.transaction(lambda c: kept_by_another(c, subject))
    await database.close()

    await rebuild_views(books.url("history"), GRAPH)
    assert await all_of(books, order_views) == views
    for name in TABLES:
        into = f"sqlite:///{tmp_path / 'new'}-{name}.db"
        await rebuild(books.sources, GRAPH, name, into)
        assert await rows_of(name, into) == await rows_of(name, books.url(name))
    assert (await compared(books)).ok


async def test_an_event_whose_id_another_source_had_used_before_is_done_all_the_same(
    books: Books, tmp_path: Path
) -> None:
    play = books.play
    rejected = play.place(sku="nothing")
    play.deliver()
    real = next(event for event in play.about(rejected) if event.type == "order.cancelled")
    other = next(event for event in play.about(real.subject) if event.source != real.source)
    squatter = other.model_copy(update={"id": real.id})
    await books.write()
    (books.folder / "history.db").unlink()
    play.events.insert(play.events.index(real), squatter)
    await books.record()
    into = f"sqlite:///{tmp_path / 'new.db'}"
    made = await rebuild(books.sources, GRAPH, "inventory", into)

    assert made.unanswered == []
    assert await inbox_of("inventory", into) >= {inbox_key(real.key)}


async def inbox_of(name: str, url: str) -> set[str]:
    keys = sa.select(TABLES[name].inbox.c.message_id)
    return await asyncio.to_thread(read_database, url, lambda c: set(c.scalars(keys)))


async def all_of(books: Books, table: sa.Table) -> set[tuple[Any, ...]]:
    return await asyncio.to_thread(
        read_database,
        books.url("history"),
        lambda c: {tuple(row) for row in c.execute(sa.select(table))},
    )


# --- verify -----------------------------------------------------------------------------------


async def compared(books: Books) -> Verified:
    return await verify(books.sources, GRAPH, settle_seconds=0)


def said(found: Verified) -> list[tuple[str, str, str, str]]:
    return [(one.participant, one.table, one.key, one.column) for one in found.differences]


async def test_databases_that_are_what_the_events_tell_are_found_right(books: Books) -> None:
    await books.write()
    found = await compared(books)

    assert found.differences == []
    assert found.rows.keys() == TABLES.keys()
    assert sum(found.rows.values()) == sum(len(states) for states in books.play.states.values())


async def test_databases_on_postgresql_are_compared_as_well(
    books: Books, postgres_url: str
) -> None:
    await books.write()
    await books.write_live("inventory", postgres_url)
    sources = books.sources
    sources.database_urls["inventory"] = postgres_url
    assert (await verify(sources, GRAPH, settle_seconds=0)).ok
    database = await open_database(postgres_url, TABLES["inventory"])
    await database.transaction(
        lambda c: c.exec_driver_sql("UPDATE stock SET free = free + 1 WHERE sku = 'tea'")
    )
    await database.close()
    found = await verify(sources, GRAPH, settle_seconds=0)
    assert said(found) == [("inventory", "stock", "tea", "free")]


CORRUPTIONS = {
    "an order's total": ("order", "UPDATE orders SET total_cents = 1", "orders", "total_cents"),
    "an order's end": ("order", "UPDATE orders SET ended_at = ended_at + 1", "orders", "ended_at"),
    "a reservation": (
        "inventory",
        "UPDATE reservations SET status = 'released'",
        "reservations",
        "status",
    ),
    "when an order is due": ("order", "UPDATE orders SET due_at = 1", "orders", "due_at"),
    "a payment": ("payment", "UPDATE payments SET amount_cents = 7", "payments", "amount_cents"),
}


@pytest.mark.parametrize("corruption", CORRUPTIONS.values(), ids=CORRUPTIONS.keys())
async def test_one_corrupted_row_is_named(
    corruption: tuple[str, str, str, str], books: Books
) -> None:
    name, statement, table, column = corruption
    order = books.play.place()
    books.play.deliver()
    await books.write()
    execute(books.url(name), statement, order)

    assert said(await compared(books)) == [(name, table, order, column)]


async def test_a_row_too_few_and_an_event_too_few_are_named(books: Books) -> None:
    order, other = books.play.place(), books.play.place()
    books.play.deliver()
    await books.write()
    execute(books.url("payment"), "DELETE FROM payments", order)
    execute(books.url("order"), "UPDATE orders SET sequence = 3", other)
    found = await compared(books)

    assert said(found) == [("order", "orders", other, ""), ("payment", "payments", order, "")]
    assert found.differences[0].live == "counts event 3"
    assert found.differences[1].live == "has no row"


async def test_a_row_that_cannot_be_read_is_named_and_hides_no_other(books: Books) -> None:
    order, other = books.play.place(), books.play.place()
    books.play.deliver()
    await books.write()
    execute(books.url("order"), "UPDATE orders SET lines = '{'", order)
    execute(books.url("order"), "UPDATE orders SET total_cents = 7", other)
    found = await compared(books)

    assert sorted(said(found)) == sorted(
        [("order", "orders", order, ""), ("order", "orders", other, "total_cents")]
    )
    assert any("cannot be read" in difference.live for difference in found.differences)


async def test_what_a_delivery_brought_is_compared_as_well(books: Books) -> None:
    await books.write()
    wrong, lost = [key for kind, key in books.play.states["inventory"] if kind is Delivery][:2]
    engine = sqlite_engine(books.url("inventory"))
    with engine.begin() as connection:
        connection.execute(
            sa.text("UPDATE deliveries SET quantity = 7 WHERE delivery = :d"), {"d": wrong}
        )
        connection.execute(sa.text("DELETE FROM deliveries WHERE delivery = :d"), {"d": lost})
    engine.dispose()

    assert sorted(said(await compared(books))) == sorted(
        [
            ("inventory", "deliveries", wrong, "quantity"),
            ("inventory", "deliveries", lost, ""),
        ]
    )


async def test_an_event_that_still_waits_in_the_outbox_counts(books: Books) -> None:
    order = books.play.place()
    books.play.deliver()
    confirmed = next(e for e in books.play.about(order) if e.type == "order.confirmed")
    await books.write()
    (books.folder / "history.db").unlink()
    await books.record(without=(confirmed.id,))
    assert said(await compared(books)) == [("order", "orders", order, "")]
    row = Outgoing.of(confirmed)
    engine = sqlite_engine(books.url("order"))
    with engine.begin() as connection:
        connection.execute(
            TABLES["order"]
            .outbox.insert()
            .values(
                event_id=row.event_id,
                owner="o",
                position=1,
                routing_key=row.routing_key,
                body=row.body,
            )
        )
    engine.dispose()
    assert (await compared(books)).ok


async def test_what_an_outbox_holds_that_is_no_event_is_no_difference(books: Books) -> None:
    await books.write()
    outbox = TABLES["order"].outbox.insert()
    rows = [
        {"event_id": str(n), "owner": "o", "position": n, "routing_key": "a.b", "body": body}
        for n, body in enumerate(BEYOND.values())
    ]
    engine = sqlite_engine(books.url("order"))
    with engine.begin() as connection:
        connection.execute(outbox, rows)
    engine.dispose()

    assert (await compared(books)).ok


async def test_a_question_that_is_open_is_no_difference(books: Books) -> None:
    play = books.play
    play.provider_down = True
    asked, cancelled = play.place(), play.place()
    play.deliver()
    play.give("order", CancelOrder(order_id=UUID(cancelled)))
    play.deliver()
    await books.write()
    found = await compared(books)
    assert found.differences == []
    assert found.open_questions == 2

    # But one that nothing asks for is.
    execute(books.url("payment"), "UPDATE payments SET amount_cents = 1", asked)
    columns = {column for *_, column in said(await compared(books))}
    assert "amount_cents" in columns


async def test_a_mail_that_is_being_sent_again_is_no_difference(tmp_path: Path) -> None:
    play = Recorded()
    play.answers = False
    order = play.place(customer=LOST, sku="nothing")
    play.deliver()
    play.give("notification", ResendNotification(order_id=UUID(order)))
    books = Books(tmp_path, play)
    await books.write()
    found = await compared(books)

    assert found.differences == []
    assert found.open_questions == 1
    execute(books.url("notification"), "UPDATE notifications SET detail = 'x'", order)
    assert (await compared(books)).differences != []


def execute(url: str, statement: str, order: str) -> None:
    engine = sqlite_engine(url)
    with engine.begin() as connection:
        changed = connection.execute(sa.text(f"{statement} WHERE order_id = :id"), {"id": order})
        assert changed.rowcount == 1
    engine.dispose()
