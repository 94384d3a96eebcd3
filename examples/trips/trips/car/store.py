"""Where cars are kept: a table whose columns follow from the fields of the state."""

from __future__ import annotations

from saga import Tables

from trips.car.domain import Car

TABLES = Tables.of(__file__, cars=Car)
