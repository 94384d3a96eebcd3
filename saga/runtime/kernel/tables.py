"""The kernel's own tables, and how a participant's states are kept in its tables."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Final,
    Generic,
    Self,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

import sqlalchemy as sa
from pydantic import BaseModel, TypeAdapter
from sqlalchemy.engine import Connection

from saga.choreography import State, has_due
from saga.envelope import MessageKey
from saga.personal.marks import Personal
from saga.personal.seal import SEALED_MAX_CHARACTERS
from saga.runtime.kernel.rows import (
    FORMER_KEY,
    OLD_VERSION,
    Rows,
    UnreadableRow,
    WriteSet,
    writing,
)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FIRST = datetime.min.replace(tzinfo=UTC)
_LAST = datetime.max.replace(tzinfo=UTC)
_INBOX_KEY_MAX = 255
"""Characters."""
_TEXT_MAX: Final = 255
"""Characters of a key, and of a text in a state, where its column follows from its type."""
OF_METRICS: Final = "saga_begun"
"""The table that is there where the course of sagas is measured."""
PAGE_STATES: Final = 500
"""States that are read at once where all are."""


class VersionConflict(Exception):
    """Another transaction wrote the state that was read; decide again on what it is now."""


def microseconds_of(moment: datetime) -> int:
    """An aware time as it is stored: integer microseconds since 1970."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


class Utc(sa.types.TypeDecorator[datetime]):
    """An aware time, stored as integer microseconds since 1970, so that it sorts and indexes.

    A number beyond what a `datetime` holds, even if another program stored it, is read as the first
    or the last time there is.
    """

    impl = sa.BigInteger
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else microseconds_of(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> datetime | None:
        if value is None:
            return None
        try:
            return _EPOCH + timedelta(microseconds=value)
        except OverflowError:
            return _LAST if value > 0 else _FIRST


class Word(sa.types.TypeDecorator[StrEnum]):
    """A member of a `StrEnum`, stored as its text."""

    impl = sa.String(32)
    cache_ok = True

    def __init__(self, kind: type[StrEnum]) -> None:
        super().__init__()
        self.kind = kind

    def process_bind_param(self, value: StrEnum | None, dialect: sa.Dialect) -> str | None:
        return None if value is None else str(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> StrEnum | None:
        return None if value is None else self.kind(value)


class Flag(sa.types.TypeDecorator[bool]):
    """Yes or no, stored as 1 or 0: the statements of a group's commit take no booleans."""

    impl = sa.SmallInteger
    cache_ok = True

    def process_bind_param(self, value: bool | None, dialect: sa.Dialect) -> int | None:
        return None if value is None else int(value)

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> bool | None:
        return None if value is None else bool(value)


class Json(sa.types.TypeDecorator[Any]):
    """A value of any type pydantic can validate, stored as JSON text."""

    impl = sa.Text
    cache_ok = True

    def __init__(self, kind: Any) -> None:
        super().__init__()
        self.kind = kind
        self._adapter: TypeAdapter[Any] = TypeAdapter(kind)

    def process_bind_param(self, value: Any, dialect: sa.Dialect) -> str:
        return self._adapter.dump_json(value).decode()

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> Any:
        return self._adapter.validate_json(value)


S = TypeVar("S", bound=State)

DUE_AT: Final = "due_at"
"""The column with the time at which something is due about a state; NULL where nothing is."""


def due_columns(table: str) -> tuple[sa.Column[Any], sa.Index]:
    """What a table needs for states that may have something due: the column, and its index.

    A script that adds it to a table that replicas of an older version may still write lets its
    default be 0: what these insert is then looked at at once. What they update is found by the
    table's `due_where`.
    """
    there = sa.text(f"{DUE_AT} IS NOT NULL")
    index = sa.Index(f"{table}_by_due", DUE_AT, sqlite_where=there, postgresql_where=there)
    return sa.Column(DUE_AT, Utc), index


def column_of(kind: type[State], name: str, annotation: Any) -> sa.Column[Any]:
    """The column of a state's field: of texts of up to 255 characters, or as long as a sealed one
    where they are `Personal`, words of a `StrEnum`, whole numbers, yes or no, and times; each may
    be None if the field's type says so. Messages, other models, and tuples are JSON.

    Raises TypeError for anything else.
    """
    several = get_origin(annotation) in (Union, UnionType)
    choices = get_args(annotation) if several else (annotation,)
    types = [choice for choice in choices if choice is not NoneType]
    found = _type_for(types[0]) if len(types) == 1 else None
    if found is None and types and all(map(_is_document, types)):
        return sa.Column(name, Json(annotation), nullable=False)
    if found is None:
        raise TypeError(
            f"which column {kind.__qualname__}.{name} has does not follow from {annotation}; make "
            f"its table with `StateTable(...)`, which takes any columns"
        )
    return sa.Column(name, found, nullable=NoneType in choices)


def _is_document(kind: Any) -> bool:
    """Whether values of this type are stored as JSON."""
    return get_origin(kind) is tuple or (isinstance(kind, type) and issubclass(kind, BaseModel))


def _type_for(kind: Any) -> Any:
    """What a value of this type is stored as; None if that does not follow."""
    if get_origin(kind) is Annotated:
        kind, *marks = get_args(kind)
        if kind is str and Personal in marks:
            return sa.String(SEALED_MAX_CHARACTERS)
    if not isinstance(kind, type):
        return None
    if issubclass(kind, StrEnum):
        return Word(kind)
    types = {str: sa.String(_TEXT_MAX), bool: Flag(), int: sa.BigInteger(), datetime: Utc()}
    return types.get(kind)


class StateTable(Generic[S]):
    """Keeps one kind of state in a table with a column for each of the state's fields.

    The table needs, besides: `version`, an integer; and the `due_columns`, if anything may be due
    about such states. The column of the state's `key` may have a name of its own, and is the
    primary key.

    `due_where` holds for just those rows about whose states something is due. It is needed where an
    UPDATE by a replica of an older version, which does not know `due_at`, may make something due;
    and it is asked again and again, so let an index answer it.
    """

    def __init__(
        self, kind: type[S], table: sa.Table, *, due_where: sa.ColumnElement[bool] | None = None
    ) -> None:
        (self._key,) = table.primary_key.columns
        self._due_where = due_where
        self.kind = kind
        self.table = table
        self._fields = tuple(field.name for field in fields(kind) if field.name != "key")
        self.has_dues = has_due(kind)
        """Whether anything may be due about these states."""
        due_at = (DUE_AT,) if self.has_dues else ()
        if missing := {"version", *self._fields, *due_at} - set(table.columns.keys()):
            raise TypeError(f"table {table.name} lacks columns for {kind.__name__}: {missing}")
        self._rows = Rows(table, (self._key.name, "version", *self._fields, *due_at))

    @classmethod
    def of(cls, kind: type[S], metadata: sa.MetaData, name: str) -> StateTable[S]:
        """A table of that name, with what follows from the state: see `column_of` for its fields.

        Raises TypeError for a field whose column does not follow from its type.
        """
        hints = get_type_hints(kind, include_extras=True)
        own = (field.name for field in fields(kind) if field.name not in ("key", "sequence"))
        table = sa.Table(
            name,
            metadata,
            sa.Column("key", sa.String(_TEXT_MAX), primary_key=True),
            sa.Column("version", sa.Integer, nullable=False),
            sa.Column("sequence", sa.Integer, nullable=False),
            *(column_of(kind, field, hints[field]) for field in own),
            *(due_columns(name) if has_due(kind) else ()),
        )
        return cls(kind, table)

    def load(
        self, connection: Connection, keys: Iterable[str], *, lock: bool = False
    ) -> dict[str, tuple[S, int]]:
        """The states under `keys` that exist, each with its version.

        With `lock`, other replicas that want to write one of them wait until this transaction ends.
        That saves them a conflict where many messages are about one state; it is the versions that
        keep states right, since what does not exist cannot be locked.
        """
        rows = self._rows.find(connection, sorted(keys), lock=lock)
        # The time at which something is due follows from the state, and comes last.
        return {
            key: (self.kind(key, **dict(zip(self._fields, values, strict=False))), version)
            for key, version, *values in rows
        }

    def find(self, connection: Connection, key: str) -> S | None:
        """The state under `key`, if it exists."""
        found = self.load(connection, [key]).get(key)
        return found[0] if found else None

    def knows(self, connection: Connection, key: str) -> bool:
        """Whether there is a state under `key`, even if it cannot be read."""
        query = sa.select(sa.literal(1)).select_from(self.table).where(self._key == key)
        return connection.execute(query).first() is not None

    def pages(
        self, connection: Connection, after: str | None = None
    ) -> Iterator[tuple[dict[str, S], Sequence[UnreadableRow]]]:
        """All states, or those behind a key, `PAGE_STATES` at a time, in the order of their keys;
        and what of each page cannot be read."""
        while True:
            if after is None:
                page = connection.scalars(self._first_page).all()
            else:
                page = connection.scalars(self._next_page, {"after": after}).all()
            if page:
                yield self.load_readable(connection, page)
            if len(page) < PAGE_STATES:
                return
            after = page[-1]

    @cached_property
    def _first_page(self) -> sa.Select[Any]:
        return sa.select(self._key).order_by(self._key).limit(PAGE_STATES)

    @cached_property
    def _next_page(self) -> sa.Select[Any]:
        return self._first_page.where(self._key > sa.bindparam("after", type_=self._key.type))

    def load_readable(
        self, connection: Connection, keys: Sequence[str]
    ) -> tuple[dict[str, S], Sequence[UnreadableRow]]:
        """The states under `keys` that exist and can be read, and what cannot."""
        unreadable: list[UnreadableRow] = []
        try:
            found = self.load(connection, keys)
        except UnreadableRow:  # Which ones, one by one.
            found = {}
            for key in keys:
                try:
                    found |= self.load(connection, [key])
                except UnreadableRow as error:
                    unreadable.append(error)
        return {key: found[key][0] for key in keys if key in found}, unreadable

    def due(
        self,
        connection: Connection,
        *,
        until: datetime | None = None,
        key: str | None = None,
        limit: int | None = None,
        after: tuple[datetime, str | None] | None = None,
    ) -> list[tuple[str, datetime]]:
        """The keys of states about which something is due, `until` some time or ever, with the
        times, earliest first: as they are stored, whether or not a state can be read. With
        `key`, only that one. With `after`, those behind that time and key; behind all of that
        time, if the key is None."""
        if key is None and after is None and until is not None and limit is not None:
            found = connection.execute(self._due_until, {"until": until, "most": limit})
            return [(key, at) for key, at in found]
        at, query = self.table.c.due_at, self._all_due
        if until is not None:
            query = query.where(at <= until)
        if key is not None:
            query = query.where(self._key == key)
        if after is not None:
            time, last = after
            same = sa.false() if last is None else (at == time) & (self._key > last)
            query = query.where((at > time) | same)
        query = query if limit is None else query.limit(limit)
        return [(key, at) for key, at in connection.execute(query)]

    @cached_property
    def _all_due(self) -> sa.Select[Any]:
        at = self.table.c.due_at
        return sa.select(self._key, at).where(at.is_not(None)).order_by(at, self._key)

    @cached_property
    def _due_until(self) -> sa.Select[Any]:
        """What a service asks again and again: building it takes longer than answering it."""
        at = self.table.c.due_at
        until = sa.bindparam("until", type_=at.type)
        return (
            sa.select(self._key, at)
            .where(at.is_not(None), at <= until)
            .order_by(at, self._key)
            .limit(sa.bindparam("most", type_=sa.Integer))
        )

    def count_due(
        self, connection: Connection, *, until: datetime | None = None, key: str | None = None
    ) -> int:
        """About how many states something is due, `until` some time or ever."""
        query = sa.select(sa.func.count()).where(self.table.c.due_at.is_not(None))
        if until is not None:
            query = query.where(self.table.c.due_at <= until)
        if key is not None:
            query = query.where(self._key == key)
        return connection.scalars(query).one()

    def without_due(self, connection: Connection, *, limit: int = PAGE_STATES) -> Sequence[str]:
        """The keys of rows that lack the time at which something is due, though it is by
        `due_where`."""
        if self._due_where is None:
            return []
        return connection.scalars(self._lacking_due, {"most": limit}).all()

    @cached_property
    def _lacking_due(self) -> sa.Select[Any]:
        due = sa.true() if self._due_where is None else self._due_where
        most = sa.bindparam("most", type_=sa.Integer)
        lacking = self.table.c.due_at.is_(None) & due
        return sa.select(self._key).where(lacking).order_by(self._key).limit(most)

    def mend_due(self, connection: Connection, key: str) -> bool:
        """Write beside a state when something is due about it, if the row says another time.

        Returns whether it did. Raises `VersionConflict`, and `UnreadableRow`.
        """
        found = self.load(connection, [key], lock=True).get(key)
        query = sa.select(self.table.c.due_at).where(self._key == key)
        if found is None or connection.scalar(query) == due_at_of(found[0]):
            return False
        with writing(connection) as writes:
            self.save(writes, [found])
        return True

    def check(self, writes: WriteSet, versions: Mapping[str, int]) -> None:
        """Queue a check that the states under these keys are still in these versions, which are
        above 0; `VersionConflict` is what `writes` raises otherwise."""
        writes.check(self._rows, versions, VersionConflict(self.table.name))

    def save(self, writes: WriteSet, states: Sequence[tuple[S, int]]) -> None:
        """Write states, each with the version it was read in, 0 if it did not exist.

        `VersionConflict` is what `writes` raises when one of them is no longer what was read.
        """
        new = [self._row(state, 1) for state, version in states if version == 0]
        changed = [
            self._row(state, version + 1) | {OLD_VERSION: version}
            for state, version in states
            if version > 0
        ]
        writes.insert(self._rows, new, VersionConflict(self.table.name))
        writes.update(self._rows, changed, VersionConflict(self.table.name))

    def _row(self, state: S, version: int) -> dict[str, Any]:
        row = {name: getattr(state, name) for name in self._fields}
        if self.has_dues:
            row[DUE_AT] = due_at_of(state)
        return row | {self._key.name: state.key, "version": version}


def due_at_of(state: State) -> datetime | None:
    """When something is due about a state; None if nothing is."""
    due = state.due()
    return None if due is None else due.at


class Schema:
    """All tables of one database.

    `migrations` is the folder of the scripts that make them; without one, the tables are created
    as they are described here, which suits databases that do not outlive the program's version.
    `parts` are tables of others in the same database, each with a line of scripts of its own, of
    which `version_table` says how far it got. Their scripts have to cope with tables that are
    there: a part may have come out of the whole. A part without scripts is made where it is not.
    """

    def __init__(
        self,
        metadata: sa.MetaData,
        *,
        migrations: Path | None = None,
        version_table: str = "alembic_version",
        parts: Sequence[Schema] = (),
    ) -> None:
        self.metadata = metadata
        self.migrations = migrations
        self.version_table = version_table
        self.parts = tuple(parts)

    def with_part(self, part: Schema) -> Self:
        """The same tables, and those of a part."""
        whole = copy(self)
        whole.parts = (*self.parts, part)
        return whole


class Tables(Schema):
    """All tables of one participant: its states, and the kernel's inbox and outbox."""

    def __init__(
        self,
        metadata: sa.MetaData,
        *states: StateTable[Any],
        migrations: Path | None = None,
        figures: Mapping[str, Callable[[Connection], int]] | None = None,
    ) -> None:
        """`figures` are by name what else is counted for people in it."""
        super().__init__(metadata, migrations=migrations)
        self.figures = dict(figures or {})
        self.states: dict[type[State], StateTable[Any]] = {table.kind: table for table in states}
        self.with_dues = tuple(table for table in states if table.has_dues)
        """Those of the states about which something may be due."""
        self.inbox = sa.Table(
            "inbox",
            metadata,
            # See `inbox_key`.
            sa.Column("message_id", sa.String(_INBOX_KEY_MAX), primary_key=True),
            sa.Column("at", Utc, nullable=False),
            # Of what was done; unknown for what was done before there was this column, and for
            # what did not come from the broker.
            sa.Column("digest", sa.LargeBinary),
            sa.Index("inbox_by_age", "at"),
        )
        self.outbox = sa.Table(
            "outbox",
            metadata,
            sa.Column("event_id", sa.String(64), primary_key=True),
            # Which replica publishes it, as long as that one has a lease.
            sa.Column("owner", sa.String(32), nullable=False),
            # Microseconds since 1970 at the commit, made unique in the process: publishing order.
            sa.Column("position", sa.BigInteger, nullable=False),
            sa.Column("routing_key", sa.String(255), nullable=False),
            sa.Column("body", sa.LargeBinary, nullable=False),
            sa.Index("outbox_by_owner", "owner", "position"),
        )
        self.kept = sa.Table(
            "outbox_kept",
            metadata,
            # See `saga.runtime.kernel.kept.key_of`: by time of the commit.
            sa.Column("key", sa.String(64), primary_key=True),
            # The events of one transaction: their bodies, one in each line.
            sa.Column("bodies", sa.LargeBinary, nullable=False),
        )
        self.due_audit = _due_audit(metadata) if self.with_dues else None
        """What was brought forward; where anything may be due."""
        self.leases = sa.Table(
            "outbox_leases",
            metadata,
            sa.Column("owner", sa.String(32), primary_key=True),
            # The database's clock is read, which all replicas share.
            sa.Column("until", Utc, nullable=False),
        )
        self.outbox_rows = Rows(self.outbox)
        self.kept_rows = Rows(self.kept)
        self._inbox_rows = Rows(self.inbox, former_keys=True)
        self._due_audit_rows = None if self.due_audit is None else Rows(self.due_audit)

    @classmethod
    def of(cls, store: str, **kinds: type[State]) -> Tables:
        """The tables that follow from kinds of states, each under the name that its table has.

        `store` is the `__file__` of the module: migrations are in a folder beside it. See
        `StateTable.of`.
        """
        metadata = sa.MetaData()
        states = (StateTable.of(kind, metadata, name) for name, kind in kinds.items())
        return cls(metadata, *states, migrations=Path(store).with_name("migrations"))

    def note_brought_forward(self, writes: WriteSet, entries: Sequence[Mapping[str, Any]]) -> None:
        """Append to the audit record of what was brought forward; see `due_audit`. An entry's `id`
        is the firing's, so that what is done once is noted once."""
        if self._due_audit_rows is not None:
            writes.insert(self._due_audit_rows, entries, VersionConflict("due_audit"))

    def already_done(
        self, connection: Connection, messages: Collection[MessageKey]
    ) -> dict[MessageKey, bytes | None]:
        """Those of the messages that have an inbox row, with the digest of what was done."""
        keys = {key for message in messages for key in inbox_keys(message)}
        found = {key: digest for key, _, digest in self._inbox_rows.find(connection, sorted(keys))}
        return {
            message: found[key]
            for message in messages
            for key in reversed(inbox_keys(message))  # its own row counts more
            if key in found
        }

    def mark_done(
        self, writes: WriteSet, messages: Mapping[MessageKey, bytes | None], at: datetime
    ) -> None:
        """Insert inbox rows for messages, given with their digests; `VersionConflict` if one of
        them has been done meanwhile."""
        self._mark_done(writes, [(key, at, digest) for key, digest in messages.items()])

    def mark_each_done(self, writes: WriteSet, done: Mapping[MessageKey, datetime]) -> None:
        """The same, where each message has a time of its own, and digests are not known."""
        self._mark_done(writes, [(key, at, None) for key, at in done.items()])

    def _mark_done(
        self, writes: WriteSet, done: Iterable[tuple[MessageKey, datetime, bytes | None]]
    ) -> None:
        rows = []
        for message, at, digest in done:
            key, old_key = inbox_keys(message)
            rows.append({"message_id": key, "at": at, "digest": digest, FORMER_KEY: old_key})
        rows.sort(key=itemgetter("message_id"))  # so that replicas do not deadlock
        writes.insert(self._inbox_rows, rows, VersionConflict(self.inbox.name))


def _due_audit(metadata: sa.MetaData) -> sa.Table:
    return sa.Table(
        "due_audit",
        metadata,
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("at", Utc, nullable=False),
        sa.Column("who", sa.String(255), nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        # About which state, and what was due about it, when.
        sa.Column("kind", sa.String(64), nullable=False),
        sa.Column("key", sa.String(255), nullable=False),
        sa.Column("command", sa.String(255), nullable=False),
        sa.Column("due_at", Utc, nullable=False),
        # What came of it: the types of events and questions, or why nothing did.
        sa.Column("outcome", sa.Text, nullable=False),
        sa.Index("due_audit_by_time", "at"),
    )


ANY_SOURCE: Final = ""
"""Stands for a source that is not known: whatever has the id then counts as done."""


def inbox_key(message: MessageKey) -> str:
    """What the inbox knows a message by: its id, a tab, which neither may hold, and its source."""
    if message.source == ANY_SOURCE:
        return message.id
    key = f"{message.id}\t{message.source}"
    if len(key) > _INBOX_KEY_MAX:
        key = f"sha256:{sha256(key.encode()).hexdigest()}"
    return key


def inbox_keys(message: MessageKey) -> tuple[str, str]:
    """The keys of the rows that say a message was done: its own; and the id alone, which is the key
    of older rows (those of before there were digests), and counts for every source."""
    return inbox_key(message), message.id


Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """The wall clock, in UTC."""
    return datetime.now(UTC)
