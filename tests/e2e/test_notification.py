"""A subscriber in a whole system: nobody waits for it, and it forgets nobody."""

from __future__ import annotations

from pathlib import Path

from saga.demo import demo
from saga.discovery import choreography
from saga.orders import plan
from saga.reconcile import reconcile
from saga.system import System
from tests.e2e.test_saga import as_predicted
from tests.polling import until

SEED = 50607
ORDERS = 60


async def test_a_subscriber_that_is_down_delays_nobody_and_tells_everybody_afterwards(
    tmp_path: Path,
) -> None:
    mails = tmp_path / "mail"
    async with System(tmp_path, disposable=True) as system:
        system.kill("notification")
        result = await demo(system.deployment, choreography(), plan(ORDERS, SEED), seed=SEED)
        as_predicted(result)
        assert list(mails.glob("*.eml")) == []

        await system.start("notification")
        await until(lambda: len(list(mails.glob("*.eml"))) == ORDERS)
        report = await reconcile(system.deployment, grace_seconds=0.0)
    assert report.violations == ()
