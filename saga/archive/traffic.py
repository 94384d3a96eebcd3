"""What went along the ways of the map within some seconds, as the archive has it: how much, how
fast, and at which attempt.

The archive's positions are dense and rise with the time at which an event was recorded, so a window
is found by bisection, and no more than `ROWS_MAX` of its events are looked at, the latest ones. How
long something took, and at which attempt, only the bodies say: they are read of some of them.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Final, NamedTuple

import sqlalchemy as sa
from pydantic_core import from_json
from sqlalchemy.engine import Connection

from saga.archive.store import events
from saga.archive.subjects import subjects
from saga.envelope import source_of
from saga.graph.flow import Flow, Node, Step
from saga.limits import moment_of
from saga.message import Command, Event, Intent
from saga.runtime.kernel.statements import any_of
from saga.runtime.kernel.tables import Utc
from saga.runtime.messaging.trust import EDITOR_SOURCE

WINDOW: Final = timedelta(seconds=60)
"""How far back figures reach."""
ROWS_MAX: Final = 3_000
"""Events of a window that are looked at."""
BODIES_MAX: Final = 600
"""Of these, how many bodies are read: every second one, every third one, and so on."""
CAUSES_MAX: Final = 600
"""Causes that were recorded before the window, and are looked for there."""
SUBJECTS_MAX: Final = 10_000
"""Subjects that began last before a moment, and are looked at to count those that were open."""

Edge = tuple[Node, Node]


class Recorded(NamedTuple):
    """An event of a window; times are microseconds since 1970."""

    position: int
    id: str
    type: str
    source: str
    causation: str | None
    time: int
    recorded_at: int


class Seen(NamedTuple):
    """What a body says of itself: when its cause was taken up, in microseconds since 1970, and at
    which attempt."""

    taken_at: int | None
    attempt: int


class Cause(NamedTuple):
    """The type and the time of an event that led to another one."""

    type: str
    time: int


@dataclass(frozen=True)
class ArchiveSpan:
    """From when to when there is an archive, by the times at which events were recorded."""

    first: datetime
    last: datetime
    last_position: int


@dataclass(frozen=True)
class Excerpt:
    """The events of a window that are looked at, in the order in which they were recorded.

    They were recorded after `since` and up to `until`; where there were too many in the window,
    it begins later: `shortened`. `bodies` is keyed by position, of one event in `every`.
    """

    since: datetime
    until: datetime
    rows: Sequence[Recorded] = ()
    shortened: bool = False
    causes: Mapping[str, Cause] = field(default_factory=dict)
    """Keyed by id: those recorded before."""
    bodies: Mapping[int, Seen] = field(default_factory=dict)
    every: int = 1

    @property
    def seconds(self) -> float:
        return max((self.until - self.since).total_seconds(), 0.001)


@dataclass
class Passing:
    """What went by a node or along an edge: how often, and of those whose bodies were read, how
    long each waited for the participant, how long that had it in its hands (in milliseconds), and
    how many it took at another than the first attempt."""

    count: int = 0
    waited_ms: list[float] = field(default_factory=list)
    worked_ms: list[float] = field(default_factory=list)
    again: int = 0

    @property
    def waited(self) -> timedelta | None:
        """The median; None if it is not known of any."""
        return _median(self.waited_ms)

    @property
    def worked(self) -> timedelta | None:
        return _median(self.worked_ms)


@dataclass(frozen=True)
class Traffic:
    """What went along the map within a window."""

    excerpt: Excerpt
    nodes: Mapping[Node, Passing]
    edges: Mapping[Edge, Passing]
    strange: int = 0
    """Events of types that the signatures do not know."""

    def per_second(self, passing: Passing | None) -> float:
        return (passing.count if passing else 0) / self.excerpt.seconds


# --- reading ------------------------------------------------------------------------------------


def span(connection: Connection) -> ArchiveSpan | None:
    """From when to when there is an archive; None if nothing was recorded."""
    query = sa.select(events.c.recorded_at, events.c.position).limit(1)
    first = connection.execute(query.order_by(events.c.position)).first()
    last = connection.execute(query.order_by(events.c.position.desc())).first()
    if first is None or last is None:
        return None
    return ArchiveSpan(first.recorded_at, last.recorded_at, last.position)


def position_before(connection: Connection, moment: datetime) -> int:
    """The position of the last event that was recorded before a time, as far as clocks tell; 0 if
    there is none."""
    at = sa.select(events.c.recorded_at)
    low, high = 0, connection.scalar(sa.select(sa.func.max(events.c.position))) or 0
    while low < high:
        middle = (low + high + 1) // 2
        recorded_at = connection.scalar(at.where(events.c.position == middle))
        if recorded_at is not None and recorded_at < moment:
            low = middle
        else:
            high = middle - 1
    return low


def excerpt(connection: Connection, until: datetime, window: timedelta = WINDOW) -> Excerpt:
    """The last events that were recorded within the window that ends then."""
    since = until - window
    last = position_before(connection, until + timedelta(microseconds=1))
    first = max(position_before(connection, since) + 1, last - ROWS_MAX + 1)
    if first > last:
        return Excerpt(since, until)
    rows = _rows(connection, first, last)
    if not rows:  # They are copies that went to one participant only.
        return Excerpt(since, until)
    shortened = last - first + 1 == ROWS_MAX
    every = -(-len(rows) // BODIES_MAX)
    return Excerpt(
        since=_moment(rows[0].recorded_at) if shortened else since,
        until=_moment(rows[-1].recorded_at) if shortened else until,
        rows=rows,
        shortened=shortened,
        causes=_causes(connection, rows),
        bodies=_bodies(connection, first, last, every),
        every=every,
    )


def _rows(connection: Connection, first: int, last: int) -> list[Recorded]:
    # As numbers: to make thousands of times costs more than to read them.
    query = sa.select(
        events.c.position,
        events.c.event_id,
        events.c.type,
        events.c.source,
        events.c.causation,
        sa.type_coerce(events.c.time, sa.BigInteger),
        sa.type_coerce(events.c.recorded_at, sa.BigInteger),
    ).where(events.c.position.between(first, last))
    found = connection.execute(query.order_by(events.c.position))
    return [Recorded(*row) for row in found if row.source != EDITOR_SOURCE]


def _causes(connection: Connection, rows: Sequence[Recorded]) -> dict[str, Cause]:
    here = {row.id for row in rows}
    missing = dict.fromkeys(row.causation for row in rows if row.causation not in here)
    wanted = [id for id in missing if id is not None][:CAUSES_MAX]
    if not wanted:
        return {}
    query = sa.select(
        events.c.event_id, events.c.type, sa.type_coerce(events.c.time, sa.BigInteger)
    ).where(any_of(connection, events.c.event_id, wanted))
    return {row.event_id: Cause(row[1], row[2]) for row in connection.execute(query)}


def _bodies(connection: Connection, first: int, last: int, every: int) -> dict[int, Seen]:
    query = sa.select(events.c.position, events.c.body).where(
        events.c.position.between(first, last), events.c.position % every == 0
    )
    return {row.position: seen_in(row.body) for row in connection.execute(query)}


def seen_in(body: bytes) -> Seen:
    """What a body says, as far as it can be read."""
    try:
        said = from_json(body)
    except ValueError:
        said = None
    if not isinstance(said, dict):
        return Seen(None, 1)
    taken, attempt = said.get("takenat"), said.get("attempt")
    moment = moment_of(taken) if isinstance(taken, str) else None
    return Seen(
        _microseconds(moment) if moment else None, attempt if isinstance(attempt, int) else 1
    )


def open_at(connection: Connection, at: datetime) -> tuple[int, bool]:
    """How many sagas were open then, as far as can be told: of those that had begun, the ones that
    ended later, and the ones that are open now (see `Subject.open`), which may have ended and not
    be settled. And whether there were more before then than are looked at, `SUBJECTS_MAX`."""
    table = subjects.c
    began = sa.select(table.ended_at, table.open).where(table.first_event_at <= at)
    last = began.order_by(table.first_event_at.desc()).limit(SUBJECTS_MAX).subquery()
    was_open = (last.c.ended_at > sa.literal(at, Utc)) | (
        last.c.open == sa.literal(True, table.open.type)
    )
    looked_at, count = connection.execute(
        sa.select(
            sa.func.count(), sa.func.coalesce(sa.func.sum(sa.case((was_open, 1), else_=0)), 0)
        ).select_from(last)
    ).one()
    return int(count), looked_at == SUBJECTS_MAX


# --- along the map ------------------------------------------------------------------------------


class Way(NamedTuple):
    """What a message passes on its way to one that comes of it, by the numbers that `Ways.parts`
    gives to nodes and edges: quicker to count than themselves."""

    taken: int
    """What a reaction takes; the message itself where it is not told what that was."""
    reactions: Sequence[int]
    """With the questions between them."""
    edges: Sequence[int]
    """Up to the last reaction."""
    last_edge: int | None
    message: int


class Ways:
    """Along which nodes each kind of message comes about, by the signatures."""

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self.parts: list[Node | Edge] = []
        """Nodes and edges, by number."""
        self._numbers: dict[Node | Edge, int] = {}
        self._alone = {kind.type: self._way((kind,)) for kind in flow.choreography.recorded}
        self._by_cause: dict[tuple[str, str, str], Way] = {}
        """Keyed by source, type of the cause and type of the message."""
        self._only: dict[tuple[str, str], Way | None] = {}
        """Keyed by source and type of the message; None where there is more than one."""
        for step in flow.steps:
            source = source_of(step.participant.name)
            for nodes in self._from(step):
                taken, message = _type_of(nodes[0]), _type_of(nodes[-1])
                if message is None:
                    continue
                way = self._way(nodes)
                if taken is not None:
                    self._by_cause.setdefault((source, taken, message), way)
                key = source, message
                self._only[key] = way if self._only.get(key, way) == way else None

    def of(self, source: str, cause: str | None, type_: str) -> Way | None:
        """The way from what was taken to the message that came of it; None for a type that the
        signatures do not know."""
        way = self._by_cause.get((source, cause, type_)) if cause is not None else None
        return way or self._only.get((source, type_)) or self._alone.get(type_)

    def _way(self, nodes: Sequence[Node]) -> Way:
        edges = [self._number(edge) for edge in pairwise(nodes)]
        return Way(
            taken=self._number(nodes[0]),
            reactions=tuple(map(self._number, nodes[1:-1])),
            edges=tuple(edges[:-1]),
            last_edge=edges[-1] if edges else None,
            message=self._number(nodes[-1]),
        )

    def _number(self, part: Node | Edge) -> int:
        if part not in self._numbers:
            self._numbers[part] = len(self.parts)
            self.parts.append(part)
        return self._numbers[part]

    def _from(self, step: Step) -> Iterator[tuple[Node, ...]]:
        """Each way from what a reaction takes to what comes of it, through questions."""
        for taken in self._flow.preceding.get(step, ()):
            if isinstance(taken, Step) or not issubclass(taken, Intent):
                yield from self._on((taken, step))

    def _on(self, way: tuple[Node, ...]) -> Iterator[tuple[Node, ...]]:
        for after in self._flow.following.get(way[-1], ()):
            if isinstance(after, Step) or not issubclass(after, Intent):
                yield (*way, after)
                continue
            for answer in self._flow.following.get(after, ()):
                if answer not in way:
                    yield from self._on((*way, after, answer))


def traffic(found: Excerpt, ways: Ways) -> Traffic:
    """What went along the map."""
    tally = _Tally()
    causes = {row.id: Cause(row.type, row.time) for row in found.rows} | dict(found.causes)
    strange = 0
    for row in found.rows:
        cause = causes.get(row.causation or "")
        way = ways.of(row.source, cause.type if cause else None, row.type)
        if way is None:
            strange += 1
        else:
            tally.count(way, row, cause, found.bodies.get(row.position))
    nodes: dict[Node, Passing] = {}
    edges: dict[Edge, Passing] = {}
    for number, passing in tally.passed.items():
        part = ways.parts[number]
        if isinstance(part, tuple):
            edges[part] = passing
        else:
            nodes[part] = passing
    return Traffic(found, nodes, edges, strange)


class _Tally:
    """What has gone by, by the numbers of `Ways`."""

    def __init__(self) -> None:
        self.passed: defaultdict[int, Passing] = defaultdict(Passing)
        self._counted: set[tuple[str, int]] = set()
        """With the id of the cause: a reaction may lead to several messages, and went by once."""
        self._timed: set[tuple[str, int]] = set()

    def count(self, way: Way, row: Recorded, cause: Cause | None, seen: Seen | None) -> None:
        """Count a message, and the reaction that led to it, with the questions between."""
        self.passed[way.message].count += 1
        if way.last_edge is None:
            return
        self.passed[way.last_edge].count += 1
        cause_id = row.causation or row.id
        # What is in no archive, since it came from outside, was taken all the same.
        taken = () if cause is not None else (way.taken,)
        for number in (*taken, *way.reactions, *way.edges):
            if _is_new((cause_id, number), self._counted):
                self.passed[number].count += 1
        if seen is not None and _is_new((cause_id, way.edges[0]), self._timed):
            self._time(way, row, cause, seen)

    def _time(self, way: Way, row: Recorded, cause: Cause | None, seen: Seen) -> None:
        """Note how long a reaction took, and at which attempt."""
        for number in (way.reactions[0], way.edges[0]):
            self.passed[number].again += seen.attempt > 1
        if seen.taken_at is None:
            return
        for number in way.reactions:
            self.passed[number].worked_ms.append(max(row.time - seen.taken_at, 0) / 1_000)
        if cause is not None:
            for number in (way.taken, way.edges[0]):
                self.passed[number].waited_ms.append(max(seen.taken_at - cause.time, 0) / 1_000)


def _is_new(key: tuple[str, int], known: set[tuple[str, int]]) -> bool:
    before = len(known)
    known.add(key)
    return len(known) > before


def _type_of(node: Node) -> str | None:
    """The type of a message that goes over the broker."""
    if isinstance(node, Step) or not issubclass(node, Event | Command):
        return None
    return node.type


def _median(milliseconds: Collection[float]) -> timedelta | None:
    return timedelta(milliseconds=statistics.median(milliseconds)) if milliseconds else None


_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


def _moment(microseconds: int) -> datetime:
    return _EPOCH + timedelta(microseconds=microseconds)


def _microseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(microseconds=1)
