"""What has been published for a participant and not been taken by it yet, by type and subject.

It is the difference of two books: the archive says what was published, and a participant's inbox
what it has done. So no queue is looked into, which would bring what waits there into another order.
Only the newest events are held against the inboxes: `LOOKED_AT_MAX`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive.store import events
from saga.choreography import Choreography
from saga.deployment import Deployment
from saga.discovery import tables_in
from saga.dlq.lookup import known_among
from saga.envelope import MessageKey
from saga.history.archive import Archive
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.tables import Tables, utc_now
from saga.runtime.messaging.trust import EDITOR_SOURCE

LOOKED_AT_MAX: Final = 3_000
"""The newest events, that are held against the inboxes."""
_AT_ONCE: Final = 500
"""Messages that an inbox is asked for in one statement."""


@dataclass(frozen=True, slots=True)
class UntakenMessage:
    """A message that a participant has not dealt with: it waits in a queue or to be tried again, or
    is in the participant's hands."""

    participant: str
    type: str
    subject: str
    id: str
    source: str
    at: datetime
    """When it came about."""


@dataclass(frozen=True)
class WaitingMessages:
    """What participants have not taken of the newest events."""

    untaken: Sequence[UntakenMessage] = ()
    """The oldest first."""
    looked_at: int = 0
    """Events."""
    older: bool = False
    """Whether there are earlier events, at which nothing was looked."""
    unread: Mapping[str, str] = field(default_factory=dict)
    """Keyed by participant: why it is not known what it has taken."""

    def of(self, participant: str, type_: str | None = None) -> list[UntakenMessage]:
        """Those of one participant, of any type or of one."""
        return [
            message
            for message in self.untaken
            if message.participant == participant and type_ in (None, message.type)
        ]

    @property
    def counts(self) -> Counter[tuple[str, str]]:
        """How many there are, by participant and type."""
        return Counter((message.participant, message.type) for message in self.untaken)


def read_waiting(
    deployment: Deployment, graph: Choreography, *, now: datetime | None = None
) -> WaitingMessages:
    """What has not been taken; blocks. The archive is read before the inboxes, so what was taken
    meanwhile is not named. Dead letters that are in the store are left out, and those that an
    operator has settled; those still in their queues cannot be told from what waits.

    Raises `HistoryError`, `DatabaseError` and `DlqError`.
    """
    receivers = {kind.type: graph.reacting_to(kind.type) for kind in graph.recorded}
    types = sorted(type_ for type_, taking in receivers.items() if taking)
    newest, last = read_database(Archive(deployment).url, partial(_newest, types))
    # What an inbox may have forgotten is not said to be untaken.
    remembered = (now or utc_now()) - timedelta(days=deployment.inbox_days)
    unread = {
        participant.name: "it is written in another language, so its books are not known here"
        for participant in graph.foreign
    }
    untaken: list[UntakenMessage] = []
    for participant in graph.in_python:
        owed = [
            UntakenMessage(participant.name, row.type, row.subject, row.event_id, row.source, at)
            for row in newest
            if participant in receivers[row.type] and (at := row.time) > remembered
        ]
        url = deployment.database_urls.get(participant.name)
        if url is None:
            unread[participant.name] = "the deployment names no database of it"
        elif owed:
            left = read_database(url, partial(_not_done, owed, tables_in(participant.package)))
            keys = [message.id for message in left]
            dead = known_among(deployment.dead_letters_url, participant.name, keys)
            untaken += (message for message in left if message.id not in dead)
    untaken.sort(key=lambda message: message.at)
    return WaitingMessages(untaken, min(last, LOOKED_AT_MAX), last > LOOKED_AT_MAX, unread)


def _newest(types: Sequence[str], connection: Connection) -> tuple[Sequence[Any], int]:
    """Those of the newest events that a participant takes, and the last position of all."""
    c = events.c
    last = connection.scalar(sa.select(sa.func.max(c.position))) or 0
    query = sa.select(c.event_id, c.source, c.type, c.subject, c.time).where(
        c.position > last - LOOKED_AT_MAX, c.type.in_(types), c.source != EDITOR_SOURCE
    )
    return connection.execute(query.order_by(c.position)).all(), last


def _not_done(
    owed: Sequence[UntakenMessage], tables: Tables, connection: Connection
) -> list[UntakenMessage]:
    """What has no inbox row."""
    left: list[UntakenMessage] = []
    for start in range(0, len(owed), _AT_ONCE):
        part = {MessageKey(each.source, each.id): each for each in owed[start : start + _AT_ONCE]}
        done = tables.already_done(connection, part)
        left += (each for key, each in part.items() if key not in done)
    return left
