"""The table of orders, which archives of before this line of scripts have already."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

_OFTEN_FILTERED = ("total_cents", "currency", "priority")
_INDEXES = {
    "orders_by_time": ("first_event_at", "order_id", *_OFTEN_FILTERED),
    "orders_by_status": ("status", "first_event_at", "order_id", *_OFTEN_FILTERED),
    "orders_by_reason": ("reason", "first_event_at", "order_id"),
    "orders_by_customer": ("customer", "first_event_at", "order_id"),
    "orders_by_end": ("ended_at",),
    "orders_by_start": ("placed_at",),
}


def upgrade() -> None:
    there = sa.inspect(op.get_bind())
    found: dict[str | None, tuple[str | None, ...]] = {}
    if there.has_table("order_views"):
        for index in there.get_indexes("order_views"):
            found[index["name"]] = tuple(index["column_names"])
    else:
        _create_table()
    for name, columns in _INDEXES.items():
        if found.get(name) == columns:
            continue
        if name in found:
            op.drop_index(name, "order_views")
        op.create_index(name, "order_views", list(columns), unique=False)


def _create_table() -> None:
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
