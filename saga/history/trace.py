"""Questions about a saga's subjects: what happened to one, who owes what, and how it was."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from enum import StrEnum
from functools import partial
from typing import Any, Final
from uuid import UUID

from sqlalchemy.engine import Connection

from saga.archive import queries
from saga.archive.store import Fact, Gap
from saga.archive.subjects import Subject
from saga.archive.timeline import Hop, milliseconds
from saga.choreography import Choreography, Participant, State
from saga.deployment import Deployment
from saga.discovery import tables_in
from saga.due import OVERDUE_SECONDS
from saga.envelope import Envelope, rfc3339
from saga.errors import NotFound
from saga.history import HistoryError
from saga.history.archive import Archive
from saga.history.debts import Coming, Debt, coming_of, debts_of
from saga.history.letters import Life, letters_in, lives_of
from saga.history.sequence import Diagram, sequence_of
from saga.history.story import Story, fold_of, tell
from saga.history.whereabouts import MessageLocations, in_store, look
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.tables import utc_now
from saga.wording import counted

SUBJECTS_AT_ONCE: Final = 500
CATCH_UP_SECONDS: Final = 10.0
"""How long a history that is behind may take to come to the stream's end."""

Progress = Callable[[int], None]
Seen = Callable[[Sequence[Debt]], Awaitable[MessageLocations | None]]
"""What was seen at the broker since these were owed; None if it was not read."""


class UnknownSubject(NotFound):
    """No event is about that subject, and no participant has a state of it."""


@dataclass(frozen=True)
class Trace:
    """What is known of one subject by now."""

    story: Story
    diagram: Diagram
    debts: Sequence[Debt]
    coming: Sequence[Coming]
    """What will happen when its time comes."""
    whereabouts: MessageLocations | None
    """None if nothing is owed, or the broker was not read."""
    gaps: Sequence[Gap]
    now: datetime
    facts: Sequence[Fact] = ()
    lives: Sequence[Life] = ()

    @property
    def late(self) -> bool:
        return any(debt.late(self.now) for debt in self.debts)

    @property
    def complete(self) -> bool:
        """Whether nothing that must have been is missing."""
        return not self.story.holes

    def to_json(self) -> dict[str, Any]:
        return {
            "subject": self.story.subject,
            "ok": not self.late and self.complete,
            "summary": as_json(self.story.summary),
            "view": None if self.story.view is None else as_json(self.story.view),
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
    """A subject about which something is overdue."""

    story: Story
    debts: Sequence[Debt]
    """Those that are late."""


@dataclass(frozen=True, slots=True)
class OverdueRow:
    """A participant's row that says that something was due `at` a time about a state of this
    `kind`."""

    participant: str
    kind: str
    subject: str
    at: datetime

    def to_json(self) -> dict[str, Any]:
        return {
            "participant": self.participant,
            "kind": self.kind,
            "subject": self.subject,
            "at": rfc3339(self.at),
        }


@dataclass(frozen=True)
class Overdue:
    """All that is overdue, and what may hide more of it."""

    subjects: Sequence[Stuck]
    """The oldest debt first."""
    unexplained: Sequence[OverdueRow]
    """Overdue rows of which the history does not tell: it lacks their events, they cannot be
    read, or they say another time than their states."""
    whereabouts: MessageLocations
    behind: int
    """How many messages of the stream the history lacks: of what they are about, nothing is known.
    """

    @property
    def ok(self) -> bool:
        return not self.subjects and not self.unexplained and not self.behind


@dataclass(frozen=True)
class Past:
    """A subject as it was: what is told of it, and by participant the states about it."""

    subject: str
    summary: Subject
    view: State | None
    """What its saga's own view told; None where the saga declares none."""
    states: Mapping[str, Sequence[State]]
    events: int
    """How many events about it there were by then."""
    facts: Sequence[Fact] = ()
    """All events about it, of whatever time."""


async def trace(
    deployment: Deployment,
    graph: Choreography,
    subject: str,
    *,
    now: datetime | None = None,
    seen: Seen | None = None,
) -> Trace:
    """Find out all about a subject. Changes nothing. Looks through the broker's queues, unless it
    is told what was `seen` there.

    Raises `UnknownSubject` for an unknown one, `HistoryError`, `DatabaseError`,
    `BrokerError` and `DlqError`.
    """
    archive = Archive(deployment)
    subject, facts = await _facts_about(deployment, archive, graph, subject)
    now = now or utc_now()
    story = tell(graph, subject, facts)
    debts, coming = debts_of(graph, story, now), coming_of(graph, story, now)
    lives = await asyncio.to_thread(lives_of, deployment.dead_letters_url, subject)
    whereabouts = None
    letters = [life.letter for life in lives]
    if debts and seen is None:
        whereabouts = await look(deployment, graph, letters)
    elif debts and seen is not None and (at_broker := await seen(debts)) is not None:
        whereabouts = replace(at_broker, found=at_broker.found | in_store(letters))
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
    return Trace(story, diagram, debts, coming, whereabouts, gaps, now, facts, lives)


async def stuck(
    deployment: Deployment,
    graph: Choreography,
    *,
    now: datetime | None = None,
    patience_seconds: float = CATCH_UP_SECONDS,
    progress: Progress = lambda _: None,
) -> Overdue:
    """Every subject about which a participant owes something for longer than it may take.

    A history that is behind is waited for, for `patience_seconds`. `progress` is told of each
    subject that was looked at. Raises what `trace` raises.
    """
    archive = Archive(deployment)
    behind = 0 if await archive.caught_up(patience_seconds) else await archive.behind()
    rows = await asyncio.to_thread(_overdue_rows, deployment, graph, now or utc_now())
    candidates = await archive.read(queries.open_subjects)
    # What is due may be due after the end as well.
    candidates += sorted({row.subject for row in rows} - {*candidates})
    found: list[Stuck] = []
    explained: set[tuple[str, str, str]] = set()
    for start in range(0, len(candidates), SUBJECTS_AT_ONCE):
        part = candidates[start : start + SUBJECTS_AT_ONCE]
        facts = await archive.read(partial(_facts_by, part))
        moment = now or utc_now()
        for subject in part:
            story = tell(graph, subject, facts[subject])
            late = [debt for debt in debts_of(graph, story, moment) if debt.late(moment)]
            if late:
                found.append(Stuck(story, late))
            explained |= {
                (debt.participant, debt.firing.kind.__name__, subject)
                for debt in late
                if debt.firing is not None
            }
            progress(1)
    unexplained = [r for r in rows if (r.participant, r.kind, r.subject) not in explained]
    if unexplained:  # But for those that were done or corrected meanwhile.
        still = {*await asyncio.to_thread(_overdue_rows, deployment, graph, now or utc_now())}
        unexplained = [row for row in unexplained if row in still]
    if not found:
        return Overdue([], unexplained, MessageLocations(), behind)
    letters = await asyncio.to_thread(letters_in, deployment.dead_letters_url)
    found.sort(key=lambda one: one.debts[0].since)
    return Overdue(found, unexplained, await look(deployment, graph, letters), behind)


async def past(
    deployment: Deployment,
    graph: Choreography,
    subject: str,
    *,
    at: datetime | None = None,
    before: str | None = None,
) -> Past:
    """A subject as it was `at` some time, or `before` one of its events; by default as it is.

    States are folded from events by the participants' own `evolve`. Raises `InputError` for a
    subject, a time or an event that makes no sense, `HistoryError` and `DatabaseError`.
    """
    subject, facts = await _facts_about(deployment, Archive(deployment), graph, subject)
    whole = tell(graph, subject, facts)
    events = list(whole.events.values())
    if before is not None:
        events = events_before(whole, before)
    if at is not None:
        if events and at < min(event.time for event in events):
            raise NotFound(queries.nothing_yet(subject, facts, graph, at))
        events = [event for event in events if event.time <= at]
    return past_of(graph, subject, facts, events)


def past_of(
    graph: Choreography, subject: str, facts: Sequence[Fact], events: Sequence[Envelope[Any]]
) -> Past:
    """A subject as it was after just these of its events."""
    story = tell(graph, subject, facts_of(facts, events))
    states = {
        participant.name: [
            state
            for (kind, key), state in fold_of(participant, events).states.items()
            if key == subject
        ]
        for participant in graph.in_python
    }
    return Past(subject, story.summary, story.view, states, len(events), facts)


def facts_of(facts: Sequence[Fact], events: Sequence[Envelope[Any]]) -> list[Fact]:
    """Those of the facts that are these events."""
    keys = {event.key for event in events}
    return [fact for fact in facts if fact.attributes.key in keys]


def events_before(story: Story, event_id: str) -> list[Envelope[Any]]:
    """The events that had happened when this one came about: earlier ones, its publisher's lower
    numbers, and its causes, whatever the clocks say; but nothing that it led to."""
    by_id: dict[str, Envelope[Any]] = {}
    for other in story.events.values():
        by_id.setdefault(other.id, other)
    event = by_id.get(event_id)
    if event is None:
        raise NotFound(
            f"--before {event_id}: no such event about {story.subject}; "
            f"`saga trace {story.subject} --format json` names them"
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


async def _facts_about(
    deployment: Deployment, archive: Archive, graph: Choreography, subject: str
) -> tuple[str, list[Fact]]:
    """The subject as the events name it, and all of them. Raises what `trace` raises."""
    for name in dict.fromkeys((subject, _as_uuid(subject))):
        facts = await archive.read(partial(_facts_by, [name]))
        if facts:
            return name, facts[name]
    for participant in graph.in_python:
        if await asyncio.to_thread(_has_state, deployment, participant, subject):
            behind = await archive.behind()
            raise HistoryError(
                f"{participant.name} has a state of {subject}, but no event about it is in the "
                f"history"
                + (f", which is {counted(behind, 'message')} behind; try again" if behind else "")
            )
    gaps = await archive.read(queries.known_gaps)
    trimmed = ", ".join(map(str, gaps))
    raise UnknownSubject(
        f"no events about {subject!r}: the history has none, and no service's database a state"
        + (f"; but the history lacks the stream's offsets {trimmed}" if gaps else "")
    )


def _has_state(deployment: Deployment, participant: Participant, subject: str) -> bool:
    """Whether a participant's database has a state about this subject; blocks."""
    url = deployment.database_urls.get(participant.name)
    if url is None:
        return False
    own = {reaction.own for reaction in participant.reactions}
    tables = [t for kind, t in tables_in(participant.package).states.items() if kind in own]
    return read_database(url, lambda c: any(t.knows(c, subject) for t in tables))


def _overdue_rows(
    deployment: Deployment, graph: Choreography, now: datetime
) -> Sequence[OverdueRow]:
    """The participants' rows that are overdue, whether or not their states can be read, the first
    in front; blocks."""
    until = now - timedelta(seconds=OVERDUE_SECONDS)
    found: list[OverdueRow] = []
    for participant in graph.participants:
        url = deployment.database_urls.get(participant.name)
        if url is None or not participant.dues:
            continue
        for table in tables_in(participant.package).with_dues:
            kind = table.kind.__name__
            due = read_database(url, partial(table.due, until=until))
            found += (OverdueRow(participant.name, kind, key, at) for key, at in due)
    return sorted(found, key=lambda row: row.at)


def _as_uuid(subject: str) -> str:
    """A UUID as events write it, whichever of its forms is given; any other text as it is."""
    try:
        return str(UUID(subject))
    except ValueError:
        return subject


def _facts_by(subjects: Sequence[str], connection: Connection) -> dict[str, list[Fact]]:
    by_subject: defaultdict[str, list[Fact]] = defaultdict(list)
    for fact in queries.facts_about(connection, subjects):
        by_subject[fact.attributes.subject].append(fact)
    return by_subject


# --- JSON -------------------------------------------------------------------------------------


def as_json(state: State) -> dict[str, Any]:
    """A state as a JSON object."""
    return {field.name: _plain(getattr(state, field.name)) for field in fields(state)}


def debt_as_json(debt: Debt, whereabouts: MessageLocations | None, now: datetime) -> dict[str, Any]:
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


def _step_as_json(step: Hop) -> dict[str, Any]:
    attributes = step.attributes
    return {
        "id": attributes.id,
        "type": attributes.type,
        "source": attributes.source,
        "time": rfc3339(attributes.time),
        "causation_id": attributes.causationid,
        "sequence": attributes.sequence,
        "attempt": attributes.attempt or 1,
        "waited_ms": milliseconds(step.waited),
        "worked_ms": milliseconds(step.worked),
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
