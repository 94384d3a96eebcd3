"""Which sagas have begun and not ended, and when: measured, and needed for nothing else.

The row of a saga is inserted with its first event and removed with its last, in the transactions
that decide on these. Where many begin and end, one process knows most of them from memory, and
reads only what another replica has begun, or itself before it was started again.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from prometheus_client import Gauge
from sqlalchemy.engine import Connection

from saga.choreography import State
from saga.clock import elapsed
from saga.course import Course, reason_of
from saga.due import OVERDUE_SECONDS
from saga.envelope import Envelope
from saga.message import Event
from saga.runtime.kernel.rows import Rows, WriteSet
from saga.runtime.kernel.step import Decision
from saga.runtime.kernel.tables import DUE_AT, OF_METRICS, Schema, Tables, Utc
from saga.runtime.metrics import SagaMetrics

REMEMBERED_MAX: Final = 10_000
"""Sagas of which a process knows by heart when they began."""


class Begun:
    """Measures the sagas that one participant begins or ends. Belongs to one kernel."""

    def __init__(self, course: Course, tables: Tables) -> None:
        self._course = course
        self._metrics = SagaMetrics(course)
        self._table = _table_in(sa.MetaData())
        self._rows = Rows(self._table)
        self._states = None if course.subject is None else tables.states[course.subject]
        self._began: dict[str, datetime | None] = {}
        """Keyed by subject, oldest first; None where that was before anything was measured."""

    @property
    def schema(self) -> Schema | None:
        """Its own table, for the database of its participant; None if it needs none.

        Where it is made in a database that has been in use, the sagas are entered that are under
        way as far as something is due about them, without the time at which they began.
        """
        if not self._course.whole:
            return None
        metadata = sa.MetaData()
        sa.event.listen(_table_in(metadata), "after_create", self._adopt)
        return Schema(metadata)

    def note(self, connection: Connection, writes: WriteSet, decisions: Iterable[Decision]) -> None:
        """Record which sagas begin and end by these decisions, of one transaction."""
        if not self._course.whole:
            return
        begun: dict[str, datetime] = {}
        ended: set[str] = set()
        for decision in decisions:
            for event in decision.events:
                if self._begins(decision, event):
                    begun[event.subject] = event.time
                if event.type in self._course.ends:
                    ended.add(event.subject)
        if unknown := ended - begun.keys() - self._began.keys():
            self._remember(self._rows.find(connection, sorted(unknown)))
        self._remember(begun.items())
        lasting = sorted(begun.keys() - ended)
        # Whatever is there already: measuring must not cause conflicts.
        writes.add(self._rows, [{"subject": key, "at": begun[key]} for key in lasting])
        writes.remove(self._rows, sorted(ended - begun.keys()))

    def committed(self, decision: Decision) -> None:
        """Count what begins and ends by a decision that is committed."""
        for event in decision.events:
            if self._begins(decision, event):
                self._metrics.begun(event.priority)
            if event.type in self._course.ends:
                assert isinstance(event.data, Event)  # noqa: S101 - ends are events
                reason = reason_of(event.data, self._course.ends[event.type])
                in_time = _in_time(decision.before, event.time)
                trace = event.traceparent
                self._metrics.ended(event.type, reason, event.priority, in_time, trace)
                if (began := self._began.pop(event.subject, None)) is not None:
                    seconds = elapsed(began, event.time).total_seconds()
                    self._metrics.took(event.type, event.priority, seconds, trace)

    def read(self, connection: Connection, now: datetime) -> dict[Gauge, float]:
        """The gauges, as they are now."""
        figures: dict[Gauge, float] = {}
        if (pending := self._metrics.pending) is not None:
            query = sa.select(sa.func.count()).select_from(self._table)
            figures[pending] = connection.scalar(query) or 0
        if (overdue := self._metrics.overdue) is not None and self._states is not None:
            late = now - timedelta(seconds=OVERDUE_SECONDS)
            figures[overdue] = self._states.count_due(connection, until=late)
        return figures

    def _begins(self, decision: Decision, event: Envelope[Any]) -> bool:
        return event.sequence == 1 and type(decision.own) is self._course.subject

    def _remember(self, began: Iterable[Sequence[Any]]) -> None:
        self._began.update((subject, at) for subject, at in began)
        while len(self._began) > REMEMBERED_MAX:
            del self._began[next(iter(self._began))]

    def _adopt(self, target: sa.Table, connection: Connection, **_: Any) -> None:
        if self._states is None or not self._states.has_dues:
            return
        table = self._states.table
        (key,) = table.primary_key.columns
        under_way = sa.select(key, sa.null()).where(table.c[DUE_AT].is_not(None))
        connection.execute(target.insert().from_select(["subject", "at"], under_way))


def _table_in(metadata: sa.MetaData) -> sa.Table:
    return sa.Table(
        OF_METRICS,
        metadata,
        sa.Column("subject", sa.String(255), primary_key=True),
        # NULL for what began before there was this table.
        sa.Column("at", Utc),
        sqlite_with_rowid=False,  # one tree to write to instead of two
    )


def _in_time(before: State, at: datetime) -> bool:
    """Whether what ended then was not past a deadline: what is `expected` at its time is none."""
    due = before.due()
    return due is None or due.expected or at <= due.at
