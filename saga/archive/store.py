"""Where events are kept, and what is folded from them when they are recorded."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple, TypeVar

import sqlalchemy as sa
from pydantic_core import from_json
from sqlalchemy.engine import Connection

from saga.archive.projection import Projection
from saga.archive.subjects import METADATA, SUBJECTS, EventLike, Subject, folded, subjects
from saga.archive.view import SubjectView
from saga.choreography import Choreography, State
from saga.envelope import Attributes, Envelope, Undecodable
from saga.runtime.kernel.rows import Rows, WriteSet, writing
from saga.runtime.kernel.statements import any_of, is_taken, on_postgresql
from saga.runtime.kernel.tables import Schema, Utc, VersionConflict, inbox_key
from saga.runtime.messaging.dead_letters import key_of
from saga.runtime.messaging.frames import SHORT_MAX_BYTES
from saga.runtime.messaging.stream import Record
from saga.runtime.messaging.topology import EVENTS_EXCHANGE, HISTORY_STREAM
from saga.runtime.messaging.trust import EDITOR_SOURCE, MISROUTED, check_source

S = TypeVar("S", bound=State)

KEY_MAX: Final = 255
"""Characters of what a message is recognised by."""

events = sa.Table(
    "events",
    METADATA,
    # Where an event of another source has the same id, and came first, the inbox's key stands here.
    sa.Column("event_id", sa.String(255), primary_key=True),
    # The order in which they were recorded here, from 1.
    sa.Column("position", sa.BigInteger, nullable=False),
    sa.Column("stream_offset", sa.BigInteger),
    sa.Column("recorded_at", Utc, nullable=False),
    sa.Column("type", sa.String(255), nullable=False),
    sa.Column("source", sa.String(255), nullable=False),
    sa.Column("subject", sa.String(255), nullable=False),
    sa.Column("sequence", sa.BigInteger),
    sa.Column("time", Utc, nullable=False),
    sa.Column("causation", sa.String(255)),
    sa.Column("body", sa.LargeBinary, nullable=False),
    # Which stream `stream_offset` counts in, see `places`; unknown for what was imported.
    sa.Column("stream_number", sa.Integer, server_default="1"),
    sa.Index("events_by_position", "position", unique=True),
    sa.Index("events_by_subject", "subject", "source", "sequence"),
)
strays = sa.Table(
    "strays",
    METADATA,
    sa.Column("key", sa.String(255), primary_key=True),
    sa.Column("stream_offset", sa.BigInteger),
    sa.Column("recorded_at", Utc, nullable=False),
    sa.Column("routing_key", sa.String(255), nullable=False),
    sa.Column("reason", sa.String(32), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("stream_number", sa.Integer, server_default="1"),
)
"""What came by the stream and is no event: nothing is thrown away."""
gaps = sa.Table(
    "gaps",
    METADATA,
    sa.Column(
        "stream_number", sa.Integer, primary_key=True, autoincrement=False, server_default="1"
    ),
    sa.Column("first", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("last", sa.BigInteger, nullable=False),
    sa.Column("noticed_at", Utc, nullable=False),
)
"""Offsets that retention had removed from the stream before they were read."""
places = sa.Table(
    "places",
    METADATA,
    sa.Column("stream", sa.String(64), primary_key=True),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("key", sa.String(KEY_MAX), nullable=False),
    # From 1; each stream that is put in the place of the one before counts one more.
    sa.Column("stream_number", sa.Integer, nullable=False, server_default="1"),
)
"""The last message of the stream that was read, and what it is recognised by."""


TABLES: Final = Schema(METADATA, migrations=Path(__file__).with_name("migrations"))
"""What an archive of any saga has."""


def schema_of(projection: Projection) -> Schema:
    """The tables of the archive of one saga, those of its view among them."""
    if projection.view is None:
        return TABLES
    return Schema(TABLES.metadata, migrations=TABLES.migrations, parts=(projection.view.schema,))


_EVENTS: Final = Rows(events)
_STRAYS: Final = Rows(strays)
_PLACES: Final = Rows(places)
_WRITING: Final = 4_919_018
"""The advisory lock that one process holds while it writes into a history."""
DETAIL_MAX_CHARACTERS: Final = 10_000
"""Of what is wrong with a stray."""
CATCH_UP_AT_ONCE: Final = 5_000
"""Events that another version recorded, folded at once."""
TURN_SECONDS: Final = 2.0
"""How long a process waits for another one that writes."""
_LOCK_NOT_AVAILABLE: Final = "55P03"
"""What PostgreSQL says then."""


@dataclass(frozen=True, slots=True)
class LastRead:
    """How far the stream was read: the last message's offset, and what it is recognised by."""

    offset: int
    key: str
    stream_number: int = 1


class Gap(NamedTuple):
    """Offsets of a stream, from `first` to `last`, that retention had removed before they were
    read."""

    first: int
    last: int
    stream_number: int = 1

    def __str__(self) -> str:
        which = f" of stream {self.stream_number}" if self.stream_number > 1 else ""
        return f"{self.first} to {self.last}{which}"


@dataclass(frozen=True, slots=True)
class Fact:
    """An event, on its way into the history or out of it."""

    attributes: Attributes
    body: bytes
    stream_offset: int | None = None
    position: int = 0
    recorded_at: datetime | None = None
    stream_number: int | None = None
    """The stream that `stream_offset` counts in; None if it is not known."""


@dataclass(frozen=True, slots=True)
class Stray:
    """A message of the stream that is no event; `reason` is a short, bounded label."""

    key: str
    routing_key: str
    reason: str
    detail: str
    body: bytes
    stream_offset: int | None = None
    recorded_at: datetime | None = None
    stream_number: int | None = None


@dataclass(frozen=True, slots=True)
class Tally:
    """What became of some messages: new events, events that were known already, new strays; and
    the time of the newest one of the new events."""

    new: int = 0
    known: int = 0
    stray: int = 0
    newest_at: datetime | None = None


def judge(record: Record, stream_number: int, choreography: Choreography) -> Fact | Stray:
    """What a message of the stream is. The broker let it in by its routing key, so that has to say
    what the message says of itself; a corrected copy comes from an operator, straight."""
    if record.unreadable:
        return _stray(record, stream_number, "unreadable", record.unreadable)
    try:
        attributes = Attributes.of(record.body)
        by_operator = (EDITOR_SOURCE, "", HISTORY_STREAM)
        if record.exchange == EVENTS_EXCHANGE:
            right = record.routing_key == attributes.routing_key
            believed = choreography.believed.get(attributes.type)
            check_source(attributes.type, believed, attributes.source)
        else:
            right = (attributes.source, record.exchange, record.routing_key) == by_operator
        if not right:
            raise Undecodable(
                MISROUTED,
                f"{attributes.type} came with the routing key {record.routing_key!r}, "
                f"not {attributes.routing_key!r}",
            )
    except Undecodable as error:
        return _stray(record, stream_number, error.reason, str(error))
    return Fact(attributes, record.body, record.offset, stream_number=stream_number)


def key(record: Record) -> str:
    """What a message of the stream is recognised by here."""
    return storable(record.key)


def place_key(record: Record) -> str:
    """What the message at a place is recognised by. One that was put back into a stream created
    again is another one than it was in the stream before, though it may come to the same offset."""
    return f"{record.restored} {key(record)}"[:KEY_MAX] if record.restored else key(record)


def _stray(record: Record, stream_number: int, reason: str, detail: str) -> Stray:
    return Stray(
        key(record),
        # With its odd bytes spelt out, it may be longer than any key.
        storable(record.routing_key)[:SHORT_MAX_BYTES],
        reason,
        storable(detail)[:DETAIL_MAX_CHARACTERS],
        record.body,
        record.offset,
        stream_number=stream_number,
    )


def storable(text: str) -> str:
    """The text as every database takes it, without NUL."""
    return text.replace("\0", "\N{REPLACEMENT CHARACTER}")


def _apart(stray: Stray, body: bytes) -> Stray:
    """The stray, by another key where another message is kept under its own."""
    if body == stray.body:
        return stray
    return replace(stray, key=key_of(None, stray.body))


# --- writing, in the caller's transaction -----------------------------------------------------


def take_turn(connection: Connection) -> None:
    """Keep other processes from writing into this history until the transaction ends: so positions
    follow each other, and what was read before is still so when it is written.

    Comes first in each transaction that writes. Raises `VersionConflict` if another process is at
    it for longer than `TURN_SECONDS`.
    """
    if not on_postgresql(connection):
        return  # One process owns the file, and its transactions run one after the other.
    query = sa.select(
        sa.func.set_config("lock_timeout", f"{TURN_SECONDS * 1_000:.0f}", True),
        sa.func.pg_advisory_xact_lock(_WRITING),
    )
    try:
        connection.execute(query)
    except sa.exc.DBAPIError as error:
        if getattr(error.orig, "sqlstate", None) == _LOCK_NOT_AVAILABLE:
            raise VersionConflict("another process writes into this history") from error
        raise


def follow(
    connection: Connection,
    records: Sequence[Record],
    now: datetime,
    before: LastRead | None,
    gaps_found: Iterable[tuple[int, int]] = (),
    *,
    projection: Projection,
    stream_number: int = 1,
    refusal: str | None = None,
) -> Tally:
    """Keep what the stream of that number held next, and note the new place. `before` is the place
    noted so far, of this stream or of the one before it.

    With a `refusal`, the records are kept as strays for that reason. Raises `VersionConflict` if
    another process has moved the place.
    """
    found = [
        judge(record, stream_number, projection.choreography)
        if refusal is None
        else _stray(record, stream_number, "refused", refusal)
        for record in records
    ]
    tally = append(connection, found, now, projection)
    _note_gaps(connection, [Gap(*gap, stream_number) for gap in gaps_found], now)
    values = {
        "offset": records[-1].offset,
        "key": place_key(records[-1]),
        "stream_number": stream_number,
    }
    if before is None:
        moved = _PLACES.insert(connection, [{"stream": HISTORY_STREAM, **values}])
    else:
        moved = connection.execute(
            places.update()
            .where(
                places.c.stream == HISTORY_STREAM,
                places.c.offset == before.offset,
                places.c.stream_number == before.stream_number,
            )
            .values(values)
        ).rowcount
    if moved != 1:
        raise VersionConflict("another process has read on in the stream")
    return tally


def _note_gaps(connection: Connection, found: Sequence[Gap], now: datetime) -> None:
    for gap in found:
        same = (gaps.c.stream_number == gap.stream_number) & (gaps.c.first == gap.first)
        last = connection.scalar(sa.select(gaps.c.last).where(same))
        if last is None:
            connection.execute(gaps.insert().values(**gap._asdict(), noticed_at=now))
        elif last < gap.last:
            connection.execute(gaps.update().where(same).values(last=gap.last, noticed_at=now))


def were_read(connection: Connection, records: Sequence[Record], stream_number: int) -> bool:
    """Whether any of these records is known from the stream of that number, at this very offset:
    then they are of that stream. What was imported counts too, as it may have come from there; what
    was put back into the stream does not."""
    offsets = {key(record): record.offset for record in records if not record.restored}
    for table, column in ((events, events.c.event_id), (strays, strays.c.key)):
        number = table.c.stream_number
        query = sa.select(column, table.c.stream_offset).where(
            any_of(connection, column, sorted(offsets)),
            (number == stream_number) | number.is_(None),
        )
        if any(offsets[id] == offset for id, offset in connection.execute(query)):
            return True
    return False


def append(
    connection: Connection, found: Sequence[Fact | Stray], now: datetime, projection: Projection
) -> Tally:
    """Keep what is new, and fold it into what the projection keeps. Raises `VersionConflict`, see
    `take_turn`."""
    take_turn(connection)
    facts: dict[str, Fact] = {}
    new_strays: dict[str, Stray] = {}
    known = 0
    kept = _kept(connection, found)
    stray_bodies = _stray_bodies(connection, {s.key for s in found if isinstance(s, Stray)})
    for item in found:
        if isinstance(item, Stray):
            if item.key in kept and kept[item.key].body == item.body:
                known += 1  # kept as an event, see `queries.item_of`
                continue
            stray = _apart(item, stray_bodies.setdefault(item.key, item.body))
            new_strays.setdefault(stray.key, stray)
            continue
        source, id = item.attributes.key
        if id in kept and kept[id].source != source:
            id = inbox_key(item.attributes.key)
        if id not in kept:
            kept[id] = _Kept(source, item.body)
            facts[id] = item
        elif _same(kept[id].body, item.body):
            known += 1
        else:
            stray = _conflicting(item)
            new_strays.setdefault(stray.key, stray)
    position = connection.scalar(sa.select(sa.func.max(events.c.position))) or 0
    while _fold_next(connection, position, projection):
        pass
    rows = [
        row_of(id, fact, position + number, now)
        for number, (id, fact) in enumerate(facts.items(), start=1)
    ]
    _insert_events(connection, rows)
    stray_count = _insert_strays(connection, new_strays.values(), now) if new_strays else 0
    project(connection, facts.values(), projection)
    if rows:
        note_folded(connection, position + len(rows))
    newest_at = max((fact.attributes.time for fact in facts.values()), default=None)
    return Tally(len(rows), known, stray_count, newest_at)


def _insert_events(connection: Connection, rows: Sequence[dict[str, Any]]) -> None:
    """Insert rows that are not there. Raises `VersionConflict` if one of their ids or positions was
    taken all the same, by a process that takes no turns: that says nothing of these events."""
    try:
        inserted = _EVENTS.insert(connection, rows) if rows else 0
    except sa.exc.IntegrityError as error:
        if is_taken(error):
            raise VersionConflict("another process writes into this history") from error
        raise
    if inserted != len(rows):
        raise VersionConflict("another process writes into this history")


def project(connection: Connection, facts: Collection[Fact], projection: Projection) -> None:
    """Fold events that were not folded yet into the table of subjects, and into the saga's view."""
    by_subject: defaultdict[str, list[Fact]] = defaultdict(list)
    for fact in facts:
        by_subject[fact.attributes.subject].append(fact)
    told = {key: [fact.attributes for fact in about] for key, about in by_subject.items()}
    with writing(connection) as writes:
        _project_subjects(connection, writes, told, projection)
        if projection.view is not None:
            _project_view(connection, writes, by_subject, projection.choreography, projection.view)


def note_folded(connection: Connection, position: int) -> None:
    """Note that the table of subjects has all events up to this position."""
    name = subjects.name
    moved = folded.update().where(folded.c.name == name).values(position=position)
    if connection.execute(moved).rowcount == 0:
        connection.execute(folded.insert().values(name=name, position=position))


class _EventRow(NamedTuple):
    type: str
    source: str
    time: datetime


def catch_up(connection: Connection, projection: Projection) -> bool:
    """Fold the next `CATCH_UP_AT_ONCE` events that a process of an older version recorded; returns
    whether there were any. Raises `VersionConflict`, see `take_turn`."""
    take_turn(connection)
    position = connection.scalar(sa.select(sa.func.max(events.c.position))) or 0
    return _fold_next(connection, position, projection)


def _fold_next(connection: Connection, up_to: int, projection: Projection) -> bool:
    """Fold into the table of subjects the next events that were recorded, up to a position, by a
    process that knows no such table. Returns whether there were any."""
    column = folded.c.position
    after = connection.scalar(sa.select(column).where(folded.c.name == subjects.name)) or 0
    if after >= up_to:
        return False
    columns = events.c.position, events.c.subject, events.c.type, events.c.source, events.c.time
    rows = connection.execute(
        sa.select(*columns)
        .where(events.c.position > after, events.c.position <= up_to)
        .order_by(events.c.position)
        .limit(CATCH_UP_AT_ONCE)
    ).all()
    told: defaultdict[str, list[_EventRow]] = defaultdict(list)
    for row in rows:
        told[row.subject].append(_EventRow(row.type, row.source, row.time))
    with writing(connection) as writes:
        _project_subjects(connection, writes, told, projection)
    note_folded(connection, rows[-1].position if rows else up_to)
    return True


def _project_subjects(
    connection: Connection,
    writes: WriteSet,
    told: Mapping[str, Sequence[EventLike]],
    projection: Projection,
) -> None:
    found = SUBJECTS.load(connection, told)
    changed: list[tuple[Subject, int]] = []
    for key, about in sorted(told.items()):
        before, version = found.get(key) or (Subject(key), 0)
        after = before.after(about, projection.rules)
        if after is not before:
            changed.append((after, version))
    SUBJECTS.save(writes, changed)


def _project_view(
    connection: Connection,
    writes: WriteSet,
    by_subject: Mapping[str, Sequence[Fact]],
    choreography: Choreography,
    view: SubjectView[S],
) -> None:
    told: defaultdict[str, list[Envelope[Any]]] = defaultdict(list)
    for subject, facts in by_subject.items():
        for fact in facts:
            envelope = decoded(fact, choreography)
            if envelope is not None and isinstance(envelope.data, view.events):
                told[subject].append(envelope)
    if not told:
        return
    found = view.table.load(connection, told)
    changed: list[tuple[S, int]] = []
    for subject, envelopes in sorted(told.items()):
        state, version = found.get(subject) or (view.table.kind(subject), 0)
        for envelope in envelopes:
            state = state.evolve(envelope.data, envelope.time)
        changed.append((state, version))
    view.table.save(writes, changed)


def decoded(fact: Fact, choreography: Choreography) -> Envelope[Any] | None:
    """The event, or the command that a participant sent, as a fact of its publisher; None for what
    this version cannot read, and for a copy that an operator corrected, which went to one
    participant only."""
    if fact.attributes.source == EDITOR_SOURCE:
        return None
    try:
        return choreography.decoder.decode(fact.body)
    except Undecodable:
        return None


class _Kept(NamedTuple):
    source: str
    body: bytes


def _kept(connection: Connection, found: Iterable[Fact | Stray]) -> dict[str, _Kept]:
    """What is kept under the ids of these messages, or under what stands for them."""
    ids: set[str] = set()
    for item in found:
        if isinstance(item, Stray):
            ids.add(item.key)
        else:
            ids |= {item.attributes.id, inbox_key(item.attributes.key)}
    if not ids:
        return {}
    query = sa.select(events.c.event_id, events.c.source, events.c.body)
    rows = connection.execute(query.where(any_of(connection, events.c.event_id, sorted(ids))))
    return {row.event_id: _Kept(row.source, row.body) for row in rows}


def _stray_bodies(connection: Connection, keys: set[str]) -> dict[str, bytes]:
    """The bodies of the strays that are kept under these keys."""
    if not keys:
        return {}
    query = sa.select(strays.c.key, strays.c.body)
    rows = connection.execute(query.where(any_of(connection, strays.c.key, sorted(keys))))
    return {row.key: row.body for row in rows}


def _same(body: bytes, other: bytes) -> bool:
    """Whether it is the same event, published again; formatting does not matter."""
    if body == other:
        return True
    try:
        return bool(from_json(body) == from_json(other))
    except (ValueError, RecursionError):
        return False  # What an older version kept may be no JSON.


def _conflicting(fact: Fact) -> Stray:
    return Stray(
        key_of(None, fact.body),
        fact.attributes.routing_key,
        "conflicting",
        f"another event has the id {fact.attributes.id}",
        fact.body,
        fact.stream_offset,
        stream_number=fact.stream_number,
    )


def row_of(id: str, fact: Fact, position: int, now: datetime) -> dict[str, Any]:
    """The row of an event under that id."""
    attributes = fact.attributes
    return {
        "event_id": id,
        "position": position,
        "stream_offset": fact.stream_offset,
        "recorded_at": now,
        "type": attributes.type,
        "source": attributes.source,
        "subject": attributes.subject,
        "sequence": attributes.sequence,
        "time": attributes.time,
        "causation": attributes.causationid,
        "body": fact.body,
        "stream_number": fact.stream_number,
    }


def _insert_strays(connection: Connection, new: Iterable[Stray], now: datetime) -> int:
    rows = [
        {
            "key": stray.key,
            "stream_offset": stray.stream_offset,
            "recorded_at": now,
            "routing_key": stray.routing_key,
            "reason": stray.reason,
            "detail": stray.detail,
            "body": stray.body,
            "stream_number": stray.stream_number,
        }
        for stray in new
    ]
    return _STRAYS.insert(connection, rows)
