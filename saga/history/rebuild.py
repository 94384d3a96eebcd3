"""A service's database, rebuilt from what it said: its states, and the inbox that follows.

Side effects are fenced: nothing is asked of the outside or published. Own events are
folded; reactions are only run to see whether they would decide on anything.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive import queries, store
from saga.archive.projection import Projection
from saga.archive.store import Fact, decoded, note_folded, project, take_turn
from saga.archive.subjects import subjects
from saga.archive.views import projection_of
from saga.choreography import Choreography, Participant, State
from saga.deployment import Deployment
from saga.discovery import saga, tables_of
from saga.dlq.examine import decoder_of
from saga.dlq.letters import document_of
from saga.envelope import Envelope, MessageKey, Undecodable
from saga.errors import InputError, NotFound
from saga.history import HistoryError, pages
from saga.history.archive import Archive
from saga.history.letters import letters_in
from saga.history.outside import Remembered, memory_of
from saga.history.sources import Sources, participant_named
from saga.history.story import Hole, corrected_in, holes_of
from saga.history.whereabouts import look
from saga.message import Command, Event
from saga.runtime.kernel.database import DatabaseError
from saga.runtime.kernel.fold import Fold, is_shared
from saga.runtime.kernel.opening import open_database, read_database
from saga.runtime.kernel.rows import writing
from saga.runtime.kernel.step import StateId, react
from saga.runtime.kernel.tables import ANY_SOURCE, Tables, VersionConflict, utc_now
from saga.runtime.messaging.dead_letters import ADDRESSEE
from saga.runtime.messaging.permissions import REPLAY
from saga.runtime.messaging.publisher import BrokerPublisher, posting_of
from saga.runtime.messaging.topology import queue_of
from saga.runtime.messaging.trust import EDITOR_SOURCE

AT_ONCE: Final = 500
CATCH_UP_SECONDS: Final = 10.0
"""How long a history that is behind may take to come to the stream's end."""

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Unanswered:
    """An event that the participant would decide something on, and that nothing tells it did."""

    source: str
    event_id: str
    type: str
    subject: str
    waits: bool
    """Whether it is on its way: in a queue, waiting for its next try, or dead."""


@dataclass
class Rebuilt:
    """What was written, and what is to be known of it."""

    participant: str
    events: int = 0
    """Own events that were folded."""
    states: dict[str, int] = field(default_factory=dict)
    """Keyed by table: the rows written."""
    inbox: int = 0
    asked: int = 0
    """Questions that the outside knows and no event tells of: their states are restored, so that
    the service settles them."""
    unanswered: list[Unanswered] = field(default_factory=list)
    holes: list[Hole] = field(default_factory=list)
    contradictions: list[str] = field(default_factory=list)
    looked_at_broker: bool = False

    @property
    def lost(self) -> list[Unanswered]:
        """The unanswered events that are nowhere on their way."""
        return [event for event in self.unanswered if not event.waits]


async def rebuild(
    sources: Sources,
    graph: Choreography,
    name: str,
    into: str,
    *,
    waiting: Collection[tuple[str, str]] | None = None,
    despite_holes: bool = False,
    progress: Progress = lambda _: None,
) -> Rebuilt:
    """Write the participant's database again, in one transaction, at `into`, which has to be empty.

    `waiting` are the events on their way, by participant and id; None if that is not known.
    `progress` is told of each event read. Raises `InputError` for a participant that is none, a
    database that is not empty or in use, or a history with holes (unless `despite_holes`);
    `HistoryError` and `DatabaseError`.
    """
    participant = participant_named(graph, name)
    tables = tables_of(name)
    if not despite_holes:
        await asyncio.to_thread(_check_head, sources.history_url)
    outside = await asyncio.to_thread(memory_of, saga(), name, sources.outside_urls)
    up_to = await asyncio.to_thread(pages.last_position, sources.history_url)
    try:
        database = await open_database(into, tables, name="saga history")
    except DatabaseError as error:
        raise InputError(f"--into: {error}") from error
    try:
        work = _Work(participant, graph, tables, outside, waiting, progress)
        await database.transaction(
            lambda connection: work.run(connection, sources.history_url, up_to, despite_holes)
        )
    finally:
        await database.close()
    return work.rebuilt


def _check_head(url: str) -> None:
    gaps = read_database(url, queries.known_gaps)
    if gaps:
        lacking = ", ".join(map(str, gaps))
        raise NotFound(
            f"the history lacks the stream's offsets {lacking}, removed before they were read; "
            f"import them from another history, or go on without them with --despite-holes"
        )


class _Work:
    """One rebuild, in one transaction of the new database."""

    def __init__(
        self,
        participant: Participant,
        graph: Choreography,
        tables: Tables,
        outside: Remembered,
        waiting: Collection[tuple[str, str]] | None,
        progress: Progress,
    ) -> None:
        self._participant = participant
        self._graph = graph
        self._tables = tables
        self._outside = outside
        self._waiting = frozenset(waiting or ())
        self._progress = progress
        self._fold = Fold(participant)
        self._doubtful: dict[MessageKey, datetime | None] = {}
        """Events of which it has to be seen whether they are done, with the time of an answer."""
        self._shares = any(map(is_shared, tables.states))
        self._heard: set[str] = set()
        self._now = utc_now()
        self.rebuilt = Rebuilt(participant.name, looked_at_broker=waiting is not None)

    def run(self, connection: Connection, url: str, up_to: int, despite_holes: bool) -> None:
        self._check_empty(connection)
        for page in pages.by_subject(url, up_to):
            self._take(connection, page)
            self._progress(sum(map(len, page.values())))
        rest = set(self._outside.keys) - self._heard
        self._restore(sorted(rest))
        self._write(connection, list(self._fold.states))
        doubtful = list(self._doubtful)
        for start in range(0, len(doubtful), AT_ONCE):
            facts = pages.with_keys(url, doubtful[start : start + AT_ONCE])
            self._judge(connection, facts, partial(self._written, connection))
        if self.rebuilt.holes and not despite_holes:
            holes = self.rebuilt.holes
            raise NotFound(
                f"the history lacks events of {self._participant.name}, so its states cannot be "
                f"told: {holes[0]}"
                + (f", and {len(holes) - 1} more" if len(holes) > 1 else "")
                + "; --despite-holes goes on without them"
            )

    def _check_empty(self, connection: Connection) -> None:
        for table in (*self._state_tables(), self._tables.inbox, self._tables.outbox):
            if connection.execute(sa.select(sa.literal(1)).select_from(table).limit(1)).first():
                raise InputError(
                    f"--into: the database has rows in {table.name}; name an empty one"
                )

    def _state_tables(self) -> list[sa.Table]:
        return [table.table for table in self._tables.states.values()]

    def _take(self, connection: Connection, page: Mapping[str, Sequence[Fact]]) -> None:
        """Fold some subjects, and write the states that only they are about."""
        inbox: dict[MessageKey, datetime] = {}
        doubtful: list[Fact] = []
        for facts in page.values():
            known = [e for fact in facts if (e := decoded(fact, self._graph)) is not None]
            keys = {fact.attributes.id: fact.attributes.key for fact in facts}
            own = [e for e in known if e.source == self._fold.source]
            own = [e for e in own if self._fold.kind_of(e.type)]
            own.sort(key=lambda event: event.sequence or 0)
            for event in own:
                self._fold.take(event)
                if event.causationid is not None:
                    # A command's sender is in no event.
                    command = MessageKey(ANY_SOURCE, event.causationid)
                    inbox.setdefault(keys.get(event.causationid, command), event.time)
            self.rebuilt.events += len(own)
            self.rebuilt.holes += (
                hole
                for hole in holes_of(self._graph, known, corrected_in(facts))
                if self._participant.name in hole.publishers
            )
            for fact in facts:
                key = fact.attributes.key
                if self._is_for_it(fact) and (key not in inbox or self._asks_about(fact)):
                    self._doubtful[key] = inbox.pop(key, None)
                    doubtful.append(fact)
        self._mark_done(connection, inbox)
        asked = [subject for subject in page if subject in self._outside.keys]
        self._heard.update(asked)
        self._restore(asked)
        if not self._shares:  # Otherwise what is decided may depend on subjects still to come.
            self._judge(connection, doubtful, self._fold.find)
        mine = set(page)
        self._write(
            connection,
            [id for id in self._fold.states if id[1] in mine and not is_shared(id[0])],
        )

    def _is_for_it(self, fact: Fact) -> bool:
        """Whether the participant reacts to an event."""
        attributes = fact.attributes
        if attributes.source == EDITOR_SOURCE:
            return (document_of(fact.body) or {}).get(ADDRESSEE) == self._participant.name
        return self._participant in self._graph.reacting_to(attributes.type)

    def _asks_about(self, fact: Fact) -> bool:
        """Whether the participant may ask the outside because of an event. Then it is not done by
        what was published first because of it, but only with the answer to its last question."""
        return any(
            reaction.intends
            for kind, reaction in self._participant.by_message.items()
            if issubclass(kind, Event | Command) and kind.type == fact.attributes.type
        )

    def _restore(self, subjects: Iterable[str]) -> None:
        """Put states where the outside was asked and no event tells so into the middle of that
        question again: what comes next will ask it again, under the same key, and settle it."""
        for kind in dict.fromkeys(reaction.own for reaction in self._participant.reactions):
            for subject in subjects:
                state = self._fold.find((kind, subject))
                for said in self._outside.contradictions(state):
                    self.rebuilt.contradictions.append(f"{subject}: {said}")
                for intent in self._outside.asked(state):
                    self._fold.ask(intent, self._now)
                    self.rebuilt.asked += 1

    def _write(self, connection: Connection, ids: Iterable[StateId]) -> None:
        """Write states and forget them here."""
        by_kind: defaultdict[type[State], list[State]] = defaultdict(list)
        for id in ids:
            by_kind[id[0]].append(self._fold.states.pop(id))
        for kind, states in by_kind.items():
            table = self._tables.states[kind]
            for start in range(0, len(states), AT_ONCE):
                part = sorted(states[start : start + AT_ONCE], key=lambda state: state.key)
                with writing(connection) as writes:
                    table.save(writes, [(state, 0) for state in part])
            name = table.table.name
            self.rebuilt.states[name] = self.rebuilt.states.get(name, 0) + len(states)

    def _mark_done(self, connection: Connection, done: Mapping[MessageKey, datetime]) -> None:
        with writing(connection) as writes:
            self._tables.mark_each_done(writes, done)
        self.rebuilt.inbox += len(done)

    def _judge(
        self, connection: Connection, facts: Sequence[Fact], find: Callable[[StateId], State]
    ) -> None:
        """Mark those of the events done that nothing is left to be decided on. What led to nothing
        yet and is on its way is left alone: its time will come."""
        done: dict[MessageKey, datetime] = {}
        for fact in facts:
            attributes = fact.attributes
            waits = (self._participant.name, attributes.id) in self._waiting
            answered_at = self._doubtful.pop(attributes.key)
            envelope = _readable(fact, self._participant)
            if envelope is None:
                continue  # It can only become a dead letter.
            if self._would_decide(envelope, find):
                self.rebuilt.unanswered.append(
                    Unanswered(*attributes.key, attributes.type, attributes.subject, waits)
                )
            elif answered_at is not None or not waits:
                done[attributes.key] = answered_at or attributes.time
        self._mark_done(connection, done)

    def _would_decide(self, event: Envelope[Any], find: Callable[[StateId], State]) -> bool:
        try:
            decision = react(self._participant, event, event.data, find, self._now)
        except Exception:
            return True  # to a dead letter
        return bool(decision.events or decision.intent)

    def _written(self, connection: Connection, id: StateId) -> State:
        return self._tables.states[id[0]].find(connection, id[1]) or id[0](id[1])


def _readable(fact: Fact, participant: Participant) -> Envelope[Any] | None:
    """An event as the participant would read it, a corrected copy too; None if it could not."""
    try:
        return decoder_of(participant).decode(fact.body)
    except Undecodable:
        return None


async def on_their_way(sources: Sources, graph: Choreography) -> frozenset[tuple[str, str]] | None:
    """The events in queues, waiting for a next try, or dead, by participant and id; None where the
    system does not run. The history has to have caught up.

    Raises `HistoryError` and `BrokerError`.
    """
    deployment = sources.deployment
    if deployment is None:
        return None
    archive = Archive(deployment)
    await archive.catch_up(CATCH_UP_SECONDS)
    letters = await asyncio.to_thread(letters_in, deployment.dead_letters_url)
    return frozenset((await look(deployment, graph, letters)).found)


async def redeliver(
    deployment: Deployment, graph: Choreography, rebuilt: Rebuilt, history_url: str
) -> int:
    """Put what was answered in the lost database only back into its participant's queues; returns
    how many events. Deciding on them again gives the same events under the same ids.

    Raises `BrokerError`.
    """
    participant = participant_named(graph, rebuilt.participant)
    keys = [MessageKey(event.source, event.event_id) for event in rebuilt.lost]
    publisher = BrokerPublisher(deployment.amqp_url_of(REPLAY), "saga history redeliver")
    try:
        await publisher.open()
        for start in range(0, len(keys), AT_ONCE):
            part = keys[start : start + AT_ONCE]
            for fact in await asyncio.to_thread(pages.with_keys, history_url, part):
                attributes = fact.attributes
                queue = queue_of(participant, attributes.type, attributes.priority)
                await publisher.publish("", posting_of(fact.body, queue))
    finally:
        await publisher.close()
    return len(keys)


async def rebuild_views(url: str, graph: Choreography, progress: Progress = lambda _: None) -> int:
    """Fold again what is told of each subject, in one transaction; returns how many there are.

    On PostgreSQL the history's service may be at work: it waits. Raises `InputError` and
    `HistoryError`.
    """
    projection = projection_of(graph)
    try:
        database = await open_database(url, store.schema_of(projection), name="saga history")
    except DatabaseError as error:
        raise InputError(str(error)) from error
    try:
        return await database.transaction(
            lambda connection: _refold(connection, url, projection, progress)
        )
    except VersionConflict as error:
        raise HistoryError(f"{error}; try again when it has ended") from error
    finally:
        await database.close()


def _refold(connection: Connection, url: str, projection: Projection, progress: Progress) -> int:
    take_turn(connection)
    connection.execute(subjects.delete())
    if projection.view is not None:
        connection.execute(projection.view.table.table.delete())
    up_to = pages.last_position(url)
    for page in pages.by_subject(url, up_to):
        facts = [fact for about in page.values() for fact in about]
        project(connection, facts, projection)
        progress(len(facts))
    note_folded(connection, up_to)
    return connection.scalar(sa.select(sa.func.count()).select_from(subjects)) or 0
