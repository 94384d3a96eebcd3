"""What a system keeps in clear of the fields that are marked as personal: what entered before
anything was sealed, and where it is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive import OBSERVER
from saga.archive.store import Fact
from saga.archive.views import projection_of
from saga.choreography import Choreography
from saga.declaration import Saga
from saga.deployment import Deployment
from saga.discovery import tables_of
from saga.dlq.examine import decoder_of
from saga.dlq.selection import Selection
from saga.dlq.states import LetterState
from saga.dlq.store import Store
from saga.envelope import Decoder, Undecodable, rfc3339
from saga.history import pages
from saga.message import Message
from saga.personal.marks import (
    personal_fields,
    personal_state_fields,
    personal_values,
    values_in_state,
)
from saga.personal.seal import sealed
from saga.runtime.kernel.opening import read_database
from saga.runtime.kernel.tables import StateTable, Tables
from saga.runtime.messaging.topology import HISTORY_DAYS
from saga.wording import counted

AT_ONCE: Final = 500
STAYS: Final = "it stays: nothing that is recorded is rewritten"
LEAVES: Final = "it goes with the row, which its service changes or removes"
PUBLISHED: Final = "it goes once its service has published it"
DISCARDED: Final = "discard or replay what is dead; `saga dlq purge` removes what is settled"


@dataclass(slots=True)
class InClear:
    """A place that keeps personal values in clear."""

    name: str
    goes: str
    """How it gets rid of them."""
    count: int = 0
    """Of events, letters or rows with such values."""
    oldest: datetime | None = None
    newest: datetime | None = None
    """When what has them was written; None where that is not known."""
    goes_at: datetime | None = None
    """Where they go by themselves: not before then."""

    def take(self, values: Iterable[str], at: datetime | None) -> None:
        """Count what has these values, if any is in clear."""
        if all(map(sealed, values)):
            return
        self.count += 1
        if at is not None:
            self.oldest = min(self.oldest or at, at)
            self.newest = max(self.newest or at, at)


@dataclass
class ClearReport:
    """What was found in clear, and what was not looked at."""

    places: list[InClear] = field(default_factory=list)
    """With such values."""
    looked_at: dict[str, int] = field(default_factory=dict)
    """Keyed by place: how many events, letters or rows were looked at."""
    unseen: list[tuple[str, str]] = field(default_factory=list)
    """Names of places, and why these were not looked at."""
    elsewhere: list[tuple[str, str]] = field(default_factory=list)
    """What may hold names besides, and what looks there."""

    @property
    def clean(self) -> bool:
        return not self.places and not self.unseen

    def to_json(self) -> dict[str, Any]:
        """The report as a JSON document."""

        def time(at: datetime | None) -> str | None:
            return None if at is None else rfc3339(at)

        def named(pairs: Iterable[tuple[str, str]]) -> list[dict[str, str]]:
            return [{"name": name, "why": why} for name, why in pairs]

        return {
            "ok": self.clean,
            "places": [
                {
                    "name": one.name,
                    "count": one.count,
                    "oldest": time(one.oldest),
                    "newest": time(one.newest),
                    "goes_at": time(one.goes_at),
                    "goes": one.goes,
                }
                for one in self.places
            ],
            "looked_at": self.looked_at,
            "not_looked_at": named(self.unseen),
            "elsewhere": named(self.elsewhere),
        }


def look_for_clear(deployment: Deployment, saga: Saga, now: datetime) -> ClearReport:
    """Look at every field that is marked as personal, in the history, the dead letters and the
    databases of participants. Changes nothing; blocks, for as long as it takes to read all of them.
    Raises `DatabaseError` and `DlqError`."""
    report, graph = ClearReport(), saga.choreography
    for one in (
        *_in_history(deployment, graph, report, now),
        *_in_letters(deployment, graph, report),
        *_in_databases(deployment, graph, report),
    ):
        if one.count:
            report.places.append(one)
    report.elsewhere += (
        ("copies", "backups, exports and logs: `saga forget --verify --also FOLDER`"),
        ("queues", "messages on their way, and dead letters that `saga dlq list` collects"),
    )
    report.elsewhere += (
        (outside.name, "it has books or papers of its own; `saga forget --verify` looks there")
        for outside in saga.outside
        if outside.read is not None or outside.papers is not None
    )
    return report


def _in_history(
    deployment: Deployment, graph: Choreography, report: ClearReport, now: datetime
) -> Iterator[InClear]:
    url = deployment.database_urls.get(OBSERVER.name)
    if url is None:
        report.unseen.append(("the history", "this system has no history service"))
        return
    archive = InClear("the history", STAYS)
    kept = timedelta(days=HISTORY_DAYS)
    stream = InClear(
        "the history's stream",
        f"after {HISTORY_DAYS} days, with the next segments that are published",
    )
    looked_at = unreadable = 0
    for page in pages.by_position(url, pages.last_position(url)):
        for item in page:
            values = _values_in(graph.decoder, item.body) if isinstance(item, Fact) else None
            if values is None:
                unreadable += 1
                continue
            looked_at += 1
            at = item.attributes.time if isinstance(item, Fact) else None
            archive.take(values, at)
            if at is not None and at > now - kept:
                stream.take(values, at)
    strays = sum(map(len, pages.strays_of(url)))
    if unreadable or strays:
        report.unseen.append(
            (
                archive.name,
                f"{counted(unreadable + strays, 'message')} that this version cannot read",
            )
        )
    report.looked_at[archive.name] = looked_at
    stream.goes_at = stream.newest and stream.newest + kept
    yield archive
    yield stream
    view = projection_of(graph).view
    if view is not None:
        yield from _in_states(url, OBSERVER.name, [view.table], report, STAYS)


def _in_letters(
    deployment: Deployment, graph: Choreography, report: ClearReport
) -> Iterator[InClear]:
    url = deployment.dead_letters_url
    if url is None:
        report.unseen.append(("dead letters", "the deployment names no store: dead_letters_url"))
        return
    found = InClear("dead letters", DISCARDED)
    unreadable = looked_at = 0
    decoders = {participant.name: decoder_of(participant) for participant in graph.in_python}
    store = Store(url)
    try:
        after: tuple[datetime, int] | None = None
        while page := store.page(Selection(), (*LetterState,), AT_ONCE, after, contents=True):
            for letter in page:
                decoder = decoders.get(letter.participant, graph.decoder)
                values = _values_in(decoder, letter.body)
                if values is None:
                    unreadable += 1
                else:
                    looked_at += 1
                    found.take(values, letter.first_failed_at)
            after = page[-1].first_failed_at, page[-1].number
    finally:
        store.close()
    if unreadable:
        report.unseen.append((found.name, f"{unreadable} that this version cannot read"))
    report.looked_at[found.name] = looked_at
    yield found


def _in_databases(
    deployment: Deployment, graph: Choreography, report: ClearReport
) -> Iterator[InClear]:
    for participant in graph.participants:
        name, url = participant.name, deployment.database_urls.get(participant.name)
        if url is None or participant not in graph.in_python:
            report.unseen.append((name, "its database is not known here, or not one of ours"))
            continue
        tables = tables_of(name)
        yield from _in_states(url, name, tables.states.values(), report, LEAVES)
        outbox = InClear(f"{name}: outbox", PUBLISHED)
        unreadable = 0
        bodies = read_database(url, _bodies)
        for body in bodies:
            values = _values_in(graph.decoder, body)
            if values is None:
                unreadable += 1
            else:
                outbox.take(values, None)
        if unreadable:
            report.unseen.append((outbox.name, f"{unreadable} that this version cannot read"))
        report.looked_at[outbox.name] = len(bodies) - unreadable
        yield outbox


def _in_states(
    url: str, owner: str, tables: Iterable[StateTable[Any]], report: ClearReport, goes: str
) -> Iterator[InClear]:
    for table in tables:
        if not personal_state_fields(table.kind):
            continue
        found = InClear(f"{owner}: {table.table.name}", goes)
        read: Callable[[Connection], tuple[int, int]] = _Rows(table, found)
        looked_at, unreadable = read_database(url, read)
        report.looked_at[found.name] = looked_at
        if unreadable:
            report.unseen.append((found.name, f"{counted(unreadable, 'row')} that cannot be read"))
        yield found


@dataclass(frozen=True)
class _Rows:
    """Takes the rows of one table."""

    table: StateTable[Any]
    found: InClear

    def __call__(self, connection: Connection) -> tuple[int, int]:
        looked_at = unreadable = 0
        for states, odd in self.table.pages(connection):
            for state in states.values():
                self.found.take(values_in_state(state), None)
            looked_at += len(states)
            unreadable += len(odd)
        return looked_at, unreadable


def _bodies(connection: Connection) -> list[bytes]:
    outbox = Tables(sa.MetaData()).outbox
    return [bytes(body) for body in connection.scalars(sa.select(outbox.c.body))]


def _values_in(decoder: Decoder, body: bytes) -> list[str] | None:
    """The personal values in a message, of whatever version; None for one that cannot be read."""
    try:
        data: Message = decoder.decode(body).data
    except Undecodable:
        return None
    return personal_values(data) if personal_fields(type(data)) else []
