"""Where events are kept, and the views of orders that are folded from them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from pydantic_core import from_json
from sqlalchemy.engine import Connection

from common.envelope import Attributes, Decoder, Envelope, Undecodable, believed_of
from common.events import CancellationReason, OrderEvent
from common.kernel.rows import Rows, writing
from common.kernel.statements import any_of, is_taken, on_postgresql
from common.kernel.tables import Schema, StateTable, Utc, VersionConflict, Word, inbox_key
from common.message import Command, Event, Priority, all_below
from common.messaging.dead_letters import key_of
from common.messaging.frames import SHORT_MAX_BYTES
from common.messaging.stream import Record
from common.messaging.topology import EVENTS_EXCHANGE, HISTORY_STREAM
from common.messaging.trust import EDITOR_SOURCE, MISROUTED, check_source
from history_service.domain import OrderView, Payment, Status, Stock

_metadata = sa.MetaData()
KEY_MAX: Final = 255
"""Characters of what a message is recognised by."""

events = sa.Table(
    "events",
    _metadata,
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
    _metadata,
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
    _metadata,
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
    _metadata,
    sa.Column("stream", sa.String(64), primary_key=True),
    sa.Column("offset", sa.BigInteger, nullable=False),
    sa.Column("key", sa.String(KEY_MAX), nullable=False),
    # From 1; each stream that is put in the place of the one before counts one more.
    sa.Column("stream_number", sa.Integer, nullable=False, server_default="1"),
)
"""The last message of the stream that was read, and what it is recognised by."""


class _Told(Word):
    """A word of an event. One of a newer version, which was taken back, is read as `unknown`."""

    cache_ok = True

    def __init__(self, kind: type[StrEnum], unknown: StrEnum | None) -> None:
        super().__init__(kind)
        self.unknown = unknown

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> StrEnum | None:
        try:
            return None if value is None else self.kind(value)
        except ValueError:
            return self.unknown


_OFTEN_FILTERED: Final = ("total_cents", "currency", "priority")
order_views = sa.Table(
    "order_views",
    _metadata,
    sa.Column("order_id", sa.String(36), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("status", _Told(Status, Status.UNKNOWN), nullable=False),
    sa.Column("reason", _Told(CancellationReason, None)),
    sa.Column("customer", sa.String(128), nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("total_cents", sa.BigInteger, nullable=False),
    sa.Column("charged_cents", sa.BigInteger, nullable=False),
    sa.Column("refunded_cents", sa.BigInteger, nullable=False),
    sa.Column("priority", _Told(Priority, Priority.NORMAL), nullable=False),
    sa.Column("stock", _Told(Stock, Stock.NONE), nullable=False),
    sa.Column("payment", _Told(Payment, Payment.NONE), nullable=False),
    sa.Column("deadline", Utc),
    sa.Column("placed_at", Utc),
    sa.Column("stock_at", Utc),
    sa.Column("payment_at", Utc),
    sa.Column("ended_at", Utc),
    sa.Column("first_event_at", Utc, nullable=False),
    sa.Column("last_event_at", Utc, nullable=False),
    # Those that may hold very many orders to a page end with what else is asked for, so that what
    # does not fit is passed over within the index.
    sa.Index("orders_by_time", "first_event_at", "order_id", *_OFTEN_FILTERED),
    sa.Index("orders_by_status", "status", "first_event_at", "order_id", *_OFTEN_FILTERED),
    sa.Index("orders_by_reason", "reason", "first_event_at", "order_id"),
    sa.Index("orders_by_customer", "customer", "first_event_at", "order_id"),
    sa.Index("orders_by_end", "ended_at"),
    sa.Index("orders_by_start", "placed_at"),
)

ORDERS: Final = StateTable(OrderView, order_views)
TABLES: Final = Schema(_metadata, migrations=Path(__file__).with_name("migrations"))

_EVENTS: Final = Rows(events)
_STRAYS: Final = Rows(strays)
_PLACES: Final = Rows(places)
_WRITING: Final = 4_919_018
"""The advisory lock that one process holds while it writes into a history."""
DETAIL_MAX_CHARACTERS: Final = 10_000
"""Of what is wrong with a stray."""
TURN_SECONDS: Final = 2.0
"""How long a process waits for another one that writes."""
_LOCK_NOT_AVAILABLE: Final = "55P03"
"""What PostgreSQL says then."""


@dataclass(frozen=True, slots=True)
class Place:
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


def judge(record: Record, stream_number: int) -> Fact | Stray:
    """What a message of the stream is. The broker let it in by its routing key, so that has to say
    what the message says of itself; a corrected copy comes from an operator, straight."""
    if record.unreadable:
        return _stray(record, stream_number, "unreadable", record.unreadable)
    try:
        attributes = Attributes.of(record.body)
        by_operator = (EDITOR_SOURCE, "", HISTORY_STREAM)
        if record.exchange == EVENTS_EXCHANGE:
            right = record.routing_key == attributes.routing_key
            check_source(attributes.type, _believed(attributes.type), attributes.source)
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
    """What the message at a place is recognised by. One that was put back into a stream made anew
    is another one than it was in the stream before, though it may come to the same offset."""
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
    before: Place | None,
    gaps_found: Iterable[tuple[int, int]] = (),
    *,
    stream_number: int = 1,
    refusal: str | None = None,
) -> Tally:
    """Keep what the stream of that number held next, and note the new place. `before` is the place
    noted so far, of this stream or of the one before it.

    With a `refusal`, the records are kept as strays for that reason. Raises `VersionConflict` if
    another process has moved the place.
    """
    found = [
        judge(record, stream_number)
        if refusal is None
        else _stray(record, stream_number, "refused", refusal)
        for record in records
    ]
    tally = append(connection, found, now)
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


def append(connection: Connection, found: Sequence[Fact | Stray], now: datetime) -> Tally:
    """Keep what is new, and bring the views up to date. Raises `VersionConflict`, see
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
    rows = [
        _row(id, fact, position + number, now)
        for number, (id, fact) in enumerate(facts.items(), start=1)
    ]
    _insert_events(connection, rows)
    stray_count = _insert_strays(connection, new_strays.values(), now) if new_strays else 0
    project(connection, facts.values())
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


def project(connection: Connection, facts: Iterable[Fact]) -> None:
    """Fold events into the views of their orders."""
    by_order: defaultdict[str, list[Envelope[Any]]] = defaultdict(list)
    for fact in facts:
        envelope = decoded(fact)
        if envelope is not None and isinstance(envelope.data, OrderEvent):
            by_order[envelope.subject].append(envelope)
    if not by_order:
        return
    found = ORDERS.load(connection, by_order)
    changed: list[tuple[OrderView, int]] = []
    for order_id, envelopes in sorted(by_order.items()):
        view, version = found.get(order_id) or (OrderView(order_id), 0)
        for envelope in envelopes:
            view = view.evolve(envelope.data, envelope.time)
        changed.append((view, version))
    with writing(connection) as writes:
        ORDERS.save(writes, changed)


TYPES_MAX: Final = 1_000
"""Types of messages of which it is remembered what they are. Others' may be any number."""


def _kinds_of(type_: str) -> list[type[Event | Command]]:
    """The classes of this type that there are. They are looked for when the first message comes: a
    participant's module may be imported after this one."""
    kinds: list[type[Event | Command]] = [*all_below(Event), *all_below(Command)]
    return [kind for kind in kinds if getattr(kind, "type", None) == type_]


@lru_cache(TYPES_MAX)
def _decoder_of(type_: str) -> Decoder:
    return Decoder(_kinds_of(type_))


@lru_cache(TYPES_MAX)
def _believed(type_: str) -> frozenset[str] | None:
    """The sources that may publish messages of this type; None where this version knows none."""
    kinds = _kinds_of(type_)
    return believed_of(max(kinds, key=lambda kind: kind.version)) if kinds else None


def decoded(fact: Fact) -> Envelope[Any] | None:
    """The event, or the command that a participant sent, as a fact of its publisher; None for what
    this version cannot read, and for a copy that an operator corrected, which went to one
    participant only."""
    if fact.attributes.source == EDITOR_SOURCE:
        return None
    try:
        return _decoder_of(fact.attributes.type).decode(fact.body)
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


def _row(id: str, fact: Fact, position: int, now: datetime) -> dict[str, Any]:
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
