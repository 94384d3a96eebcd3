"""When something is due about a mail is kept beside it."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"

RESENDING_MAX_MICROSECONDS = 15 * 60 * 1_000_000


def upgrade() -> None:
    op.add_column("notifications", sa.Column("due_at", sa.BigInteger(), nullable=True))
    op.execute(
        f"UPDATE notifications SET due_at = resent_at + {RESENDING_MAX_MICROSECONDS} "  # noqa: S608
        "WHERE status = 'resending'"
    )
    op.create_index(
        "notifications_by_due",
        "notifications",
        ["due_at"],
        unique=False,
        sqlite_where=sa.text("due_at IS NOT NULL"),
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # What replicas of the version before insert is looked at at once.
        op.alter_column("notifications", "due_at", server_default="0")
