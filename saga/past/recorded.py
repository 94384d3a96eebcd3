"""The kept events, subject by subject, as this working tree reads them."""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import cache
from types import UnionType
from typing import Any, Final, Union, get_args, get_origin

import sqlalchemy as sa
from pydantic import BaseModel
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
IN_HAND_PATIENCE: Final = timedelta(seconds=60)
"""So long a participant may have a message in its hands, besides what its queues have."""
SHOWN_MAX_CHARACTERS: Final = 200
"""Of a value in an example."""

MessageKind = type[Event] | type[Command]


@dataclass(frozen=True, slots=True)
class RecordedEvent:
    """An event of the history, or a command that a participant sent, in its newest version.

    `older` is the version in which it was published, if that is not the newest. A copy that an
    operator has corrected went to one participant only, the `addressee`. `unread` is what it holds
    under names that its class does not have, with the values; `outdated` are the names of an older
    version that the newest one does not have.
    """

    envelope: Envelope[Any]
    position: int
    older: MessageKind | None = None
    addressee: str = ""
    unread: Sequence[tuple[str, str]] = ()
    outdated: Sequence[str] = ()


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


@dataclass(frozen=True, slots=True)
class PendingMessages:
    """Messages by participant and id: those that are `waiting`, in a queue or dead, and dead
    letters that an operator has put away, the `settled` ones."""

    waiting: Collection[tuple[str, str]] = ()
    settled: Collection[tuple[str, str]] = ()
    looked_at: datetime | None = None
    """When reading the queues began; None if they were not read."""
    ready: Mapping[str, int] = field(default_factory=dict)
    """Keyed by participant that reads its queues: the messages in them, which were not looked at.
    """

    def has_taken(self, name: str, message: Envelope[Any]) -> bool:
        """Whether a participant must have taken a message that is not waiting."""
        if self.looked_at is None or self.ready.get(name):
            return False
        return message.time + IN_HAND_PATIENCE <= self.looked_at

    def is_at_work(self, name: str, moment: datetime) -> bool:
        """Whether a participant is known to be at work, after that moment."""
        return name in self.ready and self.looked_at is not None and self.looked_at > moment


def count_subjects(url: str) -> int:
    """How many subjects an archive has events about. Raises `DatabaseError`."""
    query = sa.select(sa.func.count(events.c.subject.distinct()))
    return read_at_once(url, lambda connection: connection.scalar(query) or 0)


def count_published(url: str, participant: Participant) -> int:
    """How many events of a participant an archive has. Raises `DatabaseError`."""
    query = sa.select(sa.func.count()).where(events.c.source == source_of(participant.name))
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

    def batches(self, chosen: Sequence[str] | None = None) -> Iterator[list[str]]:
        """The chosen subjects, or all, so many as are read at once."""
        for page in self.subjects() if chosen is None else [chosen]:
            for start in range(0, len(page), SUBJECTS_AT_ONCE):
                yield list(page[start : start + SUBJECTS_AT_ONCE])

    def told(self, batches: Iterable[Sequence[str]]) -> Iterator[list[RecordedSubject]]:
        """What is recorded about subjects, a batch at a time; the next one is read while the last
        one is worked on."""
        left = iter(batches)

        def page(_: object, connection: Connection) -> list[RecordedSubject]:
            return self._about(connection, next(left, ()))

        return paged(self.url, page, lambda _: None)

    def these(self, subjects: Sequence[str]) -> list[RecordedSubject]:
        """What is recorded about some subjects."""
        return read_at_once(self.url, lambda connection: self._about(connection, subjects))

    def one(self, subject: str) -> RecordedSubject:
        """What is recorded about one subject."""
        (told,) = self.these([subject])
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
        document = from_json(row.body)
        if versions := self._versions.get(envelope.type):
            published_in = versions.get(document.get("dataschema"))
            if published_in is not type(envelope.data):
                older = published_in
        kind = type(envelope.data)
        unread = tuple(unread_in(document["data"], older or kind))
        outdated: tuple[str, ...] = ()
        if older is not None:
            outdated = tuple(name for name in older.model_fields if name not in kind.model_fields)
        return RecordedEvent(envelope, row.position, older, addressee, unread, outdated)


def unread_in(value: Any, annotation: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The names in a JSON value that its type does not have, each with what is under it."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if not isinstance(value, dict):
            return
        names, nested = _reads(annotation)
        for name in value.keys() - names:
            yield f"{path}{name}", str(value[name])[:SHOWN_MAX_CHARACTERS]
        for name, inner in nested.items():
            yield from unread_in(value.get(name), inner, f"{path}{name}.")
        return
    origin, inside = get_origin(annotation), [a for a in get_args(annotation) if _has_models(a)]
    if origin in (Union, UnionType):
        # Whichever of them it is, it has that.
        readings = [list(unread_in(value, each, path)) for each in inside]
        yield from min(readings, key=len, default=[])
        return
    items = value if isinstance(value, list) else value.values() if isinstance(value, dict) else ()
    for item in items:
        for each in inside[:1]:
            yield from unread_in(item, each, path)


@cache
def _reads(kind: type[BaseModel]) -> tuple[frozenset[str], Mapping[str, Any]]:
    """The names that a class reads, and the types of those that have names inside."""
    fields: dict[str, Any] = {}
    for name, info in kind.model_fields.items():
        for each in (name, info.alias, info.validation_alias):
            if isinstance(each, str):
                fields[each] = info.annotation
    return frozenset(fields), {name: each for name, each in fields.items() if _has_models(each)}


def _has_models(annotation: Any) -> bool:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return True
    return any(map(_has_models, get_args(annotation)))
