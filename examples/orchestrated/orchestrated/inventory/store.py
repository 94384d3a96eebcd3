"""Where stock and reservations are kept: columns follow from the fields of the states."""

from __future__ import annotations

from saga import Tables

from orchestrated.inventory.domain import Delivery, Reservation, StockItem

TABLES = Tables.of(__file__, reservations=Reservation, stock=StockItem, deliveries=Delivery)
