"""A subscriber in a whole system: no participant waits for it, and it forgets no customer."""

from __future__ import annotations

import asyncio

import pytest

from order_saga.demo import demo
from order_saga.publish import next_plan
from saga.discovery import choreography
from saga.local.system import System
from saga.reconcile import reconcile
from tests.e2e.test_saga import as_predicted
from tests.polling import until

SEED = 50607
ORDERS = 60


@pytest.mark.asyncio(loop_scope="session")
async def test_a_subscriber_that_is_down_delays_nobody_and_tells_everybody_afterwards(
    system: System,
) -> None:
    ended = 0

    def count(orders: int) -> None:
        nonlocal ended
        ended += orders

    load = await next_plan(system.deployment, ORDERS, SEED)
    orders = {str(order.order_id) for order in load.orders}
    system.kill("notification")
    running = asyncio.create_task(
        demo(system.deployment, choreography(), load, seed=SEED, ended=count)
    )
    await until(lambda: ended == ORDERS or running.done())
    assert not orders & told(system)

    await system.start("notification")
    as_predicted(await running)
    await until(lambda: orders <= told(system))
    report = await reconcile(system.deployment, grace_seconds=0.0)
    assert report.violations == ()


def told(system: System) -> set[str]:
    """The orders whose customers have a mail."""
    mails = (system.folder / "mail").glob("*.eml")
    return {mail.stem.rpartition(".")[2] for mail in mails}
