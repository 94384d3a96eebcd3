"""Where it is kept which mails were sent."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from common.events import Letter
from common.kernel.tables import Json, StateTable, Tables, Utc, Word
from notification_service.domain import Notification, NotificationStatus

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
    sa.Index("notifications_by_status", "status", "begun_at"),
)

NOTIFICATIONS = StateTable(Notification, notifications)
TABLES = Tables(_metadata, NOTIFICATIONS, migrations=Path(__file__).with_name("migrations"))


def oldest(
    connection: Connection, status: NotificationStatus, limit: int
) -> Sequence[Notification]:
    """The mails that stand there, those begun first."""
    query = (
        sa.select(notifications.c.order_id)
        .where(notifications.c.status == status)
        .order_by(notifications.c.begun_at, notifications.c.order_id)
        .limit(limit)
    )
    keys = list(connection.scalars(query))
    found = NOTIFICATIONS.load(connection, keys)
    return [found[key][0] for key in keys if key in found]


def count_unknown(connection: Connection) -> int:
    """How many mails wait for a person."""
    unknown = notifications.c.status == NotificationStatus.UNKNOWN
    query = sa.select(sa.func.count()).select_from(notifications).where(unknown)
    return connection.scalars(query).one()
