"""Where the coordinator keeps its orders: columns follow from the fields of the state."""

from __future__ import annotations

from saga import Tables

from orchestrated.coordinator.domain import Order

TABLES = Tables.of(__file__, orders=Order)
