"""A traveller is marked as personal, and a trip of theirs can be ended before its time."""

from __future__ import annotations

from saga.personal import personal_fields

from trips import SAGA
from trips.language import RequestTrip, TripRequested
from trips.trip.store import TABLES

SEALED = "~1." + "a" * 22 + "." + "b" * 706
"""The longest sealed text there is."""


def test_a_travellers_name_is_personal_wherever_it_is() -> None:
    for kind in (RequestTrip, TripRequested):
        assert personal_fields(kind) == (("traveller",),)


def test_a_sealed_name_fits_where_trips_are_kept() -> None:
    (table,) = (states.table for states in TABLES.states.values())

    assert getattr(table.c.traveller.type, "length", 0) >= len(SEALED)


def test_an_open_trip_is_called_off_before_its_traveller_is_forgotten() -> None:
    assert SAGA.early_end is not None
    assert SAGA.early_end.path_for("oslo/1") == "/trips/oslo%2F1/call-off"
