"""What was published is kept for a while."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"


def upgrade() -> None:
    op.create_table(
        "outbox_kept",
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("bodies", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    if op.get_bind().dialect.name == "postgresql":  # To compress it costs more than it saves.
        op.execute("ALTER TABLE outbox_kept ALTER COLUMN bodies SET STORAGE EXTERNAL")
