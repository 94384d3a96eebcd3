"""Where it is kept which mails were sent."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from common.events import Letter
from notification_service.domain import Notification, NotificationStatus
from saga.runtime.kernel.tables import Json, StateTable, Tables, Utc, Word, due_columns

_metadata = sa.MetaData()

notifications = sa.Table(
    "notifications",
    _metadata,
    sa.Column("order_id", sa.String(36), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("status", Word(NotificationStatus), nullable=False),
    sa.Column("letter", Json(Letter | None), nullable=False),
    sa.Column("begun_at", Utc),
    sa.Column("detail", sa.String(255), nullable=False),
    sa.Column("resent_at", Utc),
    sa.Index("notifications_by_status", "status", "begun_at"),
    *due_columns("notifications"),
    sa.Column("tries", sa.Integer, nullable=False, server_default="1"),
)

in_question = sa.Table(
    "in_question",
    _metadata,
    sa.Column("order_id", sa.String(36), primary_key=True),
    sa.Column("why", sa.String(255), nullable=False),
)
"""Orders whose mail may have gone out without our books knowing, as these are older than that: they
were restored. What is asked about them for the first time is answered from here."""

_resending = notifications.c.status == NotificationStatus.RESENDING
NOTIFICATIONS = StateTable(
    Notification, notifications, due_where=_resending & notifications.c.resent_at.is_not(None)
)


def put_in_question(connection: Connection, order_ids: Iterable[str], why: str) -> int:
    """Let the mails about these orders be sent by an operator only, but for those whose outcome is
    known, or an operator's to decide already. Returns how many they are."""
    open_ = (NotificationStatus.NONE, NotificationStatus.WAITING)
    known = set(connection.scalars(sa.select(in_question.c.order_id)))
    known |= set(
        connection.scalars(
            sa.select(notifications.c.order_id).where(notifications.c.status.not_in(open_))
        )
    )
    rows = [{"order_id": id, "why": why} for id in sorted({*order_ids} - known)]
    if rows:
        connection.execute(in_question.insert(), rows)
    return len(rows)


def questions(connection: Connection) -> dict[str, str]:
    """The orders whose mail may have gone out without our books knowing, with the reason."""
    return {row.order_id: row.why for row in connection.execute(sa.select(in_question))}


def count_in_question(connection: Connection) -> int:
    """How many mails are in question and have not come to be sent yet."""
    begun = sa.select(notifications.c.order_id).where(
        notifications.c.order_id == in_question.c.order_id,
        notifications.c.status != NotificationStatus.WAITING,
    )
    query = sa.select(sa.func.count()).select_from(in_question).where(~begun.exists())
    return connection.scalars(query).one()


def oldest(
    connection: Connection, status: NotificationStatus, limit: int
) -> Sequence[Notification]:
    """The mails that stand there, those begun first. One that cannot be read says so itself: it
    must not hide the others."""
    query = (
        sa.select(notifications.c.order_id)
        .where(notifications.c.status == status)
        .order_by(notifications.c.begun_at, notifications.c.order_id)
        .limit(limit)
    )
    keys = connection.scalars(query).all()
    found, unreadable = NOTIFICATIONS.load_readable(connection, keys)
    ruined = {row.key: Notification(row.key, status=status, detail=str(row)) for row in unreadable}
    return [found.get(key) or ruined[key] for key in keys if key in found or key in ruined]


def count_unknown(connection: Connection) -> int:
    """How many mails wait for an operator."""
    unknown = notifications.c.status == NotificationStatus.UNKNOWN
    query = sa.select(sa.func.count()).select_from(notifications).where(unknown)
    return connection.scalars(query).one()


TABLES = Tables(
    _metadata,
    NOTIFICATIONS,
    migrations=Path(__file__).with_name("migrations"),
    figures={"mails_in_question": count_in_question},
)
