"""One system at a time on a broker, however many start at the same moment."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
import yarl

from saga.broker.claim import Claim, ClaimedError
from saga.local.keeping import keep_claim
from saga.local.system import System
from tests.faults.proxy import Proxy
from tests.polling import until


async def test_of_several_that_start_at_once_one_has_the_broker(amqp_url: str) -> None:
    claims = [Claim(amqp_url) for _ in range(5)]

    found = await asyncio.gather(*(claim.take() for claim in claims), return_exceptions=True)

    refused = [error for error in found if error is not None]
    assert len(refused) == 4
    for error in refused:
        assert isinstance(error, ClaimedError)
        assert "another system runs at" in str(error)
        assert "AMQP_URL" in str(error)
    assert [claim.held for claim in claims].count(True) == 1
    for claim in claims:
        await claim.give_up()
    await claims[0].take()
    await claims[0].give_up()


async def test_a_system_does_not_start_where_another_is_starting(
    amqp_url: str, tmp_path: Path
) -> None:
    other = Claim(amqp_url)
    await other.take()  # as one does that has no consumers yet

    with pytest.raises(ClaimedError):
        async with System(tmp_path, amqp_url=amqp_url):
            pytest.fail("both run")
    await other.give_up()


async def test_a_system_whose_connection_is_lost_takes_the_broker_again(amqp_url: str) -> None:
    port = yarl.URL(amqp_url).port or 0
    async with Proxy(lambda: port) as proxy:
        claim = Claim(str(yarl.URL(amqp_url).with_port(proxy.port)))
        await claim.take()
        keeping = asyncio.ensure_future(keep_claim(claim))
        proxy.cut()
        await until(lambda: not claim.held)
        await until(lambda: claim.held)
        keeping.cancel()
        await asyncio.wait({keeping})
        with pytest.raises(ClaimedError):
            await Claim(amqp_url).take()
        await claim.give_up()
