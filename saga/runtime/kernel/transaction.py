"""One group's transaction: what is read, decided on, and then written at once.

Optimistic, it assumes that no message was done before, which its inbox row would tell when it is
written, and that no other transaction writes the same states, which their versions would tell.
Pessimistic, it looks into the inbox first and locks the states. There is no `await` here: it runs
on the event loop, in the database's thread or in its greenlet.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.choreography import Participant
from saga.envelope import MessageKey
from saga.runtime import tracing
from saga.runtime.kernel.begun import Begun
from saga.runtime.kernel.database import Database
from saga.runtime.kernel.outbox import Outbox
from saga.runtime.kernel.outgoing import Outgoing
from saga.runtime.kernel.rows import WriteSet
from saga.runtime.kernel.states import GroupStates
from saga.runtime.kernel.step import (
    Decision,
    Firing,
    StateId,
    done_before,
    react,
    react_to_due,
)
from saga.runtime.kernel.tables import Tables, VersionConflict
from saga.runtime.kernel.work import Conflicting, Duplicate, Failed, Work
from saga.runtime.metrics import KernelMetrics


class Deferred:
    """Not decided on: the same message is waiting for an answer."""


_LATER = Deferred()
WorkResult = Decision | Duplicate | Failed | Deferred
"""What a transaction makes of one message."""


class GroupTransaction:
    """Decides on one group, once; another try is another transaction.

    `checks` is whether a decision may rest on a state of which no version tells, since the decision
    does not write it.
    """

    def __init__(
        self,
        participant: Participant,
        database: Database,
        tables: Tables,
        outbox: Outbox,
        metrics: KernelMetrics,
        connection: Connection,
        now: datetime,
        *,
        checks: bool,
        pessimistic: bool,
        begun: Begun | None = None,
    ) -> None:
        self._participant = participant
        self._database = database
        self._tables = tables
        self._outbox = outbox
        self._metrics = metrics
        self._connection = connection
        self._now = now
        self._checks = checks
        self._pessimistic = pessimistic
        self._begun = begun
        self._states = GroupStates(connection, tables, lock=pessimistic)
        self._done: dict[MessageKey, bytes | None] = {}
        """Messages that are known to be done, here or before, with their digests."""
        self._finished: dict[MessageKey, bytes | None] = {}
        """Those among them that were done here: their inbox rows are to be written."""
        self._asked: set[MessageKey] = set()
        self._doubtful: list[Work] = []
        """Messages whose inbox rows are not written, so that these have to be looked for."""
        self._audit: list[Mapping[str, Any]] = []
        """Rows about what was brought forward."""
        self._outgoing: list[Outgoing] = []

    def run(
        self, group: Sequence[Work], writes: WriteSet
    ) -> tuple[list[WorkResult], list[Outgoing]]:
        """Decide on the group, and execute what is in `writes` together with the decisions.

        Raises `VersionConflict` where it was optimistic and wrong, and `RestsOnBlank` where that
        cannot be known.
        """
        if self._pessimistic:
            self._done.update(self._done_before(group))
        self._load(group)
        results = [self._decide(work) for work in group]
        if self._doubtful and self._done_before(self._doubtful):
            raise VersionConflict(self._tables.inbox.name)
        if self._begun is not None:
            decided = (result for result in results if isinstance(result, Decision))
            self._begun.note(self._connection, writes, decided)
        self._write(writes)
        return results, self._outgoing

    def _load(self, group: Sequence[Work]) -> None:
        ids = self._own_ids(group)
        if self._pessimistic and self._checks:  # All must be known before one is locked.
            seen = GroupStates(self._connection, self._tables, lock=False)
            seen.load(ids)
            ids |= self._other_ids(group, seen)
        self._states.load(ids)
        self._states.load(self._other_ids(group, self._states))

    def _decide(self, work: Work) -> WorkResult:
        work.span = None  # one that was begun before was rolled back, and is not told of
        key = work.envelope.key
        if key in self._asked:
            return _LATER
        done = key in self._done
        # Of what is due, the state tells first.
        if done and not work.asked and work.firing is None:
            return _repeated(work, self._done[key])
        traceparent = self._begin_span(work) if tracing.active is not None else None
        began = time.perf_counter()
        try:
            decision = self._react(work, traceparent, done=done)
        except sa.exc.SQLAlchemyError:
            raise
        except Exception as error:
            if self._database.is_away(error):  # a state could not be loaded
                raise
            if not (work.asked or done):
                self._doubtful.append(work)
            return Failed(error)
        if decision is None:
            return Duplicate()
        self._metrics.reacted(work.message, time.perf_counter() - began)
        self._take_in(work, decision, done=done)
        return decision

    def _react(self, work: Work, traceparent: str | None, *, done: bool) -> Decision | None:
        """Run the reaction. None if the message is what was due, and that is not due by now.

        Raises `DueStays` where it is, though the inbox says that it was `done`; and what the
        reaction raises.
        """
        if work.firing is not None and not work.asked:
            decision = react_to_due(
                self._participant,
                work.firing,
                work.envelope,
                self._states.find,
                self._now,
                traceparent,
                taken_at=work.taken_at,
            )
            if decision is not None and done:
                raise done_before(self._participant.name, work.firing)
            return decision
        return react(
            self._participant,
            work.envelope,
            work.message,
            self._states.find,
            self._now,
            traceparent,
            taken_at=work.taken_at,
            attempt=work.attempt,
        )

    def _take_in(self, work: Work, decision: Decision, *, done: bool) -> None:
        """Take in what was decided, for the messages after it and to be written."""
        key = work.envelope.key
        self._states.change(decision.changes)
        self._outgoing += map(Outgoing.of, decision.events)
        if work.firing is not None and work.firing.brought_forward and not work.asked:
            self._audit.append(
                audit_entry(work.envelope.id, work.firing, self._now, in_words(decision))
            )
        if decision.intent is not None:
            self._asked.add(key)
            if not work.asked:
                self._doubtful.append(work)
        elif not done:  # An answer may be to what another replica has done meanwhile.
            self._done[key] = self._finished[key] = work.digest

    def _write(self, writes: WriteSet) -> None:
        if self._checks and not self._pessimistic:
            self._states.check(writes)
        self._tables.mark_done(writes, self._finished, self._now)
        self._states.save(writes)
        self._tables.note_brought_forward(writes, self._audit)
        if self._outgoing:
            at_microseconds = int(self._now.timestamp() * 1_000_000)
            self._outbox.store(writes, self._outgoing, at_microseconds)
        writes.execute(self._connection)

    def _done_before(self, group: Iterable[Work]) -> dict[MessageKey, bytes | None]:
        keys = {work.envelope.key for work in group}
        return self._tables.already_done(self._connection, keys)

    def _begin_span(self, work: Work) -> str | None:
        """Begin the reaction's span; return what its events are to carry."""
        reaction = self._participant.by_message.get(type(work.message))
        if reaction is None or work.context is None or tracing.active is None:
            return None
        work.span = tracing.active.reaction(
            self._participant.name, reaction.name, work.envelope, work.context
        )
        return tracing.active.traceparent_of(work.span)

    def _own_ids(self, group: Sequence[Work]) -> set[StateId]:
        """The states of the messages' subjects. Where there is no reaction, `react` will say so."""
        reactions = self._participant.by_message
        return {
            (reaction.own, work.envelope.subject)
            for work in group
            if (reaction := reactions.get(type(work.message))) is not None
        }

    def _other_ids(self, group: Sequence[Work], states: GroupStates) -> set[StateId]:
        ids: set[StateId] = set()
        for work in group:
            reaction = self._participant.by_message.get(type(work.message))
            if reaction is None:
                continue
            own = states.find((reaction.own, work.envelope.subject))
            for kind in self._participant.states:
                if kind is not reaction.own:
                    ids.update((kind, key) for key in kind.keys(work.message, own))
        return ids


def in_words(decision: Decision) -> str:
    """What was decided, in a few words: the types of the events, and what is asked."""
    words = [event.type for event in decision.events]
    if decision.intent is not None:
        words.append(f"asks {type(decision.intent).__name__}")
    return ", ".join(words) or "nothing"


def audit_entry(id: str, firing: Firing, at: datetime, outcome: str) -> Mapping[str, Any]:
    """A row of the record of what was brought forward, for which the firing says who wanted it."""
    wish = firing.brought_forward
    return {
        "id": id,
        "at": at,
        "who": wish.who if wish else "",
        "reason": wish.reason if wish else "",
        "kind": firing.kind.__name__,
        "key": firing.key,
        "command": firing.due.command.type,
        "due_at": firing.due.at,
        "outcome": outcome,
    }


def _repeated(work: Work, digest: bytes | None) -> Duplicate | Failed:
    """What becomes of a message whose source and id were done with a content of this digest."""
    if digest is None or work.digest is None or digest == work.digest:
        return Duplicate()
    source, id = work.envelope.key
    return Failed(Conflicting(f"another message from {source!r} was done under the id {id!r}"))
