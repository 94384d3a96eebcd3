"""When something is due about an order is kept beside it."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"


def upgrade() -> None:
    op.add_column("orders", sa.Column("due_at", sa.BigInteger(), nullable=True))
    op.execute("UPDATE orders SET due_at = deadline WHERE status = 'pending'")
    op.create_index(
        "orders_by_due",
        "orders",
        ["due_at"],
        unique=False,
        sqlite_where=sa.text("due_at IS NOT NULL"),
        postgresql_where=sa.text("due_at IS NOT NULL"),
    )
    if op.get_bind().dialect.name == "postgresql":
        # What replicas of the version before insert is looked at at once.
        op.alter_column("orders", "due_at", server_default="0")
