"""Where stock and reservations are kept."""

from __future__ import annotations

import sqlalchemy as sa
from saga import Json, StateTable, Tables, Word

from orchestrated.inventory.domain import Delivery, Reservation, ReservationStatus, StockItem
from orchestrated.language import HeldLine

_metadata = sa.MetaData()
reservations = sa.Table(
    "reservations",
    _metadata,
    sa.Column("order_id", sa.String(36), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("status", Word(ReservationStatus), nullable=False),
    sa.Column("lines", Json(tuple[HeldLine, ...]), nullable=False),
)
stock = sa.Table(
    "stock",
    _metadata,
    sa.Column("sku", sa.String(64), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("unit_price_cents", sa.BigInteger),
    sa.Column("currency", sa.String(3), nullable=False),
    sa.Column("free", sa.BigInteger, sa.CheckConstraint("free >= 0"), nullable=False),
    sa.Column("held", sa.BigInteger, sa.CheckConstraint("held >= 0"), nullable=False),
)
deliveries = sa.Table(
    "deliveries",
    _metadata,
    sa.Column("delivery", sa.String(101), primary_key=True),
    sa.Column("version", sa.Integer, nullable=False),
    sa.Column("sequence", sa.Integer, nullable=False),
    sa.Column("quantity", sa.BigInteger),
)
TABLES = Tables(
    _metadata,
    StateTable(Reservation, reservations),
    StateTable(StockItem, stock),
    StateTable(Delivery, deliveries),
)
