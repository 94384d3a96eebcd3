"""Where bills are kept."""

from __future__ import annotations

from saga import Tables

from taskflow.billing.domain import Bill

TABLES = Tables.of(__file__, bills=Bill)
