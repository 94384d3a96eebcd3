"""The service that books cars at the rental."""

from __future__ import annotations

from saga import Service, Settings, serve

from trips.car.domain import PARTICIPANT
from trips.car.rental import asks
from trips.car.store import TABLES
from trips.providers import FileProvider, RentalBooks


class CarSettings(Settings):
    """Where the rental is."""

    rental_url: str | None = None
    """RENTAL_URL: of the sandbox's file; by default one in the data folder."""


def build(settings: CarSettings) -> Service:
    url = settings.rental_url or f"sqlite:///{settings.data_dir.absolute() / 'rental.db'}"
    return Service(PARTICIPANT, TABLES, ask=asks(FileProvider("car", url, RentalBooks)))


if __name__ == "__main__":
    serve(build, CarSettings)
