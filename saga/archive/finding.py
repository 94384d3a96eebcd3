"""Finding subjects by whatever is known of them, a bounded number of rows at a time.

What no index finds is looked for among the latest subjects only, some at a time, until there is a
page of it, so many were looked at, or it has taken so long; and it is said how far that went. So an
answer takes as long with a million events as with a thousand, also on a busy machine.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any, Final, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.archive.queries import IS_OPEN, Search
from saga.archive.subjects import SUBJECTS, Subject, around, subjects
from saga.archive.view import SubjectView
from saga.choreography import State
from saga.errors import InputError
from saga.runtime.kernel.tables import Utc

ROWS_MAX: Final = 10_000
"""Rows that are looked at for one page."""
ROWS_AT_ONCE: Final = 2_000
SECONDS_MAX: Final = 0.1
"""After this no more rows are looked at for one page."""
_TIME: Final = "first_event_at"
"""The column by which subjects are listed. A view that has it as well, with indexes that go on with
it, is searched by its own columns first."""


class ListPlace(NamedTuple):
    """A place in the list: the first event and the key of the subject before it."""

    at: datetime
    key: str


@dataclass(frozen=True, slots=True)
class ViewField:
    """A column of a view that subjects can be found by; with `options`, it holds one of these."""

    name: str
    options: tuple[str, ...] = ()
    number: bool = False

    @property
    def text(self) -> bool:
        return not self.options and not self.number


@dataclass(frozen=True, slots=True)
class Findings:
    """A page. `views` are by key what their saga's own view tells. `next` is where to go on; if it
    says `unfinished`, that is not because the page is full, but because so many rows were looked
    at, or for so long."""

    subjects: Sequence[Subject]
    views: Mapping[str, State]
    next: ListPlace | None
    unfinished: bool
    looked_at: int = 0
    """Rows, where no index finds those that fit."""


def fields_of(view: SubjectView[Any]) -> tuple[ViewField, ...]:
    """What subjects can be found by, by their own view: words, texts and numbers."""
    found = []
    for column in view.table.table.columns:
        if column.primary_key or column.name in ("version", "sequence"):
            continue
        words = getattr(column.type, "kind", None)
        if isinstance(words, type) and issubclass(words, StrEnum):
            found.append(ViewField(column.name, options=tuple(words)))
        elif isinstance(column.type, sa.String):
            found.append(ViewField(column.name))
        elif isinstance(column.type, sa.Integer):
            found.append(ViewField(column.name, number=True))
    return tuple(found)


def text_columns(view: SubjectView[Any] | None) -> tuple[str, ...]:
    """The columns of a view that texts are looked for in: what these say, others wrote."""
    return () if view is None else tuple(field.name for field in fields_of(view) if field.text)


def find(
    connection: Connection,
    wanted: Search,
    limit: int,
    after: ListPlace | None = None,
    *,
    view: SubjectView[Any] | None = None,
    fields: Mapping[str, str] | None = None,
    containing: str = "",
    unseen: Collection[str] = (),
) -> Findings:
    """At most `limit` subjects that fit all that is given, the latest first.

    `fields` are what columns of the view hold, as texts; `containing` is what one of its texts or
    the key has in it, in whatever case. It is not looked for in `unseen` columns: who sees these
    masked could find out letter by letter what they hold. Raises `InputError` for a field that
    cannot hold that.
    """
    query = _Query(wanted, view, _values(view, fields or {}), containing, unseen)
    places, behind, looked_at = _places(connection, query, limit + 1, after)
    unfinished = len(places) <= limit and behind is not None
    more = behind
    if len(places) > limit:
        places = places[:limit]
        more = places[-1]
    keys = [place.key for place in places]
    known = SUBJECTS.load(connection, keys)
    views = view.table.load_readable(connection, keys)[0] if view is not None else {}
    found = [known[key][0] for key in keys if key in known]
    return Findings(found, views, more, unfinished, looked_at)


def _places(
    connection: Connection, query: _Query, wanted: int, after: ListPlace | None
) -> tuple[list[ListPlace], ListPlace | None, int]:
    """The places of at most so many that fit; the last one that was looked at, if there may be more
    behind it; and how many were."""
    if query.indexed:
        rows = connection.execute(query.looked_at(after).limit(wanted))
        return [ListPlace(row.at, row.key) for row in rows], None, 0
    until = time.monotonic() + SECONDS_MAX
    found: list[ListPlace] = []
    looked_at, behind = 0, after
    while True:
        count = min(ROWS_AT_ONCE, ROWS_MAX - looked_at)
        rows = connection.execute(query.fitting(behind, count, wanted - len(found)))
        found += (ListPlace(row.at, row.key) for row in rows)
        looked_at += count
        if len(found) >= wanted:
            return found, None, looked_at
        last = connection.execute(query.last(behind, count)).first()
        if last is None:
            return found, None, looked_at
        behind = ListPlace(last.at, last.key)
        if looked_at >= ROWS_MAX or time.monotonic() > until:
            return found, behind, looked_at


def _values(view: SubjectView[Any] | None, given: Mapping[str, str]) -> dict[str, Any]:
    """What the columns have to be. Raises `InputError`."""
    known = {field.name: field for field in fields_of(view)} if view is not None else {}
    values: dict[str, Any] = {}
    for name, text in given.items():
        field = known.get(name)
        if field is None:
            there = ", ".join(known) or "none"
            raise InputError(f"{name}: there is no such field of the view; there are {there}")
        if field.options and text not in field.options:
            raise InputError(f"{name}: {text!r} is none of {', '.join(field.options)}")
        if field.number and not (text.lstrip("-").isascii() and text.lstrip("-").isdigit()):
            raise InputError(f"{name}: {text!r} is no whole number")
        values[name] = _typed(view, name, text) if not field.number else int(text)
    if any(isinstance(value, int) and abs(value) >= 2**63 for value in values.values()):
        raise InputError("a number is too large for any field of the view")
    return values


def _typed(view: SubjectView[Any] | None, name: str, text: str) -> Any:
    words = getattr(view.table.table.c[name].type, "kind", None) if view is not None else None
    return words(text) if words is not None else text


class _Query:
    def __init__(
        self,
        wanted: Search,
        view: SubjectView[Any] | None,
        values: Mapping[str, Any],
        text: str,
        unseen: Collection[str],
    ) -> None:
        self._wanted = wanted
        self._values = dict(values)
        self._text = text
        self._unseen = unseen
        self._text_columns = text_columns(view)
        self._view = view.table.table if view is not None else None
        self._base: sa.Table = subjects
        if self._view is not None and _TIME in self._view.c and values:
            self._base = self._view
        (self._key,) = self._base.primary_key.columns
        self._first: list[sa.ColumnElement[bool]] = []
        """What indexes find, and the rest."""
        self._then: list[sa.ColumnElement[bool]] = []
        self._joined: dict[str, tuple[sa.Table, bool]] = {}
        """Keyed by name: the tables that are looked into, and whether what they
        do not have fits, too."""
        self._split()

    @property
    def indexed(self) -> bool:
        """Whether every row that is looked at fits."""
        return not self._then and not self._text

    def _split(self) -> None:
        wanted, table = self._wanted, subjects.c
        at = self._base.c[_TIME]
        if wanted.since is not None:
            self._first.append(at >= wanted.since)
        if wanted.until is not None:
            self._first.append(at < wanted.until)
        if wanted.subject is not None:
            self._first.append(self._key == wanted.subject)
        for name, value in self._values.items():
            self._add_value(name, value)
        rest: list[sa.ColumnElement[bool]] = []
        if wanted.open and self._base is subjects:
            self._first.append(IS_OPEN)
        elif wanted.open is not None:
            rest.append(table.open == wanted.open)
        if wanted.ended is not None:
            rest.append(table.ended_at.is_not(None) if wanted.ended else table.ended_at.is_(None))
        if wanted.ended_by is not None:
            rest.append(table.ended_by == wanted.ended_by)
        if wanted.settled is not None:
            rest.append(table.settled == wanted.settled)
        if wanted.type is not None:
            types = sa.type_coerce(table.types, sa.Text)
            rest.append(types.contains(around(wanted.type), autoescape=True))
        if rest:
            self._join(subjects)
            self._then += rest
        if self._text:
            self._add_text()

    def _add_value(self, name: str, value: Any) -> None:
        assert self._view is not None  # noqa: S101 - `_values` has seen to that
        column = self._view.c[name]
        # One index at a time: of several, a planner without statistics may take the worst.
        if self._base is self._view and name in _leading(self._view) and not self._by_index:
            self._by_index = True
            self._first.append(column == value)
        else:
            self._join(self._view)
            self._then.append(column == value)

    _by_index = False

    def _add_text(self) -> None:
        self._texts: list[sa.ColumnElement[Any]] = []
        if self._view is not None:
            self._joined.setdefault(self._view.name, (self._view, self._base is not self._view))
            self._texts += [
                self._view.c[name] for name in self._text_columns if name not in self._unseen
            ]

    def _join(self, table: sa.Table) -> None:
        self._joined[table.name] = table, False

    def looked_at(self, after: ListPlace | None) -> sa.Select[Any]:
        """The rows that are looked at, in order."""
        at = self._base.c[_TIME]
        query = sa.select(at.label("at"), self._key.label("key")).where(*self._first)
        if after is not None:
            seen = sa.tuple_(sa.literal(after.at, Utc), sa.literal(after.key))
            query = query.where(sa.tuple_(at, self._key) < seen)
        return query.order_by(at.desc(), self._key.desc())

    def fitting(self, after: ListPlace | None, count: int, limit: int) -> sa.Select[Any]:
        """Those that fit, at most `limit`, among the next `count` rows."""
        rows = self.looked_at(after).limit(count).subquery("rows")
        source: sa.FromClause = rows
        for table, outer in self._joined.values():
            (key,) = table.primary_key.columns
            source = source.join(table, key == rows.c.key, isouter=outer)
        query = sa.select(rows.c.at, rows.c.key).select_from(source).where(*self._then)
        if self._text:
            texts = [rows.c.key, *self._texts]
            query = query.where(sa.or_(*(t.icontains(self._text, autoescape=True) for t in texts)))
        return query.order_by(rows.c.at.desc(), rows.c.key.desc()).limit(limit)

    def last(self, after: ListPlace | None, count: int) -> sa.Select[Any]:
        """The last of the next `count` rows, if there are so many."""
        return self.looked_at(after).offset(count - 1).limit(1)


def _leading(table: sa.Table) -> Collection[str]:
    """The columns by which an index finds rows in the order of time."""
    return {
        columns[0].name
        for index in table.indexes
        if len(columns := list(index.columns)) > 1 and columns[1].name == _TIME
    }
