"""Mails may have been sent before a restore."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.create_table(
        "in_question",
        sa.Column("order_id", sa.String(length=36), nullable=False),
        sa.Column("why", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("order_id"),
    )
