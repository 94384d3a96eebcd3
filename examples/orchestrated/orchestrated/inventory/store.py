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
TABLES = Tables(
    _metadata,
    StateTable(Reservation, reservations),
    StateTable.of(StockItem, _metadata, "stock"),
    StateTable.of(Delivery, _metadata, "deliveries"),
)
