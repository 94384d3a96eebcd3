"""The kept events, subject by subject, as this working tree reads them."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa
from pydantic_core import from_json
from sqlalchemy.engine import Connection

from saga.archive.store import events
from saga.choreography import Choreography, Participant
from saga.dlq.examine import decoder_of
from saga.dlq.letters import document_of
from saga.envelope import Decoder, Envelope, Undecodable, schema_uri, source_of
from saga.history.pages import paged, read_at_once
from saga.message import Command, Event, versions_of
from saga.runtime.kernel.statements import any_of
from saga.runtime.messaging.dead_letters import ADDRESSEE
from saga.runtime.messaging.trust import EDITOR_SOURCE

SUBJECTS_AT_ONCE: Final = 500
KEYS_AT_ONCE: Final = 5_000
EVENTS_AT_ONCE: Final = 2_000

MessageKind = type[Event] | type[Command]


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event of the history, or a command that a participant sent, in its newest version.

    `older` is the version in which it was published, if that is not the newest. A copy that an
    operator has corrected went to one participant only, the `addressee`.
    """

    envelope: Envelope[Any]
    position: int
    older: MessageKind | None = None
    addressee: str = ""


@dataclass(frozen=True, slots=True)
class RecordedSubject:
    """What the history has about one subject, in the order in which it was recorded. `unreadable`
    are source and type of what this working tree cannot read."""

    subject: str
    events: Sequence[RecordedEvent]
    unreadable: Sequence[tuple[str, str]] = ()


@dataclass(frozen=True, slots=True)
class Reached:
    """How far a system has come by its history: the time of its newest event, and keyed by
    participant that of the newest message which it has answered by now."""

    newest: datetime | None
    answered: Mapping[str, datetime] = field(default_factory=dict)


def count_subjects(url: str) -> int:
    """How many subjects an archive has events about. Raises `DatabaseError`."""
    query = sa.select(sa.func.count(events.c.subject.distinct()))
    return read_at_once(url, lambda connection: connection.scalar(query) or 0)


class RecordReader:
    """Reads one archive up to a position. Its methods block, and raise `DatabaseError`."""

    def __init__(self, url: str, graph: Choreography, up_to: int) -> None:
        self.url = url
        self.up_to = up_to
        self._graph = graph
        self._versions: dict[str, Mapping[str, MessageKind]] = {}
        """Keyed by type, then by schema: the versions of what has several."""
        for newest in graph.recorded:
            versions = versions_of(newest)
            if len(versions) > 1:
                self._versions[newest.type] = {schema_uri(v): v for v in versions.values()}
        self._decoders: dict[str, tuple[Participant, Decoder]] = {
            p.name: (p, decoder_of(p)) for p in graph.in_python
        }

    def count(self) -> int:
        """How many subjects there are."""
        return count_subjects(self.url)

    def reached(self) -> Reached:
        """How far the system has come."""

        def read(connection: Connection) -> Reached:
            cause = events.alias()
            joined = events.join(cause, cause.c.event_id == events.c.causation)
            query = sa.select(events.c.source, sa.func.max(cause.c.time)).select_from(joined)
            names = {source_of(p.name): p.name for p in self._graph.participants}
            rows = connection.execute(query.group_by(events.c.source))
            answered = {names[source]: time for source, time in rows if source in names}
            return Reached(connection.scalar(sa.select(sa.func.max(events.c.time))), answered)

        return read_at_once(self.url, read)

    def subjects(self) -> Iterator[list[str]]:
        """Every subject, some at a time."""

        def page(after: str | None, connection: Connection) -> list[str]:
            column = events.c.subject
            query = sa.select(column).distinct().order_by(column).limit(KEYS_AT_ONCE)
            if after is not None:
                query = query.where(column > after)
            return list(connection.scalars(query))

        return paged(self.url, page, lambda found: found[-1])

    def sample(self, size: int, seed: int) -> list[str]:
        """So many subjects, drawn from all of them by a seed; all, if there are no more."""
        draw = random.Random(seed)
        kept: list[str] = []
        number = 0
        for page in self.subjects():
            for subject in page:
                number += 1
                if len(kept) < size:
                    kept.append(subject)
                elif (place := draw.randrange(number)) < size:
                    kept[place] = subject
        return sorted(kept)

    def told(self, chosen: Sequence[str] | None = None) -> Iterator[list[RecordedSubject]]:
        """What is recorded about the chosen subjects, or about all, some subjects at a time."""

        def page(after: str | None, connection: Connection) -> list[RecordedSubject]:
            column = events.c.subject
            query = sa.select(column).distinct().order_by(column).limit(SUBJECTS_AT_ONCE)
            if after is not None:
                query = query.where(column > after)
            return self._about(connection, list(connection.scalars(query)))

        def chosen_page(after: str | None, connection: Connection) -> list[RecordedSubject]:
            assert chosen is not None  # noqa: S101 - it is called only then
            start = 0 if after is None else places[after] + 1
            return self._about(connection, chosen[start : start + SUBJECTS_AT_ONCE])

        places = {subject: place for place, subject in enumerate(chosen or ())}
        read = page if chosen is None else chosen_page
        return paged(self.url, read, lambda found: found[-1].subject)

    def one(self, subject: str) -> RecordedSubject:
        """What is recorded about one subject."""
        (told,) = read_at_once(self.url, lambda connection: self._about(connection, [subject]))
        return told

    def published_by(self, participant: Participant) -> Iterator[list[RecordedEvent]]:
        """What a participant has published and this version can read, in the order in which it was
        recorded."""
        source = source_of(participant.name)

        def page(after: int | None, connection: Connection) -> list[tuple[int, Any]]:
            column = events.c.position
            query = sa.select(events.c.subject, events.c.source, events.c.type, column)
            query = query.add_columns(events.c.body).where(events.c.source == source)
            query = query.where(column > (after or 0), column <= self.up_to)
            rows = connection.execute(query.order_by(column).limit(EVENTS_AT_ONCE))
            return [(row.position, self._read(row)) for row in rows]

        for found in paged(self.url, page, lambda found: found[-1][0]):
            yield [event for _, event in found if event is not None]

    def _about(self, connection: Connection, subjects: Sequence[str]) -> list[RecordedSubject]:
        if not subjects:
            return []
        column = events.c
        query = sa.select(column.subject, column.source, column.type, column.position, column.body)
        wanted = any_of(connection, column.subject, subjects)
        rows = connection.execute(
            query.where(wanted, column.position <= self.up_to).order_by(column.position)
        )
        found: dict[str, tuple[list[RecordedEvent], list[tuple[str, str]]]] = {
            subject: ([], []) for subject in subjects
        }
        for row in rows:
            readable, unreadable = found[row.subject]
            event = self._read(row)
            if event is None:
                unreadable.append((row.source, row.type))
            else:
                readable.append(event)
        return [RecordedSubject(subject, *both) for subject, both in found.items()]

    def _read(self, row: Any) -> RecordedEvent | None:
        """The event in a row; None if this version cannot read it."""
        addressee, decoder, older = "", self._graph.decoder, None
        if row.source == EDITOR_SOURCE:
            name = (document_of(row.body) or {}).get(ADDRESSEE)
            if name not in self._decoders:
                return None
            addressee = name
            _, decoder = self._decoders[name]
        try:
            envelope = decoder.decode(row.body)
        except Undecodable:
            return None
        # Another program may have put down another subject than the event says.
        if envelope.subject != row.subject:
            return None
        if versions := self._versions.get(envelope.type):
            published_in = versions.get(from_json(row.body).get("dataschema"))
            if published_in is not type(envelope.data):
                older = published_in
        return RecordedEvent(envelope, row.position, older, addressee)
