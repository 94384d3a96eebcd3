"""Questions about orders: what happened to one, who owes what, and how it was at some time."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from common.choreography import Choreography, State
from common.envelope import Envelope, rfc3339
from common.kernel.database import read_database
from common.kernel.tables import utc_now
from history_service import queries
from history_service.domain import Payment, Status, Stock
from history_service.store import Fact, Gap, order_views
from history_service.timeline import Step
from order_service.store import orders
from saga.deployment import Deployment
from saga.history import HistoryError, InputError
from saga.history.archive import Archive
from saga.history.debts import Coming, Debt, coming_of, debts_of
from saga.history.letters import letters_in, lives_of
from saga.history.sequence import Diagram, sequence_of
from saga.history.story import Story, fold_of, tell
from saga.history.whereabouts import Whereabouts, look

ORDERS_AT_ONCE: Final = 500

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Trace:
    """What is known of one order by now."""

    story: Story
    diagram: Diagram
    debts: Sequence[Debt]
    coming: Sequence[Coming]
    """What will happen when its time comes."""
    whereabouts: Whereabouts | None
    """None if nothing is owed, and so nobody was asked."""
    gaps: Sequence[Gap]
    now: datetime

    @property
    def late(self) -> bool:
        return any(debt.late(self.now) for debt in self.debts)

    @property
    def complete(self) -> bool:
        """Whether nothing that must have been is missing."""
        return not self.story.holes

    def to_json(self) -> dict[str, Any]:
        return {
            "order_id": self.story.order_id,
            "ok": not self.late and self.complete,
            "order": as_json(self.story.view),
            "participants": list(self.diagram.participants),
            "rows": [
                {
                    "kind": row.kind,
                    "participant": row.participant,
                    "label": row.label,
                    "to": list(row.to),
                    "after_ms": row.after.total_seconds() * 1_000,
                    "note": row.note,
                    "path": row.path,
                    "event_id": row.id or None,
                }
                for row in self.diagram.rows
            ],
            "events": [_step_as_json(step) for step in self.story.steps],
            "owed": [debt_as_json(debt, self.whereabouts, self.now) for debt in self.debts],
            "due": [_coming_as_json(coming) for coming in self.coming],
            "holes": [str(hole) for hole in self.story.holes],
            "trimmed_offsets": [[gap.first, gap.last] for gap in self.gaps],
        }


@dataclass(frozen=True)
class Stuck:
    """An order of which something is overdue."""

    story: Story
    debts: Sequence[Debt]
    """Those that are late."""


@dataclass(frozen=True)
class Past:
    """An order as it was: its view, and by participant the states about it."""

    order_id: str
    view: State
    states: Mapping[str, Sequence[State]]
    events: int
    """How many events about it there were by then."""


async def trace(
    deployment: Deployment, graph: Choreography, order_id: str, *, now: datetime | None = None
) -> Trace:
    """Find out all about an order. Changes nothing.

    Raises `InputError` for an order that nobody knows, `HistoryError`, `DatabaseError`,
    `BrokerError` and `DlqError`.
    """
    archive = Archive(deployment)
    facts = await _facts_about(deployment, archive, order_id)
    now = now or utc_now()
    story = tell(graph, order_id, facts)
    debts, coming = debts_of(graph, story, now), coming_of(graph, story, now)
    lives = await asyncio.to_thread(lives_of, deployment.dead_letters_url, order_id)
    whereabouts = None
    if debts:
        whereabouts = await look(deployment, graph, [life.letter for life in lives])
    diagram = sequence_of(
        graph,
        story,
        lives=lives,
        dead=whereabouts.dead if whereabouts else (),
        debts=debts,
        coming=coming,
        whereabouts=whereabouts,
        now=now,
    )
    gaps = await archive.read(queries.known_gaps)
    return Trace(story, diagram, debts, coming, whereabouts, gaps, now)


async def stuck(
    deployment: Deployment,
    graph: Choreography,
    *,
    now: datetime | None = None,
    progress: Progress = lambda _: None,
) -> tuple[list[Stuck], Whereabouts]:
    """Every order of which somebody owes something for longer than it may take, the oldest first.

    `progress` is told of each order that was looked at. Raises what `trace` raises.
    """
    archive = Archive(deployment)
    candidates = await archive.read(unsettled)
    found: list[Stuck] = []
    for start in range(0, len(candidates), ORDERS_AT_ONCE):
        part = candidates[start : start + ORDERS_AT_ONCE]
        facts = await archive.read(partial(_facts_by, part))
        moment = now or utc_now()
        for order_id in part:
            story = tell(graph, order_id, facts[order_id])
            late = [debt for debt in debts_of(graph, story, moment) if debt.late(moment)]
            if late:
                found.append(Stuck(story, late))
            progress(1)
    if not found:
        return [], Whereabouts()
    letters = await asyncio.to_thread(letters_in, deployment.dead_letters_url)
    found.sort(key=lambda one: one.debts[0].since)
    return found, await look(deployment, graph, letters)


def unsettled(connection: Connection) -> list[str]:
    """The orders of which something may be owed: not ended; or cancelled, and not all undone."""
    table = order_views.c
    undone = table.stock.in_((Stock.REJECTED, Stock.RELEASED)) & table.payment.in_(
        (Payment.DECLINED, Payment.VOIDED, Payment.REFUNDED)
    )
    query = sa.select(table.order_id).where(
        table.status.in_((Status.UNKNOWN, Status.PENDING))
        | ((table.status == Status.CANCELLED) & ~undone)
    )
    return list(connection.scalars(query.order_by(table.first_event_at)))


async def past(
    deployment: Deployment,
    graph: Choreography,
    order_id: str,
    *,
    at: datetime | None = None,
    before: str | None = None,
) -> Past:
    """An order as it was `at` some time, or `before` one of its events; by default as it is.

    States are folded from events by the participants' own `evolve`. Raises `InputError` for an
    order, a time or an event that makes no sense, `HistoryError` and `DatabaseError`.
    """
    facts = await _facts_about(deployment, Archive(deployment), order_id)
    whole = tell(graph, order_id, facts)
    events = list(whole.events.values())
    if before is not None:
        events = _before(whole, before)
    if at is not None:
        if events and at < min(event.time for event in events):
            raise InputError(queries.nothing_yet(order_id, facts, at))
        events = [event for event in events if event.time <= at]
    keys = {event.key for event in events}
    story = tell(graph, order_id, [fact for fact in facts if fact.attributes.key in keys])
    states = {
        participant.name: [
            state
            for (kind, key), state in fold_of(participant, events).states.items()
            if key == order_id
        ]
        for participant in graph.participants
    }
    return Past(order_id, story.view, states, len(events))


def _before(story: Story, event_id: str) -> list[Envelope[Any]]:
    """The events that had happened when this one came about: earlier ones, its publisher's lower
    numbers, and its causes, whatever the clocks say; but nothing that it led to."""
    by_id: dict[str, Envelope[Any]] = {}
    for other in story.events.values():
        by_id.setdefault(other.id, other)
    event = by_id.get(event_id)
    if event is None:
        raise InputError(
            f"--before {event_id}: no such event about order {story.order_id}; "
            f"`saga trace {story.order_id} --format json` names them"
        )
    causes: set[str] = set()
    cause = event.causationid
    while cause is not None and cause in by_id and cause not in causes:
        causes.add(cause)
        cause = by_id[cause].causationid
    effects = {event_id}
    for step in story.steps:  # each after its cause
        if step.attributes.causationid in effects:
            effects.add(step.attributes.id)

    def had_happened(other: Envelope[Any]) -> bool:
        if other.id in effects:
            return False
        if other.source == event.source:
            return (other.sequence or 0) < (event.sequence or 0)
        return other.id in causes or other.time < event.time

    return [other for other in story.events.values() if had_happened(other)]


async def _facts_about(deployment: Deployment, archive: Archive, order_id: str) -> list[Fact]:
    facts = await archive.read(lambda connection: queries.facts_about(connection, [order_id]))
    if facts:
        return facts
    url = deployment.database_urls.get("order")
    query = sa.select(orders.c.status).where(orders.c.order_id == order_id)
    if url and await asyncio.to_thread(read_database, url, lambda c: c.scalar(query)):
        behind = await archive.behind()
        raise HistoryError(
            f"the order service knows order {order_id}, but no event of it is in the history"
            + (f", which is {behind} messages behind; try again" if behind else "")
        )
    gaps = await archive.read(queries.known_gaps)
    trimmed = ", ".join(map(str, gaps))
    raise InputError(
        f"nobody knows an order {order_id}"
        + (f"; but the history lacks the stream's offsets {trimmed}" if gaps else "")
    )


def _facts_by(order_ids: Sequence[str], connection: Connection) -> dict[str, list[Fact]]:
    by_order: defaultdict[str, list[Fact]] = defaultdict(list)
    for fact in queries.facts_about(connection, order_ids):
        by_order[fact.attributes.subject].append(fact)
    return by_order


# --- JSON -------------------------------------------------------------------------------------


def as_json(state: State) -> dict[str, Any]:
    """A state as a JSON object."""
    return {field.name: _plain(getattr(state, field.name)) for field in fields(state)}


def debt_as_json(debt: Debt, whereabouts: Whereabouts | None, now: datetime) -> dict[str, Any]:
    """A debt as a JSON object."""
    where = None
    if whereabouts is not None and debt.event is not None:
        where = whereabouts.of(debt.participant, debt.event.id)
    return {
        "participant": debt.participant,
        "answers": list(debt.answers),
        "to": debt.event and {"id": debt.event.id, "type": debt.event.type},
        "due": debt.firing and debt.firing.due.command.type,
        "since": rfc3339(debt.since),
        "by": rfc3339(debt.by),
        "late": debt.late(now),
        "where": where and {"place": where.place, "detail": where.detail},
    }


def _coming_as_json(coming: Coming) -> dict[str, Any]:
    return {
        "participant": coming.participant,
        "kind": coming.firing.kind.__name__,
        "command": coming.firing.due.command.type,
        "answers": list(coming.answers),
        "at": rfc3339(coming.at),
    }


def _step_as_json(step: Step) -> dict[str, Any]:
    attributes = step.attributes
    return {
        "id": attributes.id,
        "type": attributes.type,
        "source": attributes.source,
        "time": rfc3339(attributes.time),
        "causation_id": attributes.causationid,
        "sequence": attributes.sequence,
        "attempt": attributes.attempt or 1,
        "waited_ms": step.waited and step.waited.total_seconds() * 1_000,
        "worked_ms": step.worked and step.worked.total_seconds() * 1_000,
        "stream_offset": step.fact.stream_offset,
    }


def _plain(value: Any) -> Any:
    match value:
        case datetime():
            return rfc3339(value)
        case StrEnum() | str() | int() | float() | None:
            return value
        case tuple() | list():
            return [_plain(item) for item in value]
        case _:
            return value.model_dump(mode="json")
