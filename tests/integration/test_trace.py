"""Asking about orders: a broker holds what waits, a store what is dead, and a file the past."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from uuid import UUID, uuid4

import aio_pika
import pytest
import sqlalchemy as sa
from aio_pika.abc import AbstractChannel
from sqlalchemy.engine import Connection

from inventory_service.domain import AddStock, Reservation, ReservationStatus
from order_saga.archive.view import ArchivedOrder, Status
from order_service.domain import CancelOrder, Order, OrderStatus
from payment_service.domain import Payment, PaymentStatus
from saga.archive import store
from saga.deployment import Deployment
from saga.discovery import tables_of
from saga.dlq.desk import open_desk
from saga.dlq.selection import Selection
from saga.errors import InputError
from saga.history import HistoryError
from saga.history import trace as trace_module
from saga.history.sequence import Kind
from saga.history.trace import Trace, past, stuck, trace
from saga.history.whereabouts import Place
from saga.runtime.kernel.opening import open_database
from saga.runtime.kernel.rows import writing
from saga.runtime.kernel.tables import utc_now
from saga.runtime.messaging.topology import (
    DEAD_EXCHANGE,
    EVENTS_EXCHANGE,
    apply,
    topology_of,
    wait_queue,
)
from tests.integration.test_history_queries import kept_by_another
from tests.messages import message_of
from tests.order_play import SAGA, Play
from tests.play import Delivery
from tests.stores import HISTORY, PROJECTION

GRAPH = SAGA


@dataclass
class Scene:
    """A history that holds what was played, and a broker for what is on its way."""

    deployment: Deployment
    channel: AbstractChannel
    play: Play

    async def record(self) -> None:
        """Keep in the history what was played; what is known already is not kept twice."""
        database = await open_database(self.deployment.database_urls["history"], HISTORY)
        facts = [store.Fact(event, event.to_bytes()) for event in self.play.events]
        await database.transaction(lambda c: store.append(c, facts, self.play.at, PROJECTION))
        await database.close()

    async def put(self, delivery: Delivery, exchange: str, key: str, **headers: str | int) -> None:
        message = message_of(delivery.event.to_bytes())
        message.headers.update(
            {f"x-saga-{name.replace('_', '-')}": value for name, value in headers.items()}
        )
        target = (
            await self.channel.get_exchange(exchange, ensure=False)
            if exchange
            else self.channel.default_exchange
        )
        await target.publish(message, key)

    async def trace(self, order: str) -> Trace:
        return await trace(self.deployment, GRAPH, order)

    async def where(self, order: str) -> tuple[Place, str]:
        found = await self.trace(order)
        (debt,) = found.debts
        assert found.whereabouts is not None
        assert debt.event is not None
        where = found.whereabouts.of(debt.participant, debt.event.id)
        (owed,) = (row for row in found.diagram.rows if row.kind is Kind.OWED)
        assert where.detail in owed.note
        return where.place, where.detail


@pytest.fixture
async def scene(amqp_url: str, tmp_path: Path) -> AsyncIterator[Scene]:
    deployment = Deployment(
        amqp_url=amqp_url,
        http_urls={},
        database_urls={"history": f"sqlite:///{tmp_path / 'history.db'}"},
        outside_urls={"provider": ""},
        dead_letters_url=f"sqlite:///{tmp_path / 'dead_letters.db'}",
    )
    connection = await aio_pika.connect(amqp_url)
    play = Play(at=utc_now(), tick=timedelta(milliseconds=5), graph=GRAPH)
    play.give(
        "inventory",
        AddStock(
            delivery_id=UUID(int=1), sku="tea", quantity=99, unit_price_cents=250, currency="EUR"
        ),
    )
    async with connection:
        channel = await connection.channel()
        await apply(topology_of(GRAPH), channel)
        yield Scene(deployment, channel, play)


async def unpaid(scene: Scene) -> tuple[str, Delivery]:
    """An order whose charge failed, and what payment had in its hands then."""
    scene.play.provider_down = True
    order = scene.play.place()
    scene.play.deliver()
    await scene.record()
    return order, scene.play.failed.pop()


# --- where the event is that a participant owes an answer to --------------------------------------


async def test_an_event_that_waits_for_its_next_try_is_found(scene: Scene) -> None:
    order, delivery = await unpaid(scene)
    await scene.put(delivery, wait_queue(3_600_000), "payment.normal", attempts=2)

    assert await scene.where(order) == (Place.WAITING, "waiting for try 3")


async def test_an_event_in_a_queue_that_nobody_reads_is_found(scene: Scene) -> None:
    order, delivery = await unpaid(scene)
    await scene.put(delivery, "", "payment.normal")

    place, detail = await scene.where(order)
    assert place is Place.QUEUED
    assert detail == "waiting in the queues of payment, which has no consumer"


async def test_an_event_whose_queues_are_read_is_in_hand(scene: Scene) -> None:
    order, _ = await unpaid(scene)
    queue = await scene.channel.get_queue("payment.normal", ensure=False)

    async def read(_: object) -> None: ...

    await queue.consume(read)

    place, detail = await scene.where(order)
    assert place is Place.IN_HAND
    assert "in the hands of payment" in detail


async def test_a_dead_event_is_found_in_its_queue_and_then_in_the_store(scene: Scene) -> None:
    order, delivery = await unpaid(scene)
    died = (scene.play.at + timedelta(seconds=7)).isoformat()
    failed: dict[str, str | int] = {"reason": "failed", "error_type": "Away", "error": "no answer"}
    await scene.put(delivery, DEAD_EXCHANGE, "payment", last_failed_at=died, attempts=4, **failed)

    place, detail = await scene.where(order)
    assert (place, detail) == (Place.DEAD, "a dead letter in payment.dlq: Away: no answer")
    dead = (await scene.trace(order)).diagram.rows[2]
    assert (dead.kind, dead.label) == (
        Kind.DEAD,
        "stock.reserved is dead letter after 4 tries",
    )

    async with open_desk(scene.deployment, GRAPH) as desk:
        place, detail = await scene.where(order)
        assert (place, detail) == (Place.DEAD, "dead letter 1: Away: no answer")
        desk.store.discard(Selection(numbers=(1,)), "the customer has called")
    place, detail = await scene.where(order)
    assert (place, detail) == (Place.SETTLED, "dead letter 1, discarded by an operator")
    rows = (await scene.trace(order)).diagram.rows
    assert [(row.kind, row.label) for row in rows[2:4]] == [
        (Kind.DEAD, "stock.reserved is dead letter 1 after 4 tries"),
        (Kind.SETTLED, "dead letter 1 discarded"),
    ]


async def test_an_event_that_is_nowhere_is_said_to_be(scene: Scene) -> None:
    order, _ = await unpaid(scene)

    place, detail = await scene.where(order)
    assert place is Place.NOWHERE
    assert "saga reconcile" in detail


async def test_asking_leaves_everything_where_it_is(scene: Scene) -> None:
    order, delivery = await unpaid(scene)
    await scene.put(delivery, wait_queue(3_600_000), "payment.normal", attempts=2)
    first = await scene.where(order)

    assert await scene.where(order) == first


# --- stuck ---------------------------------------------------------------------------------------


async def test_stuck_lists_who_owes_what_for_too_long_and_nobody_else(scene: Scene) -> None:
    play = scene.play
    play.place()
    play.deliver()  # confirmed
    rejected = play.place(quantity=1_000)
    play.deliver()
    cancelled = play.place()
    play.down = {"order"}
    play.deliver()
    play.give("order", CancelOrder(order_id=UUID(cancelled)))
    play.down = {"inventory"}
    play.deliver()
    play.waiting.clear()  # inventory never heard of the cancellation
    play.down = set()
    order, delivery = await unpaid(scene)
    await scene.put(delivery, wait_queue(3_600_000), "payment.normal", attempts=2)

    soon = await stuck(scene.deployment, GRAPH, now=play.at + timedelta(seconds=5))
    assert (soon.subjects, soon.ok) == ([], True)

    later = play.at + timedelta(hours=1)
    found = await stuck(scene.deployment, GRAPH, now=later)
    owed = [(one.story.subject, [d.participant for d in one.debts]) for one in found.subjects]
    assert rejected not in dict(owed)
    assert owed == [(cancelled, ["inventory"]), (order, ["payment", "order"])]
    (debt, end) = found.subjects[1].debts
    assert debt.event is not None
    assert found.whereabouts.of("payment", debt.event.id).place is Place.WAITING
    assert (end.event, end.answers) == (None, ("order.cancelled",))


async def test_stuck_says_how_far_the_history_is_behind_rather_than_that_all_is_well(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_module, "CATCH_UP_SECONDS", 0.0)
    await scene.record()
    scene.play.place()
    placed = scene.play.events[-1]
    await scene.put(Delivery("inventory", placed), EVENTS_EXCHANGE, "order.placed.normal")

    found = await stuck(scene.deployment, GRAPH, now=scene.play.at)
    assert (list(found.subjects), found.behind, found.ok) == ([], 1, False)


async def test_an_overdue_row_of_which_the_history_does_not_tell_is_named(
    scene: Scene, tmp_path: Path
) -> None:
    await scene.record()
    url = f"sqlite:///{tmp_path / 'order.db'}"
    database = await open_database(url, tables_of("order"))
    (table,) = tables_of("order").with_dues
    at = scene.play.at - timedelta(hours=1)
    lost, unreadable = str(UUID(int=1)), str(UUID(int=2))
    overdue = [Order(key, status=OrderStatus.PENDING, deadline=at) for key in (lost, unreadable)]

    def save(connection: Connection) -> None:
        with writing(connection) as writes:
            table.save(writes, [(order, 0) for order in overdue])
        spoilt = sa.update(table.table).where(table.table.c.order_id == unreadable)
        connection.execute(spoilt.values(lines=sa.text("'{'")))

    await database.transaction(save)
    await database.close()
    urls = scene.deployment.database_urls | {"order": url}
    deployment = scene.deployment.model_copy(update={"database_urls": urls})

    found = await stuck(deployment, GRAPH, now=scene.play.at)
    assert [(row.participant, row.kind, row.subject, row.at) for row in found.unexplained] == [
        ("order", "Order", lost, at),
        ("order", "Order", unreadable, at),
    ]
    assert not found.ok


# --- the past ------------------------------------------------------------------------------------


async def test_an_order_and_its_participants_are_shown_as_they_were(scene: Scene) -> None:
    order = scene.play.place()
    scene.play.deliver()
    await scene.record()
    placed, reserved, charged, confirmed = scene.play.about(order)

    async def told(**when: object) -> tuple[object, ...]:
        found = await past(scene.deployment, GRAPH, order, **when)  # type: ignore[arg-type]  # at or before
        assert isinstance(found.view, ArchivedOrder)
        kinds = {type(state): state for states in found.states.values() for state in states}
        return found.view.status, *(
            getattr(kinds.get(kind), "status", None) for kind in (Order, Reservation, Payment)
        )

    pending, held, paid = OrderStatus.PENDING, ReservationStatus.HELD, PaymentStatus.CHARGED
    assert await told(at=placed.time) == (Status.PENDING, pending, None, None)
    assert await told(at=reserved.time) == (Status.PENDING, pending, held, None)
    assert await told(before=confirmed.id) == (Status.PENDING, pending, held, paid)
    assert await told(before=charged.id) == (Status.PENDING, pending, held, None)
    assert await told(before=placed.id) == (Status.UNKNOWN, None, None, None)
    assert await told() == (Status.CONFIRMED, OrderStatus.CONFIRMED, held, paid)


async def test_before_an_event_means_without_what_it_led_to_whatever_the_clocks_say(
    scene: Scene,
) -> None:
    order = scene.play.place()
    scene.play.deliver()
    slow = timedelta(hours=1)
    scene.play.events = [
        event.model_copy(update={"time": event.time - slow}) if "order" in event.source else event
        for event in scene.play.events
    ]
    await scene.record()
    _, reserved, charged, confirmed = scene.play.about(order)

    assert (await past(scene.deployment, GRAPH, order, before=reserved.id)).events == 1
    assert (await past(scene.deployment, GRAPH, order, before=charged.id)).events == 2
    assert (await past(scene.deployment, GRAPH, order, before=confirmed.id)).events == 3


# --- bad questions -------------------------------------------------------------------------------


async def test_bad_questions_are_refused_with_a_reason(scene: Scene) -> None:
    order = scene.play.place()
    await scene.record()
    unknown = str(uuid4())
    with pytest.raises(InputError, match=f"no events about '{unknown}'"):
        await scene.trace(unknown)
    early = scene.play.events[0].time - timedelta(days=1)
    with pytest.raises(InputError, match="had no event by"):
        await past(scene.deployment, GRAPH, order, at=early)
    with pytest.raises(InputError, match="--before nothing: no such event about"):
        await past(scene.deployment, GRAPH, order, before="nothing")
    without = scene.deployment.model_copy(update={"database_urls": {}})
    with pytest.raises(HistoryError, match="no history service"):
        await trace(without, GRAPH, order)


async def test_where_the_head_was_trimmed_an_unknown_order_may_have_been_there(
    scene: Scene,
) -> None:
    await scene.record()
    database = await open_database(scene.deployment.database_urls["history"], HISTORY)
    gap = store.gaps.insert().values(first=0, last=4_711, noticed_at=scene.play.at)
    await database.transaction(lambda c: c.execute(gap))
    await database.close()
    with pytest.raises(InputError, match="the history lacks the stream's offsets 0 to 4711"):
        await scene.trace(str(uuid4()))
    order = scene.play.place()
    await scene.record()
    assert (await scene.trace(order)).gaps == [store.Gap(0, 4_711)]


async def test_what_another_program_kept_as_an_event_changes_no_answer(scene: Scene) -> None:
    order, _ = await unpaid(scene)
    now = utc_now() + timedelta(hours=1)

    async def answers() -> list[object]:
        found = await stuck(scene.deployment, GRAPH, now=now)
        return [
            (await trace(scene.deployment, GRAPH, order, now=now)).to_json(),
            [(one.story.subject, [d.participant for d in one.debts]) for one in found.subjects],
            await past(scene.deployment, GRAPH, order, at=now),
        ]

    before = await answers()
    database = await open_database(scene.deployment.database_urls["history"], HISTORY)
    await database.transaction(lambda c: kept_by_another(c, order))
    await database.close()

    assert await answers() == before
    (overdue,) = before[1:2]
    assert overdue
