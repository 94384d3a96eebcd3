"""The service that hires crews."""

from __future__ import annotations

from saga.runtime.service import Service, main
from saga.runtime.settings import Settings
from saga.runtime.urls import sqlite_url
from tests.moving.agency import CrewBookings, FileKeeper, asks_agency
from tests.moving.crew.domain import PARTICIPANT
from tests.moving.crew.store import TABLES


class CrewSettings(Settings):
    """Where the agency keeps its books."""

    agency_url: str | None = None


def build(settings: CrewSettings) -> Service:
    url = settings.agency_url or sqlite_url(settings.data_dir / "agency.db")
    keeper = FileKeeper(url, CrewBookings, lambda key: "no-crew" in key)
    return Service(PARTICIPANT, TABLES, ask=asks_agency(keeper))


if __name__ == "__main__":
    main(build, CrewSettings)
