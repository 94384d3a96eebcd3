"""The service that arranges moves."""

from __future__ import annotations

from common.service import Service, main
from common.settings import Settings
from tests.moving.move.domain import PARTICIPANT
from tests.moving.move.store import TABLES


def build(_: Settings) -> Service:
    return Service(PARTICIPANT, TABLES)


if __name__ == "__main__":
    main(build, Settings)
