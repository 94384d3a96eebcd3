"""A whole load where callers have to be known and names are sealed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Final
from uuid import uuid4

import httpx

from order_saga.demo import demo
from order_saga.orders import plan
from saga.auth.keys import changing, new_key, read_keys
from saga.auth.settings import KEYS_FILE_NAME
from saga.discovery import choreography
from saga.local.system import System
from saga.personal.opening import open_store
from saga.runtime.kernel.tables import utc_now
from tests.e2e.test_saga import as_predicted
from tests.forked import spawn
from tests.polling import until
from tests.secured import secured

ORDERS: Final = 40
SEED: Final = 17
NAME: Final = "Zenobia Ungelesen"


def asking(url: str, key: str | None) -> httpx.AsyncClient:
    headers = {"Authorization": f"Bearer {key}"} if key else None
    return httpx.AsyncClient(base_url=url, headers=headers, timeout=30)


def made_key(folder: Path, *scopes: str, owner: str | None = None) -> str:
    key, kept = new_key("tests", scopes, owner=owner, now=utc_now())
    with changing(folder / KEYS_FILE_NAME) as keys:
        keys.append(kept)
    return key


async def customers_see_their_own(folder: Path, url: str) -> None:
    """Names are compared though the service has them sealed, and shown to those who may read
    them."""
    scopes = ("orders:read", "orders:write")
    own = made_key(folder, *scopes, owner=NAME)
    other = made_key(folder, *scopes, owner="Somebody Else")
    reader = made_key(folder, "*:read")
    admin = made_key(folder, "*")
    line = {"sku": "none", "quantity": 1, "unit_price_cents": 100}
    order = {"customer": NAME, "currency": "EUR", "lines": [line]}
    async with asking(url, other) as client:

        async def is_known() -> bool:
            return (await client.get(f"/orders/{uuid4()}")).status_code == 404

        await until(is_known)  # Services notice new keys within seconds.
        assert (await client.post("/orders", json=order)).status_code == 403
    async with asking(url, own) as client:
        placed = await client.post("/orders", json=order)
        assert placed.status_code == 202, placed.text
        assert placed.json()["customer"] == NAME
        path = f"/orders/{placed.json()['order_id']}"
        assert (await client.get(path)).json()["customer"] == NAME
    async with asking(url, other) as client:
        assert (await client.get(path)).status_code == 404
        assert (await client.post(f"{path}/cancel")).status_code == 404
    async with asking(url, reader) as client:
        shown = (await client.get(path)).json()["customer"]
        assert shown.startswith("person ")
    async with asking(url, admin) as client:
        assert (await client.get(path)).json()["customer"] == NAME


async def is_forgotten(folder: Path, name: str) -> None:
    """What is open for them is ended with our key, and their name is nowhere afterwards."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "saga.cli", "forget", "--reason", "they asked", "--yes"),
        *("--data-dir", str(folder), "--json"),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate(name.encode())
    assert process.returncode == 0, out.decode()


async def test_a_load_through_an_outage_ends_as_predicted_and_names_stay_sealed(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "data"
    with secured(folder) as environment:
        environment["PERSONAL_CACHE_SECONDS"] = "0.2"
        async with System(folder, disposable=True, spawn=spawn, environment=environment) as system:
            planned = plan(ORDERS, SEED, None)
            result = await demo(system.deployment, choreography(), planned, seed=SEED)

            as_predicted(result)
            url = system.deployment.http_urls["order"][0]
            async with asking(url, None) as stranger:
                assert (await stranger.get(f"/orders/{uuid4()}")).status_code == 401
            await customers_see_their_own(folder, url)
            assert system.deployment.callers_known is True
            assert system.deployment.api_keys_file == (folder / KEYS_FILE_NAME).absolute()
            owners = {key.owner for key in read_keys(folder / KEYS_FILE_NAME)}
            await is_forgotten(folder, NAME)
            left = {key.owner for key in read_keys(folder / KEYS_FILE_NAME)}
            assert owners - left == {NAME}
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
