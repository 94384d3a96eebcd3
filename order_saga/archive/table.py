"""The table of the view of orders."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from common.events import CancellationReason
from order_saga.archive.view import ArchivedOrder, PaymentProgress, Status, Stock
from saga.message import Priority
from saga.personal.seal import SEALED_MAX_CHARACTERS
from saga.runtime.kernel.tables import Schema, StateTable, Utc, Word


class _EventWord(Word):
    """A word of an event. One of a newer version, which was taken back, is read as `unknown`."""

    cache_ok = True

    def __init__(self, kind: type[StrEnum], unknown: StrEnum | None) -> None:
        super().__init__(kind)
        self.unknown = unknown

    def process_result_value(self, value: Any, dialect: sa.Dialect) -> StrEnum | None:
        try:
            return None if value is None else self.kind(value)
        except ValueError:
            return self.unknown


_OFTEN_FILTERED: Final = ("total_cents", "currency", "priority")
_metadata: Final = sa.MetaData()
order_views = sa.Table(
    "order_views",
    _metadata,
    sa.Column("order_id", sa.String(36), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("status", _EventWord(Status, Status.UNKNOWN), nullable=False),
    sa.Column("reason", _EventWord(CancellationReason, None)),
    sa.Column("customer", sa.String(SEALED_MAX_CHARACTERS), nullable=False),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("total_cents", sa.BigInteger, nullable=False),
    sa.Column("charged_cents", sa.BigInteger, nullable=False),
    sa.Column("refunded_cents", sa.BigInteger, nullable=False),
    sa.Column("priority", _EventWord(Priority, Priority.NORMAL), nullable=False),
    sa.Column("stock", _EventWord(Stock, Stock.NONE), nullable=False),
    sa.Column("payment", _EventWord(PaymentProgress, PaymentProgress.NONE), nullable=False),
    sa.Column("deadline", Utc),
    sa.Column("placed_at", Utc),
    sa.Column("stock_at", Utc),
    sa.Column("payment_at", Utc),
    sa.Column("ended_at", Utc),
    sa.Column("first_event_at", Utc, nullable=False),
    sa.Column("last_event_at", Utc, nullable=False),
    # Those that may hold very many orders to a page end with what else is asked for, so that what
    # does not fit is passed over within the index.
    sa.Index("orders_by_time", "first_event_at", "order_id", *_OFTEN_FILTERED),
    sa.Index("orders_by_status", "status", "first_event_at", "order_id", *_OFTEN_FILTERED),
    sa.Index("orders_by_reason", "reason", "first_event_at", "order_id"),
    sa.Index("orders_by_customer", "customer", "first_event_at", "order_id"),
    sa.Index("orders_by_end", "ended_at"),
    sa.Index("orders_by_start", "placed_at"),
)

ORDERS: Final = StateTable(ArchivedOrder, order_views)
SCHEMA: Final = Schema(
    _metadata,
    migrations=Path(__file__).with_name("migrations"),
    version_table="order_views_version",
)
