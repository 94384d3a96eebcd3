"""The service that packs parcels."""

from __future__ import annotations

from saga.runtime.service import Service, main
from saga.runtime.settings import Settings
from tests.parcels import SHOP
from tests.parcels.shop.store import TABLES


def build(_: Settings) -> Service:
    return Service(SHOP, TABLES)


def serve() -> None:
    """Run the service until it is stopped."""
    main(build, Settings)


if __name__ == "__main__":
    serve()
