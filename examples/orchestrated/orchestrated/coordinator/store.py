"""Where the coordinator keeps its orders."""

from __future__ import annotations

import sqlalchemy as sa
from saga import StateTable, Tables, Utc, Word, due_columns

from orchestrated.coordinator.domain import Order, Step
from orchestrated.language import CancellationReason

_metadata = sa.MetaData()
orders = sa.Table(
    "orders",
    _metadata,
    sa.Column("order_id", sa.String(36), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("step", Word(Step), nullable=False),
    sa.Column("customer", sa.String(128), nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("total_cents", sa.BigInteger, nullable=False),
    sa.Column("deadline", Utc),
    sa.Column("reason", Word(CancellationReason)),
    *due_columns("orders"),
)
ORDERS = StateTable(Order, orders)
TABLES = Tables(_metadata, ORDERS)
