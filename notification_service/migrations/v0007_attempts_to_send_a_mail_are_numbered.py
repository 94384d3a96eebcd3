"""Attempts to send a mail are numbered."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"


def upgrade() -> None:
    # Replicas of the version before know nothing of it, and try one at a time.
    op.add_column(
        "notifications", sa.Column("tries", sa.Integer(), nullable=False, server_default="1")
    )
