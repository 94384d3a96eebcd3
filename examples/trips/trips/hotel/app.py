"""The service that books rooms at the hotel."""

from __future__ import annotations

from saga import Service, Settings, serve

from trips.hotel.chain import asks
from trips.hotel.domain import PARTICIPANT
from trips.hotel.store import TABLES
from trips.providers import FileProvider, HotelBooks


class HotelSettings(Settings):
    """Where the hotel is."""

    hotel_url: str | None = None
    """HOTEL_URL: of the sandbox's file; by default one in the data folder."""


def build(settings: HotelSettings) -> Service:
    url = settings.hotel_url or f"sqlite:///{settings.data_dir.absolute() / 'hotel-chain.db'}"
    return Service(PARTICIPANT, TABLES, ask=asks(FileProvider("hotel", url, HotelBooks)))


if __name__ == "__main__":
    serve(build, HotelSettings)
