"""Whether a run ended as it must: the rules of `saga reconcile`, and what was known beforehand."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from datetime import timedelta
from functools import partial

import sqlalchemy as sa

from common.events import CancellationReason
from common.messaging.dead_letters import key_of
from common.messaging.topology import HISTORY_STREAM, dead_letter_queue, queues_of, wait_queue
from common.retry import RUNGS_MS
from notification_service.domain import NotificationStatus
from notification_service.store import notifications
from order_service.domain import OrderStatus
from order_service.store import orders
from saga.dlq.letters import event_id_of
from saga.reconcile.broker import letter_of
from saga.reconcile.databases import Books, read_book, strike_out
from saga.reconcile.facts import Backlog, Facts
from saga.reconcile.history import History
from saga.reconcile.rules import Violation, judge
from saga.simulation import dues
from saga.simulation.broker import EPOCH
from saga.simulation.network import delivered
from saga.simulation.world import World

LATE_MAX_SECONDS = 40.0
"""How long after its deadline, or after the storm if that is later, an order may end: by then its
service may still be frozen, or wait for its database."""


def violations(world: World) -> list[Violation]:
    """Everything that is wrong with how a run has ended."""
    return [
        *_unrest(world),
        *judge(_facts(world)),
        *_wrong_endings(world),
        *_wrong_mails(world),
        *_wrong_timers(world),
    ]


def _unrest(world: World) -> Iterator[Violation]:
    """What still goes on, or is stuck."""
    if not world.at_rest:
        loads = {queue: world.broker.load_of(queue) for queue in world.queues()}
        left = ", ".join(f"{load} in {queue}" for queue, load in loads.items() if load)
        yield Violation("never_at_rest", "", f"messages left: {left or 'none'}")


def _wrong_endings(world: World) -> Iterator[Violation]:
    """Orders that are not known, or did not end as they had to."""
    query = sa.select(
        orders.c.order_id, orders.c.status, orders.c.reason, orders.c.deadline, orders.c.ended_at
    )
    calm_at = EPOCH + timedelta(seconds=world.weather.storm_seconds)
    found = {
        row.order_id: row for row in world.stores["order"].run(lambda c: c.execute(query).all())
    }
    for order in world.plan.orders:
        row = found.get(order.command.subject)
        if row is None:
            yield Violation("order_lost", order.key, "it was placed, and is not known")
            continue
        ending = row.reason or row.status
        endings = sorted(reason or OrderStatus.CONFIRMED for reason in order.endings)
        if row.order_id in world.people.brought_forward:
            endings.append(CancellationReason.DEADLINE_EXCEEDED)
        if ending not in endings:
            yield Violation(
                "wrong_ending", order.key, f"it is {ending}; it had to be {' or '.join(endings)}"
            )
        elif (
            row.order_id in world.people.cancelled and ending != CancellationReason.CUSTOMER_REQUEST
        ):
            yield Violation(
                "wrong_ending", order.key, f"it is {ending}, but its customer had cancelled it"
            )
        if row.ended_at is not None:
            late_seconds = (row.ended_at - max(row.deadline, calm_at)).total_seconds()
            if late_seconds > LATE_MAX_SECONDS:
                yield Violation(
                    "deadline_ignored",
                    order.key,
                    f"it ended {late_seconds:.0f} s after its deadline, or after the storm",
                )


def _wrong_mails(world: World) -> Iterator[Violation]:
    """Orders whose customers got no mail, or more than one, other than by somebody's leave."""
    query = sa.select(notifications.c.order_id, notifications.c.status)
    stored = world.stores["notification"].run(lambda c: c.execute(query).all())
    statuses = {row.order_id: row.status for row in stored}
    mails: Counter[str] = Counter()
    for message_id, count in world.mailer.taken.items():
        mails[message_id.partition("@")[0].rpartition(".")[2]] += count
    for order in world.plan.orders:
        order_id = order.command.subject
        status, count = statuses.get(order_id), mails[order_id]
        if count > 1:
            yield Violation("mailed_twice", order.key, f"{count} mails were taken")
        elif status is None or status in (NotificationStatus.NONE, NotificationStatus.WAITING):
            yield Violation("not_mailed", order.key, f"its notification is {status or 'not begun'}")
        elif status is NotificationStatus.SENT and not count:
            yield Violation("not_mailed", order.key, "it counts as sent, and no mail was taken")


def _wrong_timers(world: World) -> Iterator[Violation]:
    services = {server.service.participant.name: server.service for server in world.servers}
    for name, service in services.items():
        yield from dues.violations(service.participant, service.tables, world.stores[name])


def _facts(world: World) -> Facts:
    history = History(world.choreography)
    for message in world.broker.messages_in(HISTORY_STREAM):
        properties = message.properties
        history.take(message.routing_key, properties.message_id, properties.timestamp, message.body)
    books = Books()
    undone = {}
    tables_by_name = {s.service.participant.name: s.service.tables for s in world.servers}
    for name, tables in tables_by_name.items():
        undone[name] = dict(history.owed[name])
        store = world.stores[name]
        store.run(partial(read_book, name, tables, books))
        store.run(partial(strike_out, undone[name], tables.inbox))
    for body in books.outbox:
        history.take_unpublished(body)
    owners = {queue: p.name for p in world.choreography.participants for queue in queues_of(p)}
    waiting = defaultdict(list)
    for rung in RUNGS_MS:
        for message in world.broker.messages_in(wait_queue(rung)):
            waiting[owners[message.routing_key]].append(letter_of(delivered(message)))
    return Facts(
        started_at=EPOCH + timedelta(days=365),
        grace_seconds=0.0,
        history=history,
        orders=books.orders,
        payments=books.payments,
        held_orders=books.held_orders,
        held_units=books.held_units,
        stock=books.stock,
        provider=world.provider.ledger(),
        sequences=books.sequences,
        undone=undone,
        letters={
            name: [
                letter_of(delivered(message))
                for message in world.broker.messages_in(dead_letter_queue(name))
            ]
            for name in undone
        },
        waiting=waiting,
        backlogs={
            p.name: Backlog(
                waiting={
                    key
                    for queue in queues_of(p)
                    for message in world.broker.messages_in(queue)
                    for key in (
                        key_of(message.properties.message_id, message.body),
                        event_id_of(message.body) or "",
                    )
                }
            )
            for p in world.choreography.participants
        },
        unpublished=len(books.outbox),
    )
