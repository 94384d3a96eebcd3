"""The service that keeps the shelf."""

from __future__ import annotations

from saga import Service, Settings, serve

from orchestrated.inventory.domain import PARTICIPANT
from orchestrated.inventory.store import TABLES


def build(_: Settings) -> Service:
    return Service(PARTICIPANT, TABLES)


if __name__ == "__main__":
    serve(build, Settings)
