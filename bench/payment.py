"""Our payment service with a provider that only takes its time, as the opponent's does.

BENCH_GATEWAY_MS=50 ... python -m bench.payment
BENCH_GATEWAY_MS=50 ... python -m bench.payment orchestrated

With an argument, that of the example of this name. The customer's name may have it decline, or take
its time.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Any, Final
from uuid import uuid4

from common.events import DeclineReason
from payment_service.app import PaymentSettings, build_with
from payment_service.ledger import Decline, Receipt
from saga.runtime.service import Service, main

DECLINED, SLOW = "card_declined", "slow"
"""What a customer's name says of them."""
SLOW_SECONDS: Final = 2.5
GATEWAY_SECONDS: Final = float(os.environ.get("BENCH_GATEWAY_MS", "0")) / 1_000


class Timed:
    """Charge every customer after a while, and keep no record of it."""

    async def charge(
        self, key: str, *, customer: str, currency: str, amount_cents: int
    ) -> Receipt | Decline:
        if seconds := GATEWAY_SECONDS + SLOW_SECONDS * (SLOW in customer):
            await asyncio.sleep(seconds)
        if DECLINED in customer:
            return Decline(DeclineReason.CARD_DECLINED)
        return Receipt(uuid4().hex)

    async def refund(self, key: str, *, currency: str, amount_cents: int) -> None:
        """Takes note of nothing."""

    async def close(self) -> None:
        """Nothing is open."""


class TimedBookkeeper:
    """The same for the example, by whose rules it decides: a `Bookkeeper`."""

    def __init__(self) -> None:
        self._slow: dict[str, Any] = {}
        """What is given back in the end."""

    async def ask(self, key: str, rule: Callable[[Any, Any], Any]) -> Any:
        line, answer = rule(self._slow.get(key), None)
        if slow := SLOW in line.customer:
            self._slow[key] = line
        if seconds := GATEWAY_SECONDS + SLOW_SECONDS * slow:
            await asyncio.sleep(seconds)
        return answer


if __name__ == "__main__":
    if len(sys.argv) > 1:
        example = import_module(f"{sys.argv[1]}.payment.app")
        ask = import_module(f"{sys.argv[1]}.provider").asks(TimedBookkeeper())
        main(
            lambda _: Service(example.PARTICIPANT, example.TABLES, ask=ask), example.PaymentSettings
        )
    else:
        main(lambda _: build_with(Timed()), PaymentSettings)
