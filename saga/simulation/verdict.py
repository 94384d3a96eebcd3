"""Whether a run ended as it must: what must always hold, and what was known beforehand."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from datetime import timedelta
from functools import lru_cache, partial
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.dlq.letters import event_id_of
from saga.load.plan import NO_END
from saga.message import Event
from saga.reconcile import history_for, judge, view_of
from saga.reconcile.broker import letter_of
from saga.reconcile.databases import Books, read_book, strike_out
from saga.reconcile.facts import Backlog, MessageFates
from saga.retry import RUNGS_MS
from saga.runtime.kernel.kept import position_of
from saga.runtime.messaging.dead_letters import key_of
from saga.runtime.messaging.topology import (
    HISTORY_STREAM,
    dead_letter_queue,
    queues_of,
    undivided,
    wait_queue,
)
from saga.simulation import dues
from saga.simulation.broker import EPOCH
from saga.simulation.doors import pieces_of
from saga.simulation.network import delivered
from saga.simulation.rules import violation
from saga.simulation.server import KEEP_MINUTES
from saga.simulation.world import World
from saga.view import View, Violation

REMOVED_WITHIN_SECONDS = 30.0
"""How long after its time, after the storm, and after the clock has jumped, what was kept may
still be there."""


def violations(world: World) -> tuple[list[Violation], frozenset[str]]:
    """Everything that is wrong with how a run has ended; and what has happened in it, as
    `coverage` names it."""
    world.clients.look()
    view, deliveries = _seen(world)
    types = {mark.type for about in view.told.subjects() for mark in view.told.about(about)}
    heard = {intent.__name__ for outside in world.outsides for intent in outside.heard}
    return [
        *_unrest(world),
        *judge(world.scene.rules, view, deliveries),
        *wrong_endings(
            view,
            [event for event in world.choreography.events if event.role.terminal],
            _planned(world, view),
            world.clients.told,
            _ends_brought_forward(world),
        ),
        *_wrong_timers(world),
        *_kept_too_long(world),
        *_at_the_doors(world),
        *(violation("impure", "", detail) for detail in world.scene.sample.impure),
    ], frozenset(types | heard)


def _planned(world: World, view: View) -> Mapping[str, Set[str]]:
    """The outcomes that the sagas of the load may have, but for those that cannot have begun."""
    if world.doors is None:
        return world.plan.ends
    return {
        subject: endings
        for subject, endings in world.plan.ends.items()
        if subject not in world.doors.turned_away or view.told.about(subject)
    }


def _unrest(world: World) -> Iterator[Violation]:
    """What still goes on, or is stuck."""
    if not world.at_rest and not any(each.rule == "no_progress" for each in world.troubles):
        loads = {queue: world.broker.load_of(queue) for queue in world.queues()}
        left = ", ".join(f"{load} in {queue}" for queue, load in loads.items() if load)
        busy = ", ".join(s.name for s in world.servers if not (s.kernel and s.kernel.idle))
        waiting = sum(store.unpublished() for store in world.stores.values())
        yield violation(
            "never_at_rest",
            "",
            f"at {world.loop.time():.0f} s, messages left: {left or 'none'}; busy: "
            f"{busy or 'no service'}; events in outboxes: {waiting}",
        )


def wrong_endings(
    view: View,
    ends: Sequence[type[Event]],
    planned: Mapping[str, Set[str]],
    told: Mapping[str, str],
    brought_forward: Mapping[str, Set[str]],
) -> Iterator[Violation]:
    """Sagas that are not known, or did not end as they had to.

    `ends` end a saga. Keyed by subject: `planned` are the outcomes it may have, none if it must not
    end; `told` is the one that a client was told of, and `brought_forward` are the types of the
    events that may end it as well, since an operator had done early what was due about it.
    """
    outcomes: defaultdict[str, set[str]] = defaultdict(set)
    early: defaultdict[str, set[str]] = defaultdict(set)
    for event in view.events(*ends):
        outcomes[event.subject].add(event.data.outcome)
        if event.type in brought_forward.get(event.subject, ()):
            early[event.subject].add(event.data.outcome)
    for subject, endings in planned.items():
        found = outcomes[subject]
        if not view.told.about(subject):
            yield violation("saga_lost", subject, "it was begun, and is not known")
        elif not found and endings:
            yield violation("wrong_ending", subject, "it has not ended")
        elif not found <= {*map(str, endings)} | early[subject]:
            ended, had_to = (" or ".join(sorted(map(str, each))) for each in (found, endings))
            had_to = had_to or NO_END
            yield violation("wrong_ending", subject, f"it is {ended}; the load says {had_to}")
        elif (heard := told.get(subject)) is not None and heard not in found:
            ended = " and ".join(sorted(found))
            yield violation(
                "wrong_ending", subject, f"it is {ended}, and a client was told that it is {heard}"
            )


def _ends_brought_forward(world: World) -> Mapping[str, Set[str]]:
    """Keyed by subject: the types of the events that may have ended it since what was due about it
    was done early. What was only tried is not in the audit record."""
    found: defaultdict[str, set[str]] = defaultdict(set)
    for name, tables in world.scene.tables.items():
        if (audit := tables.due_audit) is not None:
            for subject, command in world.stores[name].read(partial(_audited, audit)):
                found[subject] |= world.scene.ends_of_dues.get(command, frozenset())
    if world.clients.forgetting is not None:
        for subject, command_type in world.clients.forgetting.files.ended.items():
            found[subject] |= world.scene.ends_of(command_type)
    return found


def _audited(audit: sa.Table, connection: Connection) -> Sequence[Any]:
    return connection.execute(_all_in(audit)).all()


@lru_cache(maxsize=64)
def _all_in(audit: sa.Table) -> sa.Select[Any]:
    return sa.select(audit.c.key, audit.c.command)


def _kept_too_long(world: World) -> Iterator[Violation]:
    """What should have been removed by now. A service looks after it at times, if it is there."""
    if world.loop.time() < world.steady_since_seconds + REMOVED_WITHIN_SECONDS:
        return
    for server in world.servers:
        if server.limits.keep_minutes == KEEP_MINUTES:
            continue  # Longer than a run takes, unless its clock jumps.
        most = timedelta(minutes=server.limits.keep_minutes, seconds=REMOVED_WITHIN_SECONDS)
        before = server.clock() - most
        store = world.stores[server.service.participant.name]
        key = store.read(partial(_oldest_kept, server.service.tables.kept))
        if key is not None and position_of(key) < before.timestamp() * 1_000_000:
            yield violation(
                "kept_too_long", "", f"{server.name} keeps {key}, although it is before {before}"
            )


def _oldest_kept(kept: sa.Table, connection: Connection) -> str | None:
    found: str | None = connection.scalar(sa.select(sa.func.min(kept.c.key)))
    return found


def _at_the_doors(world: World) -> Iterator[Violation]:
    """What was let in, or let out, that should not have been."""
    if world.doors is not None:
        for rule, detail in world.doors.at_rest(_all_that_is_kept(world)):
            yield violation(rule, "", detail)


def _all_that_is_kept(world: World) -> Iterator[tuple[str, bytes]]:
    """Every piece of every place where anything is kept, each with its place."""
    for name, store in world.stores.items():
        for table, rows in store.rows():
            for piece in pieces_of(rows):
                yield f"{table} of {name}", piece
    letters = {dead_letter_queue(p.name) for p in world.choreography.participants}
    for queue in world.broker.queues:
        place = f"dead letters in {queue}" if queue in letters else queue
        for message in world.broker.messages_in(queue):
            yield place, message.raw + b"\t" + message.body
    for outside in world.outsides:
        for line in outside.books if isinstance(outside.books, Iterable) else (outside.books,):
            yield f"the books of {outside.name}", repr(line).encode()


def _wrong_timers(world: World) -> Iterator[Violation]:
    calm_at = EPOCH + timedelta(seconds=world.weather.storm_seconds)
    for participant in world.choreography.participants:
        name = participant.name
        yield from dues.violations(
            participant, world.scene.tables[name], world.stores[name], world.scene.recorded, calm_at
        )


def _seen(world: World) -> tuple[View, MessageFates]:
    saga, graph = world.scene.saga, world.choreography
    ends = {event.type for event in graph.events if event.role.terminal}
    history = history_for(saga, ends, world.scene.recorded)
    for message in world.broker.messages_in(HISTORY_STREAM):
        properties = message.properties
        history.take(message.routing_key, properties.message_id, properties.timestamp, message.body)
    books = Books()
    undone = {}
    for participant in graph.participants:
        name, tables = participant.name, world.scene.tables[participant.name]
        undone[name] = dict(history.owed[name])
        store = world.stores[name]
        store.read(partial(read_book, participant, tables, books))
        store.read(partial(strike_out, undone[name], tables.inbox))
    for body in books.outbox:
        history.take_unpublished(body)
    owners = {queue: p.name for p in graph.participants for queue in queues_of(p)}
    waiting = defaultdict(list)
    for rung in RUNGS_MS:
        for message in world.broker.messages_in(wait_queue(rung)):
            waiting[owners[undivided(message.routing_key)]].append(letter_of(delivered(message)))
    deliveries = MessageFates(
        started_at=EPOCH + timedelta(days=365),
        grace_seconds=0.0,
        history=history,
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
                    for queue in world.broker.queues_of(p)
                    for message in world.broker.messages_in(queue)
                    for key in (
                        key_of(message.properties.message_id, message.body),
                        event_id_of(message.body) or "",
                    )
                }
            )
            for p in graph.participants
        },
        unpublished=len(books.outbox),
    )
    outsides = zip(saga.outside, world.outsides, strict=True)
    return view_of(
        books, {said.name: each.books for said, each in outsides}, deliveries
    ), deliveries
