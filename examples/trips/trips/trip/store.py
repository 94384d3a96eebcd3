"""Where trips are kept: a table whose columns follow from the fields of the state."""

from __future__ import annotations

from saga import Tables

from trips.trip.domain import Trip

TABLES = Tables.of(__file__, trips=Trip)
