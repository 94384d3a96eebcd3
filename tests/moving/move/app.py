"""The service that arranges moves."""

from __future__ import annotations

from saga.runtime.service import Service, main
from saga.runtime.settings import Settings
from tests.moving.move.domain import PARTICIPANT
from tests.moving.move.store import TABLES


def build(_: Settings) -> Service:
    return Service(PARTICIPANT, TABLES)


if __name__ == "__main__":
    main(build, Settings)
