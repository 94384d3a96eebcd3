"""The service that rents vans."""

from __future__ import annotations

from saga.runtime.service import Service, main
from saga.runtime.settings import Settings
from saga.runtime.urls import sqlite_url
from tests.moving.agency import FileKeeper, VanBookings, asks_rental
from tests.moving.van.domain import PARTICIPANT
from tests.moving.van.store import TABLES


class VanSettings(Settings):
    """Where the rental keeps its books."""

    rental_url: str | None = None


def build(settings: VanSettings) -> Service:
    url = settings.rental_url or sqlite_url(settings.data_dir / "rental.db")
    keeper = FileKeeper(url, VanBookings, lambda key: "no-van" in key)
    return Service(PARTICIPANT, TABLES, ask=asks_rental(keeper))


if __name__ == "__main__":
    main(build, VanSettings)
