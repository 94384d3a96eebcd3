"""The service that holds seats at the airline, and has them ticketed."""

from __future__ import annotations

from saga import Service, Settings, serve

from trips.flight.airline import asks
from trips.flight.domain import PARTICIPANT
from trips.flight.store import TABLES
from trips.providers import AirlineBooks, FileProvider


class FlightSettings(Settings):
    """Where the airline is."""

    airline_url: str | None = None
    """AIRLINE_URL: of the sandbox's file; by default one in the data folder."""


def build(settings: FlightSettings) -> Service:
    url = settings.airline_url or f"sqlite:///{settings.data_dir.absolute() / 'airline.db'}"
    return Service(PARTICIPANT, TABLES, ask=asks(FileProvider("flight", url, AirlineBooks)))


if __name__ == "__main__":
    serve(build, FlightSettings)
