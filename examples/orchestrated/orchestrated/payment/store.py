"""Where payments are kept: a table whose columns follow from the fields of the state."""

from __future__ import annotations

from saga import Tables

from orchestrated.payment.domain import Payment

TABLES = Tables.of(__file__, payments=Payment)
