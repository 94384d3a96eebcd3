"""First tables."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "events",
        sa.Column("event_id", sa.String(length=255), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("stream_offset", sa.BigInteger(), nullable=True),
        sa.Column("recorded_at", sa.BigInteger(), nullable=False),
        sa.Column("type", sa.String(length=255), nullable=False),
        sa.Column("source", sa.String(length=255), nullable=False),
        sa.Column("subject", sa.String(length=255), nullable=False),
        sa.Column("sequence", sa.BigInteger(), nullable=True),
        sa.Column("time", sa.BigInteger(), nullable=False),
        sa.Column("causation", sa.String(length=255), nullable=True),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("event_id"),
    )
    op.create_index("events_by_position", "events", ["position"], unique=True)
    op.create_index("events_by_subject", "events", ["subject", "source", "sequence"], unique=False)
    op.create_table(
        "gaps",
        sa.Column("first", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("last", sa.BigInteger(), nullable=False),
        sa.Column("noticed_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("first"),
    )
    op.create_table(
        "order_views",
        sa.Column("order_id", sa.String(length=36), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.Column("sequence", sa.Integer(), nullable=False),
        sa.Column("status", sa.String(length=32), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=True),
        sa.Column("customer", sa.String(length=128), nullable=False),
        sa.Column("currency", sa.String(length=3), nullable=False),
        sa.Column("total_cents", sa.BigInteger(), nullable=False),
        sa.Column("charged_cents", sa.BigInteger(), nullable=False),
        sa.Column("refunded_cents", sa.BigInteger(), nullable=False),
        sa.Column("priority", sa.String(length=32), nullable=False),
        sa.Column("stock", sa.String(length=32), nullable=False),
        sa.Column("payment", sa.String(length=32), nullable=False),
        sa.Column("deadline", sa.BigInteger(), nullable=True),
        sa.Column("placed_at", sa.BigInteger(), nullable=True),
        sa.Column("stock_at", sa.BigInteger(), nullable=True),
        sa.Column("payment_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("first_event_at", sa.BigInteger(), nullable=False),
        sa.Column("last_event_at", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("order_id"),
    )
    op.create_index(
        "orders_by_customer",
        "order_views",
        ["customer", "first_event_at", "order_id"],
        unique=False,
    )
    op.create_index("orders_by_end", "order_views", ["ended_at"], unique=False)
    op.create_index(
        "orders_by_reason", "order_views", ["reason", "first_event_at", "order_id"], unique=False
    )
    op.create_index("orders_by_start", "order_views", ["placed_at"], unique=False)
    op.create_index(
        "orders_by_status", "order_views", ["status", "first_event_at", "order_id"], unique=False
    )
    op.create_index("orders_by_time", "order_views", ["first_event_at", "order_id"], unique=False)
    op.create_table(
        "places",
        sa.Column("stream", sa.String(length=64), nullable=False),
        sa.Column("offset", sa.BigInteger(), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.PrimaryKeyConstraint("stream"),
    )
    op.create_table(
        "strays",
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("stream_offset", sa.BigInteger(), nullable=True),
        sa.Column("recorded_at", sa.BigInteger(), nullable=False),
        sa.Column("routing_key", sa.String(length=255), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=False),
        sa.Column("detail", sa.Text(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("key"),
    )
    for table in ("events", "strays"):
        _append_only(table)


def _append_only(table: str) -> None:
    """What happened is not changed afterwards, by whatever program."""
    if op.get_bind().dialect.name == "sqlite":
        for change in ("UPDATE", "DELETE"):
            op.execute(
                f"CREATE TRIGGER {table}_no_{change.lower()} BEFORE {change} ON {table} "
                f"BEGIN SELECT RAISE(ABORT, '{table} are only appended to'); END"
            )
        return
    op.execute(
        f"CREATE FUNCTION {table}_stay() RETURNS trigger LANGUAGE plpgsql AS "
        f"$$ BEGIN RAISE EXCEPTION '{table} are only appended to'; END $$"
    )
    op.execute(
        f"CREATE TRIGGER {table}_stay BEFORE UPDATE OR DELETE OR TRUNCATE ON {table} "
        f"FOR EACH STATEMENT EXECUTE FUNCTION {table}_stay()"
    )
