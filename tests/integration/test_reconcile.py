"""Reconciling what real databases, a real ledger and a real broker hold.

Nothing runs here: the reactions are played in memory, and what the services would have written and
published is put where they would have put it. So each test can break exactly one thing.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import asdict, astuple, dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import aio_pika
import pytest
import sqlalchemy as sa
from aio_pika.abc import AbstractRobustChannel

from inventory_service.domain import AddStock
from order_service.domain import CancelOrder
from payment_service.gateway import Account, SandboxGateway
from saga.archive import store
from saga.deployment import Deployment
from saga.discovery import choreography
from saga.envelope import Envelope
from saga.message import Priority
from saga.reconcile import ReconcileError, Report, reconcile
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.rows import writing
from saga.runtime.kernel.sqlite import sqlite_engine
from saga.runtime.kernel.tables import Tables, utc_now
from saga.runtime.messaging import dead_letters
from saga.runtime.messaging.topology import (
    DEAD_EXCHANGE,
    EVENTS_EXCHANGE,
    HISTORY_STREAM,
    Queue,
    apply,
    dead_letter_queue,
    queues_of,
    topology_of,
    work_queue,
)
from tests.messages import message_of
from tests.order_play import BROKE, Play
from tests.stores import HISTORY, TABLES


@dataclass
class Stage:
    """The databases, the ledger and the broker that `reconcile` looks at."""

    deployment: Deployment
    channel: AbstractRobustChannel
    play: Play = field(default_factory=Play)

    async def show(self) -> None:
        """Put what was played where the services would have put it."""
        for name, tables in TABLES.items():
            self._write(name, tables)
        gateway = SandboxGateway(self.deployment.outside_urls["provider"])
        gateway.set_accounts([Account(BROKE, card_blocked=True)])
        await asyncio.gather(
            *(
                gateway.charge(
                    str(charge.order_id),
                    customer=charge.customer,
                    currency=charge.currency,
                    amount_cents=charge.amount_cents,
                )
                for charge in self.play.charges
            )
        )
        for refund in self.play.refunds:
            await gateway.refund(
                str(refund.order_id), currency=refund.currency, amount_cents=refund.amount_cents
            )
        await gateway.close()
        await self.publish(*self.play.events)
        await self.purge()

    def _write(self, name: str, tables: Tables) -> None:
        engine = sqlite_engine(self.deployment.database_urls[name])
        tables.metadata.create_all(engine)
        with engine.begin() as connection, writing(connection) as writes:
            for kind, table in tables.states.items():
                states = [(s, 0) for id, s in self.play.states[name].items() if id[0] is kind]
                table.save(writes, states)
            tables.mark_done(writes, dict.fromkeys(self.play.inboxes[name]), self.play.at)
        engine.dispose()

    async def publish(self, *events: Envelope[Any]) -> None:
        exchange = await self.channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
        for start in range(0, len(events), 1_000):
            await asyncio.gather(
                *(
                    exchange.publish(message_of(event.to_bytes()), event.routing_key)
                    for event in events[start : start + 1_000]
                )
            )

    async def publish_malformed(self, message_id: str) -> None:
        exchange = await self.channel.get_exchange(EVENTS_EXCHANGE, ensure=False)
        await exchange.publish(
            aio_pika.Message(b"{", message_id=message_id), "order.cancelled.normal"
        )

    async def bury(self, participant: str, message: aio_pika.Message, reason: str) -> None:
        """Put a message into a dead-letter queue, as its participant would."""
        message.headers[dead_letters.REASON] = reason
        exchange = await self.channel.get_exchange(DEAD_EXCHANGE, ensure=False)
        await exchange.publish(message, participant)

    async def purge(self) -> None:
        """Take what is in the work queues away, as consumers do."""
        for participant in choreography().participants:
            for name in queues_of(participant):
                queue = await self.channel.get_queue(name, ensure=False)
                await queue.purge()

    def execute(self, database: str, statement: str, **values: Any) -> None:
        urls = self.deployment.database_urls | {
            "provider": self.deployment.outside_urls["provider"]
        }
        engine = sqlite_engine(urls[database])
        with engine.begin() as connection:
            assert connection.execute(sa.text(statement), values).rowcount == 1
        engine.dispose()

    async def reconcile(self) -> Report:
        return await reconcile(self.deployment, settle_seconds=0.0)

    async def broken_rules(self) -> set[tuple[str, str]]:
        report = await self.reconcile()
        assert report.ok == (not report.violations)
        return {(violation.rule, violation.subject) for violation in report.violations}


def event_about(stage: Stage, order_id: str, type: str) -> Envelope[Any]:
    (event,) = (e for e in stage.play.events if e.subject == order_id and e.type == type)
    return event


@pytest.fixture
async def stage(amqp_url: str, tmp_path: Path) -> AsyncIterator[Stage]:
    """An empty stage: topology, databases and the ledger are there, and nothing in them."""
    deployment = Deployment(
        amqp_url=amqp_url,
        http_urls={},
        database_urls={name: f"sqlite:///{tmp_path / name}.db" for name in TABLES},
        outside_urls={"provider": f"sqlite:///{tmp_path / 'provider'}.db"},
    )
    connection = await aio_pika.connect_robust(amqp_url)
    async with connection:
        channel = await connection.channel()
        assert isinstance(channel, AbstractRobustChannel)
        await apply(topology_of(choreography()), channel)
        yield Stage(deployment, channel)


@pytest.fixture
async def orders(stage: Stage) -> dict[str, str]:
    """Four orders at their ends, by what became of them, and the stock they came from."""
    play = stage.play
    play.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=1), sku="tea", quantity=9, unit_price_cents=250, currency="EUR"
        ),
    )
    play.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=2), sku="tea", quantity=1, unit_price_cents=250, currency="EUR"
        ),
    )
    placed = {
        "confirmed": play.place(),
        "declined": play.place(customer=BROKE),
        "out_of_stock": play.place(quantity=1_000),
    }
    play.deliver()
    # Cancelled while its stock was being reserved: charged, then refunded or voided.
    placed["cancelled"] = play.place()
    play.give("order", CancelOrder(order_id=UUID(placed["cancelled"])))
    play.deliver()
    await stage.show()
    return placed


async def test_an_empty_system_reconciles_and_does_not_hang(stage: Stage) -> None:
    await stage.show()
    report = await stage.reconcile()
    assert report.ok
    assert report.checked["events"] == report.checked["orders"] == 0


async def test_orders_at_their_ends_reconcile(stage: Stage, orders: dict[str, str]) -> None:
    report = await stage.reconcile()
    assert report.violations == ()
    assert report.ok
    assert report.checked["orders"] == report.checked["orders_at_rest"] == 4
    assert report.checked["events"] == len(stage.play.events)
    assert report.checked["events_undecided"] == report.checked["history_first_offset"] == 0
    assert report.dead_letters == dict.fromkeys(TABLES, 0)


async def test_a_report_is_plain_json(stage: Stage, orders: dict[str, str]) -> None:
    stage.execute("inventory", "UPDATE stock SET held = held + 1")
    document = json.loads(json.dumps(asdict(await stage.reconcile())))
    assert document["ok"] is False
    assert {"rule", "subject", "detail"} == set(document["violations"][0])


async def test_stock_held_by_nobody_is_found(stage: Stage, orders: dict[str, str]) -> None:
    stage.execute("inventory", "UPDATE stock SET held = held + 1")
    assert await stage.broken_rules() == {("held_mismatch", "tea"), ("stock_not_conserved", "tea")}


async def test_a_charge_the_provider_does_not_know_is_found(
    stage: Stage, orders: dict[str, str]
) -> None:
    order_id = orders["confirmed"]
    stage.execute("provider", "DELETE FROM charges WHERE key = :id", id=order_id)
    assert await stage.broken_rules() == {
        ("books_differ", order_id),
        ("confirmed_unpaid", order_id),
    }


async def test_a_refund_we_do_not_know_is_found(stage: Stage, orders: dict[str, str]) -> None:
    order_id = orders["confirmed"]
    stage.execute(
        "provider",
        "UPDATE charges SET refunded_cents = amount_cents WHERE key = :id",
        id=order_id,
    )
    assert await stage.broken_rules() == {
        ("books_differ", order_id),
        ("confirmed_unpaid", order_id),
    }


async def test_an_order_that_never_ended_is_found(stage: Stage, orders: dict[str, str]) -> None:
    order_id = orders["out_of_stock"]
    stage.execute("order", "UPDATE orders SET status = 'pending' WHERE order_id = :id", id=order_id)
    assert await stage.broken_rules() == {("outcome_unheard", order_id)}


async def test_a_total_that_differs_along_the_saga_is_found(
    stage: Stage, orders: dict[str, str]
) -> None:
    order_id = orders["declined"]
    stage.execute(
        "order", "UPDATE orders SET total_cents = total_cents + 1 WHERE order_id = :id", id=order_id
    )
    assert await stage.broken_rules() == {("totals_differ", order_id)}


async def test_another_customers_order_is_found(stage: Stage, orders: dict[str, str]) -> None:
    order_id = orders["confirmed"]
    stage.execute("order", "UPDATE orders SET customer = 'eve' WHERE order_id = :id", id=order_id)
    assert await stage.broken_rules() == {
        ("customers_differ", order_id),
        ("mail_untrue", order_id),
    }


async def test_a_mail_about_another_total_is_found(stage: Stage, orders: dict[str, str]) -> None:
    order_id = orders["confirmed"]
    stage.execute(
        "notification",
        "UPDATE notifications SET letter = replace(letter, :total, '1') WHERE order_id = :id",
        total="500",
        id=order_id,
    )
    assert await stage.broken_rules() == {("mail_untrue", order_id)}


async def test_a_mail_that_was_begun_and_is_left_is_found(
    stage: Stage, orders: dict[str, str]
) -> None:
    order_id = orders["confirmed"]
    stage.execute(
        "notification",
        "UPDATE notifications SET status = 'sending' WHERE order_id = :id",
        id=order_id,
    )
    assert await stage.broken_rules() == {("mail_unsettled", order_id)}


async def test_an_event_nobody_has_done_is_found(stage: Stage, orders: dict[str, str]) -> None:
    event = event_about(stage, orders["confirmed"], "payment.charged")
    stage.execute("order", "DELETE FROM inbox WHERE message_id LIKE :id || '%'", id=event.id)
    assert await stage.broken_rules() == {("lost", f"order/{event.id}")}


@pytest.mark.parametrize(("days", "lost"), [(89, 1), (91, 0)])
async def test_what_may_be_done_and_forgotten_is_not_lost(
    days: int, lost: int, stage: Stage
) -> None:
    stage.play.at = utc_now() - timedelta(days=days)
    stage.play.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=3), sku="tea", quantity=9, unit_price_cents=250, currency="EUR"
        ),
    )
    order_id = stage.play.place()
    stage.play.deliver()
    await stage.show()
    placed = event_about(stage, order_id, "order.placed").id
    stage.execute("inventory", "DELETE FROM inbox WHERE message_id LIKE :id || '%'", id=placed)

    assert len(await stage.broken_rules()) == lost


async def test_an_event_that_came_from_nowhere_is_found(
    stage: Stage, orders: dict[str, str]
) -> None:
    placed = event_about(stage, orders["confirmed"], "order.placed")
    order_id = uuid4()
    forged = placed.model_copy(
        update={
            "id": "forged",
            "subject": str(order_id),
            "data": placed.data.model_copy(update={"order_id": order_id}),
        }
    )
    await stage.publish(forged)
    await stage.purge()
    assert await stage.broken_rules() == {
        ("lost", "inventory/forged"),
        ("order_missing", str(order_id)),
    }


async def test_an_event_that_was_never_published_is_found(
    stage: Stage, orders: dict[str, str]
) -> None:
    stage.execute(
        "payment",
        "UPDATE payments SET sequence = sequence + 1 WHERE order_id = :id",
        id=orders["declined"],
    )
    assert await stage.broken_rules() == {("unpublished", orders["declined"])}


async def test_an_event_in_the_outbox_is_on_its_way(stage: Stage, orders: dict[str, str]) -> None:
    event = event_about(stage, orders["confirmed"], "payment.charged")
    stage.execute(
        "payment",
        "UPDATE payments SET sequence = sequence + 1 WHERE order_id = :id",
        id=event.subject,
    )
    stage.execute(
        "payment",
        "INSERT INTO outbox VALUES ('next', 'a replica', 1, 'payment.charged.normal', :body)",
        body=event.model_copy(update={"sequence": 2}).to_bytes(),
    )
    report = await stage.reconcile()
    assert report.ok
    assert report.checked["events_unpublished"] == 1


async def test_an_event_in_a_queue_nobody_reads_is_not_lost(
    stage: Stage, orders: dict[str, str]
) -> None:
    event = event_about(stage, orders["confirmed"], "payment.charged")
    stage.execute("order", "DELETE FROM inbox WHERE message_id LIKE :id || '%'", id=event.id)
    await stage.channel.default_exchange.publish(
        message_of(event.to_bytes()), work_queue("order", Priority.NORMAL)
    )
    assert await stage.broken_rules() == set()


async def test_a_dead_letter_is_not_lost_and_explains_its_order(
    stage: Stage, orders: dict[str, str]
) -> None:
    event = event_about(stage, orders["out_of_stock"], "stock.rejected")
    stage.execute("order", "DELETE FROM inbox WHERE message_id LIKE :id || '%'", id=event.id)
    stage.execute(
        "order", "UPDATE orders SET status = 'pending' WHERE order_id = :id", id=event.subject
    )
    await stage.bury("order", message_of(event.to_bytes()), "failed")
    report = await stage.reconcile()
    ((rule, subject, detail),) = map(astuple, report.violations)
    assert (rule, subject) == ("outcome_unheard", event.subject)
    assert f"waiting on dead letter {event.id} of order (failed)" in detail
    assert report.dead_letters["order"] == 1


async def test_copies_of_a_dead_letter_count_as_one(stage: Stage, orders: dict[str, str]) -> None:
    """A service killed between the confirm of a dead letter and its ack leaves two."""
    event = event_about(stage, orders["confirmed"], "stock.reserved")
    stage.execute("payment", "DELETE FROM inbox WHERE message_id LIKE :id || '%'", id=event.id)
    for _ in range(2):
        await stage.bury("payment", message_of(event.to_bytes()), "failed")
    report = await stage.reconcile()
    assert report.ok
    assert report.dead_letters["payment"] == 1
    assert report.checked["dead_letter_copies"] == 1


async def test_a_malformed_message_is_dead_wherever_it_went(
    stage: Stage, orders: dict[str, str]
) -> None:
    await stage.publish_malformed("bad")
    await stage.purge()
    await stage.bury("inventory", aio_pika.Message(b"{", message_id="bad"), "undecodable")
    await stage.bury("notification", aio_pika.Message(b"{", message_id="bad"), "undecodable")
    assert await stage.broken_rules() == {("lost", "payment/bad")}
    await stage.bury("payment", aio_pika.Message(b"{", message_id="bad"), "undecodable")
    assert await stage.broken_rules() == set()


async def test_dead_letters_are_left_as_they_were_however_many(stage: Stage) -> None:
    await stage.show()
    letters = 2_500  # More than one consumer is ever given at once.
    await asyncio.gather(
        *(
            stage.bury("order", aio_pika.Message(b"{", message_id=str(number)), "undecodable")
            for number in range(letters)
        )
    )
    for _ in range(2):
        report = await stage.reconcile()
        assert report.ok
        assert report.dead_letters["order"] == letters
    queue = await stage.channel.get_queue(dead_letter_queue("order"), ensure=False)
    found = {(await queue.get()).message_id for _ in range(letters)}
    assert found == {str(number) for number in range(letters)}


async def test_an_order_that_moves_is_left_alone(stage: Stage) -> None:
    stage.play.at = utc_now()
    order_id = stage.play.place()
    await stage.show()
    await stage.publish(*stage.play.events)  # It waits in inventory's queue.
    report = await reconcile(stage.deployment, grace_seconds=60.0)
    assert report.ok
    assert report.checked["orders_at_rest"] == 0
    report = await reconcile(stage.deployment, grace_seconds=0.0, settle_seconds=0.0)
    ((rule, subject, detail),) = map(astuple, report.violations)
    assert (rule, subject) == ("not_terminal", order_id)
    assert "inventory has not dealt with order.placed" in detail


async def test_a_trimmed_history_is_said_to_be_and_checked_as_far_as_it_goes(
    stage: Stage,
) -> None:
    topology = topology_of(choreography())
    (whole,) = (queue for queue in topology.queues if queue.name == HISTORY_STREAM)
    limits = {"x-max-length-bytes": 100_000, "x-stream-max-segment-size-bytes": 20_000}
    short = Queue(whole.name, {**whole.arguments, **limits})
    await stage.channel.queue_delete(whole.name)
    others = [queue for queue in topology.queues if queue is not whole]
    await apply(replace(topology, queues=[short, *others]), stage.channel)
    play = stage.play
    play.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=4), sku="tea", quantity=9, unit_price_cents=250, currency="EUR"
        ),
    )
    for _ in range(150):
        play.place()
        play.deliver()
    play.at += timedelta(minutes=1)
    await stage.show()
    for event in play.events[-100:]:
        await stage.publish(event)  # One by one: retention works on whole chunks.
    await stage.purge()
    report = await stage.reconcile()
    assert report.violations == ()
    assert report.checked["history_first_offset"] > 0
    assert report.checked["subjects_trimmed"] > 0
    # What is left of the history is still checked.
    event = next(event for event in reversed(play.events) if event.type == "stock.rejected")
    stage.execute("order", "DELETE FROM inbox WHERE message_id LIKE :id || '%'", id=event.id)
    assert await stage.broken_rules() == {("lost", f"order/{event.id}")}


async def test_what_was_in_a_stream_before_the_one_there_is_is_not_missed(
    stage: Stage, orders: dict[str, str], tmp_path: Path
) -> None:
    """The stream was deleted, or its broker lost. The history service has noticed."""
    await stage.channel.queue_delete(HISTORY_STREAM)
    await apply(topology_of(choreography()), stage.channel)
    order = stage.play.place()
    stage.play.deliver()
    for name, tables in TABLES.items():
        (tmp_path / f"{name}.db").unlink()
        stage._write(name, tables)
    charge = stage.play.charges[-1]
    gateway = SandboxGateway(stage.deployment.outside_urls["provider"])
    await gateway.charge(
        order, customer=charge.customer, currency=charge.currency, amount_cents=charge.amount_cents
    )
    await gateway.close()
    await stage.publish(*stage.play.about(order))
    await stage.purge()
    assert ("unpublished", orders["confirmed"]) in await stage.broken_rules()

    url = f"sqlite:///{tmp_path / 'history.db'}"
    stage.deployment.database_urls["history"] = url
    database = await open_database(url, HISTORY)
    place = {"stream": HISTORY_STREAM, "offset": 0, "key": "k", "stream_number": 2}
    await database.transaction(lambda c: c.execute(store.places.insert().values(place)))
    await database.close()
    report = await stage.reconcile()
    assert report.violations == ()
    # What is in the new one is still checked.
    stage.execute("order", "UPDATE orders SET sequence = 9 WHERE order_id = :id", id=order)
    assert await stage.broken_rules() == {("unpublished", order)}


@pytest.mark.long
async def test_a_system_that_never_rests_does_not_hold_it_up(
    stage: Stage, orders: dict[str, str]
) -> None:
    event = event_about(stage, orders["confirmed"], "payment.charged")

    async def keep_publishing() -> None:
        while True:
            await stage.publish(event)

    publishing = asyncio.create_task(keep_publishing())
    try:
        report = await asyncio.wait_for(stage.reconcile(), 30)
    finally:
        publishing.cancel()
    assert report.ok
    assert report.checked["events"] > len(stage.play.events)


async def test_what_cannot_be_read_is_named(stage: Stage) -> None:
    with pytest.raises(ReconcileError, match=r"the database of \w+: there is no database .*\.db"):
        await stage.reconcile()
    await stage.show()
    await stage.channel.queue_delete(HISTORY_STREAM)
    with pytest.raises(ReconcileError, match=r"no stream saga\.history"):
        await stage.reconcile()
