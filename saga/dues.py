"""What is due in a running system, when, and what was brought forward; read from its databases.

Bringing something forward is the service's to do: it is asked over HTTP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import Any, Final, TypeVar
from urllib.parse import quote

import httpx
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.choreography import Choreography, Participant
from saga.deployment import Deployment
from saga.discovery import tables_in
from saga.due import OVERDUE_SECONDS, Due
from saga.envelope import rfc3339
from saga.errors import Explained, InputError
from saga.http import post_to_one
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.tables import Tables, utc_now
from saga.runtime.kernel.timer import Listed, dues_after, dues_in

LISTED_MAX: Final = 1_000
"""What is due in one service, beyond which no more is listed."""
ENTRIES_MAX: Final = 100_000
"""Of the audit record of one service."""
ASK_SECONDS: Final = 30.0

T = TypeVar("T")


class DueError(Explained):
    """What is due cannot be told, or not be brought forward. Says why."""


@dataclass(frozen=True, slots=True)
class Item:
    """What is due about one state of a participant's; `due` is None if it cannot be read."""

    participant: str
    kind: str
    subject: str
    at: datetime
    due: Due[Any] | None
    why: str = ""
    """Why it cannot be read."""

    @classmethod
    def of(cls, participant: str, listed: Listed) -> Item:
        return cls(participant, listed.kind, listed.key, listed.at, listed.due, listed.why)

    def late(self, now: datetime) -> bool:
        """Whether it should have been done by now."""
        return now > self.at + timedelta(seconds=OVERDUE_SECONDS)

    def to_json(self, now: datetime) -> dict[str, Any]:
        return {
            "participant": self.participant,
            "state": self.kind,
            "subject": self.subject,
            "command": self.due and self.due.command.type,
            "priority": self.due and self.due.priority,
            "at": rfc3339(self.at),
            "late": self.late(now),
            "late_seconds": round((now - self.at).total_seconds(), 3),
            "why": self.why or None,
        }


@dataclass(frozen=True, slots=True)
class Listing:
    """What is due, the first in front; `more` is how many are not listed."""

    items: Sequence[Item]
    more: int


DuePlace = tuple[datetime, str, str, str]
"""Where something stands in a list of what is due: its time, participant, kind of state, key."""


@dataclass(frozen=True, slots=True)
class DuePage:
    """A part of what is due, those due first in front. `next` is the place of its last; None if
    there is no more. `due` and `overdue` count what is due in all pages together."""

    items: Sequence[Item]
    next: DuePlace | None
    due: int
    overdue: int


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of the audit record. `id` tells it from others of its participant."""

    id: str
    participant: str
    at: datetime
    who: str
    reason: str
    kind: str
    subject: str
    command: str
    due_at: datetime
    outcome: str

    def to_json(self) -> dict[str, Any]:
        return {
            "participant": self.participant,
            "at": rfc3339(self.at),
            "who": self.who,
            "reason": self.reason,
            "state": self.kind,
            "subject": self.subject,
            "command": self.command,
            "due_at": rfc3339(self.due_at),
            "outcome": self.outcome,
        }


async def listing(
    deployment: Deployment,
    graph: Choreography,
    *,
    participant: str | None = None,
    subject: str | None = None,
) -> Listing:
    """What is due about a subject, or about all, in one service or in all. Changes nothing.

    Raises `InputError` for a participant about whose states nothing is ever due, `DueError` and
    `DatabaseError`.
    """
    items: list[Item] = []
    more = 0
    for one in _with_dues(graph, participant):
        found, left = await _read(deployment, one, partial(_dues, subject=subject))
        items += (Item.of(one.name, each) for each in found)
        more += left
    return Listing(sorted(items, key=lambda item: item.at), more)


async def page(
    deployment: Deployment,
    graph: Choreography,
    *,
    participant: str | None = None,
    subject: str | None = None,
    limit: int,
    after: DuePlace | None = None,
) -> DuePage:
    """A part of what `listing` lists, behind that place. Changes nothing; raises what that does."""
    rows: list[tuple[DuePlace, Item | None]] = []
    due = overdue = 0
    late = utc_now() - timedelta(seconds=OVERDUE_SECONDS)
    for one in _with_dues(graph, participant):
        read = partial(
            _page, participant=one.name, key=subject, limit=limit + 1, after=after, late=late
        )
        found, all_due, all_overdue = await _read(deployment, one, read)
        rows += found
        due, overdue = due + all_due, overdue + all_overdue
    rows.sort(key=lambda row: row[0])
    shown = rows[:limit]
    items = [item for _, item in shown if item is not None]
    return DuePage(items, shown[-1][0] if len(rows) > limit else None, due, overdue)


def auditing(graph: Choreography) -> Sequence[str]:
    """The participants who keep a record of what was brought forward."""
    return [participant.name for participant in _with_dues(graph, None)]


async def audit(
    deployment: Deployment,
    graph: Choreography,
    *,
    participant: str | None = None,
    subject: str | None = None,
    limit: int,
    before: tuple[datetime, str] | None = None,
) -> list[Entry]:
    """What was brought forward, the newest first; `before` the entry of that time and id. Raises
    what `listing` does."""
    entries: list[Entry] = []
    for one in _with_dues(graph, participant):
        read = partial(_entries, participant=one.name, subject=subject, limit=limit, before=before)
        entries += await _read(deployment, one, read)
    return sorted(entries, key=lambda entry: entry.at, reverse=True)[:limit]


async def bring_forward(
    deployment: Deployment, item: Item, *, who: str, reason: str
) -> Sequence[str]:
    """Ask its service to do now what is due; returns the types of the events that came of it.

    Raises `DueError` where the service does not do it, and says why.
    """
    if item.due is None:
        raise DueError(f"what is due about {item.subject} cannot be read: {item.why}")
    urls = deployment.http_urls.get(item.participant, ())
    if not urls:
        raise DueError(f"the deployment names no URL of the service {item.participant}; add it")
    path = f"/due/{quote(item.kind, safe='')}/{quote(item.subject, safe='')}/bring-forward"
    try:
        answer = await post_to_one(urls, path, {"who": who, "reason": reason}, ASK_SECONDS)
    except httpx.HTTPError as error:
        raise DueError(
            f"the service {item.participant} did not answer: "
            f"{str(error) or type(error).__name__}; `saga due --audit` tells whether it was done"
        ) from error
    if answer is None:
        raise DueError(f"no service {item.participant} runs at {', '.join(urls)}; start it")
    return _events_in(answer, item)


def _events_in(answer: httpx.Response, item: Item) -> Sequence[str]:
    try:
        document = answer.json()
        if answer.is_success:
            return [str(type_) for type_ in document["events"]]
        why = str(document["detail"])
    except (ValueError, LookupError, TypeError):
        why = f"it answered {answer.status_code} with no problem that can be read"
    raise DueError(f"the service {item.participant} has not brought it forward: {why}")


def _with_dues(graph: Choreography, name: str | None) -> Sequence[Participant]:
    found = [participant for participant in graph.participants if participant.dues]
    if name is None:
        return found
    chosen = [participant for participant in found if participant.name == name]
    if not chosen:
        raise InputError(
            f"nothing is ever due in {name!r}; it is in "
            f"{', '.join(one.name for one in found) or 'no service'}"
        )
    return chosen


async def _read(
    deployment: Deployment, participant: Participant, query: Callable[[Connection, Tables], T]
) -> T:
    url = deployment.database_urls.get(participant.name)
    if url is None:
        raise DueError(f"the deployment names no database of {participant.name}; add its URL")
    tables = tables_in(participant.package)
    return await asyncio.to_thread(read_database, url, lambda c: query(c, tables))


def _dues(connection: Connection, tables: Tables, subject: str | None) -> tuple[list[Listed], int]:
    found = dues_in(connection, tables.with_dues, LISTED_MAX, key=subject)
    count = sum(table.count_due(connection, key=subject) for table in tables.with_dues)
    return found, max(0, count - LISTED_MAX)


def _page(
    connection: Connection,
    tables: Tables,
    participant: str,
    key: str | None,
    limit: int,
    after: DuePlace | None,
    late: datetime,
) -> tuple[list[tuple[DuePlace, Item | None]], int, int]:
    """Rows of a participant's tables, in no order, at most `limit` of each; and in all of them, how
    much is due, and how much was due before `late`."""
    found: list[tuple[DuePlace, Item | None]] = []
    due = overdue = 0
    for table in tables.with_dues:
        kind = table.kind.__name__
        start = None if after is None else _start_in(participant, kind, after)
        for at, one, listed in dues_after(connection, table, limit, key=key, after=start):
            item = None if listed is None else Item.of(participant, listed)
            found.append(((at, participant, kind, one), item))
        due += table.count_due(connection, key=key)
        overdue += table.count_due(connection, until=late, key=key)
    return found, due, overdue


def _start_in(participant: str, kind: str, after: DuePlace) -> tuple[datetime, str | None]:
    """Behind what a table's rows come that are behind that place: of what is due at the same time,
    tables have their order."""
    at, last_participant, last_kind, key = after
    if (participant, kind) == (last_participant, last_kind):
        return at, key
    return at, "" if (participant, kind) > (last_participant, last_kind) else None


def _entries(
    connection: Connection,
    tables: Tables,
    participant: str,
    subject: str | None,
    limit: int,
    before: tuple[datetime, str] | None,
) -> list[Entry]:
    if (table := tables.due_audit) is None:
        return []
    query = sa.select(table).order_by(table.c.at.desc(), table.c.id).limit(limit)
    if before is not None:
        at, id = before
        query = query.where((table.c.at < at) | ((table.c.at == at) & (table.c.id > id)))
    if subject is not None:
        query = query.where(table.c.key == subject)
    return [
        Entry(
            row.id,
            participant,
            row.at,
            row.who,
            row.reason,
            row.kind,
            row.key,
            row.command,
            row.due_at,
            row.outcome,
        )
        for row in connection.execute(query)
    ]
