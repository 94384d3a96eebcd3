"""The service that takes requests for stays."""

from __future__ import annotations

from saga import Service, Settings, serve

from stays.booking.domain import PARTICIPANT
from stays.booking.store import TABLES


def build(_: Settings) -> Service:
    return Service(PARTICIPANT, TABLES)


if __name__ == "__main__":
    serve(build, Settings)
