"""What goes on in the order system while its console is watched: orders, a provider that is down,
messages that cannot be read."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from uuid import UUID

import aio_pika

from order_saga.orders import Shares
from order_saga.publish import next_plan, publish
from order_service.store import ORDERS
from payment_service.gateway import Fault, FaultMode, SandboxGateway
from payment_service.ledger import LedgerCharge
from saga.deployment import Deployment
from saga.discovery import choreography
from saga.dlq.desk import open_desk
from saga.dlq.selection import Selection
from saga.dlq.states import HERE
from saga.dlq.store import Store
from saga.local.system import System
from saga.reconcile import reconcile
from saga.runtime.kernel.opening import read_database
from saga.runtime.messaging.connection import connect
from saga.runtime.messaging.topology import DEAD_EXCHANGE
from tests.polling import until

CONFIRMED = Shares(high=0.3, out_of_stock=0, mispriced=0, declined=0, cancelled=0, malformed=0)
"""Orders all of which are to be confirmed."""


async def ordered(deployment: Deployment, count: int) -> list[UUID]:
    """Place so many orders, all of which are to be confirmed."""
    plan = await next_plan(deployment, count, 20, CONFIRMED)
    await publish(deployment, plan)
    return [order.order_id for order in plan.orders]


async def _with_gateway(deployment: Deployment, work: Any) -> Any:
    def run() -> Any:
        gateway = SandboxGateway(deployment.outside_urls["provider"])
        try:
            return work(gateway)
        finally:
            asyncio.run(gateway.close())

    return await asyncio.to_thread(run)


async def provider(deployment: Deployment, mode: FaultMode) -> None:
    """Make the provider fail in this way from now on, or not at all."""
    await _with_gateway(deployment, lambda gateway: gateway.set_fault(Fault(mode)))


async def charges(deployment: Deployment, orders: list[UUID]) -> list[LedgerCharge]:
    """What the provider has in its books about these orders."""
    keys = {str(order) for order in orders}
    ledger = await _with_gateway(deployment, lambda gateway: list(gateway.ledger()))
    return [charge for charge in ledger if charge.key in keys]


@asynccontextmanager
async def outage(system: System, count: int) -> AsyncIterator[list[UUID]]:
    """So many orders whose charges are dead letters. The provider is back at the end; it may be
    brought back before."""
    deployment = system.deployment
    await provider(deployment, FaultMode.UNAVAILABLE)
    try:
        orders = await ordered(deployment, count)
        await until(lambda: _dead(deployment, orders))
        yield orders
    finally:
        await provider(deployment, FaultMode.NONE)


async def _dead(deployment: Deployment, orders: list[UUID]) -> bool:
    """Whether there is a letter of each order; collects what is in the queues."""
    async with open_desk(deployment, choreography()) as desk:
        letters = desk.store.find(Selection(service="payment"), HERE, contents=False)
    return {str(order) for order in orders} <= {letter.subject for letter in letters}


async def confirmed(deployment: Deployment, orders: list[UUID]) -> bool:
    """Whether each of these orders is."""
    keys = [str(order) for order in orders]
    url = deployment.database_urls["order"]
    found = await asyncio.to_thread(read_database, url, lambda c: ORDERS.load(c, keys))
    return [order.status for order, _ in found.values()] == ["confirmed"] * len(orders)


async def books_are_right(deployment: Deployment) -> bool:
    report = await reconcile(deployment, grace_seconds=0.0)
    return report.ok


async def bury(
    deployment: Deployment, count: int, *, said: str = "", mark: str = "buried", error: str = ""
) -> None:
    """So many messages in payment's queue of dead letters that cannot be decoded, with `said` in
    every field that a publisher fills in, or an `error` that quotes what is in a header."""
    async with await connect(deployment.amqp_url_of("payment"), name="test") as connection:
        channel = await connection.channel()
        exchange = await channel.get_exchange(DEAD_EXCHANGE, ensure=False)
        for number in range(count):
            message = aio_pika.Message(
                f"{{{said} {number}".encode(errors="replace"),
                message_id=f"{mark}-{number}",
                correlation_id=said[:80] or None,
                type=said[:80] or "made.up",
                headers={
                    "x-saga-reason": "undecodable",
                    "x-saga-error-type": said[:200] or "Buried",
                    "x-saga-error": error or said or "it was buried",
                    "x-saga-fingerprint": f"{mark}{said}"[:60],
                    "x-said": said or error,
                },
            )
            await exchange.publish(message, "payment")


@contextmanager
def store_of(system: System) -> Iterator[Store]:
    """The system's store of dead letters, as another command would open it."""
    store = Store(str(system.deployment.dead_letters_url))
    try:
        yield store
    finally:
        store.close()


def discard_all(system: System) -> None:
    """Leave no letter dead."""
    with store_of(system) as store:
        store.discard(Selection(), "the test is over")
