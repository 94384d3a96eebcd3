"""Where orders are kept."""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa

from common.events import CancellationReason, OrderLine
from order_service.domain import Order, OrderStatus
from saga.message import Priority
from saga.personal.seal import SEALED_MAX_CHARACTERS
from saga.runtime.kernel.tables import Json, StateTable, Tables, Utc, Word, due_columns

_metadata = sa.MetaData()

orders = sa.Table(
    "orders",
    _metadata,
    sa.Column("order_id", sa.String(36), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("status", Word(OrderStatus), nullable=False),
    sa.Column("customer", sa.String(SEALED_MAX_CHARACTERS), nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("lines", Json(tuple[OrderLine, ...]), nullable=False),
    sa.Column("total_cents", sa.BigInteger, nullable=False),
    sa.Column("priority", Word(Priority), nullable=False),
    sa.Column("deadline", Utc, nullable=False),
    sa.Column("placed_at", Utc),
    sa.Column("ended_at", Utc),
    sa.Column("reason", Word(CancellationReason)),
    *due_columns("orders"),
)
_pending = orders.c.status == OrderStatus.PENDING
# For replicas of an older version, which count by it.
sa.Index("pending_by_deadline", orders.c.deadline, sqlite_where=_pending, postgresql_where=_pending)

ORDERS = StateTable(Order, orders)
TABLES = Tables(_metadata, ORDERS, migrations=Path(__file__).with_name("migrations"))
