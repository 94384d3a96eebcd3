"""Where the coordinator keeps its orders."""

from __future__ import annotations

import sqlalchemy as sa
from saga import StateTable, Tables

from orchestrated.coordinator.domain import Order

_metadata = sa.MetaData()
ORDERS = StateTable.of(Order, _metadata, "orders")
TABLES = Tables(_metadata, ORDERS)
