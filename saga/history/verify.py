"""`saga history verify`: whether each participant's database is what its events tell.

A database is read as of one moment, with its outbox; of the events, those are folded that its rows
had counted by then. So a system may be at work meanwhile. Where something seems wrong, the history
is given time to catch up, and everything is read again.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, fields
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.engine import Connection

from saga.archive import queries
from saga.archive.store import Fact, Gap, decoded
from saga.choreography import Choreography, Participant, State
from saga.discovery import tables_of
from saga.envelope import Attributes, Envelope, Undecodable, wrap
from saga.history import pages
from saga.history.archive import Archive
from saga.history.sources import Sources
from saga.history.story import missing_numbers
from saga.message import Answer, Command, Priority
from saga.runtime.kernel.fold import Fold, is_shared
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.rows import UnreadableRow
from saga.runtime.kernel.step import StateId, react
from saga.runtime.kernel.tables import DUE_AT, Tables, due_at_of, utc_now

SETTLE_SECONDS: Final = 5.0
"""How long what seems wrong may take to come right on a system at work."""
PAUSE_SECONDS: Final = 0.5
CATCH_UP_SECONDS: Final = 5.0
"""How long the history may take to come to where the databases are."""

Progress = Callable[[int], None]


@dataclass(frozen=True, slots=True)
class Difference:
    """Something that a participant's database and its events say differently.

    `column` is empty where a whole row, or an event, is missing.
    """

    participant: str
    table: str
    key: str
    column: str
    live: str
    history: str

    @property
    def identity(self) -> tuple[str, ...]:
        return self.participant, self.table, self.key, self.column


@dataclass
class Verified:
    """What was compared, and what differs."""

    rows: dict[str, int] = field(default_factory=dict)
    """Keyed by participant: the rows compared."""
    open_questions: int = 0
    """Rows in the middle of a question to the outside, which no event tells of yet."""
    differences: list[Difference] = field(default_factory=list)
    gaps: list[Gap] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.differences


async def verify(
    sources: Sources,
    graph: Choreography,
    *,
    settle_seconds: float = SETTLE_SECONDS,
    progress: Progress = lambda _: None,
) -> Verified:
    """Compare every participant's states with the fold of its events. Changes nothing.

    `progress` is told of each row compared, again when everything is read again. Raises
    `HistoryError`, `DatabaseError` and `BrokerError`.
    """
    deadline = time.monotonic() + settle_seconds
    found = await asyncio.to_thread(_compare, sources, graph, progress)
    again = True
    while found.differences and (again or time.monotonic() < deadline):
        again = False
        await asyncio.sleep(min(PAUSE_SECONDS, settle_seconds))
        before = {difference.identity for difference in found.differences}
        found = await asyncio.to_thread(_compare, sources, graph, progress)
        found.differences = [one for one in found.differences if one.identity in before]
    return found


def _compare(sources: Sources, graph: Choreography, progress: Progress) -> Verified:
    found = Verified(gaps=read_database(sources.history_url, queries.known_gaps))
    for participant in graph.in_python:
        one = _Comparison(participant, graph, sources, found, progress)
        read_database(sources.database_url(participant.name), one.run)
    return found


class _Comparison:
    """One participant's database beside its events; in one transaction of the former."""

    def __init__(
        self,
        participant: Participant,
        graph: Choreography,
        sources: Sources,
        found: Verified,
        progress: Progress,
    ) -> None:
        self._participant = participant
        self._graph = graph
        self._sources = sources
        self._history_url = sources.history_url
        self._found = found
        self._progress = progress
        self._tables: Tables = tables_of(participant.name)
        self._fold = Fold(participant)
        self._unpublished: defaultdict[str, list[Envelope[Any]]] = defaultdict(list)
        self._known: set[StateId] = set()
        self._dues: Mapping[type[State], Mapping[str, datetime]] = {}
        """Keyed by kind and key: when something is due, as the rows say."""
        reactions = participant.reactions
        after_answers = {i for r in reactions if issubclass(r.consumes, Answer) for i in r.intends}
        after_others = {
            i for r in reactions if not issubclass(r.consumes, Answer) for i in r.intends
        }
        self._asks_on_answers = bool(after_answers - after_others)

    def run(self, connection: Connection) -> None:
        for body in connection.scalars(sa.select(self._tables.outbox.c.body)):
            try:
                event = decoded(Fact(Attributes.of(body), body), self._graph)
            except Undecodable:
                continue  # Then a row counts an event that it is without.
            if event is not None:
                self._unpublished[event.subject].append(event)
        self._let_the_history_catch_up()
        own = {reaction.own for reaction in self._participant.reactions}
        shared = [kind for kind in self._tables.states if is_shared(kind)]
        self._dues = {table.kind: dict(table.due(connection)) for table in self._tables.with_dues}
        for kind, table in self._tables.states.items():
            if kind in own:
                for states, unreadable in table.pages(connection):
                    self._take(connection, kind, states)
                    self._show(kind, unreadable)
        for kind in shared:
            for states, unreadable in self._tables.states[kind].pages(connection):
                for key, state in states.items():
                    self._judge(kind, state, self._fold.find((kind, key)))
                    self._fold.states.pop((kind, key), None)
                if kind not in own:
                    self._count(len(states))
                    self._show(kind, unreadable)
        for kind, key in self._fold.states:
            if kind in shared and kind not in own:
                self._differ(kind, key, "", "has no row", "has events about it")
        self._look_for_rows_that_are_missing()

    def _let_the_history_catch_up(self) -> None:
        """What the rows tell of is in the stream by now, or in the outbox."""
        if self._sources.deployment is None:
            return
        archive = Archive(self._sources.deployment)
        with ThreadPoolExecutor(1) as thread:  # This one may be in an event loop's greenlet.
            thread.submit(lambda: asyncio.run(archive.catch_up(CATCH_UP_SECONDS))).result()

    def _take(self, connection: Connection, kind: type[State], states: Mapping[str, State]) -> None:
        """Fold the events that these rows count, and compare what comes of it."""
        facts = pages.about(self._history_url, list(states))
        for key, live in states.items():
            self._known.add((kind, key))
            known = self._read(facts.get(key, ()))
            known += self._unpublished.get(key, ())
            by_number = {
                event.sequence: event
                for event in known
                if event.source == self._fold.source
                and event.sequence is not None
                and self._fold.kind_of(event.type) is kind
            }
            told_numbers = sorted(n for n in by_number if n <= live.sequence)
            missing = list(missing_numbers(told_numbers, live.sequence))
            for numbers in missing:
                self._differ(kind, key, "", f"counts {numbers}", "is without it")
            for number in told_numbers:
                self._fold.take(by_number[number])
            if is_shared(kind) or missing:
                continue
            told = self._fold.find((kind, key))
            if told != live and self._is_asking(connection, kind, live, told, known):
                self._found.open_questions += 1
            else:
                self._judge(kind, live, told)
            self._fold.states.pop((kind, key), None)
        self._count(len(states))

    def _read(self, facts: Iterable[Fact]) -> list[Envelope[Any]]:
        return [event for fact in facts if (event := decoded(fact, self._graph)) is not None]

    def _show(self, kind: type[State], unreadable: Sequence[UnreadableRow]) -> None:
        for row in unreadable:
            self._known.add((kind, row.key))
            self._fold.states.pop((kind, row.key), None)
            self._differ(kind, row.key, "", f"cannot be read: {row.why}", "is not compared")
        self._count(len(unreadable))

    def _count(self, rows: int) -> None:
        name = self._participant.name
        self._found.rows[name] = self._found.rows.get(name, 0) + rows
        self._progress(rows)

    def _judge(self, kind: type[State], live: State, told: State) -> None:
        for column in fields(live):
            ours, theirs = getattr(live, column.name), getattr(told, column.name)
            if ours != theirs:
                self._differ(kind, live.key, column.name, str(ours), str(theirs))
        due_at = self._dues.get(kind, {}).get(live.key)
        if due_at != due_at_of(live):
            self._differ(kind, live.key, DUE_AT, str(due_at), str(due_at_of(live)))

    def _differ(self, kind: type[State], key: str, column: str, live: str, history: str) -> None:
        table = self._tables.states[kind].table.name
        self._found.differences.append(
            Difference(self._participant.name, table, key, column, live, history)
        )

    def _is_asking(
        self,
        connection: Connection,
        kind: type[State],
        live: State,
        told: State,
        events: Sequence[Envelope[Any]],
    ) -> bool:
        """Whether a row is what becomes of the state by questions alone that the participant may
        have asked because of events which it has not done yet, or of a command: no event tells of a
        question."""
        if any(_same_but_for_times(live, after) for after in self._asked_by_commands(kind, told)):
            return True
        taken = [
            event for event in events if self._participant in self._graph.reacting_to(event.type)
        ]
        done = self._tables.already_done(connection, {event.key for event in taken})
        undone = [event for event in taken if event.key not in done]
        if undone and self._asks_on_answers:
            return True  # What it became by an answer that was no event cannot be told.
        reached = [told]
        for state in reached:  # grows
            for event in undone:
                after = self._asked(kind, state, event)
                if after is not None and after not in reached:
                    reached.append(after)
        return live in reached

    def _asked_by_commands(self, kind: type[State], state: State) -> Iterator[State]:
        """The states after the questions that commands lead to which say no more than whom they are
        about."""
        for reaction in self._participant.reactions:
            if not (issubclass(reaction.consumes, Command) and reaction.intends):
                continue
            needed = [n for n, f in reaction.consumes.model_fields.items() if f.is_required()]
            if len(needed) != 1:
                continue
            try:
                command = reaction.consumes.model_validate_json(json.dumps({needed[0]: state.key}))
            except ValidationError:
                continue
            cause = wrap(
                command,
                id=state.key,
                source=self._fold.source,
                time=utc_now(),
                priority=Priority.NORMAL,
            )
            after = self._asked(kind, state, cause)
            if after is not None:
                yield after

    def _asked(self, kind: type[State], state: State, event: Envelope[Any]) -> State | None:
        """The state after the question that a message leads to, if it leads to one."""

        def find(id: StateId) -> State:
            return state if id == (kind, state.key) else id[0](id[1])

        try:
            decision = react(self._participant, event, event.data, find, utc_now())
        except Exception:
            return None
        return decision.changes.get((kind, state.key)) if decision.intent else None

    def _look_for_rows_that_are_missing(self) -> None:
        """States that events tell of and no row is there for."""
        known = {key for _, key in self._known}
        for page in pages.subjects_of(self._history_url, self._fold.source):
            missing = [subject for subject in page if subject not in known]
            facts = pages.about(self._history_url, missing) if missing else {}
            for subject in missing:
                own = [e for e in self._read(facts[subject]) if e.source == self._fold.source]
                for kind in {kind for e in own if (kind := self._fold.kind_of(e.type))}:
                    self._differ(kind, subject, "", "has no row", "has events about it")


def _same_but_for_times(live: State, other: State) -> bool:
    """Whether two states are the same, whenever what led to them was."""
    return all(
        ours == theirs or (isinstance(ours, datetime) and isinstance(theirs, datetime))
        for ours, theirs in (
            (getattr(live, column.name), getattr(other, column.name)) for column in fields(live)
        )
    )
