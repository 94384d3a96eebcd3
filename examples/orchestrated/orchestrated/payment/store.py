"""Where payments are kept."""

from __future__ import annotations

import sqlalchemy as sa
from saga import StateTable, Tables

from orchestrated.payment.domain import Payment

_metadata = sa.MetaData()
TABLES = Tables(_metadata, StateTable.of(Payment, _metadata, "payments"))
