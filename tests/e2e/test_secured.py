"""A whole load where callers have to be known and names are sealed."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import httpx

from order_saga.demo import demo
from order_saga.orders import plan
from saga.discovery import choreography
from saga.local.system import System
from saga.personal.opening import open_store
from tests.e2e.test_saga import as_predicted
from tests.forked import spawn
from tests.secured import secured

ORDERS: Final = 40
SEED: Final = 17


async def test_a_load_through_an_outage_ends_as_predicted_and_names_stay_sealed(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    with secured(folder) as environment:
        async with System(folder, disposable=True, spawn=spawn, environment=environment) as system:
            planned = plan(ORDERS, SEED, None)
            result = await demo(system.deployment, choreography(), planned, seed=SEED)

            as_predicted(result)
            url = system.deployment.http_urls["order"][0]
            async with httpx.AsyncClient(base_url=url) as stranger:
                assert (await stranger.get("/orders/1")).status_code == 401
            names = {order.customer for order in planned.orders}
            store = open_store(system.deployment.personal_settings())
            assert all(store.person_of(name) is not None for name in names)
            store.close()
            kept = b"".join(
                file.read_bytes()
                for database in ("order", "payment", "inventory", "notification", "history")
                for file in folder.glob(f"{database}.db*")
            )
            assert not [name for name in names if name.encode() in kept]
