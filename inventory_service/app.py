"""The inventory service: reserves what is ordered; stock is put on its shelf over HTTP."""

from __future__ import annotations

import asyncio
from typing import Annotated, Self
from uuid import UUID, uuid4

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from sqlalchemy.engine import Connection

from common.events import STOCK_QUANTITY_MAX, Currency, Sku, UnitPriceCents
from inventory_service.domain import PARTICIPANT, AddStock, Delivery, StockItem, delivery_key
from inventory_service.store import DELIVERIES, STOCK, TABLES
from saga.auth.scopes import needs
from saga.envelope import MessageKey, derived_id, source_of
from saga.runtime.kernel.rows import writing
from saga.runtime.kernel.tables import VersionConflict
from saga.runtime.problem import Problem, problems
from saga.runtime.service import Running, Service, main
from saga.runtime.settings import Settings
from saga.runtime.web import WITH_BODY, IdempotencyKey, answer_from, unless_away

DELIVERY_ITEMS_MAX = 500


class NewStock(BaseModel):
    """Units to put on the shelf, and the SKU's price from then on."""

    model_config = ConfigDict(extra="forbid")

    sku: Sku
    quantity: Annotated[int, Field(strict=True, ge=0, le=STOCK_QUANTITY_MAX)]
    unit_price_cents: Annotated[UnitPriceCents, Field(strict=True)]
    currency: Currency


class StockDelivery(BaseModel):
    """Several of them; each SKU once."""

    model_config = ConfigDict(extra="forbid")

    items: Annotated[list[NewStock], Field(min_length=1, max_length=DELIVERY_ITEMS_MAX)]


class StockView(BaseModel):
    """One SKU on the shelf."""

    model_config = ConfigDict(from_attributes=True)

    sku: str = Field(validation_alias="key")
    unit_price_cents: int | None
    currency: str
    free: int
    held: int

    @classmethod
    def of(cls, item: StockItem) -> Self:
        return cls.model_validate(item)


def routes(running: Running) -> APIRouter:
    """`/stock`."""
    router = APIRouter(tags=["stock"])

    async def is_new_or_the_same(key: str, delivery: StockDelivery) -> bool:
        """Whether a key was not used yet, or for this same delivery. That is remembered as messages
        are, for a while; for ever, what a delivery brought of the SKUs that this one names."""
        source, delivery_id = source_of(PARTICIPANT.name), derived_id(key, "delivery")
        of_key = MessageKey(source, delivery_id)
        of_both = MessageKey(source, derived_id(delivery_id, delivery.model_dump_json()))
        brings = {delivery_key(UUID(delivery_id), item.sku): item for item in delivery.items}

        def remember(connection: Connection) -> bool:
            brought = DELIVERIES.load(connection, brings)
            if not all(_is(brought[name][0], brings[name]) for name in brought):
                return False
            known = running.tables.already_done(connection, {of_key, of_both})
            if not known:
                with writing(connection) as writes:
                    noted = dict.fromkeys((of_key, of_both))
                    running.tables.mark_done(writes, noted, running.clock())
            return not known or of_both in known

        while True:
            try:
                with unless_away(running.database):
                    return await running.database.transaction(remember)
            except VersionConflict:
                continue  # Another replica remembers the same key: by now it is known.

    @router.post(
        "/stock",
        status_code=202,
        responses=problems(*WITH_BODY),
        dependencies=[needs("stock:write")],
    )
    async def add(
        delivery: StockDelivery,
        idempotency_key: IdempotencyKey = None,
    ) -> list[StockView]:
        """Put stock on the shelf. Sent again with the same `Idempotency-Key`, it is added once."""
        if len({item.sku for item in delivery.items}) < len(delivery.items):
            raise Problem(422, "a delivery may name each SKU once; add the quantities up")
        if idempotency_key and not await is_new_or_the_same(idempotency_key, delivery):
            raise Problem(
                422,
                f"the Idempotency-Key {idempotency_key!r} was used before, for another delivery; "
                f"use a new key for a new delivery",
            )
        key = idempotency_key or str(uuid4())
        delivery_id = UUID(derived_id(key, "delivery"))
        await asyncio.gather(
            *(
                running.give(
                    AddStock(delivery_id=delivery_id, **item.model_dump()),
                    id=derived_id(key, f"{AddStock.type}/{item.sku}"),
                )
                for item in delivery.items
            )
        )
        skus = [item.sku for item in delivery.items]
        found = await answer_from(running.database, lambda connection: STOCK.load(connection, skus))
        return [StockView.of(found[sku][0]) for sku in skus]

    @router.get("/stock/{sku}", responses=problems(404, 422), dependencies=[needs("stock:read")])
    async def get(sku: Sku) -> StockView:
        """One SKU on the shelf."""
        item = await answer_from(running.database, lambda connection: STOCK.find(connection, sku))
        if item is None:
            raise Problem(404, f"no stock of {sku!r} was ever added")
        return StockView.of(item)

    return router


def _is(brought: Delivery, item: NewStock) -> bool:
    """Whether a delivery brought just this."""
    return (brought.quantity, brought.unit_price_cents, brought.currency) == (
        item.quantity,
        item.unit_price_cents,
        item.currency,
    )


def build(_: Settings) -> Service:
    """The inventory service."""
    return Service(PARTICIPANT, TABLES, routes=routes)


def serve() -> None:
    """Run the service with its settings from the environment."""
    main(build, Settings)


if __name__ == "__main__":
    serve()
