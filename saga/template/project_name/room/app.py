"""The service that reserves rooms."""

from __future__ import annotations

from saga import FileBookkeeper, Service, Settings, serve

from project_name.hotel import Choice, HotelBooks, asks
from project_name.room.domain import PARTICIPANT
from project_name.room.store import TABLES


class RoomSettings(Settings):
    """Where the hotel is."""

    hotel_url: str | None = None
    """HOTEL_URL: of the sandbox's file; by default one in the data folder."""


def build(settings: RoomSettings) -> Service:
    url = settings.hotel_url or f"sqlite:///{settings.data_dir.absolute() / 'hotel.db'}"
    hotel = FileBookkeeper(url, HotelBooks, Choice.of)
    return Service(PARTICIPANT, TABLES, ask=asks(hotel))


if __name__ == "__main__":
    serve(build, RoomSettings)
