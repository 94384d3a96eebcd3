"""The service that takes orders, over HTTP as well as over the broker."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter
from saga import Running, Service, Settings, derived_id, needs, serve

from orchestrated.coordinator.domain import PARTICIPANT, Order, Step
from orchestrated.coordinator.store import TABLES
from orchestrated.language import CancelOrder, PlaceOrder


def build(_: Settings) -> Service:
    return Service(PARTICIPANT, TABLES, routes=routes)


def routes(running: Running) -> APIRouter:
    """What customers do. Their commands have ids of their own, so that one sent twice is done
    once."""
    router = APIRouter()

    @router.post("/orders", status_code=202, dependencies=[needs("orders:write")])
    async def place(command: PlaceOrder) -> None:
        await running.give(command, id=derived_id(command.subject, command.type))

    @router.post("/orders/{order_id}/cancel", status_code=202, dependencies=[needs("orders:write")])
    async def cancel(order_id: UUID) -> None:
        command = CancelOrder(order_id=order_id)
        await running.give(command, id=derived_id(command.subject, command.type))

    @router.get("/orders/{order_id}", dependencies=[needs("orders:read")])
    async def step(order_id: UUID) -> Step:
        key = str(order_id)
        orders = TABLES.states[Order]
        found = await running.database.read(lambda connection: orders.find(connection, key))
        return Step.UNKNOWN if found is None else found.step

    return router


if __name__ == "__main__":
    serve(build, Settings)
