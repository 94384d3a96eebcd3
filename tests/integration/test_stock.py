"""A delivery to the shelf is added once, also after the inbox has forgotten it."""

from __future__ import annotations

from inventory_service.app import routes
from inventory_service.domain import PARTICIPANT
from inventory_service.store import TABLES
from tests.integration.kernels import client_of, replica

TEA = {"sku": "tea", "quantity": 7, "unit_price_cents": 250, "currency": "EUR"}
INK = {"sku": "ink", "quantity": 1, "unit_price_cents": 900, "currency": "EUR"}
KEY = {"Idempotency-Key": "delivery-1"}


async def test_a_delivery_sent_again_after_the_inbox_has_forgotten_it_is_not_added_again(
    database_url: str,
) -> None:
    async with (
        replica(database_url, PARTICIPANT, TABLES) as inventory,
        client_of(inventory, routes) as client,
    ):
        first = await client.post("/stock", json={"items": [TEA, INK]}, headers=KEY)
        forget = inventory.tables.inbox.delete()
        await inventory.database.transaction(lambda connection: connection.execute(forget))
        again = await client.post("/stock", json={"items": [TEA, INK]}, headers=KEY)
        await inventory.database.transaction(lambda connection: connection.execute(forget))
        other = await client.post("/stock", json={"items": [TEA | {"quantity": 8}]}, headers=KEY)
        shelf = (await client.get("/stock/tea")).json()

    assert (first.status_code, again.status_code, other.status_code) == (202, 202, 422)
    assert again.json() == first.json()
    assert shelf["free"] == 7
    assert len(inventory.publisher.published) == 2
