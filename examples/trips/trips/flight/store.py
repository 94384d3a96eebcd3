"""Where seats are kept: a table whose columns follow from the fields of the state."""

from __future__ import annotations

from saga import Tables

from trips.flight.domain import Seat

TABLES = Tables.of(__file__, seats=Seat)
