"""The file that dead letters are kept in: its tables, and how it is opened."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from saga.dlq import DlqError
from saga.dlq.states import ItemState, LetterState
from saga.runtime.kernel.sqlite import made_by_one
from saga.runtime.kernel.tables import Utc, Word
from saga.runtime.urls import printable, sqlite_path

AT_ONCE: Final = 500
"""Values in one IN (...); SQLite takes a limited number."""

_metadata = sa.MetaData()

letters = sa.Table(
    "letters",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("participant", sa.String(64), nullable=False),
    sa.Column("key", sa.String(255), nullable=False),
    sa.Column("state", Word(LetterState), nullable=False),
    sa.Column("event_id", sa.String(255)),
    sa.Column("type", sa.String(255), nullable=False),
    sa.Column("subject", sa.String(255)),
    sa.Column("queue", sa.String(255), nullable=False),
    sa.Column("reason", sa.String(64), nullable=False),
    sa.Column("error_type", sa.String(255), nullable=False),
    sa.Column("error", sa.Text, nullable=False),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("attempts", sa.Integer, nullable=False),
    sa.Column("replays", sa.Integer, nullable=False),
    sa.Column("copies", sa.Integer, nullable=False),
    sa.Column("copy", sa.Integer, nullable=False),  # The newest one's id.
    sa.Column("first_failed_at", Utc, nullable=False),
    sa.Column("last_failed_at", Utc, nullable=False),
    sa.Column("note", sa.Text, nullable=False),
    sa.UniqueConstraint("participant", "key"),
    sa.Index("letters_by_state", "state", "first_failed_at"),
    sa.Index("letters_by_subject", "subject"),
    sa.Index("letters_by_fingerprint", "fingerprint", "state", "first_failed_at"),
    # All that is counted of groups, so that no row of the table has to be looked up for them.
    sa.Index(
        "letters_by_group",
        *("state", "fingerprint", "type", "participant", "queue", "subject"),
        *("first_failed_at", "last_failed_at", "replays"),
    ),
    sqlite_autoincrement=True,  # A number is never given twice.
)
copies = sa.Table(
    "copies",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("letter", sa.Integer, sa.ForeignKey("letters.number"), nullable=False),
    sa.Column("died", sa.String(64), nullable=False),
    sa.Column("headers", sa.Text, nullable=False),
    sa.Column("properties", sa.Text, nullable=False),
    sa.Column("raw", sa.LargeBinary),  # Not of copies from before it was kept.
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("collected_at", Utc, nullable=False),
    sa.UniqueConstraint("letter", "died"),
)
runs = sa.Table(
    "runs",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("selection", sa.Text, nullable=False),
    sa.Column("settings", sa.Text, nullable=False),
    sa.Column("started_at", Utc, nullable=False),
    sa.Column("ended_at", Utc),
    sa.Column("outcome", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
items = sa.Table(
    "items",
    _metadata,
    sa.Column("run", sa.Integer, sa.ForeignKey("runs.number"), primary_key=True),
    sa.Column("letter", sa.Integer, sa.ForeignKey("letters.number"), primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("state", Word(ItemState), nullable=False),
    sa.Column("detail", sa.Text, nullable=False),
)
edits = sa.Table(
    "edits",
    _metadata,
    sa.Column("id", sa.String(64), primary_key=True),  # The copy's message id.
    sa.Column("letter", sa.Integer, sa.ForeignKey("letters.number"), nullable=False),
    sa.Column("at", Utc, nullable=False),
    sa.Column("diff", sa.Text, nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sa.Column("sent", sa.Boolean, nullable=False),
)
audit = sa.Table(
    "audit",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True),
    sa.Column("at", Utc, nullable=False),
    sa.Column("who", sa.String(255), nullable=False),
    sa.Column("action", sa.String(32), nullable=False),
    sa.Column("reason", sa.Text, nullable=False),
    sa.Column("selection", sa.Text, nullable=False),
    sa.Column("result", sa.Text, nullable=False),
    sqlite_autoincrement=True,
)
for _change in ("UPDATE", "DELETE"):
    sa.event.listen(
        audit,
        "after_create",
        sa.DDL(  # type: ignore[no-untyped-call]  # SQLAlchemy gives it no types
            f"CREATE TRIGGER IF NOT EXISTS audit_no_{_change.lower()} BEFORE {_change} ON audit "
            f"BEGIN SELECT RAISE(ABORT, 'the audit record is only appended to'); END"
        ),
    )


def path_of(url: str) -> Path:
    """The store's file. Raises `DlqError`."""
    try:
        path = sqlite_path(url)
    except ValueError as error:
        raise DlqError(f"dead_letters_url {printable(url)!r} cannot be used: {error}") from None
    if path is None:
        raise DlqError(f"dead_letters_url {printable(url)!r} names no file")
    return path


@contextmanager
def reading(engine: sa.Engine) -> Iterator[Connection]:
    """A connection that reads as of one moment, and keeps no writer waiting."""
    with engine.connect().execution_options(reads=True) as connection:
        yield connection


def chunks(values: Iterable[Any]) -> Iterator[list[Any]]:
    """The values, so many at once as one statement takes."""
    everything = list(values)
    for start in range(0, len(everything), AT_ONCE):
        yield everything[start : start + AT_ONCE]


def _add_raw(engine: sa.Engine) -> None:
    """Add a column that files from before lack."""
    if all(
        column["name"] != copies.c.raw.name for column in sa.inspect(engine).get_columns("copies")
    ):
        with engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE copies ADD COLUMN raw BLOB")


def _add_indexes(engine: sa.Engine) -> None:
    """Add indexes that files from before lack."""
    there = {index["name"] for index in sa.inspect(engine).get_indexes(letters.name)}
    for index in letters.indexes:
        if index.name not in there:
            index.create(engine)


def make_tables(engine: sa.Engine) -> None:
    """Make what is missing."""

    def make() -> None:
        _metadata.create_all(engine)
        _add_indexes(engine)
        _add_raw(engine)

    made_by_one(make)
