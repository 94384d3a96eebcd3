"""Where rooms are kept: a table whose columns follow from the fields of the state."""

from __future__ import annotations

from saga import Tables

from trips.hotel.domain import Room

TABLES = Tables.of(__file__, rooms=Room)
