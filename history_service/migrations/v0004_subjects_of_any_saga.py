"""Subjects of any saga: what is told of each, folded from the events that are there.

A replica of the version before does not fold what it records from here on. One of this version
does, as `folded` says up to where that was done.
"""

from collections.abc import Iterator
from itertools import groupby

import sqlalchemy as sa
from alembic import op

from common.messaging.trust import EDITOR_SOURCE
from history_service.subjects import Rules
from saga.discovery import choreography

revision = "0004"
down_revision = "0003"

SUBJECTS_AT_ONCE = 500


def upgrade() -> None:
    op.create_table(
        "subjects",
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=255), nullable=False),
        sa.Column("types", sa.Text(), nullable=False),
        sa.Column("first_event_at", sa.BigInteger(), nullable=False),
        sa.Column("last_event_at", sa.BigInteger(), nullable=False),
        sa.Column("ended_by", sa.String(length=255), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("settled", sa.SmallInteger(), nullable=False),
        sa.Column("open", sa.SmallInteger(), nullable=False),
        sa.PrimaryKeyConstraint("subject"),
    )
    op.create_table(
        "folded",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.execute("INSERT INTO folded SELECT 'subjects', COALESCE(MAX(position), 0) FROM events")
    connection = op.get_bind()
    rules = Rules(choreography())
    for page in _pages(connection):
        connection.execute(_TABLE.insert(), [_row(rules, *subject) for subject in page])
    op.create_index("subjects_by_time", "subjects", ["first_event_at", "subject"], unique=False)
    op.create_index(
        "subjects_open",
        "subjects",
        ["first_event_at", "subject"],
        unique=False,
        sqlite_where=sa.text("open = 1"),
        postgresql_where=sa.text("open = 1"),
    )


_TABLE = sa.table(
    "subjects",
    *map(
        sa.column,
        (
            "subject",
            "version",
            "sequence",
            "kind",
            "types",
            "first_event_at",
            "last_event_at",
            "ended_by",
            "ended_at",
            "settled",
            "open",
        ),
    ),
)
_EVENTS = sa.table("events", *map(sa.column, ("subject", "type", "time", "source")))

_Told = tuple[str, int, int, int]
"""A type of event; how many there are, and the times of the first and the last one."""


def _pages(connection: sa.Connection) -> Iterator[list[tuple[str, list[_Told]]]]:
    """Each subject with what is told of it, some subjects at a time."""
    subject, type_, time = _EVENTS.c.subject, _EVENTS.c.type, _EVENTS.c.time
    after = ""
    while True:
        keys = sa.select(subject).distinct().where(subject > after).order_by(subject)
        last = connection.scalar(
            sa.select(sa.func.max(keys.limit(SUBJECTS_AT_ONCE).subquery().c.subject))
        )
        if last is None:
            return
        counted = (
            sa.select(subject, type_, sa.func.count(), sa.func.min(time), sa.func.max(time))
            .where(subject > after, subject <= last, _EVENTS.c.source != EDITOR_SOURCE)
            .group_by(subject, type_)
            .order_by(subject)
        )
        rows = connection.execute(counted).all()
        yield [
            (key, [(row[1], row[2], row[3], row[4]) for row in told])
            for key, told in groupby(rows, lambda row: str(row[0]))
        ]
        after = last


def _row(rules: Rules, subject: str, told: list[_Told]) -> dict[str, object]:
    types = sorted(rules.types & {type_ for type_, *_ in told})
    ends = [(first, type_) for type_, _, first, _ in told if type_ in rules.terminal]
    ended_at, ended_by = min(ends, default=(None, None))
    standing = rules.standing(frozenset(types))
    return {
        "subject": subject,
        "version": 1,
        "sequence": sum(count for _, count, _, _ in told),
        "kind": standing.kind,
        "types": "".join(f"\n{type_}" for type_ in (*types, "")),
        "first_event_at": min(first for _, _, first, _ in told),
        "last_event_at": max(last for _, _, _, last in told),
        "ended_by": ended_by,
        "ended_at": ended_at,
        "settled": int(standing.settled),
        "open": int(standing.open),
    }
